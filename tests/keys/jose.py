"""An independent reader and writer of our envelopes: joserfc for the JWE, HMAC of the standard library for HKDF (RFC 5869)."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode
from hashlib import sha256
from typing import Any

from joserfc import jwe
from joserfc.jwk import OctKey

REGISTRY = jwe.JWERegistry(algorithms=["dir", "A256GCM"], strict_check_header=False)


def header_of(value: str) -> dict[str, Any]:
    """The protected header of a compact JWE."""
    text = value.partition(".")[0]
    header: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return header


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """32 octets of HKDF-SHA256, by its two steps."""
    return hmac.digest(hmac.digest(salt, key, sha256), info + b"\x01", sha256)


def key_of(header: dict[str, Any], key: bytes, *, tenants: bool = False, secret: bytes = b"") -> bytes:
    """The key that a header names: the version's own, or a subkey of it."""
    parts = header["kid"].split(":")
    if len(parts) == 2:
        return key
    salt = urlsafe_b64decode(parts[2] + "==")
    tenant = header.get("t", "") if tenants else ""
    return hkdf(key + secret, salt, b"meshguard/seal/1\0" + tenant.encode())


def open_value(value: str, key: bytes, **how: Any) -> bytes:
    """The plaintext of one of our values."""
    found = jwe.decrypt_compact(value, OctKey.import_key(key_of(header_of(value), key, **how)), registry=REGISTRY).plaintext
    assert found is not None
    return found


def seal_value(header: dict[str, Any], plaintext: bytes, key: bytes, **how: Any) -> str:
    """A value as we would have made it. joserfc writes the members in their order, without spaces."""
    return jwe.encrypt_compact(header, plaintext, OctKey.import_key(key_of(header, key, **how)), registry=REGISTRY)
