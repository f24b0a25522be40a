"""Rate limits of a listener: which apply to a route, what they are keyed on, and what a request is told.

Two moments. *After the decision*, as a rule: a request that the policy denies takes nothing from the bucket of those that it allows.
*Before the decision* where a limit says so: for what denials cost, such as tokens that somebody guesses (a signature is the most
expensive thing that a stranger can make this proxy work out). It is keyed on what is known without work: address, identity, route.

A request has to pass every limit; when one refuses, what the others took is given back. A limit in shadow mode takes and counts like any
other and refuses nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from math import ceil
from time import monotonic, time
from typing import TYPE_CHECKING

import orjson

from meshguard.model.errors import RequestError
from meshguard.model.reasons import RATE_LIMITED
from meshguard.pipeline.facts import RequestFacts
from meshguard.wire.fields import field_values

if TYPE_CHECKING:
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.limit_table import Handle, Region
    from meshguard.telemetry.metrics import Slot

__all__ = ["Limiter", "Limits", "RateLimit", "key_part"]

Part = Callable[["Exchange", RequestFacts | None], str]
"""A part of a key: of a request and, where the decision asked for them, its facts."""

_KEPT = 4096
"""Keys of a limit whose place is remembered in this process; then the memo starts anew (callers choose the keys)."""
_KEPT_LENGTH = 256
_TOLD = b"%b%b%d;t=%d\r\n"
"""draft-ietf-httpapi-ratelimit-headers-10: so many requests are left, and in t seconds from now all of them are back. %d cuts off what
stands behind the point."""
_SLACK = 1e-4
"""Of an interval: so much early a request may come, because seconds are floating."""


def _identity(exchange: Exchange, facts: RequestFacts | None) -> str:
    principal = exchange.principal
    return principal.spiffe_id if principal is not None else ""


def _route(exchange: Exchange, facts: RequestFacts | None) -> str:
    plan = exchange.plan
    return plan.route if plan is not None else ""


def _client_address(exchange: Exchange, facts: RequestFacts | None) -> str:
    return exchange.client_address  # as far as trusted proxies tell


def _claim(name: str) -> Part:
    def part(exchange: Exchange, facts: RequestFacts | None) -> str:
        claims = (facts or RequestFacts(exchange, time())).claims
        value = claims.get(name) if claims is not None else None
        return "" if value is None else value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()

    return part


def _header(name: str) -> Part:
    wanted = name.lower().encode("ascii")

    def part(exchange: Exchange, facts: RequestFacts | None) -> str:
        head = exchange.head
        return "" if head is None else b", ".join(field_values(head.block, wanted)).decode("latin-1")

    return part


def key_part(name: str) -> Part:
    """`identity`, `route`, `client_address`, `claim:NAME` or `header:NAME`. What is absent is the empty text: all requests without it
    share a bucket."""
    kind, _, argument = name.partition(":")
    if kind == "claim":
        return _claim(argument)
    if kind == "header":
        return _header(argument)
    return {"identity": _identity, "route": _route, "client_address": _client_address}[kind]


def network_of(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 one: a subscriber has 2 ** 64 of those, and can send from each."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class RateLimit:
    """One limit: `requests` in `per_s` seconds in the long run, `burst` of them at once. `outcomes` counts what it allowed and what it
    refused (or would have)."""

    __slots__ = (
        "_addresses",
        "_handles",
        "_last",
        "_part",
        "_parts",
        "_region",
        "_take",
        "allowed",
        "capacity",
        "id",
        "interval",
        "policy",
        "prefix",
        "refused",
        "shadow",
    )

    def __init__(
        self,
        id: str,
        key: Sequence[str],
        requests: int,
        per_s: float,
        burst: int,
        shadow: bool,
        region: Region,
        outcomes: tuple[Slot, Slot],
    ) -> None:
        self.id = id
        self.shadow = shadow
        self.allowed, self.refused = outcomes
        self._parts = tuple(key_part(name) for name in key)
        self._part = self._parts[0] if len(key) == 1 else None
        self._addresses = tuple(name == "client_address" for name in key)
        self._region = region
        self._take = region.take
        self._last: Handle | None = None
        self.interval = per_s / requests
        self.capacity = (burst + _SLACK) * self.interval
        self._handles: dict[str | tuple[str, ...], Handle] = {}
        self.policy = f'"{id}";q={requests};w={ceil(per_s)}'.encode("ascii")
        self.prefix = f'ratelimit: "{id}";r='.encode("ascii")

    def take(self, exchange: Exchange, facts: RequestFacts | None, now: float) -> float:
        """The room that is left, in seconds; negative: minus the seconds until there is room, and nothing was taken."""
        part = self._part
        key: str | tuple[str, ...] = part(exchange, facts) if part is not None else tuple([each(exchange, facts) for each in self._parts])
        self._last = handle = self._handles.get(key) or self._find(key)
        room = self._take(handle, now, self.interval, self.capacity)
        if room >= 0.0:
            self.allowed.value += 1
        else:
            self.refused.value += 1
        return room

    def give_back(self) -> None:
        """The request that took last is refused by another limit."""
        self.allowed.value -= 1
        if self._last is not None:
            self._region.give_back(self._last, self.interval)

    def _find(self, key: str | tuple[str, ...]) -> Handle:
        parts = (key,) if isinstance(key, str) else key
        texts = [network_of(part) if address else part for part, address in zip(parts, self._addresses, strict=True)]
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        handle = self._handle_of(b"".join(len(data).to_bytes(4, "big") + data for data in encoded))
        if sum(map(len, encoded)) <= _KEPT_LENGTH:
            if len(self._handles) >= _KEPT:
                self._handles.clear()
            self._handles[key] = handle
        return handle

    def _handle_of(self, key: bytes) -> Handle:
        return self._region.handle(key)


class Limits:
    """The limits of one route: `early` ones before the decision, `late` ones after it."""

    __slots__ = ("_policies", "early", "late")

    def __init__(self, early: tuple[RateLimit, ...], late: tuple[RateLimit, ...]) -> None:
        self.early = early
        self.late = late
        told = [limit.policy for limit in (*early, *late) if not limit.shadow]
        self._policies = b"ratelimit-policy: %b\r\n" % b", ".join(told) if told else b""

    def before_decision(self, exchange: Exchange) -> None:
        """Raises RequestError(RATE_LIMITED)."""
        self._apply(self.early, exchange, None)

    def after_decision(self, exchange: Exchange, facts: RequestFacts | None) -> None:
        """Raises RequestError(RATE_LIMITED), and TOKEN_INVALID where a limit is keyed on a claim of a token that is not valid."""
        self._apply(self.late, exchange, facts)

    def _apply(self, limits: tuple[RateLimit, ...], exchange: Exchange, facts: RequestFacts | None) -> None:
        now = monotonic()
        if len(limits) == 1 and not limits[0].shadow:  # the usual case
            limit = limits[0]
            room = limit.take(exchange, facts, now)
            if room < 0.0:
                self._refuse(exchange, limit, -room)
            exchange.limit_lines = _TOLD % (self._policies, limit.prefix, room / limit.interval, limit.capacity - room + 1.0)
            return
        taken: list[RateLimit] = []
        least, left_over, longest = float("inf"), 0.0, 0.0
        strictest: RateLimit | None = None
        for limit in limits:
            room = limit.take(exchange, facts, now)
            if room >= 0.0:
                taken.append(limit)
                if not limit.shadow and not longest and room / limit.interval < least:
                    least, left_over, strictest = room / limit.interval, room, limit
            elif limit.shadow:
                exchange.detail = f"limit {limit.id} (shadow)"
            elif -room > longest:
                longest, strictest = -room, limit
        if longest and strictest is not None:
            for limit in taken:
                limit.give_back()
            self._refuse(exchange, strictest, longest)
        if strictest is not None:
            exchange.limit_lines = _TOLD % (self._policies, strictest.prefix, least, strictest.capacity - left_over + 1.0)

    def _refuse(self, exchange: Exchange, limit: RateLimit, wait_s: float) -> None:
        seconds = max(1, ceil(wait_s))
        exchange.limit_lines = b"%bretry-after: %d\r\n" % (_TOLD % (self._policies, limit.prefix, 0, seconds), seconds)
        raise RequestError(RATE_LIMITED, f"limit {limit.id}")


class Limiter:
    """The limits of a listener. `routes` of a limit are the ids it applies to; empty: all, also requests that match none."""

    __slots__ = ("_limits", "_made")

    def __init__(self, limits: Sequence[tuple[RateLimit, frozenset[str], bool]]) -> None:
        self._limits = tuple(limits)  # limit, routes, before the decision
        self._made: dict[str, Limits | None] = {}

    def of(self, route: str) -> Limits | None:
        """What applies to a route; None when nothing does."""
        if route not in self._made:
            applying = [(limit, early) for limit, routes, early in self._limits if not routes or route in routes]
            early = tuple(limit for limit, first in applying if first)
            late = tuple(limit for limit, first in applying if not first)
            self._made[route] = Limits(early, late) if applying else None
        return self._made[route]
