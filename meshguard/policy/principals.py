"""SPIFFE IDs and patterns of them in roles and rules, and the index that finds the subjects of a caller.

    spiffe://shop.example/ns/prod/sa/billing        exactly this identity, byte for byte
    spiffe://shop.example/ns/prod/sa/support-*      one '*' in a segment: one or more characters of that segment
    spiffe://shop.example/ns/*/sa/billing           a whole segment
    spiffe://shop.example/ns/prod/**                only at the end: everything below (and the identity /ns/prod itself)

The trust domain is always literal: a pattern that spans trust domains would let a federated authority mint members of a local
role, so each domain is listed by name. No case folding, no decoding: SPIFFE IDs are compared as they are (SPIFFE-ID section 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from meshguard.policy.paths import MAX_SEGMENTS, Parameter
from meshguard.policy.trie import Node, insert, walk

__all__ = ["MAX_SPIFFE_ID", "PrincipalIndex", "PrincipalPattern", "parse_principal"]

MAX_SPIFFE_ID = 2048
"""Octets (SPIFFE-ID section 2.3)."""
_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}\Z")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+\Z")


class PrincipalPattern:
    """`segments` start with the trust domain; `exact` patterns hold only literals and no `rest`."""

    __slots__ = ("exact", "rest", "segments", "text")

    def __init__(self, text: str, segments: tuple[str | Parameter, ...], rest: bool) -> None:
        self.text = text
        self.segments = segments
        self.rest = rest
        self.exact = not rest and all(isinstance(segment, str) for segment in segments)

    def sample(self) -> str:
        """An identity that the pattern matches, for tests and explanations."""
        spelled = [segment if isinstance(segment, str) else f"{segment.prefix}x{segment.suffix}" for segment in self.segments]
        return _SCHEME + "/".join(spelled) + ("/x" if self.rest else "")


def parse_principal(text: str) -> PrincipalPattern:
    """Parse a SPIFFE ID or pattern; raises ValueError with what was expected, in words."""
    if not text.startswith(_SCHEME):
        raise ValueError("a SPIFFE ID or pattern that starts with 'spiffe://'")
    if len(text) > MAX_SPIFFE_ID or not text.isascii():
        raise ValueError(f"a SPIFFE ID of at most {MAX_SPIFFE_ID} ASCII characters")
    domain, *parts = text[len(_SCHEME) :].split("/")
    if "*" in domain:
        raise ValueError("a literal trust domain: list each trust domain by name")
    if not _TRUST_DOMAIN.match(domain):
        raise ValueError("a trust domain of lower-case letters, digits, '.', '-' and '_'")
    if not parts:
        raise ValueError("a path after the trust domain (use /** for every workload of it)")
    rest = parts[-1] == "**"
    if rest:
        parts.pop()
    if len(parts) > MAX_SEGMENTS:
        raise ValueError(f"at most {MAX_SEGMENTS} path segments")
    return PrincipalPattern(text, (domain, *map(_segment, parts)), rest)


def _segment(part: str) -> str | Parameter:
    before, star, after = part.partition("*")
    if "*" in after:
        raise ValueError("one '*' in a segment, and '**' only at the end")
    if part in (".", "..") or not part:
        raise ValueError("a path without empty, '.' and '..' segments")
    if part != "*" and not _SEGMENT.match(before + after):
        raise ValueError("path segments of letters, digits, '.', '-' and '_'")
    return Parameter(before, after) if star else part


class PrincipalIndex:
    """Finds what is filed for an identity: one look-up for exact identities, one walk for the patterns that fit.

    Built once, then only read. What is filed are the integer ids of subjects (see `subjects`).
    """

    __slots__ = ("_exact", "_patterns")

    def __init__(self, filed: Iterable[tuple[PrincipalPattern, int]]) -> None:
        self._exact: dict[str, list[int]] = {}
        self._patterns: Node[list[int]] = Node()
        for pattern, subject in filed:
            if pattern.exact:
                self._exact.setdefault(pattern.text, []).append(subject)
                continue
            node = insert(self._patterns, pattern.segments)
            if pattern.rest:
                node.rest = node.rest or []
                node.rest.append(subject)
            else:
                node.end = node.end or []
                node.end.append(subject)

    def find(self, spiffe_id: str) -> set[int]:
        """The subjects of this identity; empty for anything that is no SPIFFE ID."""
        subjects = set(self._exact.get(spiffe_id, ()))
        if spiffe_id.startswith(_SCHEME):
            found: list[list[int]] = []
            walk(self._patterns, spiffe_id[len(_SCHEME) :].split("/"), found)
            for filed in found:
                subjects.update(filed)
        return subjects
