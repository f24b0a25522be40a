"""Name constraints of the CA and of intermediates (RFC 5280, 4.2.1.10)."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from cryptography import x509

from meshguard.identity.trust import TrustStore
from meshguard.model.errors import IdentityError
from tests.identity.pki import NOW, Ca, name

URI, DNS, IP, DIRECTORY, MAIL = x509.UniformResourceIdentifier, x509.DNSName, x509.IPAddress, x509.DirectoryName, x509.RFC822Name

ORG = {text: x509.Name(list(name("x", text))[:1]) for text in ("test", "TEST", "Test", "acme")}


def constraints(permitted: list[x509.GeneralName] | None = None, excluded: list[x509.GeneralName] | None = None) -> x509.NameConstraints:
    return x509.NameConstraints(permitted, excluded)


def network(text: str) -> x509.IPAddress:
    return IP(ipaddress.ip_network(text))


def address(text: str) -> x509.IPAddress:
    return IP(ipaddress.ip_address(text))


CASES: list[tuple[str, x509.NameConstraints, dict[str, Any], bool]] = [
    ("the domain itself", constraints([URI("shop.example")]), {}, True),
    ("another domain", constraints([URI("other.example")]), {}, False),
    ("a parent is not the domain", constraints([URI("example")]), {}, False),
    ("hosts below a domain", constraints([URI(".example")]), {}, True),
    ("a leading period needs something before it", constraints([URI(".shop.example")]), {}, False),
    ("one of two", constraints([URI("other.example"), URI("shop.example")]), {}, True),
    ("excluded", constraints(None, [URI("shop.example")]), {}, False),
    ("excluded wins over permitted", constraints([URI("shop.example")], [URI(".example")]), {}, False),
    ("another one excluded", constraints(None, [URI("other.example")]), {}, True),
    ("DNS inside", constraints([DNS("shop.example")]), {"names": [DNS("a.shop.example")]}, True),
    ("DNS exact", constraints([DNS("shop.example")]), {"names": [DNS("SHOP.example")]}, True),
    ("DNS outside", constraints([DNS("shop.example")]), {"names": [DNS("notshop.example")]}, False),
    ("one of the DNS names outside", constraints([DNS("shop.example")]), {"names": [DNS("a.shop.example"), DNS("b.example")]}, False),
    ("DNS excluded", constraints(None, [DNS("example")]), {"names": [DNS("a.example")]}, False),
    ("DNS constraint, no DNS name", constraints([DNS("shop.example")]), {}, True),
    ("address inside", constraints([network("10.0.0.0/8")]), {"names": [address("10.1.2.3")]}, True),
    ("address outside", constraints([network("10.0.0.0/8")]), {"names": [address("11.1.2.3")]}, False),
    ("address of the other family", constraints([network("10.0.0.0/8")]), {"names": [address("::1")]}, False),
    ("address excluded", constraints(None, [network("::/0")]), {"names": [address("::1")]}, False),
    ("directory inside", constraints([DIRECTORY(ORG["test"])]), {"subject": name("workload")}, True),
    ("directory, other case", constraints([DIRECTORY(ORG["TEST"])]), {"subject": name("workload")}, True),
    ("directory outside", constraints([DIRECTORY(ORG["acme"])]), {"subject": name("workload")}, False),
    ("directory excluded in other case", constraints(None, [DIRECTORY(ORG["Test"])]), {"subject": name("workload")}, False),
    ("mail is not judged, so refused", constraints([MAIL("shop.example")]), {"names": [MAIL("a@shop.example")]}, False),
    ("mail constraint, no mail", constraints([MAIL("shop.example")]), {}, True),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "changes", "accepted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("place", ["root", "intermediate", "above the intermediate"])
def test_leaf(limits: x509.NameConstraints, changes: dict[str, Any], accepted: bool, place: str) -> None:
    if place == "root":
        root = issuer = Ca("shop.example", constraints=limits)
    elif place == "intermediate":
        root = Ca("shop.example")
        issuer = root.intermediate(constraints=limits)
    else:
        root = Ca("shop.example")
        issuer = root.intermediate(constraints=limits).intermediate()
    store = TrustStore({"shop.example": [root.der]})
    if accepted:
        assert store.verify(issuer.issue(**changes).chain, NOW)
    else:
        with pytest.raises(IdentityError) as caught:
            store.verify(issuer.issue(**changes).chain, NOW)
        assert caught.value.code == "name_constraint"


def test_intermediate_outside() -> None:
    """The names of an intermediate are held to the constraints as well."""
    root = Ca("shop.example", constraints=constraints([DNS("shop.example")]))
    inner = root.intermediate(names=[DNS("evil.example")])
    with pytest.raises(IdentityError) as caught:
        TrustStore({"shop.example": [root.der]}).verify(inner.issue().chain, NOW)
    assert caught.value.code == "name_constraint"


def test_another_path_is_tried() -> None:
    """Two anchors of one name and key, of which one is constrained: the free one proves the leaf."""
    free = Ca("shop.example", common="twin")
    bound = Ca("shop.example", common="twin", private=free.key, constraints=constraints([URI("other.example")]))
    assert TrustStore({"shop.example": [bound.der, free.der]}).verify(free.issue().chain, NOW)
