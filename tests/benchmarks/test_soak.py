"""What the soak calls a failure, and the documents it changes."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.soak import GROWTH_MB, Reading, judge, tasks_in

GOOD: dict[str, Any] = {"n": 1000, "bad": 0, "lost": 0, "first_bad": 0}


def readings(growth_mb: float = 0.0, descriptors: int = 0, tasks: int = 0) -> list[Reading]:
    """Every two seconds for five minutes, growing evenly. The first minute grows by 20 MB more, as a process that warms up does."""
    moments = range(0, 300, 2)
    return [Reading(at, 50 + min(at, 60) / 3 + growth_mb * at / 300, 60 + descriptors * at // 300, 7 + tasks * at // 300) for at in moments]


def test_a_flat_process_passes() -> None:
    assert judge(readings(), GOOD, 0, [], 300) == []


def test_growth_is_found() -> None:
    assert "rss_mb grew" in judge(readings(growth_mb=GROWTH_MB * 2), GOOD, 0, [], 300)[0]
    assert "descriptors grew" in judge(readings(descriptors=100), GOOD, 0, [], 300)[0]
    assert "tasks grew" in judge(readings(tasks=20), GOOD, 0, [], 300)[0]


@pytest.mark.parametrize(
    ("load", "status", "late", "words"),
    [
        ({**GOOD, "bad": 1, "first_bad": 503}, 0, [], "1 bad answers (first 503)"),
        ({**GOOD, "lost": 2}, 0, [], "2 lost"),
        ({"fatal": "cannot connect"}, 0, [], "the load did not run"),
        (GOOD, None, [], "ended with status None"),
        (GOOD, 1, [], "ended with status 1"),
        (GOOD, 0, ["policy 3"], "not in force after 5 s: policy 3"),
    ],
)
def test_each_failure_is_told(load: dict[str, Any], status: int | None, late: list[str], words: str) -> None:
    (fault,) = judge(readings(), load, status, late, 300)
    assert words in fault


def test_without_readings_nothing_is_proven() -> None:
    assert judge([], GOOD, 0, [], 300) == ["no readings"]


def test_tasks_are_read_from_the_exposition() -> None:
    assert tasks_in("# TYPE meshguard_process_tasks gauge\nmeshguard_process_tasks 7\nmeshguard_other 3\n") == 7
    assert tasks_in("up 1\n") == 0
