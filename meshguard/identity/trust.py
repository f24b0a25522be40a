"""Whom to believe: the bundles of all trust domains, and the proof that a chain gives an identity.

A bundle vouches for its own trust domain and for no other: the domain is read from the leaf's SPIFFE ID, and only that domain's bundle
is looked at. A federated CA that mints an identity of ours is refused, and named in the record.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

from meshguard.identity.algorithms import check_signature_algorithm
from meshguard.identity.authority import Authority
from meshguard.identity.path import MAX_PRESENTED, PathSearch
from meshguard.identity.pem import read_certificates, read_crls
from meshguard.identity.revocation import RevocationList, check_revocation
from meshguard.identity.spiffe import parse_trust_domain
from meshguard.identity.svid import check_leaf, load_certificate
from meshguard.model.errors import IdentityError
from meshguard.model.principal import Principal

__all__ = ["TrustStore"]

MAX_PROVEN = 4096
"""Results kept, about 2 KiB each; the oldest goes first."""


class TrustStore:
    """The trust of one moment: immutable, but for its memory of what it has proven. A change of bundles or lists makes a new store.

    `bundles` has for each trust domain its CA certificates, `crls` the revocation lists; an item may be DER, DER after DER, or PEM.
    `generation` counts the stores of a process up: a connection verified by an older one is to be verified again.
    `crl_domains` are the trust domains whose certificates need a current revocation list of each issuer; by default those for whose
    bundle a list was given, and all of them when a list belongs to no bundle certificate (it is an intermediate's, of some domain).

    An unusable certificate in a bundle is left out, and is in `problems` with its trust domain: a partner's mistake must not keep us
    from taking up the rest. An unreadable revocation list raises IdentityError.
    """

    __slots__ = ("_anchors", "_lists", "_proven", "crl_domains", "generation", "problems")

    def __init__(
        self,
        bundles: Mapping[str, Sequence[bytes]],
        crls: Sequence[bytes] = (),
        *,
        generation: int = 0,
        crl_domains: Collection[str] | None = None,
    ) -> None:
        self.generation = generation
        self.problems: list[tuple[str, IdentityError]] = []
        self._anchors: dict[str, tuple[Authority, ...]] = {
            parse_trust_domain(domain): self._load_bundle(domain, items) for domain, items in bundles.items()
        }
        self._lists: dict[bytes, list[RevocationList]] = {}
        for item in crls:
            for der in read_crls(item):
                value = RevocationList(der)
                self._lists.setdefault(value.issuer, []).append(value)
        self.crl_domains = frozenset(crl_domains) if crl_domains is not None else self._domains_with_lists()
        # DER of the leaf -> (principal, from, until): the times are judged at each call. The whole leaf is the key: a dictionary hashes
        # 600 bytes in a fifth of the time of SHA-256 and then compares them all, so that nothing rests on a digest.
        self._proven: dict[bytes, tuple[Principal, float, float]] = {}

    @property
    def trust_domains(self) -> frozenset[str]:
        return frozenset(self._anchors)

    def verify(self, chain_der: Sequence[bytes], now: float) -> Principal:
        """The identity that this chain proves at `now` (epoch seconds). The leaf comes first; the order of the rest does not matter.

        `not_before` and `not_after` of the result are the tightest over the leaf, the intermediates and the anchor. Costs about 1 us
        for a leaf that this store has proven before, else two to three hundred.

        Raises IdentityError: the codes of `svid.LEAF_RULES`, `expired`, `not_yet_valid`, `trust_domain_unknown`, `foreign_authority`
        (the CA of *another* configured trust domain signed it), `chain_too_long`, the codes of `PathSearch.find` and of
        `check_revocation`.
        """
        if not chain_der:
            raise IdentityError("certificate_missing", "the peer has shown no certificate")
        proven = self._proven.get(chain_der[0])
        if proven is not None and proven[1] <= now <= proven[2]:
            return proven[0]
        return self._prove(chain_der, now)

    def recall(self, leaf_der: bytes, now: float) -> Principal | None:
        """The result of an earlier `verify` by this store if it still holds at `now`, else None (ask `verify`)."""
        proven = self._proven.get(leaf_der)
        return proven[0] if proven is not None and proven[1] <= now <= proven[2] else None

    def anchors(self, own: str | None = None) -> list[bytes]:
        """The CA certificates of all domains as DER, for a TLS context: OpenSSL's first, coarse check.

        OpenSSL looks issuers up by name, whichever domain they belong to. A foreign CA certificate with the name of one in the bundle of
        `own`, but another key, could make it try the wrong one and fail every local handshake; such a certificate is left out (only the
        foreign workloads that it signed are then refused).
        """
        ours = self._anchors.get(own, ()) if own is not None else ()
        reserved = {anchor.name: {other.public_key_der() for other in ours if other.name == anchor.name} for anchor in ours}
        found = dict.fromkeys(anchor.der for anchor in ours)
        for anchors in self._anchors.values():
            for anchor in anchors:
                if anchor.public_key_der() in reserved.get(anchor.name, {anchor.public_key_der()}):
                    found[anchor.der] = None
        return list(found)

    def _load_bundle(self, domain: str, items: Sequence[bytes]) -> tuple[Authority, ...]:
        anchors: dict[bytes, Authority] = {}
        for item in items:
            try:
                ders = read_certificates(item)
            except IdentityError as exc:
                self.problems.append((domain, exc))
                continue
            for der in ders:
                try:
                    anchors[der] = Authority(der)
                except IdentityError as exc:
                    self.problems.append((domain, exc))
        return tuple(anchors.values())

    def _domains_with_lists(self) -> frozenset[str]:
        found: set[str] = set()
        for lists in self._lists.values():
            for value in lists:
                owners = {domain for domain, anchors in self._anchors.items() if any(anchor.name == value.issuer for anchor in anchors)}
                if not owners:
                    return frozenset(self._anchors)
                found |= owners
        return frozenset(found)

    def _prove(self, chain_der: Sequence[bytes], now: float) -> Principal:
        if len(chain_der) > MAX_PRESENTED:
            raise IdentityError("chain_too_long", f"the peer sent {len(chain_der)} certificates, at most {MAX_PRESENTED} are taken")
        leaf = load_certificate(chain_der[0])
        identity = check_leaf(leaf)
        not_before, not_after = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        if now < not_before:
            raise IdentityError("not_yet_valid", f"valid from {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
        if now > not_after:
            raise IdentityError("expired", f"expired at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
        domain = identity.trust_domain
        anchors = self._anchors.get(domain)
        if anchors is None:
            raise IdentityError("trust_domain_unknown", f"there is no bundle for trust domain {domain}")
        check_signature_algorithm(leaf)
        search = PathSearch(leaf, chain_der[1:], now)
        try:
            path = search.find(anchors, domain)
        except IdentityError as exc:
            self._refuse_foreign(search, domain, exc)
            raise
        until = float("inf")
        certificates = [leaf, *(authority.certificate for authority in path[:-1])]
        for certificate, issuer in zip(certificates, path, strict=True):
            until = min(until, check_revocation(certificate, issuer, self._lists, domain in self.crl_domains, now))
        principal = Principal(
            spiffe_id=identity.uri,
            trust_domain=domain,
            path=identity.path,
            not_before=max(not_before, *(authority.not_before for authority in path)),
            not_after=min(not_after, *(authority.not_after for authority in path)),
            serial=f"{leaf.serial_number:x}",
            thumbprint=sha256(chain_der[0]).hexdigest(),
        )
        # Only proof is kept. A refusal may depend on the intermediates that came along, and costs its sender a handshake anyway.
        if len(self._proven) >= MAX_PROVEN:
            self._proven.pop(next(iter(self._proven)), None)
        self._proven[bytes(chain_der[0])] = (principal, principal.not_before, min(principal.not_after, until))
        return principal

    def _refuse_foreign(self, search: PathSearch, domain: str, cause: IdentityError) -> None:
        """Say so when another domain's CA signed the chain: this is an attack or a bad mistake, and not just an unknown CA."""
        for other, anchors in self._anchors.items():
            if other == domain:
                continue
            try:
                search.find(anchors, domain)
            except IdentityError:
                continue
            raise IdentityError(
                "foreign_authority", f"the identity is of trust domain {domain}, but its certificate was signed by a CA of {other}"
            ) from cause
