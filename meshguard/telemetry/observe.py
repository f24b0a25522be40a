"""Where finished requests are handed over: the one telemetry call on the request path, and the batches behind it.

`Observer.finished` appends the record to a list and returns (about 0.1 us). The records are worked off by the event loop in small
batches, in a tight loop of each consumer (metrics, decision log, spans, later detectors), with no task and at most one
timer for all of them:

    pending reaches DRAIN_AT           -> call_soon: at most SLICE records a turn, so that no request waits long behind a batch
    the first record after idleness    -> call_later(FLUSH_S): what is pending then, and what consumers hold back, goes out
    pending reaches BACKSTOP in a turn -> worked off at once, inside `finished`: the list is bounded and nothing is lost

INVARIANT: a record handed over is not changed or used again by the pipeline.
INVARIANT: `finished` never raises and never refuses a request: a consumer that fails is counted and logged, the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from meshguard.model.record import RequestRecord
from meshguard.telemetry.metrics import Registry

__all__ = ["BACKSTOP", "DRAIN_AT", "FLUSH_S", "SLICE", "Consumer", "Observer"]

_log = logging.getLogger(__name__)

DRAIN_AT = 32
"""Pending records that start a batch: at 5 us each it holds the loop for 160 us, and the call_soon costs 0.02 us a record."""
SLICE = 64
"""Records of one turn of the loop, at most."""
BACKSTOP = 1024
"""Pending records at which the caller itself works them off (a burst within one turn of the loop)."""
FLUSH_S = 0.05
"""Longest time that a record waits."""


class Consumer(Protocol):
    """Someone who works off finished requests."""

    def consume(self, records: Sequence[RequestRecord], clock_offset: float) -> None:
        """Take a batch. `clock_offset` added to a monotonic time of a record gives seconds since the epoch.

        What is raised is counted and logged; the batch does not come again, so one bad record should not cost the others theirs.
        """

    def flush(self) -> None:
        """Hand on what is held back: called within FLUSH_S of the last `consume`."""


class Observer:
    """Collects finished requests and feeds them to its consumers in batches.

    `loop` None: the running one, looked up at the first record. `wall` and `monotonic` are the clocks (seconds).
    """

    __slots__ = ("_armed", "_consumers", "_failures", "_loop", "_monotonic", "_pending", "_scheduled", "_timer", "_wake_at", "_wall")

    def __init__(
        self,
        consumers: Sequence[Consumer],
        registry: Registry,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consumers = tuple(consumers)
        self._pending: list[RequestRecord] = []
        self._wake_at = 1  # pending records at which `_wake` is to be called: 1 while idle, then DRAIN_AT, then BACKSTOP
        self._armed = False  # the FLUSH_S timer is running
        self._scheduled = False  # a `_drain` is on its way
        self._timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._wall = wall
        self._monotonic = monotonic
        self._failures = registry.counter(
            "meshguard.telemetry.failures", "Batches of records that a consumer failed on", "{batch}", ("consumer",)
        )

    def finished(self, record: RequestRecord) -> None:
        """Take over the record of a request that is over, whatever its outcome."""
        pending = self._pending
        pending.append(record)
        if len(pending) >= self._wake_at:
            self._wake()

    def flush(self) -> None:
        """Work everything off now and make the consumers hand on what they hold: before a scrape, and at the end."""
        while self._pending:
            self._work(BACKSTOP)
        self._hand_on()

    def close(self) -> None:
        """Flush, and leave no timer behind. Later records are still taken, and worked off at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush()
        self._wake_at = 1
        self._armed = self._scheduled = False
        self._loop = None

    def _wake(self) -> None:
        pending = len(self._pending)
        if pending >= BACKSTOP:
            self._work(BACKSTOP)
            return
        loop = self._loop
        if loop is None:
            try:
                loop = self._loop = asyncio.get_running_loop()
            except RuntimeError:  # no loop runs (any more): there is no "later"
                self.flush()
                return
        if loop.is_closed():
            self.flush()
            return
        if not self._armed:
            self._armed = True
            self._timer = loop.call_later(FLUSH_S, self._tick)
            self._wake_at = DRAIN_AT
        if pending >= DRAIN_AT and not self._scheduled:
            self._scheduled = True
            self._wake_at = BACKSTOP
            loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        self._work(SLICE)
        if len(self._pending) >= DRAIN_AT and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._drain)
        else:
            self._wake_at = DRAIN_AT if self._armed else 1

    def _tick(self) -> None:
        self._armed = False
        self._timer = None
        while self._pending and not self._scheduled:  # fewer than DRAIN_AT, or `_drain` would be scheduled
            self._work(SLICE)
        self._hand_on()
        if self._scheduled and self._loop is not None:  # what `_drain` works off still has to be handed on in time
            self._armed = True
            self._timer = self._loop.call_later(FLUSH_S, self._tick)
        else:
            self._wake_at = 1

    def _work(self, limit: int) -> None:
        pending = self._pending
        if not pending:
            return
        if len(pending) <= limit:
            batch, self._pending = pending, []
        else:
            batch = pending[:limit]
            del pending[:limit]
        clock_offset = self._wall() - self._monotonic()
        for consumer in self._consumers:
            try:
                consumer.consume(batch, clock_offset)
            except Exception:  # outermost loop: telemetry never breaks a request or another consumer
                self._failed(consumer)

    def _hand_on(self) -> None:
        for consumer in self._consumers:
            try:
                consumer.flush()
            except Exception:
                self._failed(consumer)

    def _failed(self, consumer: Consumer) -> None:
        name = type(consumer).__name__
        slot = self._failures.labels(name)
        if not slot.value:  # once: a fault that repeats with every batch must not fill the log
            _log.exception("telemetry consumer %s failed; further failures are only counted", name)
        slot.value += 1
