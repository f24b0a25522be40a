"""Revocation lists: what is on them, who signed them, how old they are, and what happens when one is not there."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from meshguard.identity.trust import TrustStore
from meshguard.model.errors import IdentityError
from tests.identity.pki import DAY, HOUR, NOW, Ca, Issued, key, moment

SHOP = Ca("shop.example")
PARTNER = Ca("partner.example")
LEAF = SHOP.issue(serial=1234)


def store(*crls: bytes, **more: Any) -> TrustStore:
    return TrustStore({"shop.example": [SHOP.der], "partner.example": [PARTNER.der]}, crls, **more)


def refused(trust: TrustStore, leaf: Issued, now: float = NOW) -> str:
    with pytest.raises(IdentityError) as caught:
        trust.verify(leaf.chain, now)
    return caught.value.code


def test_not_on_the_list() -> None:
    assert store(SHOP.crl([99])).verify(LEAF.chain, NOW).serial == "4d2"


def test_revoked() -> None:
    assert refused(store(SHOP.crl([99, 1234])), LEAF) == "revoked"


def test_pem_list() -> None:
    pem = x509.load_der_x509_crl(SHOP.crl([1234])).public_bytes(Encoding.PEM)
    assert refused(store(pem), LEAF) == "revoked"


def test_revoked_with_a_reason() -> None:
    builder = x509.CertificateRevocationListBuilder().issuer_name(SHOP.name)
    entry = x509.RevokedCertificateBuilder().serial_number(1234).revocation_date(moment(NOW - 10))
    entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.certificate_hold), critical=False)
    crl = (
        builder.last_update(moment(NOW - 10))
        .next_update(moment(NOW + DAY))
        .add_revoked_certificate(entry.build())
        .sign(SHOP.key, hashes.SHA256())
    )
    assert refused(store(crl.public_bytes(Encoding.DER)), LEAF) == "revoked"


def test_expired_list_fails_closed_also_from_memory() -> None:
    trust = store(SHOP.crl(end=NOW + 60))
    assert trust.verify(LEAF.chain, NOW)
    assert trust.verify(LEAF.chain, NOW + 60)
    assert refused(trust, LEAF, NOW + 61) == "crl_expired"
    assert trust.recall(LEAF.der, NOW + 61) is None


def test_list_of_the_future() -> None:
    assert refused(store(SHOP.crl(start=NOW + HOUR)), LEAF) == "crl_not_yet_valid"


def test_bad_signature() -> None:
    assert refused(store(SHOP.crl(signer=PARTNER.key)), LEAF) == "crl_bad_signature"


def test_forged_list_besides_the_real_one_changes_nothing() -> None:
    forged = SHOP.crl([1234], signer=PARTNER.key)
    assert store(forged, SHOP.crl()).verify(LEAF.chain, NOW)
    assert refused(store(SHOP.crl([], signer=PARTNER.key), SHOP.crl([1234])), LEAF) == "revoked"


def test_an_outdated_list_still_revokes() -> None:
    assert refused(store(SHOP.crl([1234], start=NOW - DAY, end=NOW - HOUR), SHOP.crl()), LEAF) == "revoked"


def test_newer_list_besides_an_outdated_one() -> None:
    assert store(SHOP.crl(start=NOW - DAY, end=NOW - HOUR), SHOP.crl()).verify(LEAF.chain, NOW)


def test_missing_for_the_intermediate() -> None:
    intermediate = SHOP.intermediate()
    leaf = intermediate.issue(serial=5)
    assert refused(store(SHOP.crl()), leaf) == "crl_missing"
    assert store(SHOP.crl(), intermediate.crl()).verify(leaf.chain, NOW)
    assert refused(store(SHOP.crl(), intermediate.crl([5])), leaf) == "revoked"


def test_revoked_intermediate() -> None:
    intermediate = SHOP.intermediate(serial=77)
    leaf = intermediate.issue()
    assert refused(store(SHOP.crl([77]), intermediate.crl()), leaf) == "revoked"


def test_lists_concern_the_domains_that_have_one() -> None:
    trust = store(SHOP.crl())
    assert trust.crl_domains == {"shop.example"}
    assert trust.verify(PARTNER.issue().chain, NOW)


def test_configured_but_missing() -> None:
    trust = store(crl_domains=["shop.example"])
    assert refused(trust, LEAF) == "crl_missing"
    assert trust.verify(PARTNER.issue().chain, NOW)


def test_a_list_of_no_known_ca_asks_for_lists_everywhere() -> None:
    intermediate = SHOP.intermediate()
    trust = store(intermediate.crl())
    assert trust.crl_domains == {"shop.example", "partner.example"}
    assert refused(trust, PARTNER.issue()) == "crl_missing"
    assert refused(trust, LEAF) == "crl_missing"


def test_rotated_ca_without_a_list() -> None:
    newer = Ca("shop.example")
    trust = TrustStore({"shop.example": [SHOP.der, newer.der]}, [SHOP.crl()])
    assert refused(trust, newer.issue()) == "crl_missing"


def test_ca_that_may_not_sign_lists() -> None:
    ca = Ca("shop.example", usages=("key_cert_sign",))
    trust = TrustStore({"shop.example": [ca.der]}, [ca.crl()])
    assert refused(trust, ca.issue()) == "crl_bad_signature"


def test_a_partner_cannot_revoke_ours() -> None:
    """Its list is its own: serial numbers count under the name and key of their issuer only."""
    assert store(PARTNER.crl([1234])).verify(LEAF.chain, NOW)


@pytest.mark.parametrize(
    "extra",
    [
        [(x509.DeltaCRLIndicator(1), True)],
        [(x509.DeltaCRLIndicator(1), False)],
        [(x509.IssuingDistributionPoint(None, None, True, False, None, False, False), True)],
        [(x509.IssuingDistributionPoint(None, None, False, False, None, True, False), True)],
    ],
)
def test_incomplete_lists(extra: list[tuple[x509.ExtensionType, bool]]) -> None:
    with pytest.raises(IdentityError) as caught:
        store(SHOP.crl(extra=extra))
    assert caught.value.code == "crl_unsupported"


def test_list_number_is_fine() -> None:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(SHOP.key.public_key())
    assert store(SHOP.crl(extra=[(x509.CRLNumber(3), False), (identifier, False)])).verify(LEAF.chain, NOW)


def test_old_hash() -> None:
    ca = Ca("shop.example", private=key("rsa2048"))
    der = ca.crl().replace(bytes.fromhex("06092a864886f70d01010b"), bytes.fromhex("06092a864886f70d010105"))
    with pytest.raises(IdentityError) as caught:
        store(der)
    assert caught.value.code == "signature_algorithm"


@pytest.mark.parametrize("data", [b"", b"junk", b"0\x03\x02\x01\x05", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_malformed(data: bytes) -> None:
    with pytest.raises(IdentityError) as caught:
        store(data)
    assert caught.value.code == "crl_malformed"


def test_cut_off() -> None:
    with pytest.raises(IdentityError):
        store(SHOP.crl([1, 2, 3])[:-4])
