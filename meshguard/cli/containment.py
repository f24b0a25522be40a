"""Why was this caller, or this service, cut out? The quarantine event that a refused request rests on, from the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from meshguard.cli.audit_output import plain

if TYPE_CHECKING:
    from meshguard.storage.index import Index

__all__ = ["containment"]

_REASONS = ("quarantined", "upstream_quarantined")
_LOOKED_AT = 1000
"""Quarantine events before the request that are looked at."""


def containment(index: Index, entry: Mapping[str, Any]) -> Iterator[str]:
    """Lines of text: who cut it out, when, why, and until when. Nothing for a request that no quarantine refused."""
    from meshguard.cli.ledger_options import moment_us
    from meshguard.policy.quarantine import parse_target
    from meshguard.storage.query import Filter, entries

    why, who = entry.get("why") or {}, entry.get("who") or {}
    because = (entry.get("outcome") or {}).get("fallback") or {}
    reason = why.get("reason") if why.get("reason") in _REASONS else because.get("because")
    if reason not in _REASONS:
        return
    caller, serial = who.get("principal", ""), (who.get("svid") or {}).get("serial", "")
    ended: set[str] = set()
    for _, found in entries(index, Filter(event="quarantine", until=moment_us(entry["time"], 0.0) + 1), limit=_LOOKED_AT):
        data = found.get("data") or {}
        target = str(data.get("target", ""))
        if not target or target in ended:
            continue
        ended.add(target)
        if data.get("action") != "add":
            continue
        try:
            pattern = parse_target(target)
        except ValueError:
            continue
        mine = pattern == (serial.lstrip("0") or "0") if isinstance(pattern, str) else _covers(target, caller)
        if mine or reason == "upstream_quarantined":
            until = f" until {_moment(data['until'])}" if data.get("until") else ""
            words = f" ({plain(data['reason'])})" if data.get("reason") else ""
            yield f"quarantine: {plain(target)} since {_moment(data.get('since', 0))}{until}, by {plain(data.get('by', '-'))}{words}"


def _covers(target: str, caller: str) -> bool:
    from meshguard.control.views import principal_matcher

    return bool(caller) and principal_matcher([target])(caller)


def _moment(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
