"""The keys that sign the ledger's checkpoints: read, or made."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from meshguard.control.settings.ledger import LedgerConfig
from meshguard.ledger import post_quantum
from meshguard.ledger.notes import NoteSigner
from meshguard.model.errors import MeshguardError

SigningKey: TypeAlias = "Ed25519PrivateKey | post_quantum.PrivateKey"

__all__ = ["KEY_NAME", "default_name", "load_signer", "make_key", "read_key"]

KEY_NAME = "checkpoint.key"
"""Where profile development keeps it, in the ledger's directory."""


def make_key(path: Path, *, quantum: bool = False) -> SigningKey:
    """A new key in a new file, mode 0600; `quantum`: ML-DSA-44, else Ed25519. Raises FileExistsError, NoPostQuantum."""
    key: SigningKey = post_quantum.new_key() if quantum else Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, pem)
        os.fsync(descriptor)
        os.link(fresh, path)  # whole or not at all, and never in the place of another: workers start side by side
    finally:
        os.close(descriptor)
        os.unlink(fresh)
    return key


def read_key(path: Path) -> SigningKey:
    """Raises MeshguardError where the file holds no such key or others may read it, OSError."""
    if path.stat().st_mode & 0o077:
        raise MeshguardError(f"{path}: only its owner may read a signing key (chmod 600)")
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise MeshguardError(f"{path}: no unencrypted PEM key") from exc
    if not isinstance(key, Ed25519PrivateKey) and not post_quantum.is_private_key(key):
        raise MeshguardError(f"{path}: a key of Ed25519 or ML-DSA-44 is expected")
    return cast("SigningKey", key)


def default_name(domain: str, key: SigningKey) -> str:
    """Names this node's logs: two nodes of one trust domain have two keys."""
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"{domain}/meshguard/{sha256(public).hexdigest()[:8]}"


def load_signer(config: LedgerConfig, domain: str, *, make: bool) -> NoteSigner:
    """The signer of a ledger; with `make` a missing key is made in its directory. Raises MeshguardError, OSError."""
    directory = Path(config.directory)
    path = Path(config.checkpoints.key) if config.checkpoints.key is not None else directory / KEY_NAME
    if not path.exists() and make and config.checkpoints.key is None:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            make_key(path)
        except FileExistsError:
            pass  # another worker was first
    key = read_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise MeshguardError(f"{path}: an Ed25519 key is expected; one of ML-DSA-44 goes to `post_quantum_key`")
    name = config.checkpoints.name or default_name(domain, key)
    also = None
    if config.checkpoints.post_quantum_key is not None:
        second = read_key(Path(config.checkpoints.post_quantum_key))
        if isinstance(second, Ed25519PrivateKey):
            raise MeshguardError(f"{config.checkpoints.post_quantum_key}: a key of ML-DSA-44 is expected")
        also = NoteSigner(name, second)
    return NoteSigner(name, key, also=also)
