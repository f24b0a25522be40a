"""What can be done to a wrapped keyset: create, rotate, rewrap, retire; make and destroy the secret of a tenant.

The provider is asked before the lock of the file is taken; under the lock it is checked that nobody was faster. State changes of a
version that need no provider are in `lifecycle`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

from meshguard.fields.keyset import KeyState, Tenancy, is_keyset_name
from meshguard.keys.keyset_file import locked, read_keyset, write_keyset
from meshguard.keys.provider import Binding, Kek
from meshguard.keys.records import MAX_TENANT, KeyRecord, KeysetRecord, TenantRecord
from meshguard.keys.tenants import new_tenant, open_tenant
from meshguard.model.errors import KeysetError

__all__ = ["add_tenant", "create_wrapped", "destroy_tenant", "retire", "rewrap", "rotate_wrapped"]


async def create_wrapped(path: Path, name: str, provider: str, kek: Kek, now: float, tenancy: Tenancy = Tenancy.SHARED) -> KeysetRecord:
    """A new keyset file with one version, whose key the provider has made. Raises KeysetError when there is a file already."""
    if not is_keyset_name(name):
        raise KeysetError(f"{name!r}: expected a keyset name of at most 64 letters, digits, '_', '.' and '-'")
    _, wrapped = await kek.new_key(Binding(name, 1))
    record = KeysetRecord(name, (KeyRecord(1, KeyState.PRIMARY, now, None, wrapped, now),), provider, tenancy)

    def write() -> None:
        with locked(path):
            if path.exists():
                raise KeysetError(f"{path} exists: keys are never overwritten (rotate makes a new version)")
            write_keyset(path, record)

    await asyncio.to_thread(write)
    return record


async def rotate_wrapped(path: Path, kek: Kek, now: float, settle_s: float, *, older_than_s: float = 0.0) -> KeysetRecord | None:
    """A new primary version, which seals from `now + settle_s` on; None when the primary is younger than `older_than_s`, also because
    somebody else has just rotated. Raises KeysetError, OSError."""
    started = monotonic()
    before = await asyncio.to_thread(_wrapped_record, path)
    if _younger(before, now, older_than_s):
        return None
    version = 1 + max((key.version for key in before.keys), default=0)
    _, wrapped = await kek.new_key(Binding(before.name, version))
    def change(record: KeysetRecord) -> KeysetRecord | None:
        if _younger(record, now, older_than_s):
            return None
        if max((key.version for key in record.keys), default=0) != version - 1:
            raise KeysetError(f"{path}: another rotation was faster")
        # counted from when the others can see it, not from when the provider was asked
        waits = settle_s > 0 and record.primary is not None
        activates = now + monotonic() - started + settle_s if waits else float(int(now))
        fresh = KeyRecord(version, KeyState.PRIMARY, now, None, wrapped, activates)
        older = tuple(key.with_state(KeyState.ENABLED) if key.state is KeyState.PRIMARY else key for key in record.keys)
        return replace(record, keys=(*older, fresh))

    return await asyncio.to_thread(_changed, path, change)


async def rewrap(path: Path, kek: Kek) -> KeysetRecord:
    """Wrap every key anew under the KEK as it is now (after a rotation there), and move the secrets of tenants to the primary version.
    The data keys stay what they are. Raises KeysetError, OSError."""
    before = await asyncio.to_thread(_wrapped_record, path)
    octets: dict[int, bytes] = {}
    wrapped: dict[int, str] = {}
    for key in before.keys:
        if key.state is not KeyState.DESTROYED:
            binding = Binding(before.name, key.version)
            octets[key.version] = await kek.unwrap(key.wrapped, binding)
            wrapped[key.version] = await kek.wrap(octets[key.version], binding)
    primary = before.primary

    def change(record: KeysetRecord) -> KeysetRecord:
        if {key.version: key.wrapped for key in record.keys} != {key.version: key.wrapped for key in before.keys}:
            raise KeysetError(f"{path}: was changed in between: try again")
        keys = tuple(replace(key, wrapped=wrapped.get(key.version, "")) for key in record.keys)
        tenants = dict(record.tenants)
        if primary is not None:
            for name, tenant in record.tenants.items():
                if tenant.wrapped and tenant.version != primary.version:
                    secret = open_tenant(record.name, name, tenant, octets[tenant.version])
                    tenants[name] = new_tenant(record.name, name, primary.version, octets[primary.version], tenant.created, secret)
        return replace(record, keys=keys, tenants=tenants)

    changed = await asyncio.to_thread(_changed, path, change)
    return changed if changed is not None else before


def retire(path: Path, now: float, after_s: float) -> list[int]:
    """Disable the versions that stopped sealing `after_s` ago, and which hold no tenant's secret; returns them. Raises KeysetError,
    OSError."""

    def due(record: KeysetRecord) -> list[int]:
        held = {tenant.version for tenant in record.tenants.values() if tenant.wrapped}
        found = []
        for key, following in zip(record.keys, record.keys[1:], strict=False):
            ended = max(following.activates, following.created)
            if key.state is KeyState.ENABLED and key.version not in held and now - ended >= after_s:
                found.append(key.version)
        return found

    def change(record: KeysetRecord) -> KeysetRecord | None:
        versions = due(record)
        keys = tuple(key.with_state(KeyState.DISABLED) if key.version in versions else key for key in record.keys)
        return replace(record, keys=keys) if versions else None

    versions = due(_wrapped_record(path))
    if versions:
        _changed(path, change)
    return versions


async def add_tenant(path: Path, kek: Kek, tenant: str, now: float) -> KeysetRecord:
    """Make the secret of a tenant. One that was destroyed is never made again: its old values would look like new ones that fail."""
    if not 0 < len(tenant) <= MAX_TENANT or not tenant.isprintable():
        raise KeysetError(f"expected a tenant of at most {MAX_TENANT} printable characters")
    before = await asyncio.to_thread(_wrapped_record, path)
    primary = before.primary
    if before.tenancy is not Tenancy.OWN:
        raise KeysetError(f"{path}: its tenants have no keys of their own (create it with --tenancy own)")
    if primary is None:
        raise KeysetError(f"{path}: no primary version (rotate first)")
    key = await kek.unwrap(primary.wrapped, Binding(before.name, primary.version))
    made = new_tenant(before.name, tenant, primary.version, key, now)

    def change(record: KeysetRecord) -> KeysetRecord:
        if tenant in record.tenants:
            raise KeysetError(f"{path}: tenant {tenant!r} is there already{'' if record.tenants[tenant].wrapped else ', destroyed'}")
        return replace(record, tenants={**record.tenants, tenant: made})

    return await asyncio.to_thread(_changed, path, change) or before


def destroy_tenant(path: Path, tenant: str) -> KeysetRecord:
    """Delete the secret of a tenant: nothing that was sealed for it opens again. Its name stays, without a secret."""

    def change(record: KeysetRecord) -> KeysetRecord:
        found = record.tenants.get(tenant)
        if found is None or not found.wrapped:
            raise KeysetError(f"{path}: tenant {tenant!r} is {'unknown' if found is None else 'destroyed already'}")
        return replace(record, tenants={**record.tenants, tenant: TenantRecord(found.created, found.version, "")})

    changed = _changed(path, change)
    return changed if changed is not None else _wrapped_record(path)


def _wrapped_record(path: Path) -> KeysetRecord:
    record = read_keyset(path)
    if not record.provider:
        raise KeysetError(f"{path}: its keys lie in the clear, no provider wraps them")
    return record


def _younger(record: KeysetRecord, now: float, older_than_s: float) -> bool:
    return older_than_s > 0 and record.primary is not None and now - record.primary.created < older_than_s


def _changed(path: Path, change: Callable[[KeysetRecord], KeysetRecord | None]) -> KeysetRecord | None:
    with locked(path):
        record = change(_wrapped_record(path))
        if record is not None:
            write_keyset(path, record)
    return record
