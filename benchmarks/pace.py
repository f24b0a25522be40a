"""How fast the proxy's core is at this moment: what other tenants of the hardware take shows nowhere else.

CPU time that a process is charged grows when neighbours use the same caches and memory, and big programs suffer more than small ones, so
such a run shifts the ratios too. A fixed piece of work, timed before and after each row, tells.
"""

from __future__ import annotations

import json
import os
import time

__all__ = ["UNSTEADY", "Pace"]

UNSTEADY = 1.25
"""Slowest over fastest from which a run is doubtful."""
_DOCUMENT = {f"key-{number}": [number, str(number) * 3, {"nested": number / 7}] for number in range(400)}


class Pace:
    """Collects readings: ms of CPU time for the same work on one core."""

    def __init__(self, core: int) -> None:
        self._core = core
        self.readings_ms: list[float] = []

    def take(self) -> None:
        """One reading, the best of five: about 30 ms."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._core})
        try:
            self.readings_ms.append(min(_work() for _ in range(5)) * 1e3)
        finally:
            os.sched_setaffinity(0, before)

    @property
    def steady(self) -> bool:
        return not self.readings_ms or max(self.readings_ms) < UNSTEADY * min(self.readings_ms)

    def __str__(self) -> str:
        text = (
            f"a fixed piece of work took {min(self.readings_ms):.2f} to {max(self.readings_ms):.2f} ms of CPU" if self.readings_ms else ""
        )
        return text if self.steady else text + ": (!) unsteady, repeat when the machine is quiet"


def _work() -> float:
    began = time.process_time()
    for _ in range(4):
        json.loads(json.dumps(_DOCUMENT))
    return time.process_time() - began
