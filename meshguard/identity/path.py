"""From a leaf to an anchor: a small, strict path builder (RFC 5280, 6.1).

Why not `cryptography.x509.verification`: it asks web PKI rules of roots and leaves that SPIFFE CAs need not meet, refuses URI name
constraints, which are the ones that SPIFFE defines, knows no revocation, and gives no stable reason for a refusal. SPIFFE chains are
one to three certificates long, so the search is short; the tests hold this builder against that verifier and against OpenSSL's.
What is hard to get right stays with cryptography: parsing, and the signature of one certificate by another.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from meshguard.identity.algorithms import check_signature_algorithm
from meshguard.identity.authority import Authority
from meshguard.identity.constraints import check_names
from meshguard.identity.svid import extension, load_certificate
from meshguard.model.errors import IdentityError

__all__ = ["MAX_PRESENTED", "PathSearch"]

MAX_PRESENTED = 10
"""Most certificates that a peer may send, its own included (OpenSSL's default depth is 100; real chains have at most 4)."""
MAX_SIGNATURES = 16
"""Signature checks of one search. Cross-signed certificates that a peer makes up could ask for a factorial number (50 us each)."""


class PathSearch:
    """One search for a path from `leaf` through `presented` certificates to an anchor, at the time `now` (epoch seconds)."""

    __slots__ = ("_authorities", "_failure", "_leaf", "_now", "_presented", "_signatures")

    def __init__(self, leaf: x509.Certificate, presented: Sequence[bytes], now: float) -> None:
        self._leaf = leaf
        self._presented = presented
        self._now = now
        self._authorities: list[tuple[bytes, Authority | IdentityError]] | None = None
        self._signatures = 0
        self._failure: IdentityError | None = None

    def find(self, anchors: Sequence[Authority], trust_domain: str) -> tuple[Authority, ...]:
        """The authorities from the leaf's issuer up to and including one of `anchors`.

        Raises IdentityError: the most telling reason for which a candidate was not taken (`issuer_expired`, `issuer_not_yet_valid`,
        `issuer_not_ca`, `issuer_key_usage`, `issuer_spiffe_id`, `path_length`, `signature_invalid`, `signature_algorithm`,
        `name_constraint`, `chain_too_long`, ...), else `untrusted`.
        """
        self._failure = None
        found = self._extend(self._leaf, anchors, (), trust_domain)
        if found is not None:
            return found
        raise self._failure or IdentityError("untrusted", f"no certificate in the bundle of {trust_domain} issued this chain")

    def _extend(
        self, below: x509.Certificate, anchors: Sequence[Authority], path: tuple[Authority, ...], trust_domain: str
    ) -> tuple[Authority, ...] | None:
        issuer = below.issuer.public_bytes()
        wanted = _authority_key_id(below)
        for anchor in anchors:
            if anchor.name == issuer and self._admits(anchor, below, wanted, path):
                complete = (*path, anchor)
                if self._names_allowed(complete, trust_domain):
                    return complete
        for name, candidate in self._candidates():
            if name != issuer:
                continue
            if isinstance(candidate, IdentityError):
                self._note(candidate)
                continue
            if any(candidate.der == used.der for used in path):
                continue
            if self._admits(candidate, below, wanted, path):
                try:
                    check_signature_algorithm(candidate.certificate)
                except IdentityError as exc:
                    self._note(exc)
                    continue
                found = self._extend(candidate.certificate, anchors, (*path, candidate), trust_domain)
                if found is not None:
                    return found
        return None

    def _candidates(self) -> list[tuple[bytes, Authority | IdentityError]]:
        """The presented certificates by name, parsed when first needed: most leaves are issued by an anchor. Raises IdentityError
        (`certificate_malformed`); a certificate that may not sign is kept as the reason why."""
        if self._authorities is None:
            self._authorities = []
            for der in dict.fromkeys(self._presented):
                try:
                    authority = Authority(der)
                    self._authorities.append((authority.name, authority))
                except IdentityError as exc:
                    self._authorities.append((load_certificate(der).subject.public_bytes(), exc))
        return self._authorities

    def _admits(self, above: Authority, below: x509.Certificate, wanted: bytes | None, path: tuple[Authority, ...]) -> bool:
        """If `above`, whose name fits, can be the issuer of `below`; `path` are the intermediates so far. Notes why not."""
        if wanted is not None and above.key_id is not None and wanted != above.key_id:
            return False  # another key of the same name: a rotation
        if self._now < above.not_before:
            return self._note(IdentityError("issuer_not_yet_valid", f"the signing certificate {above.shown} is not valid yet"))
        if self._now > above.not_after:
            return self._note(IdentityError("issuer_expired", f"the signing certificate {above.shown} has expired"))
        if above.path_length is not None and sum(not value.self_issued for value in path) > above.path_length:
            return self._note(
                IdentityError("path_length", f"{above.shown} allows only {above.path_length} signing certificate(s) below it")
            )
        self._signatures += 1
        if self._signatures > MAX_SIGNATURES:
            return self._note(IdentityError("chain_too_long", f"more than {MAX_SIGNATURES} signatures to check"))
        try:
            below.verify_directly_issued_by(above.certificate)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            return self._note(IdentityError("signature_invalid", f"{above.shown} is named as the issuer but did not sign the certificate"))
        return True

    def _names_allowed(self, path: tuple[Authority, ...], trust_domain: str) -> bool:
        # A signing certificate that is an SVID itself should issue leaves of its own trust domain (X509-SVID, 3.2). Held for the direct
        # issuer: one further up may be shared, and then the bundle says for which domain it counts.
        own = path[0].trust_domain
        if own is not None and own != trust_domain:
            return self._note(
                IdentityError("issuer_spiffe_id", f"{path[0].shown} is of trust domain {own}, the identity of {trust_domain}")
            )
        try:
            for index, authority in enumerate(path):
                if authority.constraints is None:
                    continue
                check_names(self._leaf, authority.constraints, authority.shown)
                for lower in path[:index]:
                    if not lower.self_issued:  # RFC 5280, 6.1.3 (b)
                        check_names(lower.certificate, authority.constraints, authority.shown)
        except IdentityError as exc:
            return self._note(exc)
        return True

    def _note(self, failure: IdentityError) -> bool:
        if self._failure is None:
            self._failure = failure
        return False


def _authority_key_id(certificate: x509.Certificate) -> bytes | None:
    identifier = extension(certificate, x509.AuthorityKeyIdentifier)
    return identifier.value.key_identifier if identifier is not None else None
