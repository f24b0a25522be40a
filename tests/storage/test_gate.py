"""The gate on the path: what waits for what, and what happens when the disk does not do its work."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from meshguard.model.reasons import LEDGER_UNAVAILABLE
from meshguard.storage import gate as gate_module
from meshguard.storage.audit import verify_ledger
from meshguard.storage.gate import Gate
from meshguard.storage.shard_reader import ShardReader
from tests.storage.ledgers import SIGNER, FailingDisk, opened


class Connection:
    """A channel that only counts."""

    def __init__(self) -> None:
        self.corked = 0
        self.aborted = False
        self.free = asyncio.Event()

    def cork(self) -> None:
        self.corked += 1
        self.free.clear()

    def uncork(self) -> None:
        self.corked -= 1
        if not self.corked:
            self.free.set()

    def abort(self) -> None:
        self.aborted = True


class Place:
    """A gate over a disk that can fail."""

    def __init__(self, directory: Path, *, durability: str = "batch", refuse: bool = True, **more: Any) -> None:
        self.directory = directory
        self.disk = FailingDisk()
        self.opened = opened(directory, self.disk, segment_bytes=more.pop("segment_bytes", 1 << 20))
        self.counts = {name: SimpleNamespace(value=0) for name in ("entries", "lost", "failures", "state")}
        self.fed: list[bytes] = []
        self.wall = 1_800_000_000.0
        self.number = 0
        self.gate = Gate(
            self.opened.shard,
            lambda record, offset: orjson.dumps({"id": record.id, "schema": "meshguard.decision/1"}),
            self.fed.append,
            durability=durability,
            refuse=refuse,
            batch_s=more.pop("batch_s", 0.01),
            checkpoint_s=more.pop("checkpoint_s", 0.01),
            count=self.counts.__getitem__,
            **more,
        )

    def put(self, channel: Connection | None = None, *, refusal: Any = None) -> bool:
        self.number += 1
        return self.gate.append(SimpleNamespace(id=f"r{self.number}", refusal=refusal), channel)

    def entries(self) -> list[dict[str, Any]]:
        return [orjson.loads(item) for _, item in ShardReader(0, self.directory / "shard-0").entries()]

    def ids(self) -> list[str]:
        return [item["id"] for item in self.entries() if "id" in item]

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        return [(item["event"], item["data"]) for item in self.entries() if "event" in item]

    def close(self) -> None:
        self.disk.heal()
        self.gate.close()
        os.close(self.opened.lock)
        report = verify_ledger(self.directory, [SIGNER.verifier])
        assert report.good, report
        assert report.shards[0].signed == report.shards[0].size


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "MEND_S", 0.02)


async def until(predicate: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not predicate():  # noqa: ASYNC110  # states of a thread, announced by no event
            await asyncio.sleep(0.005)  # states of a thread that announce themselves by no event


def run(place: Place, story: Callable[[Place], Any]) -> Place:
    async def main() -> None:
        await story(place)
        place.close()

    asyncio.run(main())
    return place


def test_batch_an_entry_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        channel = Connection()
        assert place.put(channel)
        assert place.ids() == ["r1"]
        assert not channel.corked
        assert place.opened.shard.synced == 0
        await until(lambda: place.opened.shard.synced == 1)
        assert place.opened.shard.checkpoint is not None
        assert place.fed == [b'{"id":"r1","schema":"meshguard.decision/1"}']

    run(Place(tmp_path), story)


def test_request_an_answer_waits_for_the_sync_of_its_record(tmp_path: Path) -> None:
    syncing, let_go = threading.Event(), threading.Event()

    async def story(place: Place) -> None:
        first, second = Connection(), Connection()

        def slow(call: str) -> None:
            if call == "sync":
                syncing.set()
                assert let_go.wait(5)

        place.disk.before = slow
        assert place.put(first)
        assert first.corked == 1
        await until(syncing.is_set)
        assert place.put(second)
        assert place.put(first)
        await asyncio.sleep(0.03)
        assert (first.corked, second.corked) == (2, 1)
        synced_before = place.opened.shard.synced
        let_go.set()
        await first.free.wait()
        await second.free.wait()
        assert synced_before == 0
        assert place.opened.shard.synced >= 3

    run(Place(tmp_path, durability="request"), story)


def test_records_of_a_turn_share_one_sync(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await asyncio.sleep(0)
        place.disk.calls.clear()
        channels = [Connection() for _ in range(50)]
        for channel in channels:
            place.put(channel)
        for channel in channels:
            await channel.free.wait()
        assert place.disk.calls.count("sync") <= 2  # the segment, and a checkpoint

    run(Place(tmp_path, durability="request"), story)


def test_full_refuse_the_reserve_takes_what_is_under_way_then_nothing_is_admitted(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        assert place.put()
        place.disk.room = 0
        assert place.put()  # in the reserve
        assert place.gate.refusing
        assert place.counts["state"].value == 1
        for _ in range(5):
            assert place.put(refusal=LEDGER_UNAVAILABLE)
        assert place.ids() == ["r1", "r2"]
        place.disk.heal()
        await until(lambda: not place.gate.refusing)
        assert place.put()

    place = run(Place(tmp_path), story)
    assert place.ids() == ["r1", "r2", "r8"]
    told = dict(place.events())
    assert told["trouble"]["error"] == "ENOSPC"
    assert (told["recovered"]["refused"], told["recovered"]["lost"]) == (5, 0)
    assert place.counts["lost"].value == 0


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_refuse_what_cannot_be_written_is_not_answered(tmp_path: Path, code: int) -> None:
    async def story(place: Place) -> None:
        assert place.put()
        place.disk.fail("write", code)
        assert not place.put()
        assert place.gate.refusing
        assert place.counts["state"].value == 2
        place.disk.heal()
        await until(lambda: not place.gate.refusing)
        assert place.put()

    place = run(Place(tmp_path), story)
    assert place.ids() == ["r1", "r3"]
    assert dict(place.events())["gap"]["count"] == 1


def test_a_disk_that_fails_with_the_first_record_is_mended(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.disk.fail("write", errno.EIO)
        assert not place.put()
        place.disk.heal()
        await until(lambda: not place.gate.refusing)
        assert place.put()

    assert run(Place(tmp_path), story).ids() == ["r2"]


def test_degrade_goes_on_and_the_gap_is_on_record(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        assert place.put()
        place.disk.fail("write", errno.EIO)
        for _ in range(4):
            assert place.put()
        assert not place.gate.refusing
        place.disk.heal()
        await until(lambda: place.counts["state"].value == 0)
        assert place.put()

    place = run(Place(tmp_path, refuse=False), story)
    assert place.ids() == ["r1", "r6"]
    told = dict(place.events())
    assert told["gap"]["count"] == 4
    assert told["gap"]["since"] < told["gap"]["until"]
    assert place.counts["lost"].value == 4
    assert len(place.fed) == 6


def test_a_failed_sync_loses_nothing_and_the_answers_wait(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        place.disk.fail("sync", errno.EIO)
        channel = Connection()
        assert place.put(channel)
        await until(lambda: place.opened.shard.broken)
        assert place.gate.refusing
        assert not place.put(Connection())
        place.disk.heal()
        await until(lambda: not place.gate.refusing)
        assert place.put()

    place = run(Place(tmp_path, durability="request"), story)
    assert place.ids() == ["r1", "r3"]


def test_answers_whose_records_cannot_be_made_lasting_are_cut(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        channel = Connection()
        place.disk.fail("sync", errno.EIO)
        place.disk.fail("create", errno.EIO)
        assert place.put(channel)
        await until(lambda: channel.aborted)
        place.disk.heal()
        await until(lambda: not place.gate.refusing)

    run(Place(tmp_path, durability="request"), story)


def test_a_step_of_the_clock_is_on_record(tmp_path: Path) -> None:
    clock = SimpleNamespace(offset=1_800_000_000.0)

    async def story(place: Place) -> None:
        place.put()
        clock.offset += 3600
        place.put()
        place.put()

    import time

    place = run(Place(tmp_path, wall=lambda: time.monotonic() + clock.offset), story)
    ((event, data),) = [told for told in place.events() if told[0] == "clock"]
    assert event == "clock"
    assert abs(data["step_us"] - 3_600_000_000) < 1000
    order = [item.get("event") or item["id"] for item in place.entries()]
    assert order == ["r1", "clock", "r2", "r3", "stop"]
    at = [item["at"] for item in place.entries()]
    assert at == sorted(at)


def test_it_closes_in_the_middle_of_everything(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        for _ in range(10):
            place.put(Connection())
        await asyncio.sleep(0)

    place = run(Place(tmp_path, durability="request"), story)
    assert place.ids() == [f"r{number}" for number in range(1, 11)]
    assert place.events()[-1][0] == "stop"
