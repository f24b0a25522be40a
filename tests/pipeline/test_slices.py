"""Work in slices: others are served in between, each piece in its turn, and an exchange that ended takes its work along."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from itertools import pairwise
from time import perf_counter
from typing import Any

import pytest

from meshguard.fields.transforms import Transformed
from meshguard.model.errors import RequestError
from meshguard.model.reasons import BODY_INVALID
from meshguard.pipeline.slices import TURN_S, Slices
from tests.pipeline.test_exchange import World

DONE = Transformed(b"done", [])


class Exchange:
    def __init__(self) -> None:
        self.ended = 0.0
        self.failed: list[Exception] = []

    def fail(self, exc: Exception) -> None:
        self.failed.append(exc)


def job(log: list[str], name: str, pauses: int, end: Callable[[], Transformed] = lambda: DONE) -> Generator[None, None, Transformed]:
    for _ in range(pauses):
        log.append(name)
        until = perf_counter() + 1.5 * TURN_S  # more than a turn: the next one has to be another's
        while perf_counter() < until:
            pass
        yield
    return end()


def run(*jobs: tuple[Generator[None, None, Transformed], Any], log: list[str], turns: int = 40) -> None:
    async def main() -> None:
        slices = Slices()
        for number, (work, exchange) in enumerate(jobs):
            slices.start(
                work,
                exchange,
                lambda result, n=number: log.append(f"then {n}"),
                lambda error, n=number: log.append(f"refused {n} {error.reason.code}"),
            )
        for _ in range(turns):
            log.append("other")
            await asyncio.sleep(0)

    asyncio.run(main())


def test_others_are_served_between_two_slices_and_work_takes_turns() -> None:
    log: list[str] = []
    run((job(log, "a", 3), Exchange()), (job(log, "b", 2), Exchange()), log=log)
    work = [entry for entry in log if entry in "ab"]
    assert work == ["a", "b", "a", "b", "a"]
    places = [place for place, entry in enumerate(log) if entry in "ab"]
    assert all("other" in log[before:after] for before, after in pairwise(places))
    assert [entry for entry in log if entry.startswith("then")] == ["then 1", "then 0"]


def test_an_exchange_that_ended_takes_its_work_along() -> None:
    log: list[str] = []
    gone = Exchange()
    gone.ended = 1.0
    run((job(log, "a", 3), gone), (job(log, "b", 1), Exchange()), log=log)
    assert [entry for entry in log if entry != "other"] == ["b", "then 1"]


def test_refusals_and_what_nobody_foresaw_end_the_exchange_and_not_the_others() -> None:
    def refuse() -> Transformed:
        raise RequestError(BODY_INVALID)

    def break_down() -> Transformed:
        raise ValueError("4111")

    log: list[str] = []
    broken = Exchange()
    run((job(log, "a", 1, refuse), Exchange()), (job(log, "b", 1, break_down), broken), (job(log, "c", 1), Exchange()), log=log)
    assert [entry for entry in log if " " in entry] == ["refused 0 body_invalid", "then 2"]
    assert [type(exc) for exc in broken.failed] == [ValueError]


@pytest.mark.parametrize("inspected", [True, False])
def test_what_nobody_foresaw_is_logged_without_the_words_of_an_inspected_message(inspected: bool, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    if inspected:
        world.exchange._inspection = type("Held", (), {"close": lambda self: None, "place": ""})()
    with caplog.at_level(logging.ERROR):
        try:
            try:
                int("planted-4111")
            except ValueError as exc:
                raise KeyError("planted-5222") from exc
        except KeyError as exc:
            world.exchange.fail(exc)
    assert "KeyError" in caplog.text
    assert "test_slices.py" in caplog.text, "the way it came is told"
    assert ("planted" in "".join(line for line in caplog.text.splitlines() if "raise" not in line and "int(" not in line)) is not inspected
    assert ("invalid literal" in caplog.text) is not inspected
