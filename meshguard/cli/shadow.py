"""`meshguard shadow report`: what would have happened, by rules in shadow, a candidate policy and field rules in shadow, in one report.

From the ledger (the default), from a decision log, or from a running node, which counts since its start.

Exit status: 0 done, 1 something that --fail-on names would have happened, 2 wrong use or a place that cannot be read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshguard.cli.audit_output import plain
from meshguard.cli.ledger_options import add_filter, add_place, filter_of, place_of

__all__ = ["register"]

_EXAMPLES = """\
examples:
  meshguard shadow report --config sidecar.yaml                    from its ledger
  meshguard shadow report --config sidecar.yaml --live             from the running node
  meshguard shadow report --log decisions.jsonl --json
  meshguard shadow report --ledger ./ledger --since 7d --fail-on would_deny
"""
_KINDS = {"candidate": "candidate policy", "rule": "rule in shadow", "field": "field rule in shadow"}
_CALLS = 10
_Told = dict[str, Any]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "shadow",
        help="what rules, policies and field rules in shadow would have done",
        description="What would have happened had shadows been enforced.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="shadow_command", metavar="COMMAND", required=True)
    report = commands.add_parser("report", help="counts by rule, with callers, calls and examples", description=__doc__)
    add_place(report)
    report.add_argument("--log", type=Path, metavar="FILE", help="a decision log (JSON lines) instead of the ledger")
    report.add_argument("--live", action="store_true", help="what the running node has counted (admin API)")
    report.add_argument("--admin", metavar="HOST:PORT", help="admin address of the node (with --live)")
    report.add_argument("--token-file", type=Path, metavar="FILE", help="file with its admin token (with --live)")
    add_filter(report)
    report.add_argument("--limit", type=int, default=1_000_000, metavar="N", help="at most the newest N decisions")
    report.add_argument("--fail-on", choices=("nothing", "would_allow", "would_deny", "any"), default="nothing", help="exit status 1")
    report.add_argument("--json", action="store_true", help="machine-readable output")
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the report."""
    told = _live(options) if options.live else _recorded(options)
    if options.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _print(told)
    effects = {row["effect"] for row in told["rows"]}
    if options.fail_on == "any":
        return int(bool(effects))
    return int(options.fail_on in effects)


def _live(options: argparse.Namespace) -> _Told:
    from meshguard.cli.node import call, node_of

    told: _Told = call(node_of(options), "GET", "/shadow", {})
    return {"source": "node", **told}


def _recorded(options: argparse.Namespace) -> _Told:
    from meshguard.telemetry.shadow import ANONYMOUS, Tally, observed

    tally = Tally()
    total = touched = 0
    for entry in _log_entries(options.log) if options.log is not None else _ledger_entries(options):
        total += 1
        who, what = entry.get("who") or {}, entry.get("what") or {}
        caller = who.get("principal") or who.get("subject") or ANONYMOUS
        seen = list(observed(entry))
        touched += bool(seen)
        for kind, name, effect, count in seen:
            call = (str(what.get("method", "")), str(what.get("path", "")))
            tally.add((kind, name, effect, str(caller), *call), str(entry.get("id", "")), _seconds(entry), count)
    source = str(options.log) if options.log is not None else "ledger"
    return {"source": source, "decisions": total, "touched": touched, "rows": tally.rows(), "dropped": tally.dropped}


def _ledger_entries(options: argparse.Namespace) -> Iterable[Mapping[str, Any]]:
    from meshguard.storage.index import Index
    from meshguard.storage.query import entries

    with Index(place_of(options)) as index:
        index.update()
        for _, entry in entries(index, filter_of(options), limit=options.limit):
            if not entry.get("begun"):
                yield entry


def _log_entries(path: Path) -> Iterable[Mapping[str, Any]]:
    from meshguard.cli.diff import calls_of

    return calls_of(path)


def _seconds(entry: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(entry.get("time", ""))).timestamp()
    except ValueError:
        return 0.0


def _print(told: _Told) -> None:
    if told["source"] == "node":
        candidate = told.get("candidate")
        if candidate is not None:
            state = f"LEFT OUT: {plain(candidate['error'])}" if candidate["error"] else f"{candidate['rules']} rules"
            print(f"candidate policy {(candidate['policy_digest'] or '-')[:19]}: {state}")
            compared = told.get("compared") or {}
            asked = sum(compared.values())
            words = ", ".join(f"{count} {effect.replace('_', ' ')}" for effect, count in sorted(compared.items()))
            print(f"  asked for {asked} decisions" + (f": {words}" if words else ""))
    else:
        print(f"{told['decisions']} decisions, {told['touched']} of them touched by a shadow")
    for row in told["rows"]:
        effect = row["effect"].replace("_", " ", 1)
        print(f"\n{_KINDS.get(row['kind'], row['kind'])} {plain(row['name'])}: {effect}, {row['count']} times")
        print(f"  {_moment(row['since'])} to {_moment(row['until'])}; for example {', '.join(map(plain, row['examples'])) or '-'}")
        for caller, method, path, count in row["calls"][:_CALLS]:
            print(f"  {count:>8}  {plain(caller)}  {plain(method)} {plain(path)}".rstrip())
        if len(row["calls"]) > _CALLS:
            print(f"           and {len(row['calls']) - _CALLS} more (--json shows them)")
    if not told["rows"]:
        print("no shadow would have changed anything")
    if told.get("dropped"):
        print(f"\n{told['dropped']} more by rules that had no row left")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
