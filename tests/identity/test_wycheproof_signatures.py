"""Project Wycheproof's vectors for the signatures that tokens, bundles and checkpoints carry, through the key sets that read them.

A selection of C2SP/wycheproof (Apache-2.0), vendored in `vectors/wycheproof_signatures.json` with its commit: all invalid cases of these
kinds that are short (at most 60 or 200 a kind), and some valid ones.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from meshguard.identity.jwk import VerificationKey, parse_jwks
from meshguard.integrity.dsse import PublicKey
from meshguard.model.errors import IdentityError

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "wycheproof_signatures.json").read_text())
ALGORITHMS = ("Ed25519", "ES256", "ES384", "RS256", "PS256")


def _number(value: int, size: int) -> str:
    return urlsafe_b64encode(value.to_bytes(size)).rstrip(b"=").decode()


def _jwk(pem: str) -> dict[str, str]:
    key = load_pem_public_key(pem.encode())
    if isinstance(key, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": urlsafe_b64encode(key.public_bytes_raw()).rstrip(b"=").decode()}
    if isinstance(key, ec.EllipticCurvePublicKey):
        numbers, size = key.public_numbers(), key.key_size // 8
        return {"kty": "EC", "crv": f"P-{key.key_size}", "x": _number(numbers.x, size), "y": _number(numbers.y, size)}
    assert isinstance(key, rsa.RSAPublicKey)
    return {"kty": "RSA", "n": _number(key.public_numbers().n, key.key_size // 8), "e": _number(key.public_numbers().e, 3)}


def cases(algorithm: str) -> Iterator[tuple[VerificationKey, str, int, bytes, bytes, str]]:
    for group in VECTORS["groups"]:
        if group["algorithm"] == algorithm:
            key = parse_jwks(json.dumps({"keys": [_jwk(group["key"])]}).encode()).find(None, algorithm)
            for number, message, signature, result in group["tests"]:
                yield key, group["key"], number, bytes.fromhex(signature), bytes.fromhex(message), result


def test_there_are_cases_of_both_kinds() -> None:
    for algorithm in ALGORITHMS:
        results = [case[-1] for case in cases(algorithm)]
        assert {"valid", "invalid"} <= set(results)
        assert len(results) >= 40


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_signatures(algorithm: str) -> None:
    for key, _, _, signature, message, result in cases(algorithm):
        if result == "valid":
            key.verify(algorithm, signature, message)
        elif result == "invalid":
            with pytest.raises(IdentityError):
                key.verify(algorithm, signature, message)


def test_signatures_of_bundles() -> None:
    for _, pem, number, signature, message, result in cases("Ed25519"):
        loaded = load_pem_public_key(pem.encode())
        assert isinstance(loaded, ed25519.Ed25519PublicKey)
        assert PublicKey("", loaded).accepts(signature, message) is (result == "valid"), number
