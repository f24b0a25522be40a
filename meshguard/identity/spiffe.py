"""SPIFFE IDs: the strict grammar, and nothing that makes two spellings equal.

Source: SPIFFE-ID standard, sections 2 and 2.1 to 2.3. An ID is judged as it stands and compared byte for byte: this module has
no normalising function on purpose, since every normaliser is a way for two different identities to become one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from meshguard.model.errors import IdentityError

__all__ = ["MAX_ID_BYTES", "SpiffeId", "parse_spiffe_id", "parse_trust_domain", "parse_workload_path", "spiffe_id"]

MAX_ID_BYTES = 2048
"""Longest SPIFFE ID in bytes (SPIFFE-ID section 2.3)."""
MAX_TRUST_DOMAIN_BYTES = 255
"""Longest trust domain name in bytes (SPIFFE-ID section 2.1)."""

_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+\Z")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+\Z")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A parsed SPIFFE ID. `path` is empty for the ID of a trust domain itself, else it starts with `/`.

    INVARIANT: `uri == "spiffe://" + trust_domain + path`, exactly as it was given.
    """

    trust_domain: str
    path: str
    uri: str

    def __str__(self) -> str:
        return self.uri


def parse_trust_domain(text: str) -> str:
    """Check a bare trust domain name and return it. Raises IdentityError (`trust_domain_invalid`)."""
    if not text:
        raise IdentityError("trust_domain_invalid", "the trust domain is empty")
    if len(text) > MAX_TRUST_DOMAIN_BYTES:
        raise IdentityError("trust_domain_invalid", f"the trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")
    if not _TRUST_DOMAIN.match(text):
        hint = "; upper case is never folded" if any(c.isupper() for c in text) else ""
        raise IdentityError("trust_domain_invalid", f"{_shown(text)} has a character outside a-z 0-9 . _ -{hint}")
    return text


def parse_workload_path(text: str) -> str:
    """Check the path of a SPIFFE ID (empty, or `/segment/segment`) and return it. Raises IdentityError (`spiffe_path_invalid`)."""
    if not text:
        return text
    if text[0] != "/":
        raise IdentityError("spiffe_path_invalid", f"{_shown(text)} does not start with /")
    for segment in text[1:].split("/"):
        if not segment:
            raise IdentityError("spiffe_path_invalid", f"{_shown(text)} has an empty segment or a trailing slash")
        if segment in (".", ".."):
            raise IdentityError("spiffe_path_invalid", f"{_shown(text)} has a relative segment")
        if not _SEGMENT.match(segment):
            raise IdentityError("spiffe_path_invalid", f"segment {_shown(segment)} has a character outside A-Z a-z 0-9 . _ -")
    return text


def parse_spiffe_id(text: str) -> SpiffeId:
    """Parse `spiffe://trust-domain/path`; the path may be absent (a trust domain's own ID; leaf rules refuse that).

    Raises IdentityError: `spiffe_id_too_long`, `spiffe_scheme`, `trust_domain_invalid` (also for user info, a port, an upper-case
    letter, a percent sign), `spiffe_path_invalid` (also for query, fragment and percent-encoding).
    """
    # Every character that passes the two tables below is ASCII, so that the length in characters is the length in bytes.
    if len(text) > MAX_ID_BYTES:
        raise IdentityError("spiffe_id_too_long", f"the SPIFFE ID is longer than {MAX_ID_BYTES} bytes")
    if not text.startswith(_SCHEME):
        raise IdentityError("spiffe_scheme", f"{_shown(text)} does not start with {_SCHEME} (lower case)")
    rest = text[len(_SCHEME) :]
    domain, slash, path = rest.partition("/")
    return SpiffeId(parse_trust_domain(domain), parse_workload_path(slash + path), text)


def spiffe_id(trust_domain: str, path: str) -> SpiffeId:
    """Build an ID from its two parts, under the rules of `parse_spiffe_id`."""
    return parse_spiffe_id(f"{_SCHEME}{parse_trust_domain(trust_domain)}{parse_workload_path(path)}")


def _shown(text: str) -> str:
    """A hostile text made fit for a record: escaped and capped."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
