"""Counts for people who watch (`meshguard top`): decisions and latencies by route and by caller, with buckets fine enough to read.

It counts only while somebody watches: for `WATCHED_S` after each reading. Otherwise a batch of finished requests costs one comparison here.
Everything is bounded: the first `ROWS` routes and callers have rows of their own, what comes later is counted together under `OTHER`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from meshguard.model.record import RequestRecord
from meshguard.telemetry.outcome import verdict_name

__all__ = ["BOUNDS_S", "OTHER", "ROWS", "VERDICTS", "WATCHED_S", "LiveCounts", "added", "quantile"]

ROWS = 200
WATCHED_S = 30.0
OTHER = "(other)"
ANONYMOUS = "(nobody)"
VERDICTS = ("allow", "deny", "refuse", "error")
BOUNDS_S = tuple(5e-5 * 2 ** (step / 2) for step in range(42))
"""50 microseconds to 74 seconds, two buckets for each doubling: a quantile read from them is within a fifth."""

_Row = list[float]
_WIDTH = len(VERDICTS) + len(BOUNDS_S) + 1


class LiveCounts:
    """A consumer of finished requests (`telemetry.observe`). A row is the four counts in the order of `VERDICTS`, then the buckets."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._until = 0.0
        self._routes: dict[tuple[str, str], _Row] = {}
        self._callers: dict[str, _Row] = {}

    def consume(self, records: Sequence[RequestRecord], clock_offset: float) -> None:
        """Counts, while watched."""
        if not self._until:
            return
        if self._monotonic() > self._until:
            self._until = 0.0
            self._routes.clear()
            self._callers.clear()
            return
        for record in records:
            plan, principal = record.plan, record.principal
            index = VERDICTS.index(verdict_name(type(record.verdict), record.refusal))
            bucket = len(VERDICTS) + bisect_left(BOUNDS_S, record.ended - record.started)
            route = _row(self._routes, (record.peer.listener, plan.route if plan is not None else ""), (OTHER, OTHER))
            caller = _row(self._callers, principal.spiffe_id if principal is not None else record.subject or ANONYMOUS, OTHER)
            for row in (route, caller):
                row[index] += 1
                row[bucket] += 1

    def flush(self) -> None:
        """Nothing is held back here."""

    def read(self) -> dict[str, Any]:
        """The counts since somebody began to watch: {"routes": [[listener, route, row]], "callers": [[caller, row]]}."""
        self._until = self._monotonic() + WATCHED_S
        return {
            "routes": [[listener, route, row] for (listener, route), row in self._routes.items()],
            "callers": [[caller, row] for caller, row in self._callers.items()],
        }


def _row(rows: dict[Any, _Row], key: Any, other: Any) -> _Row:
    row = rows.get(key)
    if row is None:
        if len(rows) >= ROWS:
            key = other
        row = rows.setdefault(key, [0] * _WIDTH)
    return row


def added(parts: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Rows of several processes as one: those with the same names are added up."""
    sums: dict[tuple[Any, ...], _Row] = {}
    for *names, row in parts:
        key = tuple(names)
        before = sums.get(key)
        sums[key] = list(row) if before is None else [left + right for left, right in zip(before, row, strict=True)]
    return [[*key, row] for key, row in sums.items()]


def quantile(row: Sequence[float], share: float) -> float | None:
    """Seconds under which `share` of a row's requests were over; None without any."""
    buckets = row[len(VERDICTS) :]
    wanted = share * sum(buckets)
    if not wanted:
        return None
    running = 0.0
    for index, count in enumerate(buckets):
        if running + count >= wanted and count:
            low = BOUNDS_S[index - 1] if index else 0.0
            high = BOUNDS_S[index] if index < len(BOUNDS_S) else low
            return low + (high - low) * (wanted - running) / count
        running += count
    return BOUNDS_S[-1]
