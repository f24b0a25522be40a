"""The query index: SQLite beside the segments, made from them, made anew when it is lost, behind or not theirs. The ledger stays the truth.

An index is brought up to date by whoever asks (a command line, a child process of the admin API), never on the proxy's loop. Texts that
repeat are kept once; a row has what is filtered by and where its entry lies. `begun` entries are rows only until their decision comes.

The row id is the place of the entry, shard << 40 | index, so every index of SQLite ends in it and pages go on by (time, place) without an
offset. A decision id is kept as its two numbers, a trace as 64 bits: an index of integers that grow costs a third of one of texts. A new
database gets its indices after its rows.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from meshguard.ledger.frame import HEADER, Damage, records
from meshguard.ledger.merkle import leaf_hash
from meshguard.storage.segments import Header, shard_directories
from meshguard.storage.shard_reader import ShardReader

__all__ = ["FILE", "PLACE_BITS", "VERDICTS", "Index", "serial_of", "trace_number"]

FILE = "index.sqlite"
VERDICTS = ("allow", "deny", "refuse", "error")
PLACE_BITS = 40
"""Of a row id: the entry's index in its shard; above it the number of the shard."""
_VERSION = 2
_BATCH = 5000
_STEP = 50_000
"""Entries that are taken in between two commits of the database: a question of somebody else waits no longer than for these."""
_TEXTS = 200_000
_TABLES = """
CREATE TABLE meta (version INTEGER NOT NULL);
CREATE TABLE progress (
    shard INTEGER PRIMARY KEY, next INTEGER NOT NULL, leaf BLOB NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL
);
CREATE TABLE texts (id INTEGER PRIMARY KEY, value TEXT NOT NULL UNIQUE);
CREATE TABLE entries (
    place INTEGER PRIMARY KEY, time INTEGER NOT NULL, kind INTEGER NOT NULL, boot INTEGER, serial INTEGER, trace INTEGER,
    principal INTEGER, path INTEGER, method INTEGER, rule INTEGER, reason INTEGER, route INTEGER, verdict INTEGER, status INTEGER,
    segment INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL
);
"""
_INDICES = """
CREATE INDEX IF NOT EXISTS by_time ON entries (time);
CREATE INDEX IF NOT EXISTS by_id ON entries (boot, serial) WHERE boot IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_trace ON entries (trace) WHERE trace IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_principal ON entries (principal, time) WHERE principal IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_path ON entries (path, time) WHERE path IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_rule ON entries (rule, time) WHERE rule IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_reason ON entries (reason, time) WHERE reason IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_failure ON entries (status, time) WHERE status >= 400;
CREATE INDEX IF NOT EXISTS by_verdict ON entries (verdict, time) WHERE verdict > 0;
CREATE INDEX IF NOT EXISTS by_refused_caller ON entries (verdict, principal, time) WHERE verdict > 0;
CREATE INDEX IF NOT EXISTS by_refused_path ON entries (verdict, path, time) WHERE verdict > 0;
CREATE INDEX IF NOT EXISTS by_kind ON entries (kind, time) WHERE kind > 0;
"""
_INSERT = "INSERT INTO entries VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
DECISION, BEGUN, EVENT = 0, 1, 2
_CODES: dict[object, int] = {name: code for code, name in enumerate(VERDICTS)}
_NOTHING: dict[str, Any] = {}


class Index:
    """Of the ledger in `directory`; `path` of the database (default: beside it). Use as a context manager."""

    def __init__(self, directory: Path, path: Path | None = None) -> None:
        self.directory = directory
        self.path = path or directory / FILE
        self._texts: dict[str, int] = {}
        self._begun: set[tuple[int, int]] = set()
        self.database = self._open()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def _open(self) -> sqlite3.Connection:
        try:
            database = self._connect()
            version = database.execute("SELECT version FROM meta").fetchone()
            if version == (_VERSION,):
                return database
            database.close()
        except sqlite3.OperationalError as exc:
            database.close()
            if "no such table" not in str(exc):
                raise
        except sqlite3.DatabaseError:  # no database any more: it is only derived
            database.close()
        return self._fresh()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=OFF")  # a power failure may cost the index, never the ledger
            database.execute("PRAGMA cache_size=-65536")
        except sqlite3.DatabaseError:
            database.close()
            return self._fresh()
        return database

    def _fresh(self) -> sqlite3.Connection:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        database = self._connect()
        database.execute("BEGIN IMMEDIATE")
        _all(database, _TABLES)
        database.execute("INSERT INTO meta VALUES (?)", (_VERSION,))
        database.execute("COMMIT")
        return database

    def rebuild(self) -> None:
        """Throws it away; the next `update` makes it anew."""
        self.database.close()
        self._texts.clear()
        self.database = self._fresh()

    # -- bringing it up to date -----------------------------------------------------------------------------------------

    def update(self) -> int:
        """Takes in what is new. Returns how many entries were."""
        readers = [ShardReader(number, place) for number, place in shard_directories(self.directory)]
        if not all(self._fits(reader) for reader in readers):
            self.rebuild()
        fresh = self.database.execute("SELECT 1 FROM progress LIMIT 1").fetchone() is None
        count = 0
        while True:
            taken = 0
            self.database.execute("BEGIN IMMEDIATE")
            try:
                for reader in readers:
                    taken += self._take(reader, sys.maxsize if fresh else _STEP)
                if fresh:
                    _all(self.database, _INDICES)
            except BaseException:
                self.database.execute("ROLLBACK")
                raise
            self.database.execute("COMMIT")
            count += taken
            fresh = False
            if taken < _STEP:
                return count

    def _fits(self, reader: ShardReader) -> bool:
        """The last entry that was taken in is still the one it was: not a ledger that was replaced or rolled back."""
        row = self.database.execute("SELECT next, leaf FROM progress WHERE shard=?", (reader.number,)).fetchone()
        if row is None or row[0] == 0:
            return True
        last = row[0] - 1
        for part in reader.parts():
            if part.first <= last and (part.end is None or last < part.end):
                if part.path is None:
                    return True
                hashes = part.hashes.read_bytes() if part.hashes.exists() else b""
                stored = hashes[(last - part.first) * 32 : (last - part.first + 1) * 32]
                if stored:
                    return bool(stored == row[1])
                return any(leaf_hash(entry) == row[1] for _, entry in reader.entries(last, last + 1))
        return False

    def _take(self, reader: ShardReader, most: int) -> int:
        """At most `most` entries of a shard."""
        database = self.database
        row = database.execute("SELECT next, leaf, segment, offset FROM progress WHERE shard=?", (reader.number,)).fetchone()
        number, leaf, segment, offset = row or (0, b"", 0, 0)
        started, base = number, reader.number << PLACE_BITS
        self._begun = set(database.execute("SELECT boot, serial FROM entries WHERE kind=?", (BEGUN,)))
        oldest = next((part.first for part in reader.parts() if part.path is not None), 0)
        if oldest:
            database.execute("DELETE FROM entries WHERE place>=? AND place<?", (base, base + oldest))
        rows: list[tuple[Any, ...]] = []
        for part in reader.parts():
            if part.path is None or (part.end is not None and part.end <= number) or number - started >= most:
                continue
            number = max(number, part.first)
            with reader.octets(part) as data:
                place = offset if part.first == segment and offset else 0
                if not place:
                    try:
                        _, place = Header.parse(data[: 1 << 17])
                    except ValueError:
                        break
                last, whole = b"", True
                try:
                    for begin, end in records(data, place):
                        if (part.end is not None and number >= part.end) or number - started >= most:
                            break
                        last = data[begin + HEADER : end]
                        rows.append(self._row(last, base + number, part.first, begin))
                        number += 1
                        segment, offset = part.first, end
                        if len(rows) >= _BATCH:
                            self._insert(rows)
                except Damage:
                    whole = False  # a tail that is being written, or damage that `verify` names
                if last:
                    leaf = leaf_hash(last)
                if not whole:
                    break
        self._insert(rows)
        database.execute("INSERT OR REPLACE INTO progress VALUES (?,?,?,?,?)", (reader.number, number, leaf, segment, offset))
        return int(number - started)

    def _insert(self, rows: list[tuple[Any, ...]]) -> None:
        self.database.executemany(_INSERT, rows)
        if self._begun:
            ended = [(row[3], row[4]) for row in rows if row[2] == DECISION and (row[3], row[4]) in self._begun]
            self.database.executemany("DELETE FROM entries WHERE boot=? AND serial=? AND kind=1", ended)  # BEGUN
            self._begun.difference_update(ended)
        rows.clear()

    def _row(self, entry: bytes, place: int, segment: int, offset: int) -> tuple[Any, ...]:
        value = orjson.loads(entry)
        time = _micros(value.get("time", ""))
        text = self._text
        if "event" in value:
            return (place, time, EVENT, *((None,) * 7), text(value["event"]), *((None,) * 3), segment, offset, len(entry))
        who, what, why, outcome = (value.get(name) or _NOTHING for name in ("who", "what", "why", "outcome"))
        name, serial = serial_of(value.get("id", ""))
        boot = text(name)
        kind = DECISION
        if value.get("begun") and boot is not None:
            kind = BEGUN
            self._begun.add((boot, serial))
        trace = value.get("trace_id")
        return (
            place,
            time,
            kind,
            boot,
            serial,
            trace_number(trace) if trace else None,
            text(who.get("principal")),
            text(what.get("path")),
            text(what.get("method")),
            text(why.get("rule")),
            text(why.get("reason")),
            text(what.get("route")),
            _CODES.get(why.get("verdict")),
            outcome.get("status"),
            segment,
            offset,
            len(entry),
        )

    def _text(self, value: str | None) -> int | None:
        if not value:
            return None
        known = self._texts.get(value)
        if known is None:
            row = self.database.execute("SELECT id FROM texts WHERE value=?", (value,)).fetchone()
            if row is None:
                row = (self.database.execute("INSERT INTO texts (value) VALUES (?)", (value,)).lastrowid,)
            known = int(row[0])
            if len(self._texts) >= _TEXTS:
                self._texts.clear()
            self._texts[value] = known
        return known

    def iterate(self, statement: str, values: list[Any]) -> Iterator[tuple[Any, ...]]:
        """Rows of a query (`storage.query` makes them)."""
        yield from self.database.execute(statement, values)


def serial_of(name: str) -> tuple[str, int]:
    """A decision id as the boot it is of and its number there; another name as itself, with -1."""
    boot, dash, digits = name.rpartition("-")
    try:
        serial = int(digits, 16) if dash and len(digits) < 16 else -1
    except ValueError:
        return name, -1
    return (boot, serial) if serial >= 0 and f"{serial:x}" == digits else (name, -1)


def trace_number(trace: str) -> int:
    """The low 64 bits of a trace id, as SQLite's signed integer. Raises ValueError."""
    return int.from_bytes(bytes.fromhex(trace)[-8:], "big", signed=True)


def _all(database: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        if statement.strip():
            database.execute(statement)


def _micros(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond
