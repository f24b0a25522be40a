"""Signing certificates: what makes a certificate able to vouch for another one (RFC 5280, 6.1.4; X509-SVID, 3.2 and 4)."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from meshguard.identity.algorithms import check_key
from meshguard.identity.spiffe import parse_spiffe_id
from meshguard.identity.svid import UNDERSTOOD, extension, load_certificate, public_key
from meshguard.model.errors import IdentityError

__all__ = ["Authority"]

_UNDERSTOOD = UNDERSTOOD | {ExtensionOID.NAME_CONSTRAINTS}
_TLS_PURPOSES = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


class Authority:
    """A signing certificate that may be part of a chain, as anchor or as intermediate. Immutable.

    Raises IdentityError when made from a certificate that may not sign others: `certificate_malformed`, `issuer_not_ca`,
    `issuer_key_usage`, `key_weak`, `critical_extension_unknown`, `issuer_spiffe_id`. Validity in time, signature and
    path length are judged where the certificate is used.
    """

    __slots__ = (
        "certificate",
        "constraints",
        "der",
        "key_id",
        "name",
        "not_after",
        "not_before",
        "path_length",
        "self_issued",
        "signs_crls",
        "trust_domain",
    )

    def __init__(self, der: bytes) -> None:
        self.der = der
        self.certificate = certificate = load_certificate(der)
        self.name = certificate.subject.public_bytes()
        """DER of the subject: names are chained by comparing bytes."""
        self.self_issued = certificate.issuer.public_bytes() == self.name
        self.not_before = certificate.not_valid_before_utc.timestamp()
        self.not_after = certificate.not_valid_after_utc.timestamp()
        basic = extension(certificate, x509.BasicConstraints)
        if certificate.version is not x509.Version.v3 or basic is None or not basic.value.ca or not basic.critical:
            raise IdentityError("issuer_not_ca", f"{self.shown} is not a CA certificate (basic constraints, critical, with CA true)")
        if not self.name or not list(certificate.subject):
            raise IdentityError("issuer_not_ca", "a CA certificate has no subject (RFC 5280, 4.1.2.6)")
        self.path_length = basic.value.path_length
        usage = extension(certificate, x509.KeyUsage)
        if usage is None or not usage.value.key_cert_sign:
            raise IdentityError("issuer_key_usage", f"{self.shown} may not sign certificates (no keyCertSign)")
        self.signs_crls = usage.value.crl_sign
        extended = extension(certificate, x509.ExtendedKeyUsage)
        if extended is not None:
            # The purposes of a CA bound those of what it issues, as OpenSSL and others read it: an SVID has both.
            held = set(extended.value)
            if ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in held and not held >= _TLS_PURPOSES:
                raise IdentityError("issuer_key_usage", f"{self.shown} may not sign for both serverAuth and clientAuth")
        check_key(public_key(certificate))
        for value in certificate.extensions:
            if value.critical and value.oid not in _UNDERSTOOD:
                raise IdentityError("critical_extension_unknown", f"{self.shown} has the critical extension {value.oid.dotted_string}")
        constraints = extension(certificate, x509.NameConstraints)
        self.constraints = constraints.value if constraints is not None else None
        identifier = extension(certificate, x509.SubjectKeyIdentifier)
        self.key_id = identifier.value.digest if identifier is not None else None
        self.trust_domain = self._own_trust_domain()

    @property
    def shown(self) -> str:
        """The subject for a record: escaped and capped."""
        return ascii(self.certificate.subject.rfc4514_string()[:120])

    def _own_trust_domain(self) -> str | None:
        """The trust domain that this certificate names itself, None when it has no SPIFFE ID. A path is refused (X509-SVID, 3.2)."""
        names = extension(self.certificate, x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
        ids = [uri for uri in uris if uri[:7].lower() == "spiffe:"]
        if not ids:
            return None
        if len(uris) > 1:
            raise IdentityError("issuer_spiffe_id", f"{self.shown} has more than one URI")
        identity = parse_spiffe_id(ids[0])
        if identity.path:
            raise IdentityError("issuer_spiffe_id", f"{self.shown} is a signing certificate and its SPIFFE ID has a path")
        return identity.trust_domain

    def public_key_der(self) -> bytes:
        """The subject public key info: two certificates of one CA (cross-signed, renewed) have it in common."""
        return self.certificate.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
