"""Lets the event loop come first while a thread beside it loads documents.

CPython runs one thread at a time. A thread that computes keeps the others waiting for its switch interval, 5 ms, each time one of them
wakes up: a request, which wakes the loop four times, would take 20 ms longer while a policy compiles. So the loading thread rests for a
moment after each short stretch of work. Resting really sleeps: a thread that only offers its turn mostly takes it again itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

from meshguard.policy.compiled import CompiledPolicy

__all__ = ["REST_S", "STRETCH_S", "SWITCH_S", "Breathe", "all_parts", "forget", "let_go", "loop_first", "paced", "unpaced"]

STRETCH_S = 0.000_2
REST_S = 0.000_1
SWITCH_S = 0.001

Breathe = Callable[[], None]
"""To be called between any two small pieces of a long work."""


def unpaced() -> None:
    """For a process in which nobody else waits."""


def paced() -> Breathe:
    """Rests for `REST_S` (at least; timers are coarse) after each `STRETCH_S` of work. For threads beside the loop, never for the loop."""
    clock, rest = time.perf_counter, time.sleep
    until = clock() + STRETCH_S

    def breathe() -> None:
        nonlocal until
        if clock() >= until:
            rest(REST_S)
            until = clock() + STRETCH_S

    return breathe


def loop_first() -> None:
    """For work that does not breathe: another thread is asked to give way after 1 ms instead of 5."""
    sys.setswitchinterval(SWITCH_S)


def let_go(parts: list[object], breathe: Breathe) -> None:
    """Frees what only `parts` still hold, one after the other, the last one first. To be freed as a whole a policy of ten thousand rules
    takes 20 ms in which no other thread runs."""
    while parts:
        parts.pop()
        breathe()


def all_parts(*sources: Iterable[object]) -> list[object]:
    """Every part of all sources, a large thing before what it holds."""
    return [part for source in sources for part in source]


def forget(policies: list[CompiledPolicy], breathe: Breathe) -> None:
    """Lets go of policies that were replaced; `policies` is emptied. What an open stream still rests on lives as long as the stream."""
    parts = all_parts(*(policy.parts() for policy in policies))
    policies.clear()
    let_go(parts, breathe)
