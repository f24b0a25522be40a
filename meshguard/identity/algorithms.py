"""The pinned algorithms: which keys may sign and be certified, which signatures count. Everything not listed is refused."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import SignatureAlgorithmOID as Sig

from meshguard.model.errors import IdentityError

__all__ = ["MIN_RSA_BITS", "check_key", "check_signature_algorithm", "key_name", "signature_name"]

MIN_RSA_BITS = 2048
"""NIST SP 800-57 part 1 rev. 5, table 2: 112 bits of strength, the least for new use."""
MAX_RSA_BITS = 8192
"""A verification grows with the square of the modulus: a peer must not choose our cost."""
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_SHA2 = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

_SIGNATURES = {
    Sig.ECDSA_WITH_SHA256: "ECDSA with SHA-256",
    Sig.ECDSA_WITH_SHA384: "ECDSA with SHA-384",
    Sig.ECDSA_WITH_SHA512: "ECDSA with SHA-512",
    Sig.RSA_WITH_SHA256: "RSA PKCS#1 v1.5 with SHA-256",
    Sig.RSA_WITH_SHA384: "RSA PKCS#1 v1.5 with SHA-384",
    Sig.RSA_WITH_SHA512: "RSA PKCS#1 v1.5 with SHA-512",
    Sig.RSASSA_PSS: "RSA-PSS",
    Sig.ED25519: "Ed25519",
}


def signature_name(certificate: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList) -> str:
    """A readable name of the signature algorithm, the OID where it is not a known one."""
    oid = certificate.signature_algorithm_oid
    return _SIGNATURES.get(oid, f"{oid._name} ({oid.dotted_string})")


def check_signature_algorithm(signed: x509.Certificate | x509.CertificateRevocationList) -> None:
    """Refuse any signature algorithm but the pinned ones. Raises IdentityError (`signature_algorithm`)."""
    oid = signed.signature_algorithm_oid
    if oid not in _SIGNATURES:
        raise IdentityError("signature_algorithm", f"signed with {signature_name(signed)}; ECDSA, RSA with SHA-2 or Ed25519 is needed")
    if oid == Sig.RSASSA_PSS:
        # The OID alone does not tell the hash: it is a parameter, whose default is SHA-1.
        try:
            digest = signed.signature_hash_algorithm
        except (UnsupportedAlgorithm, ValueError) as exc:
            raise IdentityError("signature_algorithm", "signed with RSA-PSS and unreadable parameters") from exc
        if not isinstance(digest, _SHA2):
            raise IdentityError("signature_algorithm", "signed with RSA-PSS over a hash that is not SHA-2")


def key_name(key: object) -> str:
    """A readable name of a public key: `P-256`, `RSA 2048`, `Ed25519`, else the class."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}.get(key.curve.name, key.curve.name)
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    return type(key).__name__.lstrip("_")


def check_key(key: object) -> None:
    """Refuse a public key that is not P-256, P-384, P-521, RSA of 2048 to 8192 bits, or Ed25519. Raises IdentityError (`key_weak`)."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        allowed = isinstance(key.curve, _CURVES)
    elif isinstance(key, rsa.RSAPublicKey):
        # A public exponent of 1 or 3 has a history of forged signatures; 65537 is what CAs make (NIST SP 800-56B, 6.2).
        allowed = MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS and key.public_numbers().e >= 65537
    else:
        allowed = isinstance(key, ed25519.Ed25519PublicKey)
    if not allowed:
        needed = f"P-256, P-384, P-521, Ed25519 or RSA from {MIN_RSA_BITS} bits"
        raise IdentityError("key_weak", f"the key is {key_name(key)}; {needed} is needed")
