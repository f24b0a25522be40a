"""The hand-over of finished requests: batches, bounds, time, faults."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest

from meshguard.model.record import RequestRecord
from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.observe import BACKSTOP, DRAIN_AT, FLUSH_S, SLICE, Observer
from tests.telemetry.records import Record


class Collected:
    """A consumer that remembers the sizes of its batches and the numbers in them."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.numbers: list[int] = []
        self.flushed: list[int] = []
        self.offset = 0.0
        self.handed_on = asyncio.Event()

    def consume(self, records: Sequence[RequestRecord], clock_offset: float) -> None:
        self.batches.append(len(records))
        self.numbers.extend(record.number for record in records)
        self.offset = clock_offset

    def flush(self) -> None:
        self.flushed.append(len(self.numbers))
        self.handed_on.set()


class Broken:
    """A consumer that always fails."""

    def consume(self, records: Sequence[RequestRecord], clock_offset: float) -> None:
        raise RuntimeError("consume")

    def flush(self) -> None:
        raise RuntimeError("flush")


def test_a_single_record_is_handed_on_in_time() -> None:
    async def scenario() -> None:
        consumer = Collected()
        observer = Observer([consumer], Registry(), wall=lambda: 500.0, monotonic=lambda: 200.0)
        loop = asyncio.get_running_loop()
        before = loop.time()
        observer.finished(Record(number=1))
        assert consumer.numbers == []  # nothing is worked off on the path
        await asyncio.wait_for(consumer.handed_on.wait(), 5)
        assert loop.time() - before >= FLUSH_S * 0.9
        assert (consumer.numbers, consumer.flushed, consumer.offset) == ([1], [1], 300.0)
        consumer.handed_on.clear()
        observer.finished(Record(number=2))  # idle again: a new timer
        await asyncio.wait_for(consumer.handed_on.wait(), 5)
        assert consumer.numbers == [1, 2]
        observer.close()

    asyncio.run(scenario())


def test_many_records_are_worked_off_in_slices_of_the_loop() -> None:
    async def scenario() -> None:
        consumer = Collected()
        observer = Observer([consumer], Registry())
        for number in range(500):
            observer.finished(Record(number=number))
        assert consumer.numbers == []
        turns = 0
        while len(consumer.numbers) < 500 - DRAIN_AT:
            await asyncio.sleep(0)
            turns += 1
            assert turns < 100
        assert turns >= 7
        assert max(consumer.batches) <= SLICE
        await asyncio.wait_for(consumer.handed_on.wait(), 5)
        assert consumer.numbers == list(range(500))
        observer.close()

    asyncio.run(scenario())


def test_a_burst_is_bounded_and_loses_nothing() -> None:
    async def scenario() -> None:
        consumer = Collected()
        observer = Observer([consumer], Registry())
        for number in range(10 * BACKSTOP + 7):  # without a turn of the loop
            observer.finished(Record(number=number))
            assert len(consumer.numbers) > number - BACKSTOP
        observer.flush()
        assert consumer.numbers == list(range(10 * BACKSTOP + 7))
        observer.close()

    asyncio.run(scenario())


def test_a_steady_stream_is_flushed_in_time_and_in_order() -> None:
    async def scenario() -> None:
        consumer = Collected()
        observer = Observer([consumer], Registry())
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.3
        number = 0
        while loop.time() < end:
            for _ in range(20):
                observer.finished(Record(number=number))
                number += 1
            await asyncio.sleep(0)
        assert len(consumer.flushed) >= 3
        observer.close()
        assert consumer.numbers == list(range(number))

    asyncio.run(scenario())


def test_a_broken_consumer_is_counted_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        registry = Registry()
        consumer = Collected()
        observer = Observer([Broken(), consumer], registry)
        for number in range(3):
            observer.finished(Record(number=number))
            observer.flush()
        assert consumer.numbers == [0, 1, 2]
        failures = next(family for family in registry.families() if family.name == "meshguard.telemetry.failures")
        assert failures.samples == [(("Broken",), 6)]
        observer.close()

    asyncio.run(scenario())
    assert len([entry for entry in caplog.records if "Broken" in entry.getMessage()]) == 1  # said once


def test_after_the_end_records_are_still_taken() -> None:
    consumer_box: list[Collected] = []
    observers: list[Observer] = []

    async def scenario() -> None:
        consumer_box.append(Collected())
        observers.append(Observer([consumer_box[0]], Registry()))
        observers[0].finished(Record(number=1))
        observers[0].close()

    asyncio.run(scenario())
    observers[0].finished(Record(number=2))  # no loop runs any more
    assert consumer_box[0].numbers == [1, 2]


def test_no_record_is_kept() -> None:
    class Marked(Record):
        __slots__ = ("__weakref__",)

    async def scenario() -> None:
        consumer = Collected()
        observer = Observer([consumer], Registry())
        alive = weakref.WeakSet[Marked]()
        for number in range(200):
            record = Marked(number=number)
            alive.add(record)
            observer.finished(record)
            await asyncio.sleep(0)
        del record
        await asyncio.wait_for(consumer.handed_on.wait(), 5)
        gc.collect()
        assert len(alive) == 0
        assert len(asyncio.all_tasks()) == 1  # no task of ours
        observer.close()

    asyncio.run(scenario())
