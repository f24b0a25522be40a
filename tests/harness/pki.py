"""A P-256 PKI for process tests: CAs, X.509-SVIDs as SPIFFE asks for them, and arbitrarily broken ones."""

from __future__ import annotations

import datetime as dt
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Authority", "Certificate", "client_context", "now", "server_context"]

TRUST_DOMAIN = "shop.example"


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass
class Certificate:
    """A leaf with its key and the chain a peer sends (leaf first, without the root)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: list[x509.Certificate]

    @property
    def chain_pem(self) -> bytes:
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in self.chain)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Writes `name.pem` and `name.key` (each by an atomic rename) and returns their paths."""
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        for path, data in ((key, self.key_pem), (certificate, self.chain_pem)):
            fresh = path.with_suffix(path.suffix + ".new")
            fresh.write_bytes(data)
            fresh.chmod(0o600)
            fresh.replace(path)
        return certificate, key


def usage(*, signature: bool = True, cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signature and not cert_sign,
        key_cert_sign=cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """A CA (root, or an intermediate under `parent`)."""

    def __init__(
        self,
        name: str,
        *,
        trust_domain: str = TRUST_DOMAIN,
        parent: Authority | None = None,
        path_length: int | None = None,
        not_after: dt.datetime | None = None,
    ) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test PKI")])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.trust_domain = trust_domain
        issuer_key, issuer_name = (parent.key, parent.name) if parent else (self.key, self.name)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer_name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - dt.timedelta(hours=1))
            .not_valid_after(not_after or now() + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(usage(signature=False, cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        self.parent = parent

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        uri: str | list[str] | None,
        *,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
        ca: bool | None = False,
        key_usage: x509.KeyUsage | str | None = "default",
        eku: list[x509.ObjectIdentifier] | str | None = "default",
        dns: list[str] | None = None,
        san_critical: bool = False,
        extra_names: list[x509.GeneralName] | None = None,
        common_name: str | None = None,
        usage_critical: bool = True,
    ) -> Certificate:
        """A leaf for `uri`; every keyword bends one property. `ca=None`, `key_usage=None`, `eku=None` leave the extension out."""
        key = ec.generate_private_key(ec.SECP256R1())
        uris = [uri] if isinstance(uri, str) else uri or []
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(u) for u in uris]
        names += [x509.DNSName(d) for d in dns or []]
        names += extra_names or []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name or "workload")]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now() - dt.timedelta(minutes=5))
            .not_valid_after(not_after or now() + dt.timedelta(hours=12))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if key_usage is not None:
            builder = builder.add_extension(usage() if isinstance(key_usage, str) else key_usage, critical=usage_critical)
        if eku is not None:
            both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(both if isinstance(eku, str) else eku), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=san_critical)
        certificate = builder.sign(self.key, hashes.SHA256())
        return Certificate(certificate, key, [certificate, *self.path])

    @property
    def path(self) -> list[x509.Certificate]:
        return [self.certificate, *self.parent.path] if self.parent else []

    def service(self, name: str, **bend: object) -> Certificate:
        """An SVID `spiffe://DOMAIN/ns/prod/sa/NAME`."""
        return self.issue(f"spiffe://{self.trust_domain}/ns/prod/sa/{name}", **bend)  # type: ignore[arg-type]

    def crl(self, *revoked: Certificate, next_update: dt.datetime | None = None, number: int = 1) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now() - dt.timedelta(minutes=10))
            .next_update(next_update or now() + dt.timedelta(days=1))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for item in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(item.certificate.serial_number)
                .revocation_date(now() - dt.timedelta(minutes=1))
                .build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def client_context(
    roots: Authority | bytes | None, leaf: Certificate | None, directory: Path, *, alpn: list[str] | None = None, name: str = "client"
) -> ssl.SSLContext:
    """A client's context: presents `leaf` (none when None), verifies the chain of the server against `roots`, not its name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if roots is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        pem = roots.pem if isinstance(roots, Authority) else roots
        context.load_verify_locations(cadata=pem.decode())
    if leaf is not None:
        certificate, key = leaf.write(directory, f"{name}-{leaf.certificate.serial_number:x}")
        context.load_cert_chain(certificate, key)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def server_context(leaf: Certificate, roots: Authority | None, directory: Path, name: str = "server") -> ssl.SSLContext:
    """A server's context; asks for a client certificate of `roots` when given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = leaf.write(directory, f"{name}-{leaf.certificate.serial_number:x}")
    context.load_cert_chain(certificate, key)
    if roots is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=roots.pem.decode())
    return context
