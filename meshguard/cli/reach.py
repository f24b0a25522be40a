"""`meshguard reach`: who can call what, and which of these permissions nobody has used.

Exit status: 0 done, 1 a document has problems or, with --fail-unused, a permission is unused, 2 wrong use or a file that cannot be used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshguard.policy.reach import Edge

__all__ = ["call_of", "register"]

_EXAMPLES = """\
examples:
  meshguard reach policies/
  meshguard reach policies/ --observed decisions.jsonl --unused
  meshguard reach policies/ --format dot | dot -Tsvg > reach.svg
  meshguard reach policies/ --format mermaid
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "reach",
        help="who can call what, allowed against observed",
        description="Lists what a policy permits, as decided by the engine of the data plane.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a policy document, or a directory of them")
    parser.add_argument("--observed", type=Path, metavar="FILE", help="decision log (JSON lines): counts the calls of each permission")
    parser.add_argument("--unused", action="store_true", help="only permissions without a call (with --observed)")
    parser.add_argument("--fail-unused", action="store_true", help="exit status 1 when there are such")
    parser.add_argument("--format", choices=("table", "json", "dot", "mermaid"), default="table")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from meshguard.cli.diff import calls_of, readings_of
    from meshguard.control.policies import load_policy
    from meshguard.policy.reach import observed_edges, reach

    edges = reach(load_policy(options.files).compiled, readings_of)
    if options.observed is not None:
        edges = observed_edges(edges, map(call_of, calls_of(options.observed)))
    unused = [edge for edge in edges if edge.seen == 0]
    if options.unused:
        edges = unused
    {"table": _table, "json": _json, "dot": _dot, "mermaid": _mermaid}[options.format](edges)
    return int(options.fail_unused and bool(unused))


def call_of(record: dict[str, Any]) -> tuple[str, str, str, str]:
    """Principal, method, path and host of a decision record."""
    what = record["what"]
    return ((record.get("who") or {}).get("principal") or "", what["method"], what["path"], str(what.get("host", "")))


def _table(edges: Sequence[Edge]) -> None:
    rows = [("CALLER", "METHOD", "PATH", "HOST", "WHEN", "CALLS")]
    for edge in edges:
        when = "always" if edge.certain else edge.rule
        rows.append((edge.caller, edge.method, edge.path, edge.host, when, "" if edge.seen is None else str(edge.seen)))
    widths = [min(60, max(len(row[column]) for row in rows)) for column in range(6)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _json(edges: Sequence[Edge]) -> None:
    print(json.dumps([asdict(edge) for edge in edges], indent=2))


def _label(edge: Edge) -> str:
    seen = "" if edge.seen is None else f" ({edge.seen})"
    return f"{edge.method} {edge.path}{'' if edge.host == '*' else ' @ ' + edge.host}{seen}"


def _dot(edges: Sequence[Edge]) -> None:
    print("digraph reach {\n  rankdir=LR;\n  node [shape=box];")
    for edge in edges:
        style = "dashed" if edge.seen == 0 else "solid" if edge.certain else "dotted"
        print(f"  {json.dumps(edge.caller)} -> {json.dumps(edge.path)} [label={json.dumps(_label(edge))}, style={style}];")
    print("}")


def _mermaid(edges: Sequence[Edge]) -> None:
    names: dict[str, str] = {}
    print("flowchart LR")
    for edge in edges:
        ends = []
        for text in (edge.caller, edge.path):
            if text not in names:
                names[text] = f"n{len(names)}"
                print(f'  {names[text]}["{_escaped(text)}"]')
            ends.append(names[text])
        arrow = "-->" if edge.certain and edge.seen != 0 else "-.->"
        print(f'  {ends[0]} {arrow}|"{_escaped(_label(edge))}"| {ends[1]}')


def _escaped(text: str) -> str:
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
