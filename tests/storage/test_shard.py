"""The writer of a shard: rotation, restart, torn tails, locks, and a disk that fails in every way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from meshguard.ledger.frame import frame
from meshguard.ledger.merkle import leaf_hash, range_root
from meshguard.storage.audit import verify_ledger
from meshguard.storage.claim import LedgerBusy
from meshguard.storage.segments import LedgerDamaged, listed
from meshguard.storage.shard_reader import ShardReader
from tests.storage.ledgers import NOW, SIGNER, FailingDisk, closed, commit, entry, opened, written


def content(directory: Path) -> list[bytes]:
    return [item for _, item in ShardReader(0, directory / "shard-0").entries()]


def good(directory: Path, size: int) -> None:
    report = verify_ledger(directory, [SIGNER.verifier])
    assert report.good, report
    assert report.shards[0].size == size


def test_entries_come_back_in_order_over_segments_and_restarts(tmp_path: Path) -> None:
    for start in (0, 100, 200):
        ledger = opened(tmp_path, segment_bytes=4096)
        assert ledger.shard.size == start
        assert ledger.repaired == []
        for number in range(start, start + 100):
            ledger.shard.append(entry(number))
            if number % 7 == 0:
                assert commit(ledger.shard, checkpoint=number % 21 == 0) is None
        assert commit(ledger.shard) is None
        assert ledger.shard.checkpoint is not None
        assert ledger.shard.checkpoint.root == range_root([leaf_hash(entry(number)) for number in range(start + 100)])
        closed(ledger)
    assert content(tmp_path) == [entry(number) for number in range(300)]
    assert len(listed(tmp_path / "shard-0")) > 5
    good(tmp_path, 300)


def test_a_segment_rotates_by_age(tmp_path: Path) -> None:
    ledger = opened(tmp_path, segment_s=60)
    ledger.shard.append(entry(0))
    for later in (1, 61, 62):
        work = ledger.shard.begin(NOW + later, checkpoint=False)
        work.run()
        ledger.shard.end(work, None)
        ledger.shard.append(entry(later))
    closed(ledger)
    assert [segment.first for segment in listed(tmp_path / "shard-0")] == [0, 3]


@pytest.mark.parametrize("cut", range(1, len(frame(entry(39))) + 1))
def test_a_torn_tail_is_cut_and_told(tmp_path: Path, cut: int) -> None:
    ledger = opened(tmp_path)
    for number in range(40):
        ledger.shard.append(entry(number))
        if number == 30:
            assert commit(ledger.shard) is None
    closed(ledger)
    path = listed(tmp_path / "shard-0")[0].path
    os.truncate(path, path.stat().st_size - cut)
    ledger = opened(tmp_path)
    whole = cut == len(frame(entry(39)))
    assert [repair["what"] for repair in ledger.repaired] == ([] if whole else ["a torn tail was cut"])
    assert ledger.shard.size == 39
    ledger.shard.append(entry(100))
    assert commit(ledger.shard) is None
    closed(ledger)
    assert content(tmp_path) == [*(entry(number) for number in range(39)), entry(100)]
    good(tmp_path, 40)


def test_octets_lost_with_the_power_are_a_torn_tail(tmp_path: Path) -> None:
    """Zeros where the blocks never reached the disk, behind the last checkpoint, with nothing whole after them."""
    ledger = opened(tmp_path)
    for number in range(20):
        ledger.shard.append(entry(number))
    assert commit(ledger.shard) is None
    ledger.shard.append(entry(20))
    closed(ledger)
    path = listed(tmp_path / "shard-0")[0].path
    size = len(frame(entry(20)))
    with open(path, "r+b") as file:
        file.seek(-size, os.SEEK_END)
        file.write(bytes(size))
    ledger = opened(tmp_path)
    assert ledger.repaired[0]["index"] == 20
    closed(ledger)


def test_a_header_lost_with_the_power_is_repaired(tmp_path: Path) -> None:
    """The newest segment was made, and neither its header nor anything in it reached the disk."""
    shard = written(tmp_path, 50)
    newest = listed(shard)[-1]
    assert newest.first == 50
    newest.path.write_bytes(bytes(newest.path.stat().st_size))
    ledger = opened(tmp_path, segment_bytes=4096)
    assert [repair["segment"] for repair in ledger.repaired] == [newest.path.name]
    assert ledger.shard.size == 50
    ledger.shard.append(entry(50))
    assert commit(ledger.shard) is None
    closed(ledger)
    good(tmp_path, 51)


def test_damage_in_the_middle_refuses_to_start(tmp_path: Path) -> None:
    """Behind the last checkpoint too: a whole record follows, so it is no torn tail."""
    ledger = opened(tmp_path)
    for number in range(20):
        ledger.shard.append(entry(number))
        if number == 9:
            assert commit(ledger.shard) is None
    closed(ledger)
    path = listed(tmp_path / "shard-0")[0].path
    before = path.read_bytes()
    for number in (5, 15):
        record = frame(entry(number))
        place = before.index(record)
        path.write_bytes(before[: place + 20] + b"\xff" + before[place + 21 :])
        with pytest.raises(LedgerDamaged, match=f"entry {number} "):
            opened(tmp_path)
        path.write_bytes(before[:place] + b"\0\0\xff\xff" + before[place + 4 :])  # a length that reaches over the end
        with pytest.raises(LedgerDamaged, match=f"entry {number} "):
            opened(tmp_path)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with pytest.raises(LedgerBusy, match=str(os.getpid())):
        opened(tmp_path)
    closed(ledger)
    closed(opened(tmp_path))


def test_a_signed_entry_that_is_missing_refuses_to_start(tmp_path: Path) -> None:
    written(tmp_path, 45, segment_bytes=1 << 20)
    path = listed(tmp_path / "shard-0")[-1].path
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(LedgerDamaged, match="damaged"):
        opened(tmp_path, segment_bytes=4096)


@pytest.mark.parametrize("room", [0, 1, 12, 13, 50])
def test_a_short_write_leaves_nothing(tmp_path: Path, room: int) -> None:
    disk = FailingDisk()
    ledger = opened(tmp_path, disk)
    ledger.shard.append(entry(0))
    disk.room = room
    with pytest.raises(OSError, match=r"."):
        ledger.shard.append(entry(1))
    assert not ledger.shard.broken
    assert ledger.shard.release_reserve()
    ledger.shard.append(entry(2))
    disk.heal()
    assert commit(ledger.shard) is None
    closed(ledger)
    assert content(tmp_path) == [entry(0), entry(2)]
    good(tmp_path, 2)


@pytest.mark.parametrize("synced", [0, 5])
@pytest.mark.parametrize("stubborn", [False, True], ids=["", "the old segment cannot be cut either"])
def test_a_failed_sync_moves_everything_unsynced_to_a_new_segment(tmp_path: Path, synced: int, stubborn: bool) -> None:
    disk = FailingDisk()
    ledger = opened(tmp_path, disk)
    shard = ledger.shard
    for number in range(synced):
        shard.append(entry(number))
    if synced:
        assert commit(shard) is None
    for number in range(synced, synced + 7):
        shard.append(entry(number))
    disk.fail("sync", errno.EIO)
    assert commit(shard) is not None
    assert shard.broken
    with pytest.raises(OSError, match="new segment"):
        shard.append(entry(99))
    with pytest.raises(OSError, match=r"."):
        shard.mend(NOW)
    disk.heal()
    if stubborn:
        disk.fail("truncate", errno.EIO)
    shard.mend(NOW)()
    shard.append(entry(synced + 7))
    assert commit(shard) is None
    closed(ledger)
    disk.heal()
    assert content(tmp_path) == [entry(number) for number in range(synced + 8)]
    good(tmp_path, synced + 8)
    closed(opened(tmp_path))


def test_a_sync_that_fails_while_a_segment_gives_way(tmp_path: Path) -> None:
    disk = FailingDisk()
    ledger = opened(tmp_path, disk, segment_bytes=4096)
    shard = ledger.shard
    for number in range(40):
        shard.append(entry(number))
    assert commit(shard) is None  # prepares the next
    for number in range(40, 80):
        shard.append(entry(number))
    disk.fail("sync", errno.EIO)
    assert commit(shard) is not None
    disk.heal()
    shard.mend(NOW)()
    for number in range(80, 120):
        shard.append(entry(number))
        assert commit(shard) is None
    closed(ledger)
    assert content(tmp_path) == [entry(number) for number in range(120)]
    good(tmp_path, 120)
    closed(opened(tmp_path, segment_bytes=4096))


def test_the_end_of_the_process_at_any_operation(tmp_path: Path) -> None:
    """The process ends before some operation of the disk (nothing after it happens): what had been appended is there at the next start,
    except what was being written just then."""

    class Killed(BaseException):
        pass

    count = 0
    for moment in range(0, 260, 9):
        place = tmp_path / str(moment)
        disk = FailingDisk()
        left = moment

        def before(call: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        done = 0
        ledger = opened(place, disk, segment_bytes=2048)
        disk.before = before
        try:
            for number in range(100):
                ledger.shard.append(entry(number))
                done = number + 1
                if number % 5 == 4:
                    commit(ledger.shard, checkpoint=number % 10 == 9)
        except Killed:
            count += 1
        disk.before = None
        os.close(ledger.lock)
        again = opened(place, segment_bytes=2048)
        assert again.shard.size == done
        assert again.repaired == []
        assert commit(again.shard) is None
        closed(again)
        assert content(place) == [entry(number) for number in range(done)]
        good(place, done)
    assert count > 15
