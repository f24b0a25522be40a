"""Entries: what lies in the ledger. Canonical JSON (RFC 8785: keys sorted, no spaces, integers only), UTF-8.

Two schemas share the ledger; each object says its own.

`meshguard.decision/1`, one for each request: the decision log's object (see `telemetry.decision_log`) with two more keys
    at          monotonic clock of the process when it was written, microseconds: the order in time even when the wall clock jumps
    begun?      true: the answer has begun to stream; the same id comes again, without it, when the request is over. An id that has only a
                `begun` entry was cut by the end of its process, or is still running

`meshguard.event/1`, what happened to the proxy and to the ledger itself
    at, time    as above; time: RFC 3339, UTC, microseconds
    event       start, stop, policy, identity, clock, repair, trouble, gap, recovered, key, expired, reload, bundle, break_glass,
                quarantine, controls, key_destroyed, and those of later parts
    data        an object, per event
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from meshguard.model.errors import MeshguardError

__all__ = ["DECISION", "EVENT", "EntryError", "canonical", "decision_entry", "event_entry", "is_canonical", "read_entry", "rfc3339"]

DECISION = "meshguard.decision/1"
EVENT = "meshguard.event/1"
_SORTED = orjson.OPT_SORT_KEYS


class EntryError(MeshguardError):
    """Octets that are no entry."""


def canonical(value: Any) -> bytes:
    """Canonical JSON of a value of str, int, bool, None, list and dict. Raises TypeError for text that is not valid Unicode."""
    return orjson.dumps(value, option=_SORTED)


def decision_entry(line: bytes, at_us: int, *, begun: bool = False) -> bytes:
    """The entry of a decision, from the decision log's canonical object: the keys that are added sort before all of its own."""
    return b'{"at":%d,"begun":true,%b' % (at_us, line[1:]) if begun else b'{"at":%d,%b' % (at_us, line[1:])


def event_entry(event: str, data: Mapping[str, Any], at_us: int, now: float) -> bytes:
    """The entry of an event. `now`: epoch seconds."""
    return canonical({"at": at_us, "data": dict(data), "event": event, "schema": EVENT, "time": rfc3339(now)})


def read_entry(entry: bytes) -> dict[str, Any]:
    """Raises EntryError."""
    try:
        value = orjson.loads(entry)
    except orjson.JSONDecodeError as exc:
        raise EntryError("an entry is not JSON") from exc
    if not isinstance(value, dict):
        raise EntryError("an entry is not an object")
    return value


def is_canonical(entry: bytes) -> bool:
    """Whether these octets are the canonical form of what they say."""
    try:
        return canonical(orjson.loads(entry)) == entry
    except (orjson.JSONDecodeError, TypeError):
        return False


def rfc3339(seconds: float) -> str:
    """UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
