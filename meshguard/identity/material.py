"""Our own certificate chain and private key, checked to belong together before anything uses them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from meshguard.identity.algorithms import check_key
from meshguard.identity.pem import encode_certificates
from meshguard.identity.svid import check_leaf, load_certificate, public_key
from meshguard.model.errors import IdentityError

__all__ = ["Material", "load_material"]


class Material:
    """A certificate chain with its private key; immutable.

    chain            DER, leaf first, without a self-signed root
    certificate_pem  the same as PEM
    spiffe_id        the leaf's SPIFFE ID as full URI; empty for a server certificate that is not an SVID
    trust_domain     its trust domain, empty likewise
    not_before, not_after   epoch seconds, the tightest of the chain
    serial, thumbprint      lower-case hex, the latter the SHA-256 of the leaf's DER

    The key is behind a method and in no repr: `key_pem()` is for the TLS context only.
    """

    __slots__ = ("_key", "certificate_pem", "chain", "not_after", "not_before", "serial", "spiffe_id", "thumbprint", "trust_domain")

    def __init__(self, chain: Sequence[x509.Certificate], key_pem: bytes, spiffe_id: str, trust_domain: str) -> None:
        self.chain = tuple(value.public_bytes(serialization.Encoding.DER) for value in chain)
        self.certificate_pem = encode_certificates(self.chain)
        self.spiffe_id = spiffe_id
        self.trust_domain = trust_domain
        self.not_before = max(value.not_valid_before_utc.timestamp() for value in chain)
        self.not_after = min(value.not_valid_after_utc.timestamp() for value in chain)
        self.serial = f"{chain[0].serial_number:x}"
        self.thumbprint = chain[0].fingerprint(hashes.SHA256()).hex()
        self._key = key_pem

    def key_pem(self) -> bytes:
        """The private key, PKCS #8 in PEM, not encrypted. Never for a log, a file or another process."""
        return self._key

    def __repr__(self) -> str:
        return f"Material({self.spiffe_id or 'server certificate'}, serial {self.serial}, key redacted)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Material is not pickled: it holds a private key")


def load_material(certificates: Sequence[bytes], key: bytes, *, svid: bool = True) -> Material:
    """Check a DER chain (leaf first) and a private key (PEM, or DER in PKCS #8, SEC 1 or PKCS #1; not encrypted) and join them.

    With `svid` the leaf must pass every X.509-SVID rule: what we would refuse from others we do not show. A root at the end
    is left off. Raises IdentityError: `certificate_malformed`, `chain_order`, `key_malformed`, `key_encrypted`, `key_mismatch`,
    and the codes of the leaf rules. Validity in time is not judged here.
    """
    if not certificates:
        raise IdentityError("certificate_malformed", "the certificate chain is empty")
    chain = [load_certificate(der) for der in certificates]
    identity = check_leaf(chain[0]) if svid else None
    for below, above in pairwise(chain):
        try:
            below.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature) as exc:
            raise IdentityError("chain_order", f"the chain is not in order: {_subject(above)} did not issue {_subject(below)}") from exc
    if len(chain) > 1 and chain[-1].issuer == chain[-1].subject:
        chain.pop()
    private = _load_key(key)
    own = private.public_key()
    check_key(own)
    if _spki(own) != _spki(public_key(chain[0])):
        raise IdentityError("key_mismatch", "the private key does not belong to the certificate")
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Material(chain, pem, identity.uri if identity else "", identity.trust_domain if identity else "")


def _load_key(key: bytes) -> PrivateKeyTypes:
    try:
        if b"-----BEGIN" in key:
            return serialization.load_pem_private_key(key, None)
        return serialization.load_der_private_key(key, None)
    except TypeError:
        raise IdentityError("key_encrypted", "the private key is encrypted; an unencrypted one is needed") from None
    except (ValueError, UnsupportedAlgorithm):
        # The cause is left off: parsers quote what they could not read.
        raise IdentityError("key_malformed", "the private key cannot be read: expected PEM, or DER in PKCS #8") from None


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]  # every key type has it
    return encoded


def _subject(certificate: x509.Certificate) -> str:
    return ascii(certificate.subject.rfc4514_string()[:120] or "(empty subject)")
