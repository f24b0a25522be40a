"""The pictures of `meshguard top`: rates between two readings, quantiles, and text that nothing of a client can disturb."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.cli.main import main
from meshguard.cli.top_text import picture, text
from meshguard.telemetry.live import BOUNDS_S, OTHER, ROWS, VERDICTS, WATCHED_S, LiveCounts, added, quantile
from tests.telemetry.records import Record


def row(allow: int = 0, deny: int = 0, bucket: int = 10) -> list[float]:
    values = [0.0] * (len(VERDICTS) + len(BOUNDS_S) + 1)
    values[0], values[1], values[len(VERDICTS) + bucket] = allow, deny, allow + deny
    return values


def reading(when: float, routes: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "time": when,
        "version": "0",
        "pid": 1,
        "ready": True,
        "identity": "spiffe://a/b",
        "policy": {"digest": "sha256:0123456789abcdef", "revision": 1},
        "routes": routes,
        "callers": [],
        "listeners": {"in": {"active": 1, "connections": 2}},
        "clusters": {},
        "workers": None,
        "requests": [],
        **more,
    }


def test_rates_are_of_the_time_between_two_readings() -> None:
    shown = picture(reading(10.0, [["in", "a", row(10, 2)]]), reading(12.0, [["in", "a", row(30, 4)], ["in", "b", row(1)]]))
    a, b = shown["routes"]
    assert (a["allow_per_s"], a["deny_per_s"], a["per_s"], a["requests"]) == (10.0, 1.0, 11.0, 22)
    assert b["allow_per_s"] == 0.5
    assert shown["total"]["requests"] == 23
    assert BOUNDS_S[9] <= a["p50_s"] <= BOUNDS_S[10]


def test_a_process_that_was_replaced_counts_from_nothing() -> None:
    shown = picture(reading(10.0, [["in", "a", row(1000)]]), reading(11.0, [["in", "a", row(5)]]))
    assert shown["routes"][0]["requests"] == 5


def test_quantiles() -> None:
    values = row()
    assert quantile(values, 0.5) is None
    values[len(VERDICTS) + 4], values[len(VERDICTS) + 20] = 98, 2
    assert BOUNDS_S[3] <= (quantile(values, 0.5) or 0) <= BOUNDS_S[4]
    assert BOUNDS_S[19] <= (quantile(values, 0.99) or 0) <= BOUNDS_S[20]
    values[-1] = 1000
    assert quantile(values, 0.99) == BOUNDS_S[-1]


def test_rows_of_workers_are_added() -> None:
    assert added([["a", [1, 2]], ["b", [5, 5]], ["a", [3, 4]]]) == [["a", [4, 6]], ["b", [5, 5]]]


def test_text_is_cut_and_holds_no_control_characters() -> None:
    request = {
        "for_s": 1.5,
        "state": "waiting",
        "listener": "in",
        "method": "GET",
        "caller": "spiffe://x/\x1b[2J",
        "address": "1.2.3.4",
        "path": "/\x1b]0;owned\x07" + "x" * 500,
    }
    shown = picture(reading(1.0, []), reading(2.0, [["in", "r" * 100, row(3)]], requests=[request]))
    lines = text(shown, "rate", 100, 12)
    assert len(lines) <= 12
    for line in text(shown, "p99", 100, None):
        assert len(line) <= 100
        assert line.isprintable()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_counted_unless_somebody_watches_and_everything_is_bounded() -> None:
    clock = Clock()
    live = LiveCounts(clock)
    record = Record()
    live.consume([record], 0.0)
    assert live.read() == {"routes": [], "callers": []}
    live.consume([record] * 3, 0.0)
    (((_, _, counts),), ((_, by_caller),)) = live.read().values()
    assert sum(counts[: len(VERDICTS)]) == 3 == sum(counts[len(VERDICTS) :])
    assert counts == by_caller
    for number in range(ROWS + 50):
        record = Record()
        record.principal = None
        record.subject = f"user-{number}"
        live.consume([record], 0.0)
    callers = dict(live.read()["callers"])
    assert len(callers) <= ROWS + 1
    assert callers[OTHER][0] >= 50
    clock.now += WATCHED_S + 1
    live.consume([record], 0.0)
    assert live.read() == {"routes": [], "callers": []}


def test_an_instance_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--admin", "127.0.0.1:1"]) in (1, 2)
    assert "127.0.0.1:1 does not answer" in capsys.readouterr().err
    assert main(["top", "--once", "--admin", "nonsense"]) in (1, 2)
    assert main(["top", "--interval", "0"]) == 2
