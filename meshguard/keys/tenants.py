"""A secret for each tenant (or subject), so that one alone can be destroyed: crypto-shredding.

The secret is 32 random octets, sealed under a key derived from one version of the keyset, and lies in the keyset file. It goes into every
subkey of its tenant (`fields.material`): without it no value of that tenant opens again, whatever version sealed it. No call to the
provider is made for a tenant, so there may be many.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshguard.fields.keyset import KEY_BYTES
from meshguard.fields.material import KeyMaterial, derive_key
from meshguard.keys.records import TenantRecord
from meshguard.model.errors import KeysetError

__all__ = ["new_tenant", "open_tenant", "open_tenants"]

_NONCE_BYTES = 12
_INFO = b"meshguard/tenant-secret/1"


def new_tenant(keyset: str, tenant: str, version: int, key: bytes, now: float, secret: bytes = b"") -> TenantRecord:
    """A tenant's record under `version`, whose key is `key`; with a new secret unless one is given."""
    nonce = token_bytes(_NONCE_BYTES)
    sealed = _cipher(key).encrypt(nonce, secret or token_bytes(KEY_BYTES), _bound(keyset, tenant))
    return TenantRecord(now, version, urlsafe_b64encode(nonce + sealed).decode())


def open_tenant(keyset: str, tenant: str, record: TenantRecord, key: bytes) -> bytes:
    """The secret in `record`. Raises KeysetError."""
    try:
        data = urlsafe_b64decode(record.wrapped)
        return _cipher(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound(keyset, tenant))
    except (ValueError, InvalidTag):
        raise KeysetError(f"keyset {keyset}: the secret of a tenant does not open") from None


def open_tenants(keyset: str, tenants: Mapping[str, TenantRecord], keys: Mapping[int, KeyMaterial]) -> dict[str, KeyMaterial]:
    """The secrets of all tenants that are not destroyed; absent where the version that seals one is not there. Raises KeysetError."""
    found = {}
    for tenant, record in tenants.items():
        if record.wrapped:
            material = keys.get(record.version)
            present = material is not None and material.present
            found[tenant] = KeyMaterial(open_tenant(keyset, tenant, record, material.octets) if present and material else None)
    return found


def _cipher(key: bytes) -> AESGCM:
    return AESGCM(derive_key(key, b"", _INFO))


def _bound(keyset: str, tenant: str) -> bytes:
    return f"{keyset}\0{tenant}".encode()
