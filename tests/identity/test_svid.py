"""The leaf rules: each one passes on a good certificate and fails on one that is broken in just that way."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshguard.identity.svid import LEAF_RULES, check_leaf, describe, load_certificate
from meshguard.model.errors import IdentityError
from tests.identity.pki import NOW, Ca, key, mint, name

SHOP = Ca("shop.example")
SHA1_RSA = bytes.fromhex("06092a864886f70d010105")
MD5_RSA = bytes.fromhex("06092a864886f70d010104")
SHA256_RSA = bytes.fromhex("06092a864886f70d01010b")
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
URI = "spiffe://shop.example/ns/prod/sa/billing"


def raw_name(kind: type, value: str) -> Any:
    return kind._init_without_validation(value)


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    (
        "dns and addresses besides",
        {"names": [x509.DNSName("localhost"), x509.DNSName("*.shop.example"), x509.IPAddress(ipaddress.ip_address("::1"))]},
    ),
    ("critical names, empty subject", {"subject": name(""), "san_critical": True}),
    ("no extended key usage", {"extended": None}),
    (
        "more purposes than the two",
        {"extended": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.TIME_STAMPING]},
    ),
    ("no basic constraints", {"basic": None}),
    ("key agreement too", {"usages": ["digital_signature", "key_agreement", "key_encipherment"]}),
    ("P-384", {"private": key("p384")}),
    ("P-521", {"private": key("p521")}),
    ("RSA 2048", {"private": key("rsa2048")}),
    ("Ed25519", {"private": key("ed25519")}),
]

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no names", {"uris": []}, "san_missing"),
    ("only a DNS name", {"uris": [], "names": [x509.DNSName("billing.shop.example")]}, "san_no_uri"),
    ("two URIs", {"uris": [URI, "spiffe://shop.example/admin"]}, "san_multiple_uris"),
    ("the same URI twice", {"uris": [URI, URI]}, "san_multiple_uris"),
    ("a SPIFFE ID and a web address", {"uris": [URI, "https://shop.example/"]}, "san_multiple_uris"),
    ("a web address", {"uris": ["https://shop.example/billing"]}, "spiffe_scheme"),
    ("NUL in the URI", {"uris": [URI + "\x00.evil"]}, "san_odd_characters"),
    ("NUL in a DNS name", {"uris": [URI], "names": [raw_name(x509.DNSName, "shop.example\x00.evil")]}, "san_odd_characters"),
    ("space in a DNS name", {"uris": [URI], "names": [raw_name(x509.DNSName, "shop example")]}, "san_odd_characters"),
    ("empty DNS name", {"uris": [URI], "names": [raw_name(x509.DNSName, "")]}, "san_odd_characters"),
    ("newline in the URI", {"uris": [URI + "\n"]}, "san_odd_characters"),
    ("control in a mail address", {"uris": [URI], "names": [raw_name(x509.RFC822Name, "a\x01@b")]}, "san_odd_characters"),
    ("upper-case trust domain", {"uris": ["spiffe://Shop.Example/ns/prod/sa/billing"]}, "trust_domain_invalid"),
    ("percent", {"uris": ["spiffe://shop.example/ns%2fprod"]}, "spiffe_path_invalid"),
    ("query", {"uris": [URI + "?a=b"]}, "spiffe_path_invalid"),
    ("port", {"uris": ["spiffe://shop.example:8443/a"]}, "trust_domain_invalid"),
    ("relative segment", {"uris": ["spiffe://shop.example/a/../b"]}, "spiffe_path_invalid"),
    ("too long", {"uris": ["spiffe://shop.example/" + "a" * 2048]}, "spiffe_id_too_long"),
    ("root path", {"uris": ["spiffe://shop.example"]}, "spiffe_path_root"),
    ("empty subject, names not critical", {"subject": name("")}, "san_not_critical"),
    ("a CA", {"basic": (True, None)}, "leaf_is_ca"),
    ("a CA with its usage", {"basic": (True, 0), "usages": ["digital_signature", "key_cert_sign"]}, "leaf_is_ca"),
    ("no key usage", {"usages": None}, "key_usage_missing"),
    ("key usage not critical", {"usage_critical": False}, "key_usage_not_critical"),
    ("no digitalSignature", {"usages": ["key_encipherment"]}, "key_usage_no_digital_signature"),
    ("keyCertSign", {"usages": ["digital_signature", "key_cert_sign"]}, "key_usage_cert_sign"),
    ("cRLSign", {"usages": ["digital_signature", "crl_sign"]}, "key_usage_crl_sign"),
    ("server only", {"extended": [ExtendedKeyUsageOID.SERVER_AUTH]}, "extended_key_usage"),
    ("client only", {"extended": [ExtendedKeyUsageOID.CLIENT_AUTH]}, "extended_key_usage"),
    ("any purpose is not both", {"extended": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, "extended_key_usage"),
    ("unknown critical extension", {"extra": [(UNKNOWN, True)]}, "critical_extension_unknown"),
    ("P-224", {"private": key("p224")}, "key_weak"),
    ("secp256k1", {"private": key("k256")}, "key_weak"),
    ("RSA 1024", {"private": key("rsa1024")}, "key_weak"),
    ("DSA", {"private": key("dsa")}, "key_weak"),
    ("Ed448", {"private": key("ed448")}, "key_weak"),
]  # fmt: skip


@pytest.mark.parametrize(("changes"), [item[1] for item in GOOD], ids=[item[0] for item in GOOD])
def test_accepted(changes: dict[str, Any]) -> None:
    leaf = SHOP.issue(**changes)
    assert check_leaf(load_certificate(leaf.der)).uri == URI
    description = describe(leaf.der, NOW)
    assert description.acceptable, description.rules
    assert description.spiffe_id is not None


@pytest.mark.parametrize(("changes", "code"), [item[1:] for item in BAD], ids=[item[0] for item in BAD])
def test_refused(changes: dict[str, Any], code: str) -> None:
    leaf = SHOP.issue(**changes)
    with pytest.raises(IdentityError) as caught:
        check_leaf(load_certificate(leaf.der))
    assert caught.value.code == code
    assert caught.value.detail.isprintable()
    assert caught.value.detail.isascii()
    description = describe(leaf.der, NOW)
    assert not description.acceptable
    assert code in [rule.code for rule in description.rules if rule.passed is False]


def test_every_rule_is_refused_somewhere() -> None:
    failed: set[int] = set()
    for _, changes, _ in BAD:
        description = describe(SHOP.issue(**changes).der)
        failed |= {index for index, rule in enumerate(description.rules) if rule.passed is False}
    # version, serial number and signature algorithm have tests of their own below
    assert failed == set(range(len(LEAF_RULES))) - {0, 1, 2}


@pytest.mark.parametrize("oid", [SHA1_RSA, MD5_RSA], ids=["sha1", "md5"])
def test_old_hashes(oid: bytes) -> None:
    der = Ca(private=key("rsa2048")).issue().der
    assert check_leaf(load_certificate(der))
    with pytest.raises(IdentityError) as caught:
        check_leaf(load_certificate(der.replace(SHA256_RSA, oid)))
    assert caught.value.code == "signature_algorithm"


@pytest.mark.parametrize(
    ("digest", "accepted"), [(hashes.SHA256(), True), (hashes.SHA384(), True), (hashes.SHA512(), True), (hashes.SHA224(), False)]
)
def test_pss(digest: hashes.HashAlgorithm, accepted: bool) -> None:
    scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)
    der = Ca(private=key("rsa2048")).issue(digest=digest, padding=scheme).der
    if accepted:
        assert check_leaf(load_certificate(der))
    else:
        with pytest.raises(IdentityError) as caught:
            check_leaf(load_certificate(der))
        assert caught.value.code == "signature_algorithm"


def test_ed25519_signature() -> None:
    assert check_leaf(load_certificate(Ca(private=key("ed25519")).issue().der))


def test_rsa_exponent_three() -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(3, 2048)
    with pytest.raises(IdentityError) as caught:
        check_leaf(load_certificate(SHOP.issue(private=private).der))
    assert caught.value.code == "key_weak"


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 300, -1])
def test_malformed(cut: int) -> None:
    with pytest.raises(IdentityError) as caught:
        load_certificate(SHOP.issue().der[:cut])
    assert caught.value.code == "certificate_malformed"


def test_trailing_data() -> None:
    with pytest.raises(IdentityError):
        load_certificate(SHOP.issue().der + b"\x00")


def test_every_byte_changed_never_raises_anything_else() -> None:
    """Whatever one octet becomes: an identity, or an IdentityError."""
    der = SHOP.issue().der
    for index in range(len(der)):
        broken = der[:index] + bytes([der[index] ^ 0xFF]) + der[index + 1 :]
        try:
            check_leaf(load_certificate(broken))
        except IdentityError:
            pass
        try:
            describe(broken, NOW)
        except IdentityError:
            pass


def test_repeated_extension() -> None:
    """Two SAN extensions: a parser that takes the first and one that takes the last would see two identities."""
    oid = x509.ObjectIdentifier("2.5.29.99")
    second = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://shop.example/admin")]).public_bytes()
    der = SHOP.issue(extra=[(x509.UnrecognizedExtension(oid, second), False)]).der
    der = der.replace(bytes.fromhex("0603551d63"), bytes.fromhex("0603551d11"))
    with pytest.raises(IdentityError) as caught:
        check_leaf(load_certificate(der))
    assert caught.value.code == "certificate_malformed"


def sequence(content: bytes) -> bytes:
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content if len(content) > 255 else b"\x30\x81" + bytes([len(content)]) + content


def test_version_1() -> None:
    certificate = mint(SHOP.name, SHOP.key, subject=name("x"), private=key(), basic=None, usages=None, extended=None, key_ids=False)
    whole, tbs = certificate.public_bytes(serialization.Encoding.DER), certificate.tbs_certificate_bytes
    rest = whole[whole.index(tbs) + len(tbs) :]
    content = tbs[tbs.index(bytes.fromhex("a003020102")) + 5 :]  # without the explicit version it is version 1
    broken = sequence(sequence(content) + rest)
    results = describe(broken).rules
    assert results[0].passed is False


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_serial_number() -> None:
    der = SHOP.issue(serial=0x1122334455667788).der
    at = der.index(bytes.fromhex("02081122334455667788"))
    certificate = load_certificate(der[: at + 2] + b"\x91" + der[at + 3 :])
    with pytest.raises(IdentityError) as caught:
        check_leaf(certificate)
    assert caught.value.code == "serial_invalid"


def test_description_says_what_is_wrong_and_is_fit_for_a_terminal() -> None:
    leaf = SHOP.issue(uris=[URI, "spiffe://shop.example/\x1b[31madmin"], usages=["key_encipherment"])
    description = describe(leaf.der, NOW)
    failed = {rule.code for rule in description.rules if rule.passed is False}
    assert failed == {"san_odd_characters", "san_multiple_uris", "key_usage_no_digital_signature"}
    text = str(description.facts) + str(description.rules)
    assert "\x1b" not in text
    assert description.facts["key"] == "P-256"
    assert description.facts["key usage"] == ["key_encipherment"]


def test_description_of_validity() -> None:
    leaf = SHOP.issue()
    assert describe(leaf.der, NOW - 86400).rules[-1].code == "not_yet_valid"
    assert describe(leaf.der, NOW + 2 * 86400).rules[-1].code == "expired"
    assert describe(leaf.der).acceptable
