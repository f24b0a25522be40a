"""The record of a destroyed key: what was destroyed, when, and how the keyset file looked before and after; signed where a key is given.

It proves what was done to this file. Copies of the file (backups, other nodes) that still hold the wrapped key are beyond it, as long as
the key-encryption key lives: they have to expire, or the key-encryption key has to go.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from meshguard.fields.keyset import KeyState
from meshguard.keys.records import KeysetRecord, record_values, timestamp
from meshguard.model.errors import KeysetError

__all__ = ["proof_of", "record_digest", "signed"]


def proof_of(before: KeysetRecord, after: KeysetRecord, now: float) -> dict[str, Any]:
    """The versions and tenants that were there `before` and have no key `after`, with SHA-256 digests of wrapped keys and of both files
    (of a keyset in the clear none: a digest of a key is not given away)."""
    held = {key.version: key for key in before.keys if key.state is not KeyState.DESTROYED}
    versions = [key.version for key in after.keys if key.state is KeyState.DESTROYED and key.version in held]
    tenants = [name for name, item in after.tenants.items() if not item.wrapped and name in before.tenants and before.tenants[name].wrapped]
    proof: dict[str, Any] = {"event": "keys.destroyed", "time": timestamp(now), "keyset": before.name}
    if versions:
        proof["versions"] = versions
    if tenants:
        proof["tenants"] = tenants
    if before.provider:
        wrapped = [held[version].wrapped for version in versions] + [before.tenants[name].wrapped for name in tenants]
        proof["provider"] = before.provider
        proof["destroyed_sha256"] = [sha256(item.encode()).hexdigest() for item in wrapped]
        proof["before_sha256"], proof["after_sha256"] = record_digest(before), record_digest(after)
    return proof


def signed(proof: dict[str, Any], signer: Path) -> str:
    """The proof as a compact JWS (RFC 7515) with Ed25519 (RFC 9864), by the Ed25519 key in the PEM file `signer`. Raises KeysetError."""
    try:
        key = load_pem_private_key(signer.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise KeysetError(f"{signer}: expected an Ed25519 private key in PEM, without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeysetError(f"{signer}: expected an Ed25519 private key")
    content = ".".join(_encoded(part) for part in ({"alg": "Ed25519", "typ": "meshguard-proof+jws"}, proof))
    return f"{content}.{_base64(key.sign(content.encode()))}\n"


def record_digest(record: KeysetRecord) -> str:
    """SHA-256 of a keyset file with wrapped keys, whatever its layout."""
    return sha256(json.dumps(record_values(record), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _encoded(values: dict[str, Any]) -> str:
    return _base64(json.dumps(values, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
