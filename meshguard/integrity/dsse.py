"""DSSE, the Dead Simple Signing Envelope (secure-systems-lab/dsse, version 1): what cosign and in-toto sign.

A signature covers the pre-authentication encoding of the payload's type and octets, never the JSON around it. Keys are Ed25519, or ECDSA on
P-256 (SHA-256) and P-384 (SHA-384); the algorithm follows from the key, nothing in an envelope chooses it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from meshguard.model.errors import MeshguardError

__all__ = [
    "Envelope",
    "PrivateKey",
    "PublicKey",
    "SignatureError",
    "load_private_key",
    "load_public_keys",
    "parse_envelope",
    "sign",
    "verify",
]

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
_MAX_SIGNATURES = 64


class SignatureError(MeshguardError):
    """An envelope or key is not acceptable. `code` is stable: malformed, wrong_type, too_few_signatures, bad_key."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that may sign; `id` is the lower-case hex SHA-256 of its SubjectPublicKeyInfo (DER)."""

    id: str
    key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

    def accepts(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` is this key's over `data`: only `verify` asks, and raises."""
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, data)
            else:
                self.key.verify(signature, data, ec.ECDSA(_hash(self.key.curve)))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Envelope:
    """`signatures` are (key id as claimed, signature); the claim is a hint and proves nothing."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def encode(self) -> bytes:
        """The JSON form, a line."""
        signatures = [{"keyid": key_id, "sig": _encode(signature)} for key_id, signature in self.signatures]
        return json.dumps({"payloadType": self.payload_type, "payload": _encode(self.payload), "signatures": signatures}).encode() + b"\n"


def _hash(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    return hashes.SHA384() if isinstance(curve, ec.SECP384R1) else hashes.SHA256()


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: object) -> bytes:
    """Standard or URL-safe base64, as the specification asks of verifiers; strict otherwise."""
    if not isinstance(text, str):
        raise SignatureError("malformed", "base64 text was expected")
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise SignatureError("malformed", "not base64") from exc


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise SignatureError("malformed", "a member is there twice")
    return members


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE of the DSSE protocol: what is signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes, payload_type: str) -> Envelope:
    """The envelope in `data`. Raises SignatureError(malformed, wrong_type)."""
    try:
        members = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as exc:
        raise SignatureError("malformed", "not a JSON object") from exc
    if not isinstance(members, Mapping) or not isinstance(members.get("signatures"), list):
        raise SignatureError("malformed", "an envelope with payload, payloadType and signatures was expected")
    if members.get("payloadType") != payload_type:
        raise SignatureError("wrong_type", f"{payload_type} was expected")
    listed = members["signatures"]
    if len(listed) > _MAX_SIGNATURES:
        raise SignatureError("malformed", f"more than {_MAX_SIGNATURES} signatures")
    signatures = []
    for each in listed:
        if not isinstance(each, Mapping):
            raise SignatureError("malformed", "a signature is an object")
        key_id = each.get("keyid", "")
        signatures.append((key_id if isinstance(key_id, str) else "", _decode(each.get("sig"))))
    return Envelope(payload_type, _decode(members.get("payload")), tuple(signatures))


def sign(envelope: Envelope, key: PrivateKey) -> Envelope:
    """The envelope with a signature of `key` added (in the place of an earlier one of the same key)."""
    public = public_key_of(key)
    data = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    signature = key.sign(data) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(data, ec.ECDSA(_hash(key.curve)))
    others = tuple(each for each in envelope.signatures if each[0] != public.id)
    return Envelope(envelope.payload_type, envelope.payload, (*others, (public.id, signature)))


def verify(envelope: Envelope, keys: Iterable[PublicKey], threshold: int) -> frozenset[str]:
    """The ids of the trusted keys that signed, at least `threshold` different ones. Raises SignatureError(too_few_signatures).

    INVARIANT: keys are counted, not signatures: one key that signed twice, or is configured twice, counts once."""
    data = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    trusted = {key.id: key for key in keys}
    good: set[str] = set()
    for claimed, signature in envelope.signatures:
        candidates = [trusted[claimed]] if claimed in trusted else list(trusted.values())
        good.update(key.id for key in candidates if key.id not in good and key.accepts(signature, data))
    if len(good) < max(threshold, 1):
        raise SignatureError("too_few_signatures", f"{len(good)} of {max(threshold, 1)} trusted signatures")
    return frozenset(good)


def public_key_of(key: PrivateKey) -> PublicKey:
    return _public(key.public_key())


def _public(key: object) -> PublicKey:
    known = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    if not known and not isinstance(key, ed25519.Ed25519PublicKey):
        raise SignatureError("bad_key", "an Ed25519 key, or an ECDSA key on P-256 or P-384 was expected")
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return PublicKey(hashlib.sha256(encoded).hexdigest(), key)  # type: ignore[arg-type]  # checked above


def load_public_keys(pem: bytes) -> list[PublicKey]:
    """Every public key of a PEM file (a private key there is refused: it should not lie on a node). Raises SignatureError(bad_key)."""
    if b"PRIVATE KEY" in pem:
        raise SignatureError("bad_key", "public keys were expected, this is a private one")
    blocks = pem.split(b"-----END PUBLIC KEY-----")[:-1]
    if not blocks:
        raise SignatureError("bad_key", "a PEM file with PUBLIC KEY blocks was expected")
    try:
        return [_public(serialization.load_pem_public_key(block + b"-----END PUBLIC KEY-----\n")) for block in blocks]
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise SignatureError("bad_key", "a PUBLIC KEY block cannot be read") from exc


def load_private_key(pem: bytes, password: bytes | None = None) -> PrivateKey:
    """Raises SignatureError(bad_key)."""
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise SignatureError("bad_key", "the private key cannot be read (format or password)") from exc
    _public(key.public_key())
    return key  # type: ignore[return-value]  # checked by `_public`
