"""Long work on the loop, in slices: between two of them everybody else is served.

A document of a megabyte with thousands of protected values takes a tenth of a second. A thread would not help: it holds the interpreter
just the same, and each turn of the loop would wait for its switch interval. So the work is an iterator that pauses about every half a
millisecond, and one callback a turn of the loop goes on with whichever piece of work has waited longest.

Bounded by the budget of bodies that are held for inspection: a piece of work exists only for one of them.
"""

from __future__ import annotations

from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable, Generator
from time import perf_counter
from typing import TYPE_CHECKING

from meshguard.model.errors import RequestError

if TYPE_CHECKING:
    from meshguard.fields.transforms import Transformed
    from meshguard.pipeline.exchange import Exchange

    Job = Generator[None, None, Transformed]

__all__ = ["SLICED_FROM", "STEPS", "Slices"]

SLICED_FROM = 65536
"""Octets from which a document is treated in slices: up to there it takes 2 ms, with a protected value in each hundred octets 6 ms."""
STEPS = 500
"""Steps of 1 us after which the work may pause."""
TURN_S = 0.001
"""How long a turn of the loop is spent on such work; exceeded by at most one step that is a call into a C parser (3 ms a megabyte)."""


class Slices:
    """The pieces of work of one process."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[Job, Exchange, Callable[[Transformed], None], Callable[[RequestError], None]]] = deque()

    def start(self, job: Job, exchange: Exchange, then: Callable[[Transformed], None], refused: Callable[[RequestError], None]) -> None:
        """Does `job` for an exchange; then calls `then` with what it returns, or `refused`. If the exchange ends before, neither."""
        if not self._waiting:
            get_running_loop().call_soon(self._turn)
        self._waiting.append((job, exchange, then, refused))

    def _turn(self) -> None:
        job, exchange, then, refused = self._waiting[0]
        until = perf_counter() + TURN_S
        over = True
        try:
            while not exchange.ended:
                try:
                    next(job)
                except StopIteration as stop:
                    then(stop.value)
                    break
                if perf_counter() > until:
                    over = False
                    break
        except RequestError as error:
            refused(error)
        except Exception as exc:
            # outermost loop of this work: refused, never forwarded
            exchange.fail(exc)
        finally:
            self._waiting.popleft()
            if not over:
                self._waiting.append((job, exchange, then, refused))
            if self._waiting:
                get_running_loop().call_soon(self._turn)
