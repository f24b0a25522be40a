"""Counts that workers share: limits over all, the lightest one, connections on their way, and those whose worker has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from meshguard.net.census import LISTENERS, STALE_S, Census, Row

NOW = 1000.0


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("census")
    yield descriptor
    os.close(descriptor)


def row(census: Census, name: str = "inbound") -> Row:
    found = census.row(name)
    assert found is not None
    return found


def test_each_sees_what_the_others_have(file: int) -> None:
    workers = [Census(file, number) for number in range(3)]
    rows = [row(worker) for worker in workers]
    for number, each in enumerate(rows):
        each.set(10 * number)
    assert [each.others() for each in rows] == [30, 20, 10]
    row(workers[0], "other").set(7)
    assert [each.others() for each in rows] == [30, 20, 10]


def test_the_lightest_is_one_that_lives(file: int) -> None:
    workers = [Census(file, number) for number in range(4)]
    rows = [row(worker) for worker in workers]
    for number, count in enumerate((5, 4, 3, 2)):
        rows[number].set(count)
    assert rows[0].lightest(4, NOW) == (-1, 0)
    for worker in workers[:3]:
        worker.beat(NOW)
    assert rows[0].lightest(4, NOW) == (2, 3)  # worker 3 has said nothing yet
    workers[3].beat(NOW)
    assert rows[0].lightest(4, NOW) == (3, 2)
    assert rows[3].lightest(4, NOW) == (2, 3)  # never itself
    workers[2].beat(NOW + STALE_S)
    assert rows[0].lightest(4, NOW + STALE_S + 0.1) == (2, 3)
    workers[2].beat(0.0)  # it drains
    assert rows[0].lightest(4, NOW + 0.1) == (3, 2)


def test_what_is_on_its_way_counts(file: int) -> None:
    workers = [Census(file, number) for number in range(3)]
    rows = [row(worker) for worker in workers]
    for worker in workers:
        worker.beat(NOW)
    rows[0].set(9)
    rows[2].set(1)
    for _ in range(2):
        workers[0].sent(1)
    workers[2].sent(1)
    assert workers[0].coming(1) == 3
    assert rows[0].lightest(3, NOW) == (2, 1)
    for _ in range(3):
        workers[1].taken()
    rows[1].set(3)
    assert (workers[0].coming(1), rows[0].lightest(3, NOW)) == (0, (2, 1))
    successor = Census(file, 1)  # what was sent and taken is the inbox's, which outlives a worker
    assert successor.coming(1) == 0


def test_the_dead_do_not_count(file: int) -> None:
    script = f"import os, sys; from meshguard.net.census import Census; Census({file}, 1).row('inbound').set(8); print(os.getpid())"
    done = subprocess.run([sys.executable, "-c", script], pass_fds=[file], capture_output=True, text=True, check=True)
    worker = Census(file, 0)
    mine = row(worker)
    assert mine.others() == 8
    mine.bury()
    assert mine.others() == 0
    told = Census(file, 2)
    row(told).set(5)
    worker.clear(int(done.stdout))
    assert mine.others() == 5
    worker.clear(os.getpid())  # its own process is that of all columns here
    assert mine.others() == 0


def test_two_generations_count_together_and_know_their_halves(file: int) -> None:
    assert Census(file).generation() == 0
    old = Census(file, 0, 0)
    row(old).set(3)
    assert Census(file).generation() == 1
    young = Census(file, 0, 1)
    row(young).set(4)
    assert (row(old).others(), row(young).others()) == (4, 3)
    young.beat(NOW)
    assert row(old).lightest(2, NOW) == (-1, 0)  # nothing is passed between them


def test_room_for_listeners_is_bounded(file: int) -> None:
    census = Census(file, 0)
    assert all(census.row(f"listener-{number}") is not None for number in range(LISTENERS))
    assert census.row("one more") is None
    assert census.row("listener-3") is not None
