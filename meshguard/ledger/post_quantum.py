"""ML-DSA-44 (FIPS 204) for checkpoints, where the cryptography library and its OpenSSL have it. Loaded when the first such key is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm

from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

__all__ = ["PUBLIC_BYTES", "SIGNATURE_BYTES", "NoPostQuantum", "PrivateKey", "PublicKey", "is_private_key", "new_key", "public_key"]

PrivateKey: TypeAlias = "MLDSA44PrivateKey"
PublicKey: TypeAlias = "MLDSA44PublicKey"
PUBLIC_BYTES = 1312
SIGNATURE_BYTES = 2420


class NoPostQuantum(MeshguardError):
    """This installation has no ML-DSA."""


def public_key(data: bytes) -> PublicKey:
    """Raises NoPostQuantum, ValueError."""
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa

        return mldsa.MLDSA44PublicKey.from_public_bytes(data)
    except (ImportError, UnsupportedAlgorithm) as exc:
        raise NoPostQuantum("ML-DSA-44 needs a newer cryptography library (and OpenSSL)") from exc


def new_key() -> PrivateKey:
    """Raises NoPostQuantum."""
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa

        return mldsa.MLDSA44PrivateKey.generate()
    except (ImportError, UnsupportedAlgorithm) as exc:
        raise NoPostQuantum("ML-DSA-44 needs a newer cryptography library (and OpenSSL)") from exc


def is_private_key(key: object) -> bool:
    """Whether a key that was read from a file is one of ML-DSA-44."""
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa
    except ImportError:
        return False
    return isinstance(key, mldsa.MLDSA44PrivateKey)
