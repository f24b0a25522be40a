"""Project Wycheproof's vectors for the primitives that seal: AES-256-GCM with 96-bit nonces, AES-SIV with 512-bit keys, HKDF-SHA256,
HMAC-SHA256.

Of C2SP/wycheproof (Apache-2.0), vendored in `vectors/wycheproof.json` with its commit: every case of AES-SIV and HMAC of these sizes; of
the others every invalid case that is short, and as many valid ones.
"""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from meshguard.fields.keyset import DataKey, KeyState
from meshguard.fields.material import derive_key

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "wycheproof.json").read_text())


def octets(vector: dict[str, Any], *names: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(vector[name]) for name in names)


def test_there_are_cases_of_both_kinds() -> None:
    for name in ("aes_gcm", "aes_siv", "hmac"):
        assert {vector["result"] for vector in VECTORS[name]} == {"valid", "invalid"}
        assert len(VECTORS[name]) >= 40


@pytest.mark.parametrize("vector", VECTORS["aes_gcm"], ids=lambda vector: str(vector["tcId"]))
def test_aes_gcm(vector: dict[str, Any]) -> None:
    key, nonce, data, text, sealed, tag = octets(vector, "key", "iv", "aad", "msg", "ct", "tag")
    data_key = DataKey(1, KeyState.PRIMARY, 0.0, key, granted=1)
    cipher = data_key.opener()
    assert cipher is not None
    if vector["result"] == "valid":
        assert data_key.encrypt(nonce, text, data) == sealed + tag
        assert cipher.decrypt(nonce, sealed + tag, data) == text
    else:
        with pytest.raises(InvalidTag):
            cipher.decrypt(nonce, sealed + tag, data)


@pytest.mark.parametrize("vector", VECTORS["aes_siv"], ids=lambda vector: str(vector["tcId"]))
def test_aes_siv(vector: dict[str, Any]) -> None:
    key, data, text, sealed = octets(vector, "key", "aad", "msg", "ct")
    cipher = AESSIV(key)
    if vector["result"] == "valid":
        if text:
            assert cipher.encrypt(text, [data]) == sealed
        assert cipher.decrypt(sealed, [data]) == text
    else:
        with pytest.raises(InvalidTag):
            cipher.decrypt(sealed, [data])


@pytest.mark.parametrize("vector", VECTORS["hkdf"], ids=lambda vector: str(vector["tcId"]))
def test_hkdf(vector: dict[str, Any]) -> None:
    key, salt, info, expected = octets(vector, "ikm", "salt", "info", "okm")
    if vector["result"] == "valid":
        assert derive_key(key, salt, info, vector["size"]) == expected
    else:
        with pytest.raises(ValueError, match="larger"):
            derive_key(key, salt, info, vector["size"])


@pytest.mark.parametrize("vector", VECTORS["hmac"], ids=lambda vector: str(vector["tcId"]))
def test_hmac(vector: dict[str, Any]) -> None:
    """The call that makes tokens and keyed hashes."""
    key, text, tag = octets(vector, "key", "msg", "tag")
    assert (hmac.digest(key, text, "sha256") == tag) is (vector["result"] == "valid")
