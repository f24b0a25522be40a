"""Public keys of token issuers: JSON Web Key Sets (RFC 7517), parsed once, and the signatures they verify (RFC 7518, RFC 8037).

INVARIANT: a key verifies only algorithms of its own type and curve, and only the one it names if it names one. Symmetric keys do not
exist here, so a public key can never be taken for an HMAC secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from meshguard.identity.jose import decode_base64url, parse_object
from meshguard.model.errors import IdentityError

__all__ = ["ALGORITHMS", "KeySet", "VerificationKey", "certified_key", "parse_jwks"]

MAX_KEYS = 128
MIN_RSA_BITS = 2048
"""RFC 7518 section 3.3."""
MAX_RSA_BITS = 8192
"""Above it one verification takes milliseconds, at the choice of whoever serves the key set."""

_HASHES: dict[str, type[hashes.SHA256] | type[hashes.SHA384] | type[hashes.SHA512]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
# crv -> (curve, algorithm, octets of a coordinate, order of the base point: SEC 2 sections 2.4.2, 2.5.1, 2.6.1)
_CURVES: dict[str, tuple[ec.EllipticCurve, str, int, int]] = {
    "P-256": (ec.SECP256R1(), "ES256", 32, 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
    "P-384": (
        ec.SECP384R1(), "ES384", 48,
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    ),
    "P-521": (
        ec.SECP521R1(), "ES512", 66,
        0x1FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
    ),
}  # fmt: skip
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")

ALGORITHMS = frozenset((*_RSA_ALGORITHMS, "ES256", "ES384", "ES512", "EdDSA", "Ed25519"))
"""What may be configured. Never `none`, never HMAC. `Ed25519` is the name of RFC 9864 for what RFC 8037 calls `EdDSA`."""


class VerificationKey:
    """A public key with its `kid` ("" when it has none) and the `algorithms` that it may verify."""

    __slots__ = ("_key", "_order", "_size", "algorithms", "kid")

    def __init__(
        self,
        kid: str,
        algorithms: frozenset[str],
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | Ed25519PublicKey,
        size: int = 0,
        order: int = 0,
    ) -> None:
        self.kid = kid
        self.algorithms = algorithms
        self._key = key
        self._size = size
        self._order = order

    def verify(self, algorithm: str, signature: bytes, signed: bytes) -> None:
        """Raises IdentityError(`bad_signature`); the caller has checked that `algorithm` is one of `algorithms`."""
        if algorithm not in self.algorithms:
            raise IdentityError("algorithm_not_allowed")
        key = self._key
        try:
            if isinstance(key, Ed25519PublicKey):
                key.verify(signature, signed)
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(self._der(signature), signed, ec.ECDSA(_HASHES[algorithm[2:]]()))
            else:
                digest = _HASHES[algorithm[2:]]()
                scheme: padding.AsymmetricPadding = padding.PKCS1v15()
                if algorithm.startswith("PS"):
                    scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)  # RFC 7518 section 3.5
                key.verify(signature, signed, scheme, digest)
        except InvalidSignature as exc:
            raise IdentityError("bad_signature") from exc

    def _der(self, signature: bytes) -> bytes:
        """R and S of fixed size (RFC 7518 section 3.4), both between 1 and the order less 1 (CVE-2022-21449 took zeros)."""
        if len(signature) != 2 * self._size:
            raise IdentityError("bad_signature")
        r = int.from_bytes(signature[: self._size], "big")
        s = int.from_bytes(signature[self._size :], "big")
        if not (0 < r < self._order and 0 < s < self._order):
            raise IdentityError("bad_signature")
        return encode_dss_signature(r, s)


class KeySet:
    """The keys of one issuer. `skipped` says why members of the set were not taken (never with their values)."""

    __slots__ = ("_keys", "skipped")

    def __init__(self, keys: Sequence[VerificationKey], skipped: Sequence[str] = ()) -> None:
        self._keys = tuple(keys)
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: str | None, algorithm: str) -> VerificationKey:
        """The one key that a token means. Without a `kid` it is the only key that fits the algorithm. Raises IdentityError
        (`unknown_key`, `ambiguous_key`)."""
        fitting = [key for key in self._keys if algorithm in key.algorithms and (kid is None or key.kid == kid)]
        if not fitting:
            raise IdentityError("unknown_key")
        if len(fitting) > 1:
            raise IdentityError("ambiguous_key")
        return fitting[0]


def parse_jwks(octets: bytes) -> KeySet:
    """A JWK Set. Members that cannot verify anything are skipped (RFC 7517 section 5), a document without any usable key is refused.
    Raises IdentityError(`bad_key_set`)."""
    try:
        listed = parse_object(octets).get("keys")
    except ValueError as exc:
        raise IdentityError("bad_key_set", str(exc)) from exc
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise IdentityError("bad_key_set", f"no list of at most {MAX_KEYS} keys")
    keys: list[VerificationKey] = []
    skipped: list[str] = []
    for number, member in enumerate(listed):
        try:
            keys.append(_key(member))
        except ValueError as exc:
            skipped.append(f"keys[{number}]: {exc}")
    if not keys:
        raise IdentityError("bad_key_set", "; ".join(["no usable key", *skipped[:4]]))
    return KeySet(keys, skipped)


def certified_key(key: object) -> VerificationKey:
    """A public key out of a certificate, with the one algorithm of this house for its kind. Raises IdentityError(`key_weak`)."""
    if isinstance(key, Ed25519PublicKey):
        return VerificationKey("", frozenset(("EdDSA",)), key)
    if isinstance(key, rsa.RSAPublicKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return VerificationKey("", frozenset(("PS256",)), key)
    if isinstance(key, ec.EllipticCurvePublicKey):
        for curve, algorithm, size, order in _CURVES.values():
            if curve.name == key.curve.name:
                return VerificationKey("", frozenset((algorithm,)), key, size, order)
    raise IdentityError("key_weak", "a key that signs no tokens")


def _key(member: object) -> VerificationKey:
    if not isinstance(member, dict):
        raise ValueError("not an object")
    if member.get("use", "sig") != "sig":
        raise ValueError("not for signatures")
    operations = member.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("not for verification")
    if "d" in member or "k" in member:
        raise ValueError("holds private material")
    kid = member.get("kid", "")
    if not isinstance(kid, str) or len(kid) > 256:
        raise ValueError("a kid that is no short text")
    read = {"RSA": _rsa, "EC": _ec, "OKP": _okp}.get(str(member.get("kty")))
    if read is None:
        raise ValueError("unknown key type")
    key = read(kid, member)
    named = member.get("alg")
    if named is not None:
        if named not in key.algorithms:
            raise ValueError("an algorithm that does not fit the key")
        key.algorithms = frozenset((named,))
    return key


def _rsa(kid: str, member: Mapping[str, object]) -> VerificationKey:
    modulus, exponent = _number(member, "n"), _number(member, "e")
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
        raise ValueError(f"an RSA modulus of {modulus.bit_length()} bits")
    if exponent < 3 or exponent % 2 == 0 or exponent.bit_length() > 32:
        raise ValueError("an odd RSA exponent")
    return VerificationKey(kid, frozenset(_RSA_ALGORITHMS), rsa.RSAPublicNumbers(exponent, modulus).public_key())


def _ec(kid: str, member: Mapping[str, object]) -> VerificationKey:
    found = _CURVES.get(str(member.get("crv")))
    if found is None:
        raise ValueError("unknown curve")
    curve, algorithm, size, order = found
    x, y = (_octets(member, name) for name in ("x", "y"))
    if len(x) != size or len(y) != size:
        raise ValueError("coordinates of the wrong length")
    # public_key() checks that the point is on the curve
    key = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve).public_key()
    return VerificationKey(kid, frozenset((algorithm,)), key, size, order)


def _okp(kid: str, member: Mapping[str, object]) -> VerificationKey:
    if member.get("crv") != "Ed25519":
        raise ValueError("unknown curve")
    return VerificationKey(kid, frozenset(("EdDSA", "Ed25519")), Ed25519PublicKey.from_public_bytes(_octets(member, "x")))


def _octets(member: Mapping[str, object], name: str) -> bytes:
    value = member.get(name)
    if not isinstance(value, str) or len(value) > 4096:
        raise ValueError(f"{name} is no text")
    return decode_base64url(value)


def _number(member: Mapping[str, object], name: str) -> int:
    return int.from_bytes(_octets(member, name), "big")
