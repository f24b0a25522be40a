"""How entries are shown: a table for people, JSON lines, CSV and Parquet for machines, and the charts of `stats`.

Text of clients is shown with every control character escaped: a path must not drive somebody's terminal.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TextIO

from meshguard.model.errors import MeshguardError

__all__ = ["COLUMNS", "Table", "chart", "flat", "plain", "spark", "write_csv", "write_parquet"]

COLUMNS = (
    *("time", "verdict", "status", "method", "path", "principal", "rule", "reason", "near_miss", "duration_us", "upstream", "listener"),
    *("route", "host", "protocol", "address", "trace_id", "policy_digest", "id", "ledger", "event"),
)
_ROWS = 20_000
"""Of a row group in Parquet: what is in memory at once."""
_SHOWN = (("time", 23), ("verdict", 7), ("status", 6), ("method", 7), ("path", 34), ("principal", 34), ("why", 30), ("ms", 8), ("id", 18))
_FIRST = ("action", "outcome", "target", "code", "name", "keyset", "version")
"""What an event is about stands first."""
_BARS = "▁▂▃▄▅▆▇█"


def plain(text: object) -> str:
    """The text with what a terminal could take for a command spelled out."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown)


def _told(key: str, value: object) -> object:
    """A value of an event as people read it: moments as such, lists with commas."""
    if key in ("since", "until", "expires", "not_after") and isinstance(value, int):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if value else "-"
    return " ".join(map(str, value)) if isinstance(value, list) else value


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One row of COLUMNS."""
    who, what, why, outcome = (entry.get(name) or {} for name in ("who", "what", "why", "outcome"))
    near = why.get("near_miss") or {}
    return {
        "time": entry.get("time", ""),
        "verdict": why.get("verdict", ""),
        "status": outcome.get("status"),
        "method": what.get("method", ""),
        "path": what.get("path", ""),
        "principal": who.get("principal", ""),
        "rule": why.get("rule", ""),
        "reason": why.get("reason", ""),
        "near_miss": f"{near['rule']}: {near['condition']}" if near else "",
        "duration_us": outcome.get("duration_us"),
        "upstream": outcome.get("upstream", ""),
        "listener": what.get("listener", ""),
        "route": what.get("route", ""),
        "host": what.get("host", ""),
        "protocol": what.get("protocol", ""),
        "address": who.get("address", ""),
        "trace_id": entry.get("trace_id", ""),
        "policy_digest": why.get("policy_digest", ""),
        "id": entry.get("id", ""),
        "ledger": entry.get("ledger", ""),
        "event": entry.get("event", ""),
    }


class Table:
    """Rows as they come, in columns that fit the terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        spare = max(0, shutil.get_terminal_size((160, 24)).columns - sum(width + 1 for _, width in _SHOWN))
        self._widths = {name: width + (spare // 3 if name in ("path", "principal", "why") else 0) for name, width in _SHOWN}
        self._headed = False

    def add(self, entry: Mapping[str, Any]) -> None:
        if "event" in entry:
            keys = sorted(entry["data"], key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))
            data = ", ".join(f"{key}={_told(key, entry['data'][key])}" for key in keys if entry["data"][key] not in ("", None))
            self._out.write(f"{entry['time'][:23]} {plain(entry['event'])}  {plain(data)}\n")
            return
        if not self._headed:
            self._headed = True
            self._line({name: name for name, _ in _SHOWN})
        row = flat(entry)
        why = row["rule"] or row["reason"]
        if row["near_miss"]:
            why = f"{row['reason']} ({row['near_miss']})"
        verdict = "begun" if entry.get("interrupted") else row["verdict"]
        ms = f"{row['duration_us'] / 1000:.1f}" if row["duration_us"] is not None else ""
        self._line({**row, "time": row["time"][:23], "verdict": verdict, "why": why, "ms": ms, "status": row["status"] or "-"})

    def _line(self, row: Mapping[str, Any]) -> None:
        cells = []
        for name, _ in _SHOWN:
            width, text = self._widths[name], plain(row[name])
            if len(text) > width:  # of an identity the end tells more
                text = "…" + text[-width + 1 :] if name == "principal" else text[: width - 1] + "…"
            cells.append(text.rjust(width) if name in ("status", "ms") else text.ljust(width))
        self._out.write(" ".join(cells).rstrip() + "\n")


def write_csv(entries: Iterable[Mapping[str, Any]], out: TextIO) -> None:
    """RFC 4180, with a header. A cell that a spreadsheet would run as a formula gets a quote in front."""
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for entry in entries:
        row = flat(entry)
        writer.writerow([_cell(row[name]) for name in COLUMNS])


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def write_parquet(entries: Iterable[Mapping[str, Any]], path: str) -> None:
    """The same columns, typed. Raises MeshguardError where pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise MeshguardError("Parquet needs pyarrow: pip install 'meshguard[parquet]'") from exc
    numbers = {"status": pyarrow.int32(), "duration_us": pyarrow.int64()}
    schema = pyarrow.schema([(name, numbers.get(name, pyarrow.string())) for name in COLUMNS])
    rest = iter(entries)
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        while rows := [flat(entry) for entry in islice(rest, _ROWS)]:
            file.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def spark(values: Sequence[int]) -> str:
    """A line of small bars."""
    most = max(values, default=0)
    return "".join(" " if not value else _BARS[min(7, value * 8 // (most + 1))] for value in values)


def chart(title: str, rows: Sequence[Sequence[Any]], out: TextIO, width: int = 30) -> None:
    """A title and a bar for each row; its last value is the count."""
    if not rows:
        return
    most = max(row[-1] for row in rows)
    out.write(f"\n{title}\n")
    for row in rows:
        name = "  ".join(plain(value) for value in row[:-1])
        out.write(f"  {row[-1]:>9}  {'█' * max(1, row[-1] * width // most):<{width}}  {name}\n")
