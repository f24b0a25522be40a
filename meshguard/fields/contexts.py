"""What a protected value is bound to besides its keyset: its field, its audience, its tenant and, where a rule names one, its record.

The tenant comes from something that was verified (a claim of the caller's token, a part of its SPIFFE ID), never from the message. A
record key does come from the message: it keeps a value from being moved to another record, and is bound as a digest, so that the
header stays short and tells nothing of it.

Additional data of everything that is not a JWE: each part is preceded by its length, so no two contexts share their octets.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Protocol

from meshguard.model.errors import RequestError
from meshguard.model.reasons import TENANT_UNKNOWN

__all__ = ["Caller", "Context", "TenantSelector", "Unidentified", "record_digest"]

RECORD_BYTES = 16
"""Octets of the digest of a record key: 128 bits against a second record with the same digest."""
MAX_TENANT = 256


class Caller(Protocol):
    """Whose verified attributes choose the tenant: who sent the request. `claims` are those of a verified token."""

    @property
    def principal(self) -> str | None: ...
    @property
    def claims(self) -> Mapping[str, object] | None: ...


class Unidentified:
    """A caller of whom nothing is known."""

    principal: str | None = None
    claims: Mapping[str, object] | None = None


class TenantSelector:
    """Where a rule finds the tenant: `claim` (a name, a dotted path or a URL) or `segment` (the part of a SPIFFE ID that follows the
    part of this name: `ns` finds `shop` in spiffe://mesh/ns/shop/sa/web)."""

    __slots__ = ("claim", "segment")

    def __init__(self, *, claim: str = "", segment: str = "") -> None:
        self.claim = claim
        self.segment = segment

    def of(self, caller: Caller) -> str:
        """The tenant of a caller. Raises RequestError(TENANT_UNKNOWN) when the attribute is missing or is no short plain text."""
        found = self._of_claims(caller.claims) if self.claim else self._of_principal(caller.principal)
        if not isinstance(found, str) or not 0 < len(found) <= MAX_TENANT or not _plain(found):
            raise RequestError(
                TENANT_UNKNOWN, f"no {'claim ' + self.claim if self.claim else 'part ' + self.segment + ' in the SPIFFE ID'}"
            )
        return found

    def _of_claims(self, claims: Mapping[str, object] | None) -> object:
        if claims is None:
            return None
        if self.claim in claims or "://" in self.claim:
            return claims.get(self.claim)
        value: object = claims
        for name in self.claim.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def _of_principal(self, principal: str | None) -> object:
        if principal is None:
            return None
        parts = principal.split("/")[3:]
        places = [place for place, part in enumerate(parts[:-1]) if part == self.segment]
        return parts[places[0] + 1] if len(places) == 1 else None  # twice: which one it is would be a guess


def _plain(text: str) -> bool:
    return all("\x20" < char < "\x7f" and char not in '"\\' for char in text)


def record_digest(key: str) -> str:
    """What stands for a record key (with its JSON type in front: `s:` or `n:`) in a context: 22 characters of base64url."""
    return urlsafe_b64encode(sha256(key.encode()).digest()[:RECORD_BYTES]).rstrip(b"=").decode()


class Context:
    """One field for one tenant and record. `field` is how it is called in protected headers: `#` cannot stand in an id."""

    __slots__ = ("audience", "field", "tenant")

    def __init__(self, field: str, audience: str = "", tenant: str = "", record: str = "") -> None:
        self.field = f"{field}#{record_digest(record)}" if record else field
        self.audience = audience
        self.tenant = tenant

    def octets(self, purpose: str) -> bytes:
        """The context as additional data for `purpose`."""
        parts = [part.encode() for part in (purpose, self.field, self.audience, self.tenant)]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
