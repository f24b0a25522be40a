"""`meshguard diff`: what changes between two policies, by meaning and, replayed over recorded traffic, by real calls.

Exit status: 0 nothing is loosened (see --fail-on), 1 it is, or a document has problems, 2 wrong use or a file that cannot be used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshguard.policy.compiled import CompiledPolicy

__all__ = ["calls_of", "register"]

_EXAMPLES = """\
examples:
  meshguard diff main/policies/ policies/                      in a pull request: fails when somebody may do more
  meshguard diff old/ new/ --fail-on any --json
  meshguard diff old/ new/ --traffic decisions.jsonl           and which real calls would flip
"""
_SHOWN = 200


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "diff",
        help="what changes between two policies, by meaning and over recorded traffic",
        description="Compares two policies by what they mean: which callers may do more or less, with an example of each.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="policy document or directory")
    parser.add_argument("new", type=Path, metavar="NEW", help="the same, changed")
    parser.add_argument("--traffic", type=Path, metavar="FILE", help="decision log (JSON lines) to replay under both")
    parser.add_argument("--fail-on", choices=("loosened", "any", "nothing"), default="loosened", help="what exit status 1 means")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from meshguard.control.policies import load_policy
    from meshguard.policy.diff import diff, summary

    old, new = (load_policy([path]).compiled for path in (options.old, options.new))
    result = diff(old, new, readings_of)
    replayed = _replay(old, new, options.traffic) if options.traffic is not None else None
    flips = [
        {"kind": flip.kind, "caller": flip.caller or None, "call": flip.call, "host": flip.host, "port": flip.port,
         "before": flip.before, "after": flip.after}
        for flip in result.flips
    ]  # fmt: skip
    told: dict[str, Any] = {
        "digests": {"old": old.digest, "new": new.digest},
        "rules": [{"change": what, "id": rule_id} for what, rule_id in result.rules],
        "summary": summary(result.flips),
        "flips": flips,
        "asked": result.asked,
        "complete": result.complete,
        "traffic": replayed,
    }
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        _print(told)
    loosened = result.loosened or bool(replayed and replayed["newly_allowed"])
    anything = bool(result.flips or not result.complete or (replayed and (replayed["newly_allowed"] or replayed["newly_denied"])))
    return int(loosened if options.fail_on == "loosened" else anything if options.fail_on == "any" else False)


def readings_of(path: str) -> tuple[str, ...]:
    """The readings of a canonical path, as for a request."""
    from meshguard.model.errors import RequestError
    from meshguard.wire.target import canonicalise

    try:
        return canonicalise(path.encode("ascii")).readings
    except (RequestError, UnicodeEncodeError):
        return (path.casefold(),)


def calls_of(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a decision log that name a principal or nobody, a method and a path. Raises MeshguardError for a line that is none."""
    from meshguard.model.errors import MeshguardError

    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                what = record.get("what")
            except (ValueError, AttributeError) as exc:
                raise MeshguardError(f"{path}:{number}: a line of a decision log was expected") from exc
            if isinstance(what, dict) and isinstance(what.get("path"), str) and isinstance(what.get("method"), str):
                yield record


def _replay(old: CompiledPolicy, new: CompiledPolicy, path: Path) -> dict[str, Any]:
    """Every recorded call under both policies. Facts that are not recorded (headers, claims) cannot be replayed: such calls are counted."""
    from meshguard.policy.decision import Conditional
    from meshguard.policy.question import principal_of

    flips: dict[tuple[str, ...], int] = {}
    total = undecided = 0
    for record in calls_of(path):
        what = record["what"]
        name = (record.get("who") or {}).get("principal")
        total += 1
        verdicts = []
        for policy in (old, new):
            outlook = policy.bind(principal_of(name) if name else None).outlook(
                what["method"], what["path"], readings_of(what["path"]), str(what.get("host", "")), int(what.get("port", 443))
            )
            verdicts.append("depends" if isinstance(outlook, Conditional) else type(outlook).__name__)
        if "depends" in verdicts:
            undecided += 1
        elif verdicts[0] != verdicts[1]:
            key = ("newly_allowed" if verdicts[1] == "Permit" else "newly_denied", name or "", what["method"], what["path"])
            flips[key] = flips.get(key, 0) + 1
    listed: dict[str, list[dict[str, Any]]] = {"newly_allowed": [], "newly_denied": []}
    for (kind, name, method, target), count in sorted(flips.items(), key=lambda item: -item[1]):
        listed[kind].append({"caller": name or None, "call": f"{method} {target}", "count": count})
    return {"calls": total, "not_replayable": undecided, **listed}


def _print(told: dict[str, Any]) -> None:
    for rule in told["rules"]:
        print(f"rule {rule['id']}: {rule['change']}")
    _print_flips(told["flips"])
    counts = told["summary"]
    print(f"{counts['loosened']} loosened, {counts['tightened']} tightened, {counts['changed']} with other conditions"
          f" ({told['asked']} classes asked{'' if told['complete'] else ', NOT all'})")  # fmt: skip
    traffic = told["traffic"]
    if traffic is not None:
        for kind in ("newly_allowed", "newly_denied"):
            for each in traffic[kind][:_SHOWN]:
                print(f"{kind.replace('_', ' ')}: {each['count']} x {each['call']} by {each['caller'] or 'nobody verified'}")
        print(f"{traffic['calls']} recorded calls, {traffic['not_replayable']} rest on facts that are not recorded")


def _print_flips(flips: Sequence[dict[str, Any]]) -> None:
    for flip in flips[:_SHOWN]:
        where = "" if flip["host"] == "localhost" else f" host {flip['host']}"
        where += "" if flip["port"] == 443 else f" port {flip['port']}"
        print(f"{flip['kind']}: {flip['caller'] or 'nobody verified'}: {flip['call']}{where}: {flip['before']} -> {flip['after']}")
    if len(flips) > _SHOWN:
        print(f"... and {len(flips) - _SHOWN} more (--json shows all)")
