"""A throwaway mesh PKI: one CA, a server SVID and two client SVIDs (P-256), the same for every candidate."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["CLIENT", "OTHER", "SERVER", "TRUST_DOMAIN", "make"]

TRUST_DOMAIN = "bench.test"
SERVER = f"spiffe://{TRUST_DOMAIN}/server"
OTHER = f"spiffe://{TRUST_DOMAIN}/other"
CLIENT = f"spiffe://{TRUST_DOMAIN}/client"

_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _usage(*on: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in on for name in _USAGES})


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=2))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def _save(directory: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    pem = certificate.public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / f"{name}.pem").write_bytes(pem)
    (directory / f"{name}.key").write_bytes(private)
    (directory / f"{name}.key").chmod(0o600)
    (directory / f"{name}.both.pem").write_bytes(pem + private)
    (directory / f"{name}.both.pem").chmod(0o600)


def make(directory: Path) -> None:
    """Writes ca, server and client as NAME.pem (certificate), NAME.key and NAME.both.pem (certificate, then key)."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench-ca")])
    key_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    authority: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (_usage("key_cert_sign", "crl_sign"), True),
        (key_id, False),
    ]
    _save(directory, "ca", ca_key, _certificate(ca_name, ca_key, ca_name, ca_key, authority))
    localhost: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    alternatives: tuple[tuple[str, str, list[x509.GeneralName]], ...] = (
        ("server", SERVER, localhost),
        ("client", CLIENT, []),
        ("other", OTHER, []),
    )
    for name, uri, others in alternatives:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "bench")])
        leaf: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage("digital_signature"), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *others]), False),
            (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), False),
        ]
        _save(directory, name, key, _certificate(subject, key, ca_name, ca_key, leaf))
