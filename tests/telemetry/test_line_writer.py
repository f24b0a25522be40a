"""The writer of lines: slow, broken, full and rotated targets."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from meshguard.telemetry.decision_log import gap_line
from meshguard.telemetry.line_writer import LineWriter
from meshguard.telemetry.metrics import LabelValue, Registry


def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait for other threads, by events that only show in state."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        pause.wait(0.005)


def counted(registry: Registry, name: str) -> dict[tuple[LabelValue, ...], float]:
    family = next(family for family in registry.families() if family.name == f"log.{name}")
    return {labels: value for labels, value in family.samples if isinstance(value, (int, float))}


def line(number: int, size: int = 0) -> bytes:
    return json.dumps({"n": number, "pad": "x" * size}).encode() + b"\n"


def numbers(data: bytes) -> list[int]:
    """The records in a file in order; a gap of N counts as -N."""
    found = [json.loads(text) for text in data.splitlines()]
    return [entry["n"] if "n" in entry else -entry["gap"] for entry in found]


def test_lines_reach_a_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(b'{"n": -100}\n')  # of an earlier run
    registry = Registry()
    writer = LineWriter(str(path), registry, name="log")
    for number in range(1000):
        writer.write(line(number), 1)
    assert writer.close(10) == 0
    assert numbers(path.read_bytes()) == [-100, *range(1000)]
    assert counted(registry, "written") == {(): 1000}
    assert counted(registry, "queued") == {(): 0}


def test_a_new_file_is_not_for_everyone(tmp_path: Path) -> None:
    path = tmp_path / "new"
    writer = LineWriter(str(path), Registry(), name="log")
    writer.write(line(1), 1)
    writer.close(10)
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


def test_nothing_is_started_before_the_first_line() -> None:
    threads = threading.active_count()
    writer = LineWriter(1, Registry(), name="log")
    assert threading.active_count() == threads
    assert writer.close(1) == 0


def test_a_reader_that_stops_costs_records_but_never_time() -> None:
    read_end, write_end = os.pipe()
    registry = Registry()
    try:
        writer = LineWriter(write_end, registry, name="log", capacity=100, gap=gap_line)
        slowest = 0.0
        for number in range(2000):  # 2 MB into a pipe of 64 KiB that nobody reads
            before = time.perf_counter()
            writer.write(line(number, 1000), 1)
            slowest = max(slowest, time.perf_counter() - before)
        assert slowest < 0.5  # a blocked write would last until the reader comes: for ever
        lost = writer.lost
        assert lost >= 1500

        received = bytearray()
        reader = threading.Thread(target=_read_all, args=(read_end, received))
        reader.start()
        until(lambda: counted(registry, "queued") == {(): 0})
        writer.write(line(2000), 1)
        assert writer.close(10) == lost
    finally:
        os.close(write_end)
    reader.join(10)
    os.close(read_end)
    told = numbers(bytes(received))
    assert told[-1] == 2000
    expected = 0
    for entry in told:  # every number is there once and in order, or in the gap at its place
        if entry < 0:
            expected += -entry
        else:
            assert entry == expected
            expected += 1
    assert sum(-entry for entry in told if entry < 0) == lost


def _read_all(fd: int, into: bytearray) -> None:
    while data := os.read(fd, 65536):
        into += data


def test_a_gap_is_told_without_a_further_record(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    registry = Registry()
    received = bytearray()
    writer = LineWriter(write_end, registry, name="log", capacity=1, gap=gap_line)
    writer.write(line(0, 200_000), 1)  # fills the pipe: the thread is stuck in it
    until(lambda: len(writer._queue) == 0)
    writer.write(line(1), 1)
    writer.write(line(2), 1)
    reader = threading.Thread(target=_read_all, args=(read_end, received))
    reader.start()
    until(lambda: b'"gap":2' in received)
    writer.close(10)
    os.close(write_end)
    reader.join(10)
    os.close(read_end)
    assert numbers(bytes(received)) == [0, -2]


def test_a_reader_that_is_gone_is_counted_and_retried() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    registry = Registry()
    writer = LineWriter(write_end, registry, name="log")
    writer.write(line(1), 1)
    until(lambda: counted(registry, "errors").get(("EPIPE",), 0) >= 2)
    started = time.monotonic()
    assert writer.close(0.2) == 1
    assert time.monotonic() - started < 3
    os.close(write_end)
    assert counted(registry, "written") == {(): 0}


def test_a_full_disk_is_waited_out(tmp_path: Path) -> None:
    """/dev/full refuses every write with ENOSPC; the name then leads to a real file, as after cleaning up."""
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    registry = Registry()
    writer = LineWriter(str(path), registry, name="log", gap=gap_line)
    for number in range(10):
        writer.write(line(number), 1)
    until(lambda: counted(registry, "errors").get(("ENOSPC",), 0) >= 1)
    path.unlink()
    writer.reopen()
    assert writer.close(10) == 0
    assert numbers(path.read_bytes()) == list(range(10))


def test_a_missing_directory_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "later" / "log"
    registry = Registry()
    writer = LineWriter(str(path), registry, name="log")
    writer.write(line(1), 1)
    until(lambda: counted(registry, "errors").get(("ENOENT",), 0) >= 1)
    path.parent.mkdir()
    assert writer.close(10) == 0
    assert numbers(path.read_bytes()) == [1]


@pytest.mark.parametrize("told", [True, False])
def test_rotation_loses_nothing(tmp_path: Path, told: bool) -> None:
    path = tmp_path / "log"
    old = tmp_path / "log.1"
    writer = LineWriter(str(path), Registry(), name="log")
    writer.write(line(0), 1)
    until(lambda: path.exists() and path.read_bytes() == line(0))
    path.rename(old)
    if told:
        writer.reopen()  # also without a line to write, so that the old file can be compressed
        until(path.exists)
    else:
        end = time.monotonic() + 10
        number = 0
        while not path.exists():
            number += 1
            writer.write(line(number), 1)
            threading.Event().wait(0.05)
            assert time.monotonic() < end
    writer.write(line(1_000_000), 1)
    assert writer.close(10) == 0
    everything = numbers(old.read_bytes()) + numbers(path.read_bytes())
    assert everything == [*range(len(everything) - 1), 1_000_000]
    assert len(numbers(path.read_bytes())) >= 1


def test_a_non_blocking_target_is_waited_for() -> None:
    read_end, write_end = os.pipe()
    flags = fcntl.fcntl(write_end, fcntl.F_GETFL)
    fcntl.fcntl(write_end, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    received = bytearray()
    writer = LineWriter(write_end, Registry(), name="log")
    for number in range(300):
        writer.write(line(number, 1000), 1)
    reader = threading.Thread(target=_read_all, args=(read_end, received))
    reader.start()
    assert writer.close(10) == 0
    os.close(write_end)
    reader.join(10)
    os.close(read_end)
    assert numbers(bytes(received)) == list(range(300))


def test_the_end_does_not_wait_for_a_stuck_reader() -> None:
    read_end, write_end = os.pipe()
    registry = Registry()
    writer = LineWriter(write_end, registry, name="log")
    for number in range(500):
        writer.write(line(number, 1000), 1)
    started = time.monotonic()
    lost = writer.close(0.3)
    assert time.monotonic() - started < 3
    assert lost + counted(registry, "written")[()] == 500
    assert lost > 0
    writer.write(line(1), 1)  # after the end: counted, not raised
    assert writer.lost == lost + 1
    os.close(read_end)  # frees the thread
    until(lambda: not any(thread.name == "log" for thread in threading.enumerate()))
    os.close(write_end)


def test_memory_is_bounded_by_octets_too() -> None:
    read_end, write_end = os.pipe()
    writer = LineWriter(write_end, Registry(), name="log", capacity=1_000_000)
    for number in range(80):
        writer.write(line(number, 1_000_000), 1)
    assert writer.lost >= 40
    os.close(read_end)
    writer.close(0.2)
    os.close(write_end)


def test_a_batch_larger_than_the_queue_is_written_when_it_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = LineWriter(str(path), Registry(), name="log", capacity=2)
    writer.write(b"".join(line(n) for n in range(10)), 10)
    assert writer.close(10) == 0
    assert numbers(path.read_bytes()) == list(range(10))


def test_many_writers_keep_their_lines_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = LineWriter(str(path), Registry(), name="log")

    def write(base: int) -> None:
        for number in range(500):
            writer.write(line(base + number), 1)

    threads = [threading.Thread(target=write, args=(base,)) for base in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(10) == 0
    found = numbers(path.read_bytes())
    for base in (0, 1000, 2000):
        assert [n for n in found if base <= n < base + 1000] == list(range(base, base + 500))


def test_a_capacity_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        LineWriter(1, Registry(), name="log", capacity=0)
