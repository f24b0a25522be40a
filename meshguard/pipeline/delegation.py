"""Decision tokens on their way: what came with a request is verified, what the next hop gets is signed (E6).

Only listeners with `decision_token` and routes that send or pass one come here. A verification costs about a millisecond for each hop and
is remembered for as long as it holds; a signature is made anew every few seconds for the same caller, chain, policy and audience.
"""

from __future__ import annotations

from secrets import token_hex
from time import time
from typing import TYPE_CHECKING

from meshguard.identity.decision_token import Delegation, issue, verify
from meshguard.model.errors import IdentityError, RequestError
from meshguard.model.reasons import (
    DECISION_TOKEN_INVALID,
    DECISION_TOKEN_REQUIRED,
    DECISION_TOKEN_TOO_LONG,
    INTERNAL_ERROR,
    QUARANTINED,
)

if TYPE_CHECKING:
    from meshguard.identity.signer import Signer
    from meshguard.model.verdicts import Permit
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.snapshot import Snapshot
    from meshguard.policy.quarantine import Quarantine

__all__ = ["FIELD", "TokenReader", "TokenWriter"]

FIELD = b"x-meshguard-decision"
"""Cut from every request like all `x-meshguard-*`: what goes on is what was verified or signed here."""
SIGNED_FOR_S = 5.0
"""Seconds for which one token serves equal requests."""
MAX_REMEMBERED = 512
"""Values kept, of at most 16 KiB each."""


class TokenReader:
    """Verifies the values that come in on one listener under one snapshot. With `required`, requests without one are refused."""

    __slots__ = ("_required", "_verified")

    def __init__(self, required: bool) -> None:
        self._required = required
        self._verified: dict[tuple[bytes, bytes], Delegation] = {}

    def read(self, exchange: Exchange, quarantine: Quarantine) -> Delegation | None:
        """What the request proves of its way. Raises RequestError."""
        head, peer = exchange.head, exchange.peer
        values = [value for name, value in head.specials if name == FIELD] if head is not None else []
        if not values:
            if self._required:
                raise RequestError(DECISION_TOKEN_REQUIRED)
            return None
        table = peer.table
        if table is None or len(values) > 1:
            raise RequestError(DECISION_TOKEN_INVALID, "more than one value")
        # on an outbound listener our own workload hands on what was addressed to it; everybody else must own the key of the value
        channel = b"" if peer.outbound else peer.chain[0] if peer.chain and peer.principal is not None else None
        if channel is None:
            raise RequestError(DECISION_TOKEN_INVALID, "a token of a peer without identity")
        now = time()
        key = (values[0], channel)
        found = self._verified.get(key)
        if found is None or now >= found.expires:
            found = self._verify(values[0], channel, table.snapshot, now)
            if len(self._verified) >= MAX_REMEMBERED:
                self._verified.clear()
            self._verified[key] = found
        if quarantine:
            for member in found.chain:
                if quarantine.find(member, found.serials.get(member, ""), now) is not None:
                    raise RequestError(QUARANTINED, "a caller on the way here")
        return found

    def _verify(self, value: bytes, channel: bytes, snapshot: Snapshot, now: float) -> Delegation:
        own, trust = snapshot.own, snapshot.trust
        if own is None or trust is None:
            raise RequestError(DECISION_TOKEN_INVALID, "no identity to be addressed")
        try:
            return verify(
                value.decode("ascii"),
                audiences=(own.spiffe_id, f"spiffe://{own.trust_domain}"),
                judge=lambda chain: trust.verify(chain, now),
                peer=channel or None,
                now=now,
            )
        except UnicodeDecodeError:
            raise RequestError(DECISION_TOKEN_INVALID, "malformed_token") from None
        except IdentityError as exc:
            raise RequestError(DECISION_TOKEN_INVALID, exc.code) from exc


class TokenWriter:
    """The field for the next hop. `audience` empty: what was verified is passed on as it is (to the own application)."""

    __slots__ = ("_audience", "_signed", "_signer")

    def __init__(self, signer: Signer | None, audience: str) -> None:
        self._signer = signer
        self._audience = audience
        self._signed: dict[tuple[str, str], tuple[float, bytes]] = {}

    def line(self, exchange: Exchange, permit: Permit) -> bytes:
        """The field line, or nothing. Raises RequestError."""
        received = exchange.delegation
        if not self._audience:
            return b"%b: %b\r\n" % (FIELD, received.value.encode("ascii")) if received is not None else b""
        if self._signer is None:
            raise RequestError(INTERNAL_ERROR, "no key to sign with")
        now = time()
        principal = exchange.principal
        key = (received.value if received is not None else principal.spiffe_id if principal is not None else "", permit.policy_digest)
        signed = self._signed.get(key)
        if signed is not None and now < signed[0]:
            return signed[1]
        try:
            value = issue(
                self._signer,
                audience=self._audience,
                received=received,
                policy=permit.policy_digest,
                decision=exchange.decision_id,
                jti=token_hex(16),
                now=now,
            )
        except IdentityError as exc:
            raise RequestError(DECISION_TOKEN_TOO_LONG, exc.detail) from exc
        line = b"%b: %b\r\n" % (FIELD, value.encode("ascii"))
        if len(self._signed) >= MAX_REMEMBERED:
            self._signed.clear()
        self._signed[key] = (now + SIGNED_FOR_S, line)
        return line
