"""Questions to the ledger: a filter becomes a statement for the index, and its rows become entries, newest first, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import merge
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from meshguard.ledger.frame import HEADER, entry_of
from meshguard.model.errors import MeshguardError
from meshguard.storage.index import BEGUN, EVENT, PLACE_BITS, VERDICTS, Index, serial_of, trace_number
from meshguard.storage.packed import PackedSegment
from meshguard.storage.shard_reader import Part, ShardReader

__all__ = ["Filter", "QueryError", "entries", "summary"]


class QueryError(MeshguardError):
    """A question that cannot be asked."""


_MAX_FILES = 64
_MERGED = 200
"""Texts whose entries are merged."""
_SOME_TEXTS = 500
_FEW = 2_000
"""Rows that are gathered and sorted rather than met on a walk through time."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What to look for; "" and None: anything. `principal` and `path` may end in `*` (a beginning) or `/**` (a path and all below).
    Times are epoch microseconds, `until` is exclusive. `events`: the ledger's own events instead of decisions, `event`: of one name."""

    principal: str = ""
    path: str = ""
    method: str = ""
    verdict: str = ""
    rule: str = ""
    reason: str = ""
    route: str = ""
    status: int | None = None
    id: str = ""
    trace: str = ""
    since: int | None = None
    until: int | None = None
    events: bool = False
    event: str = ""
    shard: int | None = None

    def conditions(self) -> tuple[list[str], list[Any]]:
        """SQL conditions and their values. Raises QueryError."""
        terms = [f"kind={EVENT}"] if self.events or self.event else [f"kind<{EVENT}"]
        values: list[Any] = []
        if self.event:  # the index keeps the name of an event where decisions have their reason
            term, some = _text_term("reason", self.event)
            terms.append(term)
            values += some
        for column in ("principal", "path", "method", "rule", "reason", "route"):
            wanted = getattr(self, column)
            if wanted:
                term, some = _text_term(column, wanted)
                terms.append(term)
                values += some
        if self.verdict:
            if self.verdict not in VERDICTS:
                raise QueryError(f"a verdict is one of {', '.join(VERDICTS)}")
            code = VERDICTS.index(self.verdict)
            terms.append("verdict=?" if not code else "verdict=? AND verdict>0")
            values.append(code)
        if self.status is not None:
            terms.append("status=?" if self.status < 400 else "status=? AND status>=400")
            values.append(self.status)
        if self.shard is not None:
            terms.append("place>=? AND place<?")
            values += [self.shard << PLACE_BITS, (self.shard + 1) << PLACE_BITS]
        if self.id:
            boot, serial = serial_of(self.id)
            terms.append("boot=(SELECT id FROM texts WHERE value=?) AND boot IS NOT NULL AND serial=?")
            values += [boot, serial]
        if self.trace:
            try:
                values.append(trace_number(self.trace))
            except ValueError as exc:
                raise QueryError("a trace id is 32 hexadecimal digits") from exc
            terms.append("trace=? AND trace IS NOT NULL")
        if self.since is not None:
            terms.append("time>=?")
            values.append(self.since)
        if self.until is not None:
            terms.append("time<?")
            values.append(self.until)
        return terms, values


def _text_term(column: str, wanted: str) -> tuple[str, list[Any]]:
    """`column` is one of ours; what was asked for is bound."""
    if wanted == "*":
        return f"{column} IS NOT NULL", []
    if wanted.endswith("*"):
        some, values = _beginning(wanted)
        return f"{column} IN (SELECT id FROM texts WHERE {some}) AND {column} IS NOT NULL", values  # noqa: S608  # made of constants; values are bound
    return f"{column} =(SELECT id FROM texts WHERE value=?) AND {column} IS NOT NULL", [wanted]  # noqa: S608  # likewise


def _beginning(wanted: str) -> tuple[str, list[Any]]:
    """Of texts that `x*` or `x/**` stands for."""
    if wanted.endswith("/**"):
        base = wanted[:-3]
        return "((value>=? AND value<?) OR value=?)", [base + "/", base + "0", base or "/"]
    base = wanted[:-1]
    return "value>=? AND value<?", [base, base[:-1] + chr(ord(base[-1]) + 1)]


def entries(
    index: Index,
    wanted: Filter,
    *,
    limit: int,
    cursor: str = "",
    test: Callable[[Mapping[str, Any]], bool] | None = None,
    oldest: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(cursor to go on behind it, entry) of at most `limit` entries, newest first (`oldest`: oldest first). `test` is applied to what the
    filter lets through. Raises QueryError."""
    column, texts = _merged(index, wanted)
    rest = replace(wanted, principal="") if column == "principal" else replace(wanted, path="") if column else wanted
    terms, values = rest.conditions()
    _choose(index, rest, terms)
    sign, order = (">", "ASC") if oldest else ("<", "DESC")
    if cursor:
        try:
            moment, shard, number = (int(part) for part in cursor.split("."))
        except ValueError as exc:
            raise QueryError("no such cursor") from exc
        terms += [f"(time, place) {sign} (?,?)", "time<=?" if not oldest else "time>=?"]
        values += [moment, shard << PLACE_BITS | number, moment]
    found = []
    for term in [f"{column}={text} AND {column} IS NOT NULL" for text in texts] if column else ["1"]:
        statement = (
            f"SELECT time, place, kind, segment, offset, length FROM entries WHERE {' AND '.join((term, *terms))} "  # noqa: S608  # made of constants and ids; values are bound
            f"ORDER BY time {order}, place {order}"
        )
        found.append(index.iterate(f"{statement} LIMIT {int(limit)}" if test is None else statement, values))
    rows = found[0] if len(found) == 1 else merge(*found, key=_moment, reverse=not oldest)
    reading = _Reading(index)
    try:
        yield from _found(reading, rows, limit, test, wanted.trace.lower())
    finally:
        reading.close()


def _moment(row: tuple[Any, ...]) -> tuple[int, int]:
    return row[0], row[1]


def _merged(index: Index, wanted: Filter) -> tuple[str, list[int]]:
    """The column whose beginning stands for few texts, the fewer the better, and their ids: each has its entries in order of time, so the
    answers to one question a text are merged. "" where there is none."""
    best: tuple[str, list[int]] = ("", [])
    for column in ("principal", "path"):
        value = getattr(wanted, column)
        if value.endswith("*") and value != "*":
            some, values = _beginning(value)
            ids = [row[0] for row in index.iterate(f"SELECT id FROM texts WHERE {some} LIMIT {_MERGED + 1}", values)]  # noqa: S608  # likewise
            if len(ids) <= _MERGED and (not best[0] or len(ids) < len(best[1])):
                best = (column, ids)
    return best


def _choose(index: Index, wanted: Filter, terms: list[str]) -> None:
    """What begins with something (`/orders/**`) is many texts. Where few entries have them, SQLite gathers those and sorts them; where many
    have, it had better walk through time, meet them often, and look at the text of each. Tried with a bounded part of both."""
    for column in ("principal", "path"):
        value = getattr(wanted, column)
        if not value.endswith("*") or value == "*":
            continue
        some, values = _beginning(value)
        term = f"{column} IN (SELECT id FROM texts WHERE {some} LIMIT {_SOME_TEXTS}) AND {column} IS NOT NULL"  # noqa: S608  # likewise
        for sign, moment in ((">=", wanted.since), ("<", wanted.until)):
            if moment is not None:
                term += f" AND time{sign}?"
                values = [*values, moment]
        statement = f"SELECT COUNT(*) FROM (SELECT 1 FROM entries WHERE {term} LIMIT {_FEW})"  # noqa: S608  # likewise
        (count,) = next(index.iterate(statement, values))
        if _SOME_TEXTS <= count < _FEW:
            texts = f"SELECT COUNT(*) FROM (SELECT 1 FROM texts WHERE {some} LIMIT {_FEW})"  # noqa: S608  # likewise
            (known,) = next(index.iterate(texts, _beginning(value)[1]))
            count = count * known // _SOME_TEXTS
        if count >= _FEW:
            place = terms.index(_text_term(column, value)[0])
            terms[place] = f"EXISTS (SELECT 1 FROM texts WHERE id=entries.{column} AND {some})"  # noqa: S608  # likewise


def _found(
    reading: _Reading, rows: Iterator[tuple[Any, ...]], limit: int, test: Callable[[Mapping[str, Any]], bool] | None, trace: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for moment, place, kind, segment, offset, length in rows:
        shard, number = place >> PLACE_BITS, place & ((1 << PLACE_BITS) - 1)
        entry = reading.entry(shard, segment, offset, length)
        if entry is None or (trace and entry.get("trace_id") != trace):
            continue  # expired since the index was made; another trace of the same 64 bits
        if kind == BEGUN:
            entry["interrupted"] = True
        if test is not None and not test(entry):
            continue
        entry["ledger"] = f"{shard}:{number}"
        yield f"{moment}.{shard}.{number}", entry
        limit -= 1
        if limit <= 0:
            return


def summary(index: Index, wanted: Filter) -> dict[str, Any]:
    """Counts for `stats`: by verdict, the most denied callers, paths and rules, edges, and requests over time."""
    terms, values = wanted.conditions()
    where = " AND ".join(terms)

    def top(columns: str, more: str = "", limit: int = 10) -> list[tuple[Any, ...]]:
        statement = f"SELECT {columns}, COUNT(*) FROM entries WHERE {where}{more} GROUP BY {columns} ORDER BY COUNT(*) DESC LIMIT {limit}"  # noqa: S608
        return list(index.iterate(statement, values))

    def named(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
        return [[*(_name(index, value) for value in row[:-1]), row[-1]] for row in rows]

    first, last, total = next(index.iterate(f"SELECT MIN(time), MAX(time), COUNT(*) FROM entries WHERE {where}", values))  # noqa: S608
    width = max(1, ((last or 0) - (first or 0)) // 60 + 1)
    buckets = [0] * 60
    denied = [0] * 60
    statement = f"SELECT (time-?)/?, SUM(verdict=0), COUNT(*) FROM entries WHERE {where} GROUP BY 1"  # noqa: S608
    for place, allowed, count in index.iterate(statement, [first or 0, width, *values]):
        if place is not None and 0 <= place < 60:
            buckets[place] = count
            denied[place] = count - (allowed or 0)
    return {
        "total": total,
        "first": first,
        "last": last,
        "bucket_s": width / 1e6,
        "over_time": buckets,
        "not_allowed_over_time": denied,
        "verdicts": [[VERDICTS[row[0]] if row[0] is not None else "?", row[1]] for row in top("verdict")],
        "statuses": [list(row) for row in top("status")],
        "rules": named(top("rule", " AND rule IS NOT NULL")),
        "reasons": named(top("reason", " AND reason IS NOT NULL")),
        "denied_callers": named(top("principal", " AND verdict=1 AND verdict>0")),
        "denied_paths": named(top("path", " AND verdict=1 AND verdict>0")),
        "edges": named(top("principal, route", " AND principal IS NOT NULL")),
    }


def _name(index: Index, value: int | None) -> str:
    row = next(index.iterate("SELECT value FROM texts WHERE id=?", [value]), None)
    return str(row[0]) if row is not None else "-"


class _Reading:
    """Fetches entries from where they lie; each file is opened once."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._parts: dict[int, tuple[ShardReader, dict[int, Part]]] = {}
        self._unpacked: tuple[Path, bytes] | None = None
        self._files: dict[Path, BinaryIO] = {}
        self._packed: dict[Path, PackedSegment | None] = {}

    def close(self) -> None:
        for file in (*self._files.values(), *self._packed.values()):
            if file is not None:
                file.close()
        self._files.clear()
        self._packed.clear()

    def entry(self, shard: int, segment: int, offset: int, length: int) -> dict[str, Any] | None:
        if shard not in self._parts:
            reader = ShardReader(shard, self._index.directory / f"shard-{shard}")
            self._parts[shard] = (reader, {part.first: part for part in reader.parts()})
        reader, parts = self._parts[shard]
        part = parts.get(segment)
        if part is None or part.path is None:
            return None
        if len(self._files) + len(self._packed) >= _MAX_FILES:
            self.close()
        size = HEADER + length
        try:
            record = self._read_packed(reader, part, part.path, offset, size) if part.compressed else self._read(part.path, offset, size)
        except FileNotFoundError:  # it was compressed or has expired meanwhile
            del self._parts[shard]
            return self.entry(shard, segment, offset, length) if part.path.suffix == ".segment" and _other(part).exists() else None
        octets = entry_of(record)
        if octets is None:
            raise QueryError(f"the entry at {part.path.name}, octet {offset}, is not what was written: see `meshguard audit verify`")
        made: dict[str, Any] = orjson.loads(octets)
        return made

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = open(path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
        file.seek(offset)
        return file.read(size)

    def _read_packed(self, reader: ShardReader, part: Part, path: Path, offset: int, size: int) -> bytes:
        if path not in self._packed:
            self._packed[path] = PackedSegment.open(path)
        packed = self._packed[path]
        if packed is not None:
            return packed.read(offset, size)
        if self._unpacked is None or self._unpacked[0] != path:  # packed by something else
            with reader.octets(part) as data:
                self._unpacked = (path, bytes(data))
        return self._unpacked[1][offset : offset + size]


def _other(part: Part) -> Any:
    return part.hashes.with_suffix(".segment.gz")
