"""Chains: which bundle proves whom, and every way to try it with the wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshguard.identity import trust
from meshguard.identity.path import MAX_SIGNATURES, PathSearch
from meshguard.identity.svid import load_certificate
from meshguard.identity.trust import MAX_PROVEN, TrustStore
from meshguard.model.errors import IdentityError
from tests.identity.pki import BOTH, DAY, HOUR, NOW, Ca, Issued, key, mint, name

SHOP = Ca("shop.example")
PARTNER = Ca("partner.example")
STORE = TrustStore({"shop.example": [SHOP.der], "partner.example": [PARTNER.der]})


def refused(store: TrustStore, chain: Sequence[bytes], now: float = NOW) -> str:
    with pytest.raises(IdentityError) as caught:
        store.verify(chain, now)
    assert caught.value.detail
    assert caught.value.detail.isascii()
    assert caught.value.detail.isprintable()
    return caught.value.code


def store_of(*cas: Ca, **more: Any) -> TrustStore:
    bundles: dict[str, list[bytes]] = {}
    for ca in cas:
        bundles.setdefault(ca.trust_domain, []).append(ca.der)
    return TrustStore(bundles, **more)


def test_principal() -> None:
    leaf = SHOP.issue("/ns/prod/sa/billing", start=NOW - 100, end=NOW + 200, serial=0xABCDEF)
    principal = STORE.verify(leaf.chain, NOW)
    assert principal.spiffe_id == "spiffe://shop.example/ns/prod/sa/billing"
    assert (principal.trust_domain, principal.path) == ("shop.example", "/ns/prod/sa/billing")
    assert (principal.not_before, principal.not_after) == (NOW - 100, NOW + 200)
    assert principal.serial == "abcdef"
    assert len(principal.thumbprint) == 64


def test_both_domains_side_by_side() -> None:
    assert STORE.verify(PARTNER.issue("/p").chain, NOW).spiffe_id == "spiffe://partner.example/p"
    assert STORE.trust_domains == {"shop.example", "partner.example"}


def test_intermediates() -> None:
    one = SHOP.intermediate()
    two = one.intermediate(end=NOW + 50)
    leaf = two.issue()
    assert len(leaf.chain) == 3
    assert STORE.verify(leaf.chain, NOW).not_after == NOW + 50
    assert store_of(SHOP).verify([leaf.der, one.der, two.der], NOW).spiffe_id  # any order after the leaf
    assert store_of(SHOP).verify([*leaf.chain, SHOP.der, leaf.der], NOW)  # superfluous certificates


def test_missing_intermediate() -> None:
    leaf = SHOP.intermediate().issue()
    assert refused(STORE, [leaf.der]) == "untrusted"


def test_intermediate_as_anchor() -> None:
    """A bundle may hold an intermediate without its root: it is an anchor of its own."""
    intermediate = SHOP.intermediate()
    store = store_of(intermediate)
    assert store.verify([intermediate.issue().der], NOW)
    assert refused(store, SHOP.issue().chain) == "untrusted"


def test_rotation_of_a_ca_with_the_same_name() -> None:
    old, new = Ca(common="shop CA"), Ca(common="shop CA")
    store = store_of(old, new)
    for ca in (old, new):
        assert store.verify(ca.issue(key_ids=True).chain, NOW)
        assert store.verify(ca.issue(key_ids=False).chain, NOW)


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "rsa3072", "ed25519"])
def test_algorithms_of_the_ca(kind: str) -> None:
    ca = Ca(private=key(kind))
    assert store_of(ca).verify(ca.issue().chain, NOW)


def test_pem_and_der_bundles() -> None:
    pem = SHOP.pem + PARTNER.pem
    assert len(TrustStore({"x": [pem]}).anchors()) == 2
    assert len(TrustStore({"x": [SHOP.der + PARTNER.der]}).anchors()) == 2
    assert len(TrustStore({"x": [SHOP.der, SHOP.pem]}).anchors()) == 1


# --- attacks ---


def test_federated_ca_mints_a_local_identity() -> None:
    stolen = PARTNER.issue(uris=["spiffe://shop.example/ns/prod/sa/admin"])
    assert refused(STORE, stolen.chain) == "foreign_authority"
    assert refused(store_of(PARTNER), stolen.chain) == "trust_domain_unknown"


def test_federated_ca_mints_through_an_intermediate() -> None:
    stolen = PARTNER.intermediate().issue(uris=["spiffe://shop.example/admin"])
    assert refused(STORE, stolen.chain) == "foreign_authority"


def test_federated_ca_with_our_name_and_key_id() -> None:
    evil = Ca("partner.example", common="x")
    ours = Ca("shop.example", common="x")
    evil_leaf = evil.issue(
        uris=["spiffe://shop.example/a"], authority_id=x509.SubjectKeyIdentifier.from_public_key(ours.key.public_key()).digest
    )
    assert refused(store_of(ours, evil), evil_leaf.chain) == "signature_invalid"


def test_federated_anchor_that_imitates_ours_does_not_reach_openssl() -> None:
    ours = Ca("shop.example", common="x")
    evil = Ca("partner.example", common="x")
    store = store_of(ours, evil)
    assert store.anchors("shop.example") == [ours.der]
    assert store.anchors("partner.example") == [evil.der]
    assert set(store.anchors()) == {ours.der, evil.der}


def test_cross_signed_by_ours_for_the_partner_is_not_the_partner() -> None:
    """Our CA signs an intermediate for the partner: that makes it a CA of ours, not of theirs."""
    cross = SHOP.intermediate(trust_domain="partner.example")
    assert refused(STORE, cross.issue().chain) == "foreign_authority"


def test_issuer_svid_of_another_domain() -> None:
    issuing = SHOP.intermediate(uris=["spiffe://partner.example"])
    assert refused(STORE, issuing.issue(uris=["spiffe://shop.example/a"]).chain) == "issuer_spiffe_id"
    good = SHOP.intermediate(uris=["spiffe://shop.example"])
    assert STORE.verify(good.issue().chain, NOW)
    with_path = SHOP.intermediate(uris=["spiffe://shop.example/ca"])
    assert refused(STORE, with_path.issue().chain) == "issuer_spiffe_id"


def test_self_signed_leaf() -> None:
    own = name("workload")
    private = key("p256", 99)
    leaf = mint(own, private, subject=own, private=private, uris=["spiffe://shop.example/a"])
    assert refused(STORE, Issued(leaf, private).chain) == "untrusted"


def test_self_signed_leaf_in_the_name_of_the_ca() -> None:
    private = key("p256", 98)
    leaf = mint(SHOP.name, private, subject=SHOP.name, private=private, uris=["spiffe://shop.example/a"], key_ids=False)
    assert refused(STORE, Issued(leaf, private).chain) == "signature_invalid"


def test_leaf_signed_by_a_leaf() -> None:
    workload = SHOP.issue(subject=name("mallory"))
    child = mint(name("mallory"), workload.key, subject=name("child"), private=key("p256", 97), uris=["spiffe://shop.example/admin"])
    assert refused(STORE, [Issued(child, None).der, workload.der]) == "issuer_not_ca"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"basic": (False, None)}, "issuer_not_ca"),
        ({"basic": None}, "issuer_not_ca"),
        ({"basic_critical": False}, "issuer_not_ca"),
        ({"usages": ("digital_signature",)}, "issuer_key_usage"),
        ({"usages": None}, "issuer_key_usage"),
        ({"usages": ("crl_sign",)}, "issuer_key_usage"),
        ({"extended": [ExtendedKeyUsageOID.CLIENT_AUTH]}, "issuer_key_usage"),
        ({"end": NOW - 10}, "issuer_expired"),
        ({"start": NOW + 10}, "issuer_not_yet_valid"),
        ({"private": key("p224")}, "key_weak"),
        ({"private": key("rsa1024")}, "key_weak"),
        ({"extra": [(x509.PolicyConstraints(0, None), True)]}, "critical_extension_unknown"),
        ({"uris": ["spiffe://shop.example", "spiffe://other.example"]}, "issuer_spiffe_id"),
        ({"uris": ["spiffe://Shop.example"]}, "trust_domain_invalid"),
    ],
)
def test_unfit_intermediate(changes: dict[str, Any], code: str) -> None:
    leaf = SHOP.intermediate(**changes).issue()
    assert refused(store_of(SHOP), leaf.chain) == code


@pytest.mark.parametrize("changes", [{"extended": BOTH}, {"extended": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, {"path_length": 0}])
def test_fit_intermediate(changes: dict[str, Any]) -> None:
    assert store_of(SHOP).verify(SHOP.intermediate(**changes).issue().chain, NOW)


def test_path_length() -> None:
    root = Ca(path_length=1)
    store = store_of(root)
    one = root.intermediate()
    assert store.verify(one.issue().chain, NOW)
    assert refused(store, one.intermediate().issue().chain) == "path_length"
    limited = SHOP.intermediate(path_length=0)
    assert STORE.verify(limited.issue().chain, NOW)
    assert refused(STORE, limited.intermediate().issue().chain) == "path_length"
    assert refused(store_of(Ca(path_length=0)), one.issue().chain) == "untrusted"


def test_self_issued_certificates_do_not_count_for_the_path_length() -> None:
    """RFC 5280, 6.1.4 (l): a key rollover certificate is not one more level."""
    root = Ca(path_length=0, common="rollover")
    rolled = Ca(parent=root, common="rollover")
    assert root.name == rolled.name
    assert store_of(root).verify(rolled.issue().chain, NOW)


def test_signature_does_not_verify() -> None:
    leaf = SHOP.issue().der
    broken = leaf[:-1] + bytes([leaf[-1] ^ 1])
    assert refused(STORE, [broken]) == "signature_invalid"


def test_contents_changed_under_the_signature() -> None:
    leaf = SHOP.issue("/ns/prod/sa/billing").der
    assert refused(STORE, [leaf.replace(b"/sa/billing", b"/sa/madmins")]) == "signature_invalid"


def test_signature_algorithm_differs_inside_and_outside() -> None:
    ca = Ca(private=key("rsa2048"))
    inner = bytes.fromhex("06092a864886f70d01010b")
    der = ca.issue().der
    broken = der.replace(inner, bytes.fromhex("06092a864886f70d01010c"), 1)
    with pytest.raises(IdentityError):
        store_of(ca).verify([broken], NOW)


def test_old_hash_of_an_intermediate() -> None:
    root = Ca(private=key("rsa2048"))
    intermediate = root.intermediate(private=key("p256", 55))
    leaf = intermediate.issue()
    assert store_of(root).verify(leaf.chain, NOW)
    sha1 = intermediate.der.replace(bytes.fromhex("06092a864886f70d01010b"), bytes.fromhex("06092a864886f70d010105"))
    assert refused(store_of(root), [leaf.der, sha1]) in ("signature_algorithm", "signature_invalid")


def test_time() -> None:
    leaf = SHOP.issue(start=NOW, end=NOW + 60)
    store = store_of(SHOP)
    assert refused(store, leaf.chain, NOW - 1) == "not_yet_valid"
    for _ in range(2):  # the second time from memory
        assert store.verify(leaf.chain, NOW)
        assert store.verify(leaf.chain, NOW + 60)
        assert refused(store, leaf.chain, NOW + 61) == "expired"
        assert refused(store, leaf.chain, NOW - 1) == "not_yet_valid"


def test_time_of_the_anchor() -> None:
    ca = Ca(end=NOW + 100)
    store = store_of(ca)
    leaf = ca.issue(end=NOW + DAY)
    assert store.verify(leaf.chain, NOW).not_after == NOW + 100
    assert refused(store, leaf.chain, NOW + 101) == "issuer_expired"


def test_an_expired_and_a_renewed_anchor_of_one_key() -> None:
    private = key("p256", 77)
    old = Ca(private=private, common="renewed", end=NOW - 1)
    new = Ca(private=private, common="renewed", end=NOW + 1000)
    assert store_of(old, new).verify(old.issue().chain, NOW).not_after == NOW + 1000


def test_nothing_shown() -> None:
    assert refused(STORE, []) == "certificate_missing"
    assert refused(STORE, [b""]) == "certificate_malformed"
    assert refused(STORE, [b"garbage"]) == "certificate_malformed"


def test_garbage_in_the_chain() -> None:
    leaf = SHOP.intermediate().issue()
    assert refused(STORE, [leaf.der, b"garbage"]) == "certificate_malformed"


def test_too_long() -> None:
    leaf = SHOP.issue()
    assert refused(STORE, [*leaf.chain, *[PARTNER.der] * 10]) == "chain_too_long"


def test_search_is_bounded() -> None:
    """Nine CA certificates of one name and one key, all signing each other: a factorial number of paths, none of which ends."""
    private = key("p256", 66)
    loop = name("loop")
    ring = [
        mint(loop, private, subject=loop, private=private, basic=(True, None), usages=("key_cert_sign",), extended=None, key_ids=False)
        for _ in range(9)
    ]
    leaf = mint(loop, private, subject=name("x"), private=key(), uris=["spiffe://shop.example/a"], key_ids=False)
    chain = [Issued(item, None).der for item in (leaf, *ring)]
    search = PathSearch(load_certificate(chain[0]), chain[1:], NOW)
    with pytest.raises(IdentityError):
        search.find([], "shop.example")
    # Candidates looked at; only the first MAX_SIGNATURES of them cost a signature check.
    assert MAX_SIGNATURES < search._signatures < 300
    assert refused(STORE, chain) in ("chain_too_long", "untrusted", "foreign_authority")


def test_unusable_bundle_certificates_are_left_out_and_told() -> None:
    bad = Ca("partner.example", usages=("digital_signature",))
    store = TrustStore({"shop.example": [SHOP.der], "partner.example": [bad.der, b"junk"]})
    assert [(domain, problem.code) for domain, problem in store.problems] == [
        ("partner.example", "issuer_key_usage"),
        ("partner.example", "certificate_malformed"),
    ]
    assert store.verify(SHOP.issue().chain, NOW)
    assert refused(store, bad.issue().chain) == "untrusted"
    assert store.anchors() == [SHOP.der]


def test_a_leaf_in_a_bundle_is_no_anchor() -> None:
    leaf = SHOP.issue()
    store = TrustStore({"shop.example": [leaf.der]})
    assert store.problems
    assert refused(store, leaf.chain) == "untrusted"


def test_trust_domain_of_a_bundle_is_checked() -> None:
    with pytest.raises(IdentityError):
        TrustStore({"Shop.Example": [SHOP.der]})


# --- memory ---


def test_second_time_parses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = SHOP.issue()
    store = store_of(SHOP)
    assert store.recall(leaf.der, NOW) is None
    first = store.verify(leaf.chain, NOW)
    monkeypatch.setattr(trust, "load_certificate", lambda der: pytest.fail("parsed again"))
    assert store.verify([bytes(bytearray(leaf.der))], NOW) is first
    assert store.recall(leaf.der, NOW) is first
    assert store.recall(leaf.der, NOW + 2 * DAY) is None


def test_refusals_are_not_remembered() -> None:
    """A chain without its intermediate is refused; the same leaf with it is not."""
    leaf = SHOP.intermediate().issue()
    store = store_of(SHOP)
    assert refused(store, [leaf.der]) == "untrusted"
    assert store.verify(leaf.chain, NOW)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_PROVEN", 3)
    store = store_of(SHOP)
    leaves = [SHOP.issue(f"/{index}") for index in range(5)]
    for leaf in leaves:
        store.verify(leaf.chain, NOW)
    assert [store.recall(leaf.der, NOW) is not None for leaf in leaves] == [False, False, True, True, True]
    assert MAX_PROVEN == 4096


def test_generation() -> None:
    assert TrustStore({}, generation=7).generation == 7


def test_not_before_of_the_chain() -> None:
    leaf = SHOP.intermediate(start=NOW - 5).issue(start=NOW - HOUR)
    assert store_of(SHOP).verify(leaf.chain, NOW).not_before == NOW - 5
