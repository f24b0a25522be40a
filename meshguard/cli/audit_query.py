"""`meshguard audit query, tail, stats`: what does the ledger hold?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from meshguard.cli.audit_output import Table, chart, spark, write_csv, write_parquet
from meshguard.cli.ledger_options import add_filter, add_place, filter_of, place_of
from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshguard.storage.index import Index

__all__ = ["add"]

_FOLLOW_S = 0.5


def add(subparsers: Any) -> None:
    """Adds the commands of this module."""
    parser = subparsers.add_parser("query", help="decisions by caller, path, verdict, rule, time, trace; newest first")
    add_place(parser)
    add_filter(parser)
    parser.add_argument(
        "--where", metavar="EXPR", help="an expression over the entry: 'outcome.status >= 500 and what.path.startswith(\"/a\")'"
    )
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most N entries (default 50)")
    parser.add_argument("--cursor", default="", metavar="C", help="go on behind an earlier page (printed at its end)")
    parser.add_argument("--format", choices=("table", "json", "csv", "parquet", "page"), default="table", help="json: one object a line")
    parser.add_argument("--output", metavar="FILE", help="write to FILE (needed for parquet)")
    parser.set_defaults(run=query)
    parser = subparsers.add_parser("tail", help="the newest decisions; -f: and those that come")
    add_place(parser)
    add_filter(parser)
    parser.add_argument("--where", metavar="EXPR")
    parser.add_argument("-n", type=int, default=10, metavar="N", dest="limit", help="start with the last N (default 10)")
    parser.add_argument("-f", action="store_true", dest="follow", help="go on until interrupted")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=tail)
    parser = subparsers.add_parser("export", help="decisions as OCSF events (JSON lines) or as an OPA decision log (a gzip JSON array)")
    add_place(parser)
    add_filter(parser)
    parser.add_argument("--where", metavar="EXPR")
    parser.add_argument("--as", choices=("ocsf", "ocsf-http", "opa"), required=True, dest="kind", help="ocsf: class 6003; ocsf-http: 4002")
    parser.add_argument("--limit", type=int, default=1_000_000, metavar="N", help="at most N entries, the oldest first")
    parser.add_argument("--output", metavar="FILE", help="needed for opa")
    parser.set_defaults(run=export)
    parser = subparsers.add_parser("stats", help="counts with small charts: over time, top denied, per rule, per edge")
    add_place(parser)
    add_filter(parser)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=stats)


def _test(text: str | None) -> Callable[[Mapping[str, Any]], bool] | None:
    from meshguard.ledger.where import where

    return where(text) if text else None


def _opened(options: argparse.Namespace) -> Index:
    from meshguard.storage.index import Index

    index = Index(place_of(options))
    index.update()
    return index


def query(options: argparse.Namespace) -> int:
    """Prints a page. `--format page`: one JSON document {entries, cursor}, as the admin API answers."""
    from meshguard.storage.query import entries

    if options.limit < 1:
        raise MeshguardError("--limit: at least 1")
    if options.format == "parquet" and not options.output:
        raise MeshguardError("--format parquet needs --output FILE")
    cursors: list[str] = []

    def found() -> Iterator[dict[str, Any]]:
        for cursor, entry in entries(index, filter_of(options), limit=options.limit, cursor=options.cursor, test=_test(options.where)):
            cursors[:] = [cursor]
            shown.append(1)
            yield entry

    shown: list[int] = []
    with _opened(options) as index:
        if options.format == "parquet":
            write_parquet(found(), options.output)
        elif options.output:
            with open(options.output, "w", encoding="utf-8", newline="") as out:
                _write(options.format, found(), out)
        else:
            _write(options.format, found(), sys.stdout, cursors, options.limit)
    if options.format == "table" and len(shown) == options.limit:
        print(f"more: --cursor {cursors[0]}")
    return 0


def _write(kind: str, found: Iterator[dict[str, Any]], out: Any, cursors: list[str] | None = None, limit: int = 0) -> None:
    import orjson

    if kind == "csv":
        write_csv(found, out)
    elif kind == "json":
        for entry in found:
            out.write(orjson.dumps(entry).decode() + "\n")
    elif kind == "page":
        page = list(found)
        cursor = cursors[0] if cursors and len(page) == limit else None
        out.write(orjson.dumps({"entries": page, "cursor": cursor}).decode() + "\n")
    else:
        table = Table(out)
        for entry in found:
            table.add(entry)


def tail(options: argparse.Namespace) -> int:
    """Oldest first, as a log is read."""
    import orjson

    from meshguard.storage.query import entries

    table = Table(sys.stdout)

    def show(entry: dict[str, Any]) -> None:
        if options.format == "json":
            print(orjson.dumps(entry).decode())
        else:
            table.add(entry)

    wanted, test = filter_of(options), _test(options.where)
    with _opened(options) as index:
        last = list(entries(index, wanted, limit=max(1, options.limit), test=test))
        for _, entry in reversed(last):
            show(entry)
        sys.stdout.flush()
        cursor = last[0][0] if last else "0.0.0"
        while options.follow:
            if index.update():
                for behind, entry in list(entries(index, wanted, limit=100_000, cursor=cursor, test=test, oldest=True)):
                    cursor = behind
                    show(entry)
                sys.stdout.flush()
            time.sleep(_FOLLOW_S)
    return 0


def export(options: argparse.Namespace) -> int:
    """Oldest first."""
    import orjson

    from meshguard.ledger.exports import ocsf, opa
    from meshguard.storage.query import entries

    if options.kind == "opa" and not options.output:
        raise MeshguardError("--as opa needs --output FILE")
    with _opened(options) as index:
        found = (entry for _, entry in entries(index, filter_of(options), limit=options.limit, test=_test(options.where), oldest=True))
        if options.kind == "opa":
            import gzip

            labels = {"app": "meshguard", "ledger": str(index.directory.name)}
            with gzip.open(options.output, "wb") as packed:
                separator = b"["
                for entry in found:
                    packed.write(separator + orjson.dumps(opa(entry, labels)))
                    separator = b","
                packed.write(b"[]" if separator == b"[" else b"]")
            return 0
        class_uid = 6003 if options.kind == "ocsf" else 4002
        with open(options.output, "w", encoding="utf-8") if options.output else nullcontext(sys.stdout) as out:
            for entry in found:
                out.write(orjson.dumps(ocsf(entry, class_uid)).decode() + "\n")
    return 0


def stats(options: argparse.Namespace) -> int:
    """Counts and charts."""
    import orjson

    from meshguard.storage.query import summary

    with _opened(options) as index:
        told = summary(index, filter_of(options))
    if options.json:
        print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return 0
    if not told["total"]:
        print("no decisions")
        return 0
    print(f"{told['total']} decisions, {_when(told['first'])} to {_when(told['last'])}; a bar is {told['bucket_s']:.1f} s")
    print(f"  all          {spark(told['over_time'])}")
    print(f"  not allowed  {spark(told['not_allowed_over_time'])}")
    for title, key in (
        ("verdicts", "verdicts"),
        ("status", "statuses"),
        ("rules", "rules"),
        ("reasons", "reasons"),
        ("denied callers", "denied_callers"),
        ("denied paths", "denied_paths"),
        ("edges (caller, route)", "edges"),
    ):
        chart(title, told[key], sys.stdout)
    return 0


def _when(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
