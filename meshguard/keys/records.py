"""A keyset as it is stored: its versions, their states, and their keys, in the clear or wrapped by a key-encryption key (KEK).

In the clear (development, single machines), a JWK Set (RFC 7517 section 5), so that any JOSE library can open what they sealed:

    {"format": "meshguard-keyset/1", "name": "orders-pii", "keys": [
      {"kty": "oct", "use": "enc", "kid": "orders-pii:1", "version": 1, "state": "primary", "created": "2026-01-31T12:00:00Z", "k": "..."}]}

Wrapped, which is no secret and can be given to every node:

    {"format": "meshguard-wrapped-keyset/1", "name": "orders-pii", "provider": "vault", "tenancy": "shared", "keys": [
      {"version": 1, "state": "primary", "created": "...", "activates": "...", "wrapped": "vault:v1:..."}], "tenants": {}}

A destroyed version stays as a line without its key. `activates` is when a primary version begins to seal: until then every node has the
time to learn it. `tenants` holds a secret for each tenant that can be destroyed alone, sealed under the version that it names.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import ceil
from typing import Any

from meshguard.fields.keyset import KEY_BYTES, KeyState, Tenancy, is_keyset_name

__all__ = ["PLAIN", "WRAPPED", "KeyRecord", "KeysetRecord", "TenantRecord", "parse_record", "record_values", "timestamp"]

PLAIN = "meshguard-keyset/1"
WRAPPED = "meshguard-wrapped-keyset/1"
MAX_TENANT = 256
_PLAIN_MEMBERS = {"kty", "use", "kid", "version", "state", "created", "k"}
_WRAPPED_MEMBERS = {"version", "state", "created", "activates", "wrapped"}
_TENANT_MEMBERS = {"created", "version", "wrapped"}


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One version as it is stored; times are epoch seconds. `material` or `wrapped`, neither once destroyed. The repr has no key."""

    version: int
    state: KeyState
    created: float
    material: bytes | None = None
    wrapped: str = ""
    activates: float = 0.0

    def __repr__(self) -> str:
        return f"KeyRecord(version={self.version}, state={self.state.value})"

    def with_state(self, state: KeyState) -> KeyRecord:
        """The same version in another state; destroying drops the key."""
        gone = state is KeyState.DESTROYED
        return replace(self, state=state, material=None if gone else self.material, wrapped="" if gone else self.wrapped)


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """The secret of one tenant, sealed under `version`; "" once it is destroyed."""

    created: float
    version: int
    wrapped: str


@dataclass(frozen=True, slots=True)
class KeysetRecord:
    """A keyset as it is stored, versions in ascending order. `provider` is "" where the keys lie in the clear."""

    name: str
    keys: tuple[KeyRecord, ...]
    provider: str = ""
    tenancy: Tenancy = Tenancy.SHARED
    tenants: Mapping[str, TenantRecord] = field(default_factory=dict)

    @property
    def primary(self) -> KeyRecord | None:
        return next((key for key in self.keys if key.state is KeyState.PRIMARY), None)

    def with_key(self, key: KeyRecord) -> KeysetRecord:
        """With `key` in place of its version."""
        return replace(self, keys=tuple(key if other.version == key.version else other for other in self.keys))


def parse_record(values: Mapping[str, Any]) -> KeysetRecord:
    """The record in the members of a keyset file. Raises ValueError, which never carries a key."""
    wrapped = values.get("format") == WRAPPED
    members = {"format", "name", "keys", "provider", "tenancy", "tenants"} if wrapped else {"format", "name", "keys"}
    if set(values) != members or values["format"] not in (PLAIN, WRAPPED):
        raise ValueError(f"expected exactly the members format ({PLAIN}), name and keys, or those of {WRAPPED}")
    name = values["name"]
    if not isinstance(name, str) or not is_keyset_name(name):
        raise ValueError("expected a keyset name")
    if not isinstance(values["keys"], list):
        raise ValueError("expected a list of keys")
    read = _wrapped_key if wrapped else _plain_key
    keys = tuple(read(name, number, item) for number, item in enumerate(values["keys"]))
    if [key.version for key in keys] != sorted({key.version for key in keys}):
        raise ValueError("expected versions in ascending order, each once")
    if not wrapped:
        return KeysetRecord(name, keys)
    provider = values["provider"]
    if not isinstance(provider, str) or not provider.isidentifier():
        raise ValueError("expected the name of a provider")
    try:
        tenancy = Tenancy(values["tenancy"])
    except ValueError:
        raise ValueError(f"expected a tenancy: {', '.join(item.value for item in Tenancy)}") from None
    if not isinstance(values["tenants"], dict):
        raise ValueError("expected tenants by name")
    tenants = {tenant: _tenant(tenant, item) for tenant, item in values["tenants"].items()}
    return KeysetRecord(name, keys, provider, tenancy, tenants)


def record_values(record: KeysetRecord) -> dict[str, Any]:
    """The members of a keyset file, as `parse_record` reads them."""
    if not record.provider:
        return {"format": PLAIN, "name": record.name, "keys": [_plain_values(record.name, key) for key in record.keys]}
    tenants = {
        tenant: {"created": timestamp(item.created), "version": item.version, "wrapped": item.wrapped}
        for tenant, item in sorted(record.tenants.items())
    }
    return {
        "format": WRAPPED,
        "name": record.name,
        "provider": record.provider,
        "tenancy": record.tenancy.value,
        "keys": [_wrapped_values(key) for key in record.keys],
        "tenants": tenants,
    }


def timestamp(seconds: float) -> str:
    """Epoch seconds as 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain_values(name: str, key: KeyRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {"kty": "oct", "use": "enc", "kid": f"{name}:{key.version}"}
    entry |= {"version": key.version, "state": key.state.value, "created": timestamp(key.created)}
    if key.material is not None:
        entry["k"] = urlsafe_b64encode(key.material).rstrip(b"=").decode()
    return entry


def _wrapped_values(key: KeyRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {"version": key.version, "state": key.state.value, "created": timestamp(key.created)}
    entry["activates"] = timestamp(ceil(key.activates))  # never early
    if key.wrapped:
        entry["wrapped"] = key.wrapped
    return entry


def _plain_key(name: str, number: int, item: object) -> KeyRecord:
    where = f"keys[{number}]"
    if not isinstance(item, dict) or not set(item) <= _PLAIN_MEMBERS or not set(item) >= _PLAIN_MEMBERS - {"k"}:
        raise ValueError(f"{where}: expected the members {', '.join(sorted(_PLAIN_MEMBERS))}")
    version, state, created = _common(where, item)
    if item["kty"] != "oct" or item["use"] != "enc" or item["kid"] != f"{name}:{version}":
        raise ValueError(f"{where}: expected kty oct, use enc and kid {name}:{version}")
    material = _material(item.get("k"))
    if (state is KeyState.DESTROYED) != ("k" not in item) or (material is None and "k" in item):
        raise ValueError(f"{where}.k: expected {KEY_BYTES} octets in base64url, or a destroyed version without k")
    return KeyRecord(version, state, created, material)


def _wrapped_key(name: str, number: int, item: object) -> KeyRecord:
    where = f"keys[{number}]"
    if not isinstance(item, dict) or not set(item) <= _WRAPPED_MEMBERS or not set(item) >= _WRAPPED_MEMBERS - {"wrapped"}:
        raise ValueError(f"{where}: expected the members {', '.join(sorted(_WRAPPED_MEMBERS))}")
    version, state, created = _common(where, item)
    wrapped = item.get("wrapped", "")
    if not isinstance(wrapped, str) or not wrapped.isascii() or (state is KeyState.DESTROYED) != (not wrapped):
        raise ValueError(f"{where}.wrapped: expected a wrapped key, or a destroyed version without it")
    return KeyRecord(version, state, created, None, wrapped, _moment(where, item["activates"]))


def _common(where: str, item: Mapping[str, Any]) -> tuple[int, KeyState, float]:
    version = item["version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"{where}.version: expected a number from 1")
    try:
        state = KeyState(item["state"])
    except ValueError:
        raise ValueError(f"{where}: expected a state and a time such as 2026-01-31T12:00:00Z") from None
    return version, state, _moment(where, item["created"])


def _tenant(tenant: str, item: object) -> TenantRecord:
    if not tenant or len(tenant) > MAX_TENANT or not isinstance(item, dict) or set(item) != _TENANT_MEMBERS:
        raise ValueError(f"tenants: expected the members {', '.join(sorted(_TENANT_MEMBERS))} for each")
    if type(item["version"]) is not int or not isinstance(item["wrapped"], str) or not item["wrapped"].isascii():
        raise ValueError("tenants: expected a version and a wrapped secret for each")
    return TenantRecord(_moment("tenants", item["created"]), item["version"], item["wrapped"])


def _moment(where: str, text: object) -> float:
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise ValueError(f"{where}: expected a state and a time such as 2026-01-31T12:00:00Z") from None


def _material(text: object) -> bytes | None:
    if not isinstance(text, str) or not text.isascii():
        return None
    with suppress(ValueError):
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if len(data) == KEY_BYTES and urlsafe_b64encode(data).rstrip(b"=").decode() == text:
            return data
    return None
