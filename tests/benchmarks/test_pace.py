"""The pace of the machine."""

from __future__ import annotations

import os

from benchmarks.pace import Pace


def test_a_reading_takes_time_and_leaves_the_affinity_alone() -> None:
    before = os.sched_getaffinity(0)
    pace = Pace(min(before))
    pace.take()
    assert pace.readings_ms[0] > 0
    assert os.sched_getaffinity(0) == before


def test_an_unsteady_machine_is_told() -> None:
    pace = Pace(0)
    assert pace.steady
    pace.readings_ms = [4.0, 4.5]
    assert str(pace) == "a fixed piece of work took 4.00 to 4.50 ms of CPU"
    pace.readings_ms.append(9.0)
    assert "unsteady" in str(pace)
