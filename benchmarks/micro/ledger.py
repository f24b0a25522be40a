"""What the ledger costs: appending against plain JSON lines, verifying, and questions to the index against SQLite alone.

    python -m benchmarks.micro.ledger [--entries 100000] [--index 1000000] [--json] [--directory DIR]

CPU time of this process, the smallest of several runs, for entries as a real request makes them (about 870 octets). "plain JSON lines" is
the same object serialised and written by one write(2) each, which is what a log must do to promise as much; "buffered" is a line of
an ordinary log that promises nothing. Everything is interleaved; scaled figures as in `benchmarks.micro.telemetry`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.micro.telemetry import REFERENCE_US, reference
from meshguard.ledger.entries import decision_entry
from meshguard.ledger.notes import NoteSigner
from meshguard.storage.audit import verify_ledger
from meshguard.storage.disk import Disk
from meshguard.storage.index import Index
from meshguard.storage.ledger import open_ledger
from meshguard.storage.query import Filter, entries
from meshguard.storage.retention import compress
from meshguard.storage.shard_reader import ShardReader
from meshguard.telemetry.decision_log import DecisionLog
from meshguard.telemetry.metrics import Registry
from tests.telemetry.records import DIGEST, Record

RUNS = 5
SLICE = 2000


class Nowhere:
    def write(self, lines: bytes, count: int) -> None: ...


def least_of(works: dict[str, Callable[[int], None]], each: int) -> dict[str, float]:
    """Microseconds of CPU an item, of several works that take turns."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(RUNS):
        for name, work in works.items():
            before = time.process_time()
            work(each)
            best[name] = min(best[name], (time.process_time() - before) / each * 1e6)
    return best


def append_costs(directory: Path, count: int) -> dict[str, float]:
    log = DecisionLog(Nowhere(), Registry())
    record = Record()
    signer = NoteSigner("bench/ledger", Ed25519PrivateKey.from_private_bytes(b"b" * 32))
    opened = open_ledger(directory / "append", (0,), signer, (), segment_bytes=64 << 20, now=1)
    shard = opened.shard
    line = log.tell(record, 1.7e9)
    value = orjson.loads(line)
    plain = os.open(directory / "plain.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    buffered = open(directory / "buffered.jsonl", "ab", buffering=1 << 16)  # noqa: SIM115  # closed below

    behind = {"ledger": 0.0, "of_line": 0.0}  # seconds of CPU in the thread, which the event loop does not pay

    def committed(name: str, checkpoint: bool) -> None:
        commit = shard.begin(1, checkpoint=checkpoint)
        before = time.process_time()
        commit.run()
        behind[name] += time.process_time() - before
        shard.end(commit, None)

    def ledger(each: int) -> None:
        for number in range(each):
            shard.append(decision_entry(log.tell(record, 1.7e9), number))
            if number % 500 == 499:  # a commit every 0.2 s at 2500 requests a second; its fsync waits, it does not compute
                committed("ledger", number % 2500 == 2499)

    def of_line(each: int) -> None:
        for number in range(each):
            shard.append(decision_entry(line, number))
            if number % 500 == 499:
                committed("of_line", number % 2500 == 2499)

    def tell(each: int) -> None:
        for _ in range(each):
            log.tell(record, 1.7e9)

    def plain_lines(each: int) -> None:
        for _ in range(each):
            os.write(plain, orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))

    def told_lines(each: int) -> None:
        for _ in range(each):
            os.write(plain, log.tell(record, 1.7e9) + b"\n")

    def buffered_lines(each: int) -> None:
        for _ in range(each):
            buffered.write(log.tell(record, 1.7e9) + b"\n")

    try:
        figures = least_of(
            {
                "record to JSON": tell,
                "plain JSON lines: record to JSON, write(2)": told_lines,
                "plain JSON lines, buffered": buffered_lines,
                "ready object to JSON, write(2)": plain_lines,
                "ledger: record to JSON, hash, write(2), tree, commits": ledger,
                "ledger: what it adds to a decision log": of_line,
            },
            count,
        )
        figures["ledger: of that, in its thread"] = behind["of_line"] / count / RUNS * 1e6
        return figures
    finally:
        os.close(plain)
        buffered.close()
        shard.close()
        os.close(opened.lock)


def made(directory: Path, count: int) -> NoteSigner:
    """A ledger of `count` varied entries: 50 callers, 20 000 paths, 2 % denials."""
    chance = random.Random(1)
    signer = NoteSigner("bench/ledger", Ed25519PrivateKey.from_private_bytes(b"b" * 32))
    opened = open_ledger(directory, (0,), signer, (), segment_bytes=64 << 20, now=1, disk=Disk())
    shard = opened.shard
    value = orjson.loads(DecisionLog(Nowhere(), Registry()).tell(Record(), 1.7e9))
    for number in range(count):
        denied = chance.random() < 0.02
        value["id"] = f"boot-{number:x}"
        value["time"] = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(1.7e9 + number // 500)) + f"{number % 500 * 2000:06d}Z"
        value["trace_id"] = f"{chance.getrandbits(128):032x}"
        value["who"]["principal"] = f"spiffe://shop.example/ns/prod/sa/s{chance.randrange(50)}"
        value["what"]["path"] = f"/orders/{chance.randrange(20_000)}"
        reason = {"reason": "no_rule"} if denied else {"rule": f"r{chance.randrange(100)}"}
        value["why"] = {"verdict": "deny" if denied else "allow", "policy_digest": DIGEST, "policy_revision": 3, **reason}
        shard.append(decision_entry(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), number))
        if number % 5000 == 4999:
            commit = shard.begin(1, checkpoint=True)
            commit.run()
            shard.end(commit, None)
    commit = shard.begin(1, checkpoint=True)
    commit.run()
    shard.end(commit, None)
    shard.close()
    os.close(opened.lock)
    return signer


def questions(directory: Path, count: int) -> dict[str, float]:
    """Milliseconds at the median of 50 questions of each kind, and the time to make the index."""
    found: dict[str, float] = {}
    before = time.process_time()
    with Index(directory) as index:
        index.update()
        found["index: entries a second of CPU"] = count / (time.process_time() - before)
        found["index: MB"] = index.path.stat().st_size / 1e6
        found |= asked(index, count)
    return found


def asked(index: Index, count: int) -> dict[str, float]:
    """The median of 50 questions of each kind, with the entries that they find, and of the same statements without them."""
    chance = random.Random(2)
    found: dict[str, float] = {}
    kinds: dict[str, Callable[[], Filter]] = {
        "caller and denied": lambda: Filter(principal=f"spiffe://shop.example/ns/prod/sa/s{chance.randrange(50)}", verdict="deny"),
        "path": lambda: Filter(path=f"/orders/{chance.randrange(20_000)}"),
        "rule, a window of a minute": lambda: _window(chance, count),
        "id": lambda: Filter(id=f"boot-{chance.randrange(count):x}"),
        "newest denials": lambda: Filter(verdict="deny"),
        "callers of a namespace, all paths": lambda: Filter(principal="spiffe://shop.example/ns/prod/*", path="/orders/**"),
        "paths that begin so, few": lambda: Filter(path=f"/orders/{chance.randrange(1000, 2000)}*"),
    }
    for name, make in kinds.items():
        times, alone = [], []
        for _ in range(50):
            wanted = make()
            start = time.perf_counter()
            list(entries(index, wanted, limit=50))
            times.append(time.perf_counter() - start)
            if "*" not in wanted.path:
                alone.append(_alone(index.database, wanted))
        found[f"query: {name}, ms (target 50)"] = statistics.median(times) * 1e3
        if alone:
            found[f"query: {name}, SQLite alone, ms"] = statistics.median(alone) * 1e3
    return found


def lag(directory: Path, seconds: float, rate: int = 2000) -> dict[str, float]:
    """How old the newest entry that a question finds is, when the index is brought up to date by another process under load."""
    signer = NoteSigner("bench/ledger", Ed25519PrivateKey.from_private_bytes(b"b" * 32))
    opened = open_ledger(directory, (0,), signer, (), segment_bytes=64 << 20, now=1)
    shard = opened.shard
    line = DecisionLog(Nowhere(), Registry()).tell(Record(), 1.7e9)
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_follow, args=(directory, theirs))
    child.start()
    mine.recv()
    written: list[float] = []
    behind: list[float] = []
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        while len(written) < (time.monotonic() - began) * rate:
            shard.append(decision_entry(line, len(written)))
            written.append(time.monotonic())
        if len(shard._unsynced) > rate // 5:
            commit = shard.begin(1, checkpoint=True)
            commit.run()
            shard.end(commit, None)
        while mine.poll():
            count, moment = mine.recv()
            if 0 < count < len(written):
                behind.append(moment - written[count])
        time.sleep(0.001)
    mine.send(None)
    child.join(10)
    shard.close()
    os.close(opened.lock)
    return {
        f"index: behind at {rate} entries a second, median, ms": statistics.median(behind) * 1e3,
        f"index: behind at {rate} entries a second, worst, ms": max(behind) * 1e3,
    }


def _follow(directory: Path, pipe: Connection) -> None:
    """Brings an index up to date ten times a second and tells how many entries it has."""
    total = 0
    with Index(directory) as index:
        pipe.send(None)
        while not pipe.poll(0.1):
            total += index.update()
            pipe.send((total, time.monotonic()))


def _window(chance: random.Random, count: int) -> Filter:
    start = int((1.7e9 + chance.randrange(max(1, count // 500))) * 1e6)
    return Filter(rule=f"r{chance.randrange(100)}", since=start, until=start + 60_000_000)


def _alone(database: sqlite3.Connection, wanted: Filter) -> float:
    terms, values = wanted.conditions()
    statement = f"SELECT time, place FROM entries WHERE {' AND '.join(terms)} ORDER BY time DESC LIMIT 50"
    start = time.perf_counter()
    database.execute(statement, values).fetchall()
    return time.perf_counter() - start


def measure(directory: Path, count: int, indexed: int, lag_s: float = 6.0) -> dict[str, float]:
    unit = min(_unit() for _ in range(20))
    figures = append_costs(directory, min(count, 20_000))
    plain, ours = figures["plain JSON lines: record to JSON, write(2)"], figures["ledger: record to JSON, hash, write(2), tree, commits"]
    figures["ratio: append to plain JSON lines (target 2.5)"] = ours / plain
    added = figures["ledger: what it adds to a decision log"]
    scale = REFERENCE_US / unit
    figures["scaled: what it adds to a decision log (target 6, aim 3)"] = added * scale
    figures["scaled: what of that is on the event loop"] = (added - figures["ledger: of that, in its thread"]) * scale
    figures["scaled: all of it"] = ours * scale
    place = directory / "made"
    signer = made(place, indexed)
    before = time.process_time()
    report = verify_ledger(place, [signer.verifier])
    took_s = time.process_time() - before
    if not report.good:
        raise SystemExit("the ledger that was made does not verify")
    figures["verify: entries a second of CPU (target 200000)"] = indexed / took_s
    figures["scaled: verify, entries a second"] = indexed / took_s / scale
    figures["octets an entry"] = sum(path.stat().st_size for path in place.glob("shard-0/*.segment")) / indexed
    figures |= questions(place, indexed)
    compress(ShardReader(0, place / "shard-0"), indexed)
    with Index(place) as index:
        figures |= {f"{name}, of compressed segments": value for name, value in asked(index, indexed).items() if "alone" not in name}
    return figures | lag(directory / "lag", lag_s)


def _unit() -> float:
    before = time.process_time()
    for _ in range(100):
        reference()
    return (time.process_time() - before) / 100 / 100 * 1e6  # it makes a hundred


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="cost of the ledger")
    parser.add_argument("--entries", type=int, default=20_000, help="appended in each run")
    parser.add_argument("--index", type=int, default=200_000, help="entries that are verified, indexed and queried")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--directory", type=Path, help="where (a disk, not a memory file system); default: the temporary directory")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="meshguard-ledger-", dir=options.directory))
    try:
        figures = measure(directory, options.entries, options.index)
    finally:
        shutil.rmtree(directory)
    if options.json:
        json.dump(figures, sys.stdout, indent=1)
        print()
        return
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}; microseconds of CPU unless said")
    for name, value in figures.items():
        print(f"  {name:70} {value:12,.3f}")


if __name__ == "__main__":
    main()
