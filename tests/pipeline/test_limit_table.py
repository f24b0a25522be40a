"""The memory of rate limits: exact over processes, bounded, and never forgetful in anybody's favour."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import pytest

from meshguard.pipeline import limit_table
from meshguard.pipeline.limit_table import KEYS, REGIONS, WAYS, LimitTable, Region, new_table_file


@pytest.fixture
def region() -> Region:
    return LimitTable(new_table_file(), shared=False).region("a")


class Exact:
    """One bucket per key, all of them remembered: the oracle. Times are whole numbers, so nothing is lost to rounding."""

    def __init__(self) -> None:
        self.full_at: dict[bytes, float] = {}

    def take(self, key: bytes, now: float, interval: float, capacity: float) -> bool:
        at = max(self.full_at.get(key, 0.0), now) + interval
        if at - now > capacity:
            return False
        self.full_at[key] = at
        return True


def test_the_algorithm_agrees_with_an_exact_one(region: Region) -> None:
    rng = random.Random(7)
    oracle, now = Exact(), 1000.0
    handles = {key: region.handle(key) for key in (b"k%d" % n for n in range(20))}
    for _ in range(5000):
        now += rng.choice((0, 0, 1, 2))
        key = rng.choice(list(handles))
        assert (region.take(handles[key], now, 4, 40) >= 0) == oracle.take(key, now, 4, 40)


def test_a_burst_then_one_each_interval(region: Region) -> None:
    handle = region.handle(b"x")
    assert [region.take(handle, 100.0, 2.0, 10.0) for _ in range(5)] == [8.0, 6.0, 4.0, 2.0, 0.0]
    assert region.take(handle, 100.0, 2.0, 10.0) == -2.0
    assert region.take(handle, 101.0, 2.0, 10.0) == -1.0
    assert region.take(handle, 102.0, 2.0, 10.0) == 0.0
    assert region.take(handle, 1000.0, 2.0, 10.0) == 8.0


def test_what_was_given_back_can_be_taken_again(region: Region) -> None:
    handle = region.handle(b"x")
    region.take(handle, 100.0, 5.0, 10.0)
    assert region.take(handle, 100.0, 5.0, 10.0) == 0.0
    region.give_back(handle, 5.0)
    assert region.take(handle, 100.0, 5.0, 10.0) == 0.0
    assert region.take(handle, 100.0, 5.0, 10.0) == -5.0


def test_a_flood_of_keys_never_resets_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more keys than slots, in every order: no key is ever admitted beyond what the exact bucket admits. A table that evicts
    the oldest key and starts it anew fails here."""
    monkeypatch.setattr(limit_table, "_SETS", 4)  # 32 slots
    region = LimitTable(new_table_file(), shared=False).region("a")
    rng = random.Random(11)
    oracle, now, refused_by_inheritance = Exact(), 1000.0, 0
    keys = [b"key-%d" % n for n in range(200)]
    for _ in range(30_000):
        now += rng.choice((0, 0, 0, 1))
        key = keys[0] if rng.random() < 0.1 else rng.choice(keys)
        handle = region.handle(key)
        admitted = region.take(handle, now, 100, 500) >= 0
        exact = oracle.full_at.get(key, 0.0)
        allowed = max(exact, now) + 100 - now <= 500
        assert allowed or not admitted, "more than the limit"
        if admitted:
            oracle.take(key, now, 100, 500)
        refused_by_inheritance += allowed and not admitted
    assert refused_by_inheritance, "the flood was none"
    assert region.crowded


def test_a_key_that_does_not_fill_its_bucket_is_not_hurt_by_as_many_as_fit(region: Region) -> None:
    """A quarter as many live keys as slots: newcomers still begin without a debt (as good as always: sets fill unevenly)."""
    refused = sum(region.take(region.handle(b"%d" % n), 1000.0, 10.0, 10.0) < 0 for n in range(KEYS // 4))
    assert refused < KEYS // 1000


def test_memory_is_bounded() -> None:
    descriptor = new_table_file()
    table = LimitTable(descriptor, shared=False)
    before = os.fstat(descriptor).st_blocks
    region = table.region("a")
    for n in range(3 * KEYS):
        region.take(region.handle(b"%d" % n), 1000.0, 1.0, 1.0)
    assert (os.fstat(descriptor).st_blocks - before) * 512 <= KEYS * 16 + 2 * 4096


def test_a_limit_keeps_its_memory_over_a_reload_and_another_process_sees_it() -> None:
    descriptor = new_table_file()
    first = LimitTable(descriptor, shared=True)
    one = first.region("limit")
    assert one.take(one.handle(b"x"), 100.0, 1.0, 1.0) == 0.0
    second = LimitTable(descriptor, shared=True)
    for region in (first.region("limit"), second.region("limit")):
        assert region.take(region.handle(b"x"), 100.0, 1.0, 1.0) == -1.0
    other = second.region("other")
    assert other.take(other.handle(b"x"), 100.0, 1.0, 1.0) == 0.0


def test_the_oldest_unused_region_is_reused_and_empty() -> None:
    table = LimitTable(new_table_file(), shared=False)
    old = table.region("old")
    old.take(old.handle(b"x"), 100.0, 1.0, 1.0)
    kept = table.region("kept")
    kept.take(kept.handle(b"x"), 100.0, 1.0, 1.0)
    for n in range(REGIONS - 2):
        table.region(f"r{n}")
    kept = table.region("kept")
    fresh = table.region("one more")
    assert fresh.take(fresh.handle(b"x"), 100.0, 1.0, 1.0) == 0.0
    assert kept.take(kept.handle(b"x"), 100.0, 1.0, 1.0) == -1.0


def in_children(count: int, work: Callable[[int], int]) -> list[int]:
    """Runs `work(index)` in processes of their own at the same time; what each returned."""
    readers = []
    for index in range(count):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(writer, str(work(index)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        readers.append((pid, reader))
    results = []
    for pid, reader in readers:
        with os.fdopen(reader) as file:
            results.append(int(file.read() or -1))
        os.waitpid(pid, 0)
    return results


def test_processes_together_admit_exactly_the_limit() -> None:
    """Four processes hammer the same keys at once. Without the lock some admissions are lost in nearly every run."""
    descriptor = new_table_file()
    LimitTable(descriptor, shared=True).region("limit")

    def hammer(index: int) -> int:
        region = LimitTable(descriptor, shared=True).region("limit")
        handles = [region.handle(b"%d" % n) for n in range(3)]
        admitted = sum(region.take(handles[n % 3], 100.0, 1.0, 4000.5) >= 0 for n in range(20_000))
        return admitted * 1_000_000 + region._mutexes.timeouts

    results = in_children(4, hammer)
    admitted, timeouts = sum(result // 1_000_000 for result in results), sum(result % 1_000_000 for result in results)
    assert 3 * 4000 <= admitted <= 3 * 4000 + timeouts
    assert timeouts < 1000


def test_a_holder_that_dies_leaves_its_lock_and_one_that_is_stopped_is_not_waited_for() -> None:
    descriptor = new_table_file()
    table = LimitTable(descriptor, shared=True)
    region = table.region("limit")
    handle = region.handle(b"x")
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        own = LimitTable(descriptor, shared=True).region("limit")
        own._try_lock(own.handle(b"x").mutex)
        os.write(told, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        assert region.take(handle, 100.0, 1.0, 2.0) == 1.0, "decided without the lock, and not counted"
        assert table.mutexes.timeouts == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert [region.take(handle, 100.0, 1.0, 2.0) for _ in range(3)] == [1.0, 0.0, -1.0]
    assert table.mutexes.timeouts == 1, "the dead one's lock was had at once"
    assert WAYS == 8
