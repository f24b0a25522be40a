"""Certificates for tests: good ones by default, and broken in any single way by one argument.

    shop = Ca("shop.example")                      # a root with its key
    leaf = shop.issue("/ns/prod/sa/billing")       # Issued: certificate, key, chain
    store = TrustStore({"shop.example": [shop.der]})
    store.verify(leaf.chain, NOW)

Keys are P-256, made once and handed out again by number; nothing here depends on the clock: certificates are valid around NOW.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshguard.identity.material import Material, load_material

NOW = 1_800_000_000.0
HOUR = 3600.0
DAY = 86400.0

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
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
UNSET: Any = object()


@cache
def key(kind: str = "p256", number: int = 0) -> Any:
    """A private key, always the same one for the same arguments within a run."""
    match kind:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "p224":
            return ec.generate_private_key(ec.SECP224R1())
        case "k256":
            return ec.generate_private_key(ec.SECP256K1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "ed448":
            return ed448.Ed448PrivateKey.generate()
        case "dsa":
            return dsa.generate_private_key(2048)
        case _ if kind.startswith("rsa"):
            return rsa.generate_private_key(65537, int(kind[3:]))
    raise ValueError(kind)


_counter = iter(range(1, 1 << 30))


def fresh_key() -> Any:
    """A P-256 key out of a ring of eight: distinct enough, and quick."""
    return key("p256", next(_counter) % 8 + 1)


def name(common: str, organisation: str = "test") -> x509.Name:
    if not common:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def moment(value: float) -> datetime:
    return datetime.fromtimestamp(value, UTC)


def usage(names: Iterable[str]) -> x509.KeyUsage:
    held = set(names)
    assert held <= set(_USAGES), held
    return x509.KeyUsage(**{item: item in held for item in _USAGES})


@dataclass
class Issued:
    """A certificate and its key; `above` are the intermediates that go with it."""

    certificate: x509.Certificate
    key: Any
    above: list[bytes] = field(default_factory=list)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def chain(self) -> list[bytes]:
        return [self.der, *self.above]

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    @property
    def key_der(self) -> bytes:
        return self.key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def material(self, *, svid: bool = True) -> Material:
        return load_material(self.chain, self.key_pem, svid=svid)


def mint(
    issuer_name: x509.Name,
    signer: Any,
    *,
    subject: x509.Name,
    private: Any,
    uris: Sequence[str] = (),
    names: Sequence[x509.GeneralName] = (),
    san_critical: bool = False,
    basic: tuple[bool, int | None] | None = (False, None),
    basic_critical: bool = True,
    usages: Iterable[str] | None = ("digital_signature",),
    usage_critical: bool = True,
    extended: Sequence[x509.ObjectIdentifier] | None = BOTH,
    constraints: x509.NameConstraints | None = None,
    start: float = NOW - HOUR,
    end: float = NOW + DAY,
    serial: int | None = None,
    digest: Any = UNSET,
    padding: Any = None,
    key_ids: bool = True,
    authority_id: bytes | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> x509.Certificate:
    """Any certificate. None leaves the extension out."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(private.public_key())
        .serial_number(serial if serial is not None else next(_counter) + (1 << 64))
        .not_valid_before(moment(start))
        .not_valid_after(moment(end))
    )
    general: list[x509.GeneralName] = [x509.UniformResourceIdentifier._init_without_validation(uri) for uri in uris]
    general += names
    extensions: list[tuple[x509.ExtensionType, bool]] = []
    if general:
        extensions.append((x509.SubjectAlternativeName(general), san_critical))
    if basic is not None:
        extensions.append((x509.BasicConstraints(*basic), basic_critical))
    if usages is not None:
        extensions.append((usage(usages), usage_critical))
    if extended is not None:
        extensions.append((x509.ExtendedKeyUsage(extended), False))
    if constraints is not None:
        extensions.append((constraints, True))
    if key_ids:
        extensions.append((x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False))
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        if authority_id is not None:
            authority = x509.AuthorityKeyIdentifier(authority_id, None, None)
        extensions.append((authority, False))
    for value, critical in (*extensions, *extra):
        builder = builder.add_extension(value, critical)
    if digest is UNSET:
        digest = None if isinstance(signer, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)) else hashes.SHA256()
    return builder.sign(signer, digest, rsa_padding=padding)


class Ca:
    """A root CA, or with `parent` an intermediate one, of a trust domain."""

    def __init__(
        self,
        trust_domain: str = "shop.example",
        *,
        common: str = "",
        parent: Ca | None = None,
        private: Any = None,
        path_length: int | None = None,
        **changes: Any,
    ) -> None:
        self.trust_domain = trust_domain
        self.key = private if private is not None else fresh_key()
        self.name = name(common or f"{trust_domain} CA {next(_counter)}")
        self.parent = parent
        signer = parent.key if parent else self.key
        arguments: dict[str, Any] = {
            "basic": (True, path_length),
            "usages": ("key_cert_sign", "crl_sign"),
            "extended": None,
            "end": NOW + 365 * DAY,
        } | changes
        self.certificate = mint(parent.name if parent else self.name, signer, subject=self.name, private=self.key, **arguments)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def above(self) -> list[bytes]:
        """What a workload has to present besides its leaf: the intermediates without the root."""
        return [self.der, *self.parent.above] if self.parent else []

    def intermediate(self, **changes: Any) -> Ca:
        return Ca(changes.pop("trust_domain", self.trust_domain), parent=self, **changes)

    def issue(self, path: str = "/ns/prod/sa/billing", *, private: Any = None, subject: x509.Name | None = None, **changes: Any) -> Issued:
        """A good SVID for `path`, but for `changes` (arguments of `mint`)."""
        private = private if private is not None else fresh_key()
        changes.setdefault("uris", [f"spiffe://{self.trust_domain}{path}"])
        certificate = mint(self.name, self.key, subject=subject if subject is not None else name("workload"), private=private, **changes)
        return Issued(certificate, private, self.above)

    def crl(
        self,
        serials: Iterable[int] = (),
        *,
        start: float = NOW - HOUR,
        end: float | None = NOW + DAY,
        signer: Any = None,
        issuer: x509.Name | None = None,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
        digest: Any = None,
    ) -> bytes:
        """A revocation list of this CA as DER; with `signer` one that only claims to be."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer or self.name).last_update(moment(start))
        builder = builder.next_update(moment(end if end is not None else NOW + DAY))
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(start)).build()
            builder = builder.add_revoked_certificate(entry)
        for value, critical in extra:
            builder = builder.add_extension(value, critical)
        return builder.sign(signer or self.key, digest or hashes.SHA256()).public_bytes(serialization.Encoding.DER)
