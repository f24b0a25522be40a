"""The rules of an X.509-SVID leaf, as one table: the verifier stops at the first that fails, `meshguard identity show` lists them all.

Source: X509-SVID standard, sections 2 to 5, RFC 5280 section 4.2, and security.md 3. A rule looks at one certificate only; chains are
the business of `identity.path`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from meshguard.identity.algorithms import check_key, check_signature_algorithm, key_name, signature_name
from meshguard.identity.spiffe import SpiffeId, parse_spiffe_id
from meshguard.model.errors import IdentityError

__all__ = ["LEAF_RULES", "Description", "Leaf", "RuleResult", "check_leaf", "describe", "extension", "load_certificate", "public_key"]

_E = TypeVar("_E", bound=x509.ExtensionType)

UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,  # without a required policy set nothing follows from it (RFC 5280, 6.1.1)
    }
)
"""What may be marked critical in a leaf; any other critical extension is one that we do not act on, hence a refusal."""

_DNS_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.*")


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse one certificate with its extensions. Raises IdentityError (`certificate_malformed`)."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        # These are parsed on demand: a malformed or repeated extension must show here, not later.
        _ = certificate.extensions, certificate.version, certificate.subject, certificate.issuer
    except (ValueError, TypeError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType, Warning) as exc:
        # Warning: cryptography warns of a serial number below 1, which is an exception where warnings are errors.
        raise IdentityError("certificate_malformed", str(exc)[:200]) from exc
    return certificate


def extension(certificate: x509.Certificate, kind: type[_E]) -> x509.Extension[_E] | None:
    """The extension of that type, None when absent."""
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


class Leaf:
    """A parsed leaf: the certificate, and its extensions or None. Made once per certificate, for the rules to read."""

    __slots__ = ("basic", "certificate", "extended", "names", "spiffe_id", "usage")

    def __init__(self, certificate: x509.Certificate) -> None:
        self.certificate = certificate
        self.names = extension(certificate, x509.SubjectAlternativeName)
        self.basic = extension(certificate, x509.BasicConstraints)
        self.usage = extension(certificate, x509.KeyUsage)
        self.extended = extension(certificate, x509.ExtendedKeyUsage)
        self.spiffe_id: SpiffeId | None = None
        """Set by the rule that parses it."""

    def uris(self) -> list[str]:
        if self.names is None:
            return []
        return [name.value for name in self.names.value if isinstance(name, x509.UniformResourceIdentifier)]


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule and its outcome: `code` is what verification raises, `title` what the rule asks for, `detail` what was found.
    `passed` is None for a rule that could not be judged because an earlier one failed."""

    code: str
    title: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Description:
    """Everything `identity show` says of one certificate: `facts` in order of display, and each rule."""

    facts: dict[str, str | list[str]]
    rules: tuple[RuleResult, ...]
    spiffe_id: SpiffeId | None

    @property
    def acceptable(self) -> bool:
        return all(rule.passed is True for rule in self.rules)


def _version(leaf: Leaf) -> str:
    if leaf.certificate.version is not x509.Version.v3:
        raise IdentityError("certificate_malformed", "not a version 3 certificate")
    return "version 3"


def _serial(leaf: Leaf) -> str:
    serial = leaf.certificate.serial_number
    # Revocation is by serial number: RFC 5280, 4.1.2.2 has it positive and at most 20 octets long.
    if not 0 < serial < 1 << 160:
        raise IdentityError("serial_invalid", "the serial number is not positive or longer than 20 octets")
    return f"{serial:x}"


def _present(leaf: Leaf) -> str:
    if leaf.names is None:
        raise IdentityError("san_missing", "there is no subject alternative name extension")
    return f"{len(list(leaf.names.value))} name(s)"


def _odd(leaf: Leaf) -> str:
    if leaf.names is None:
        raise IdentityError("san_missing", "there is no subject alternative name extension")
    for name in leaf.names.value:
        if isinstance(name, x509.DNSName):
            bad = not name.value or not _DNS_CHARACTERS.issuperset(name.value)
        elif isinstance(name, (x509.UniformResourceIdentifier, x509.RFC822Name)):
            bad = any(not "!" <= c <= "~" for c in name.value)
        else:
            continue  # an address, a number or a DER value: no text in it that could be read in two ways
        if bad:
            raise IdentityError(
                "san_odd_characters", f"{type(name).__name__} {name.value[:80]!a} has a NUL, control, space or non-ASCII character"
            )
    return "plain characters only"


def _one_uri(leaf: Leaf) -> str:
    uris = leaf.uris()
    if not uris:
        raise IdentityError("san_no_uri", "there is no URI among the subject alternative names, so no SPIFFE ID")
    if len(uris) > 1:
        raise IdentityError("san_multiple_uris", f"there are {len(uris)} URIs among the subject alternative names; an SVID has exactly one")
    return "one"


def _id(leaf: Leaf) -> str:
    parsed = parse_spiffe_id(leaf.uris()[0])
    if not parsed.path:
        raise IdentityError("spiffe_path_root", f"{parsed.uri} names a trust domain; a workload has a path below it")
    leaf.spiffe_id = parsed
    return parsed.uri


def _san_critical(leaf: Leaf) -> str:
    if leaf.names is not None and not leaf.names.critical and not list(leaf.certificate.subject):
        raise IdentityError(
            "san_not_critical", "the subject is empty, so the subject alternative name must be critical (RFC 5280, 4.1.2.6)"
        )
    return "critical" if leaf.names is not None and leaf.names.critical else "the subject is not empty"


def _not_a_ca(leaf: Leaf) -> str:
    if leaf.basic is not None and leaf.basic.value.ca:
        raise IdentityError("leaf_is_ca", "the basic constraints say CA: a signing certificate cannot authenticate a workload")
    return "CA is false"


def _usage_present(leaf: Leaf) -> str:
    if leaf.usage is None:
        raise IdentityError("key_usage_missing", "there is no key usage extension")
    if not leaf.usage.critical:
        raise IdentityError("key_usage_not_critical", "the key usage extension is not critical")
    return "critical"


def _usage_signs(leaf: Leaf) -> str:
    if leaf.usage is None or not leaf.usage.value.digital_signature:
        raise IdentityError("key_usage_no_digital_signature", "the key usage lacks digitalSignature")
    return "digitalSignature"


def _usage_no_ca(leaf: Leaf) -> str:
    if leaf.usage is not None and leaf.usage.value.key_cert_sign:
        raise IdentityError("key_usage_cert_sign", "the key usage has keyCertSign, which belongs to signing certificates")
    if leaf.usage is not None and leaf.usage.value.crl_sign:
        raise IdentityError("key_usage_crl_sign", "the key usage has cRLSign, which belongs to signing certificates")
    return "neither keyCertSign nor cRLSign"


def _extended(leaf: Leaf) -> str:
    if leaf.extended is None:
        return "absent"
    held = set(leaf.extended.value)
    missing = [
        name
        for oid, name in ((ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth"), (ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth"))
        if oid not in held
    ]
    if missing:
        raise IdentityError("extended_key_usage", f"the extended key usage lacks {' and '.join(missing)}; an SVID has both")
    return "serverAuth and clientAuth"


def _critical(leaf: Leaf) -> str:
    for value in leaf.certificate.extensions:
        if value.critical and value.oid not in UNDERSTOOD:
            raise IdentityError("critical_extension_unknown", f"critical extension {value.oid.dotted_string} is not understood")
    return "none unknown"


def _key(leaf: Leaf) -> str:
    key = public_key(leaf.certificate)
    check_key(key)
    return key_name(key)


def _signature(leaf: Leaf) -> str:
    check_signature_algorithm(leaf.certificate)
    return signature_name(leaf.certificate)


LEAF_RULES: tuple[tuple[str, str, Callable[[Leaf], str]], ...] = (
    ("certificate_malformed", "Is an X.509 certificate of version 3", _version),
    ("serial_invalid", "The serial number is positive and at most 20 octets long", _serial),
    ("signature_algorithm", "Is signed with ECDSA or RSA over SHA-2, or Ed25519", _signature),
    ("key_weak", "The key is P-256, P-384, P-521, RSA of at least 2048 bits, or Ed25519", _key),
    ("san_missing", "Has subject alternative names", _present),
    ("san_odd_characters", "The names have plain characters only", _odd),
    ("san_multiple_uris", "Exactly one of the names is a URI", _one_uri),
    ("spiffe_id", "The URI is a SPIFFE ID with a path", _id),
    ("san_not_critical", "The names are critical where the subject is empty", _san_critical),
    ("leaf_is_ca", "Is not a CA certificate", _not_a_ca),
    ("key_usage_missing", "Has a key usage that is critical", _usage_present),
    ("key_usage_no_digital_signature", "The key usage has digitalSignature", _usage_signs),
    ("key_usage_cert_sign", "The key usage has neither keyCertSign nor cRLSign", _usage_no_ca),
    ("extended_key_usage", "The extended key usage, where present, has serverAuth and clientAuth", _extended),
    ("critical_extension_unknown", "No critical extension is unknown", _critical),
)
"""(usual code, what is asked, rule). A rule returns what it found or raises IdentityError; later rules may build on earlier ones."""


def public_key(certificate: x509.Certificate) -> object:
    """The certified key. Raises IdentityError (`key_weak`) for one that cannot be read at all."""
    try:
        return certificate.public_key()
    except (UnsupportedAlgorithm, ValueError, TypeError) as exc:
        raise IdentityError("key_weak", f"the public key is of an unsupported type or malformed: {str(exc)[:120]}") from exc


def check_leaf(certificate: x509.Certificate) -> SpiffeId:
    """Judge one certificate by every leaf rule and return its identity: *claimed*, until a chain proves it.

    Raises IdentityError with the code of the first rule that fails.
    """
    leaf = Leaf(certificate)
    for _, _, rule in LEAF_RULES:
        rule(leaf)
    if leaf.spiffe_id is None:  # cannot be: the rule that sets it has passed
        raise IdentityError("san_no_uri", "no SPIFFE ID was found")
    return leaf.spiffe_id


def describe(der: bytes, now: float | None = None) -> Description:
    """The contents of a certificate and the outcome of each rule, for people. `now` (epoch seconds) adds the validity as a rule.

    Raises IdentityError (`certificate_malformed`) only where nothing at all can be read.
    """
    certificate = load_certificate(der)
    leaf = Leaf(certificate)
    results: list[RuleResult] = []
    for code, title, rule in LEAF_RULES:
        try:
            results.append(RuleResult(code, title, True, rule(leaf)))
        except IdentityError as exc:
            results.append(RuleResult(exc.code, title, False, exc.detail))
        except IndexError:
            results.append(RuleResult(code, title, None, "there is no URI to judge"))
    if now is not None:
        results.append(_validity(certificate, now))
    return Description(_facts(certificate, leaf, der), tuple(results), leaf.spiffe_id)


def _validity(certificate: x509.Certificate, now: float) -> RuleResult:
    title = "Is valid at the given time"
    if now < certificate.not_valid_before_utc.timestamp():
        return RuleResult("not_yet_valid", title, False, f"not before {_time(certificate.not_valid_before_utc)}")
    if now > certificate.not_valid_after_utc.timestamp():
        return RuleResult("expired", title, False, f"expired at {_time(certificate.not_valid_after_utc)}")
    return RuleResult("expired", title, True, f"until {_time(certificate.not_valid_after_utc)}")


def _facts(certificate: x509.Certificate, leaf: Leaf, der: bytes) -> dict[str, str | list[str]]:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    facts: dict[str, str | list[str]] = {
        "subject": ascii(certificate.subject.rfc4514_string())[1:-1],
        "issuer": ascii(certificate.issuer.rfc4514_string())[1:-1],
        "serial": f"{certificate.serial_number:x}",
        "not before": _time(certificate.not_valid_before_utc),
        "not after": _time(certificate.not_valid_after_utc),
        "sha-256": digest.finalize().hex(),
        "signature": signature_name(certificate),
    }
    try:
        facts["key"] = key_name(public_key(certificate))
    except IdentityError as exc:
        facts["key"] = exc.detail
    if leaf.names is not None:
        facts["names"] = [f"{type(name).__name__}: {ascii(str(name.value))[1:-1]}" for name in leaf.names.value]
    if leaf.basic is not None:
        facts["basic constraints"] = f"CA {str(leaf.basic.value.ca).lower()}" + (
            f", path length {leaf.basic.value.path_length}" if leaf.basic.value.path_length is not None else ""
        )
    if leaf.usage is not None:
        facts["key usage"] = [name for name in _USAGES if getattr(leaf.usage.value, name)]
    if leaf.extended is not None:
        facts["extended key usage"] = [oid._name for oid in leaf.extended.value]
    facts["extensions"] = [f"{value.oid._name}{' (critical)' if value.critical else ''}" for value in certificate.extensions]
    return facts


_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")


def _time(value: object) -> str:
    return str(value).replace("+00:00", "Z").replace(" ", "T")
