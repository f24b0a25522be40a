"""Questions to the ledger: a filter becomes a statement for the index, and its rows become entries, newest first, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from meshguard.ledger.frame import HEADER, leaf_of
from meshguard.model.errors import MeshguardError
from meshguard.storage.index import BEGUN, EVENT, VERDICTS, Index
from meshguard.storage.shard_reader import Part, ShardReader

__all__ = ["Filter", "QueryError", "entries", "summary"]


class QueryError(MeshguardError):
    """A question that cannot be asked."""


_MAX_FILES = 64


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
        for column, value in (("status", self.status), ("shard", self.shard)):
            if value is not None:
                terms.append(f"{column}=?")
                values.append(value)
        if self.id:
            terms.append("id=?")
            values.append(self.id)
        if self.trace:
            try:
                values.append(bytes.fromhex(self.trace))
            except ValueError as exc:
                raise QueryError("a trace id is 32 hexadecimal digits") from exc
            terms.append("trace=?")
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
    if wanted.endswith("/**"):
        base = wanted[:-3]
        some, values = "IN (SELECT id FROM texts WHERE (value>=? AND value<?) OR value=?)", [base + "/", base + "0", base or "/"]
    elif wanted.endswith("*"):
        base = wanted[:-1]
        some, values = "IN (SELECT id FROM texts WHERE value>=? AND value<?)", [base, base[:-1] + chr(ord(base[-1]) + 1)]
    else:
        some, values = "=(SELECT id FROM texts WHERE value=?)", [wanted]
    return f"{column} {some} AND {column} IS NOT NULL", values


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
    terms, values = wanted.conditions()
    sign, order = (">", "ASC") if oldest else ("<", "DESC")
    if cursor:
        terms.append(f"(time, shard, number) {sign} (?,?,?)")
        try:
            moment, shard, number = (int(part) for part in cursor.split("."))
        except ValueError as exc:
            raise QueryError("no such cursor") from exc
        terms.append("time<=?" if not oldest else "time>=?")
        values += [moment, shard, number, moment]
    statement = (
        f"SELECT time, shard, number, kind, segment, offset, length FROM entries WHERE {' AND '.join(terms)} "  # noqa: S608  # made of constants; values are bound
        f"ORDER BY time {order}, shard {order}, number {order}"
    )
    if test is None:
        statement += f" LIMIT {int(limit)}"
    reading = _Reading(index)
    try:
        yield from _found(reading, index.iterate(statement, values), limit, test)
    finally:
        reading.close()


def _found(
    reading: _Reading, rows: Iterator[tuple[Any, ...]], limit: int, test: Callable[[Mapping[str, Any]], bool] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    for moment, shard, number, kind, segment, offset, length in rows:
        entry = reading.entry(shard, segment, offset, length)
        if entry is None:
            continue  # expired since the index was made
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
    """Fetches entries from where they lie; a compressed segment is opened once."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._parts: dict[int, tuple[ShardReader, dict[int, Part]]] = {}
        self._unpacked: tuple[tuple[int, int], bytes] | None = None
        self._files: dict[Path, BinaryIO] = {}

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def entry(self, shard: int, segment: int, offset: int, length: int) -> dict[str, Any] | None:
        if shard not in self._parts:
            reader = ShardReader(shard, self._index.directory / f"shard-{shard}")
            self._parts[shard] = (reader, {part.first: part for part in reader.parts()})
        reader, parts = self._parts[shard]
        part = parts.get(segment)
        if part is None or part.path is None:
            return None
        size = HEADER + length
        try:
            if part.compressed:
                if self._unpacked is None or self._unpacked[0] != (shard, segment):
                    with reader.octets(part) as data:
                        self._unpacked = ((shard, segment), bytes(data))
                record = self._unpacked[1][offset : offset + size]
            else:
                file = self._files.get(part.path)
                if file is None:
                    if len(self._files) >= _MAX_FILES:
                        self.close()
                        self._files.clear()
                    file = self._files[part.path] = open(part.path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
                file.seek(offset)
                record = file.read(size)
        except FileNotFoundError:  # it was compressed or has expired meanwhile
            del self._parts[shard]
            return self.entry(shard, segment, offset, length) if part.path.suffix == ".segment" and _other(part).exists() else None
        if len(record) != size or leaf_of(record)[:8] != record[4:12]:
            raise QueryError(f"the entry at {part.path.name}, octet {offset}, is not what was written: see `meshguard audit verify`")
        made: dict[str, Any] = orjson.loads(record[HEADER:])
        return made


def _other(part: Part) -> Any:
    return part.hashes.with_suffix(".segment.gz")
