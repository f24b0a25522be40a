"""Name constraints of a CA (RFC 5280, 4.2.1.10), applied to the names of what is below it in a chain.

Judged: URI (on the host, which is the trust domain of a SPIFFE ID), DNS name, IP address, directory name. A constraint on any other
kind refuses a certificate that has a name of that kind: what is not understood is not waved through.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from cryptography import x509

from meshguard.identity.svid import extension
from meshguard.model.errors import IdentityError

__all__ = ["check_names"]


def check_names(certificate: x509.Certificate, constraints: x509.NameConstraints, issuer: str) -> None:
    """Refuse a certificate with a name outside the permitted or inside an excluded subtree. `issuer` is for the detail.

    Raises IdentityError (`name_constraint`).
    """
    permitted = list(constraints.permitted_subtrees or ())
    excluded = list(constraints.excluded_subtrees or ())
    for name in _names(certificate):
        same = [subtree for subtree in permitted if type(subtree) is type(name)]
        if same and not any(_within(name, subtree) for subtree in same):
            raise IdentityError("name_constraint", f"{issuer} is not permitted to certify {_shown(name)}")
        if any(type(subtree) is type(name) and _within(name, subtree) for subtree in excluded):
            raise IdentityError("name_constraint", f"{issuer} is excluded from certifying {_shown(name)}")


def _names(certificate: x509.Certificate) -> Iterable[x509.GeneralName]:
    if list(certificate.subject):
        yield x509.DirectoryName(certificate.subject)
    names = extension(certificate, x509.SubjectAlternativeName)
    if names is not None:
        yield from names.value


def _within(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    """If `name` is in `subtree`; both are of one kind. Raises IdentityError for a kind that is not judged."""
    if isinstance(name, x509.UniformResourceIdentifier):
        host = urlsplit(name.value).hostname or ""
        limit = str(subtree.value).lower()
        # A leading period means the hosts below, without it exactly that host (unlike for DNS names).
        return host.endswith(limit) and len(host) > len(limit) if limit.startswith(".") else host == limit
    if isinstance(name, x509.DNSName):
        host, limit = name.value.lower(), str(subtree.value).lower().lstrip(".")
        return not limit or host == limit or host.endswith("." + limit)
    if isinstance(name, x509.IPAddress):
        network = subtree.value
        if not isinstance(network, (ipaddress.IPv4Network, ipaddress.IPv6Network)) or not isinstance(
            name.value, (ipaddress.IPv4Address, ipaddress.IPv6Address)
        ):
            raise IdentityError("name_constraint", "a constraint on addresses is malformed")
        return name.value in network
    if isinstance(name, x509.DirectoryName):
        own, limits = _folded(name.value), _folded(subtree.value)
        return own[: len(limits)] == limits
    raise IdentityError("name_constraint", f"a constraint on names of type {type(name).__name__} is not supported")


def _folded(name: x509.Name) -> list[frozenset[tuple[str, str]]]:
    """The relative distinguished names, without regard to case and repeated spaces (RFC 5280, 7.1)."""
    return [frozenset((a.oid.dotted_string, " ".join(str(a.value).casefold().split())) for a in part) for part in name.rdns]


def _shown(name: x509.GeneralName) -> str:
    value = name.value.rfc4514_string() if isinstance(name, x509.DirectoryName) else str(name.value)
    return ascii(value[:120])
