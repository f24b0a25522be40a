"""Rate limits in a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from meshguard.control.settings.values import Name, Section
from meshguard.sources.complaints import Complaint, nearest

__all__ = ["MAX_LIMITS", "RateLimitConfig", "rate_limit_complaints"]

MAX_LIMITS = 64
"""In one configuration: each has memory of its own, and each costs every request it applies to."""
_PLAIN = ("identity", "route", "client_address")
_KEY = re.compile(r"(?:identity|route|client_address|claim:[^\x00-\x20\x7f]{1,128}|header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128})\Z")


def _key(value: str) -> str:
    if not _KEY.match(value):
        raise ValueError("identity, route, client_address, claim:NAME or header:NAME")
    return value


class RateLimitConfig(Section):
    """`requests` in `per_s` seconds for each key, in the long run; `burst` of them may come at once."""

    id: Name = Field(description="Unique; it is told to clients, and is the limit's name in metrics and records.")
    key: list[Annotated[str, AfterValidator(_key)]] = Field(
        min_length=1,
        max_length=8,
        description="identity, route, client_address, claim:NAME, header:NAME; several make one key.",
    )
    requests: int = Field(ge=1, le=1_000_000_000)
    per_s: Annotated[float, Field(gt=0, le=86_400 * 31)]
    burst: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Absent: as `requests`.")
    routes: list[Name] = Field(default=[], description="Ids of routes; absent: everything on this listener.")
    before: Literal["decision"] | None = Field(
        default=None, description="decision: counts every request, also what the policy denies; for identity, route and client_address."
    )
    scope: Literal["node", "fleet"] = Field(default="node", description="fleet: over all instances, by exchange through the fleet's store.")
    shadow: bool = Field(default=False, description="Counts and reports, refuses nothing.")


def rate_limit_complaints(name: str, listener: Mapping[str, Any], ids: dict[str, str], tokens: bool) -> Iterator[Complaint]:
    """What must agree: ids are unique over all listeners (`ids` gathers them), routes exist, keys can be known when they are asked for.
    `tokens`: the configuration has issuers."""
    limits = listener.get("rate_limits")
    routes = [str(route.get("id")) for route in listener.get("routes") or () if isinstance(route, Mapping)] or [name]
    for index, limit in enumerate(limits if isinstance(limits, list) else ()):
        if not isinstance(limit, Mapping):
            continue
        at: tuple[str | int, ...] = ("listeners", name, "rate_limits", index)
        identifier = limit.get("id")
        if isinstance(identifier, str):
            if identifier in ids:
                yield Complaint((*at, "id"), f"an id that no other limit has (also at {ids[identifier]})", identifier)
            ids.setdefault(identifier, f"listeners.{name}.rate_limits[{index}]")
            if len(ids) == MAX_LIMITS + 1:
                yield Complaint(at, f"at most {MAX_LIMITS} rate limits in all")
        wanted = limit.get("routes")
        for place, route in enumerate(wanted if isinstance(wanted, list) else ()):
            if isinstance(route, str) and route not in routes:
                yield Complaint((*at, "routes", place), "the id of a route of this listener", route, nearest(route, routes))
        keys = limit.get("key")
        for place, key in enumerate(keys if isinstance(keys, list) else ()):
            if limit.get("before") == "decision" and key not in _PLAIN:
                yield Complaint((*at, "key", place), f"{', '.join(_PLAIN)} for a limit before the decision: the rest would cost work", key)
            elif isinstance(key, str) and key.startswith("claim:") and not tokens:
                yield Complaint((*at, "key", place), "issuers under `jwt`: without them there are no claims", key)
            elif key == "identity" and listener.get("tls") in ("none", "server"):
                yield Complaint((*at, "key", place), "client_address or claim:NAME: nobody is identified by a certificate here", key)
        if isinstance(keys, list) and keys and all(isinstance(key, str) and key.startswith("header:") for key in keys):
            yield Complaint((*at, "key"), "something that a caller cannot choose beside the header (identity, client_address, claim:NAME)")
