"""`meshguard audit replay`, and what `meshguard explain` shares with it: decisions on record put to another policy.

The evaluator is the data plane's own. What the record does not hold (header fields, token claims, bodies) cannot be put to the policy: a
decision that hangs on it is said to be uncertain, never guessed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshguard.cli.ledger_options import add_filter, add_place, filter_of, place_of

if TYPE_CHECKING:
    from meshguard.policy.compiled import CompiledPolicy
    from meshguard.policy.explain import Explanation

__all__ = ["Replayed", "add", "load_policies", "replay_entry"]

_UNSEEN = frozenset(("header", "claim", "expression", "body"))


_Change = tuple[str, str, str, str, str, str, str, str]
"""Verdict and rule before and after, caller, method, route, what is uncertain."""


class Replayed:
    """A recorded decision under another policy: `verdict` (`allow`, `deny`), `rule`, `uncertain` conditions, the whole `explanation`."""

    __slots__ = ("explanation", "rule", "uncertain", "verdict")

    def __init__(self, explanation: Explanation, uncertain: tuple[str, ...]) -> None:
        told = explanation.structured()
        self.explanation = explanation
        self.verdict = str(told["verdict"])
        self.rule = str(told["rule"] or "")
        self.uncertain = uncertain


def load_policies(files: list[Path]) -> CompiledPolicy:
    """Raises DocumentError, OSError."""
    from meshguard.control.policies import load_policy

    return load_policy(files).compiled


def replay_entry(policy: CompiledPolicy, entry: Mapping[str, Any]) -> Replayed | None:
    """None for a request that no policy was asked about: its target or its caller was refused before."""
    from meshguard.model.errors import RequestError
    from meshguard.policy.explain import explain
    from meshguard.policy.question import Question, principal_of
    from meshguard.wire.target import canonicalise

    who, what, why = (entry.get(name) or {} for name in ("who", "what", "why"))
    if "policy_digest" not in why or not what.get("path"):
        return None
    try:
        target = canonicalise(what["path"].encode("ascii"))
    except (RequestError, UnicodeEncodeError):
        return None  # cut to its limit, or read under a lenient route
    question = Question(
        what["method"],
        target.path,
        target.readings,
        host=what.get("host", ""),
        port=what.get("port", 0),
        now=datetime.fromisoformat(entry["time"]).timestamp(),
        client=who.get("address", ""),
        before=tuple(who.get("chain") or ())[:-1],
    )
    principal = principal_of(who["principal"]) if who.get("principal") else None
    told = explain(policy, principal, question)
    unseen: set[str] = set()
    for account in (*told.matching, *told.nearest):
        failed = {"claim" if "a token may give" in wanted else condition for condition, wanted in account.failed}
        if failed and failed <= _UNSEEN:
            unseen |= failed
    on_body = {rule.id for rule in policy.rules if rule.needs_body} if any(rule.needs_body for rule in policy.rules) else set()
    if any(account.rule_id in on_body for account in told.matching):
        unseen.add("body")  # a deny rule matches what it cannot read
    return Replayed(told, tuple(sorted(unseen)))


def add(subparsers: Any) -> None:
    """Adds the command of this module."""
    parser = subparsers.add_parser("replay", help="put recorded decisions to another policy and list what would change")
    add_place(parser)
    add_filter(parser)
    parser.add_argument("--policy", metavar="FILE", type=Path, action="append", required=True, help="a document or directory; repeatable")
    parser.add_argument("--limit", type=int, default=100_000, metavar="N", help="at most the newest N decisions (default 100 000)")
    parser.add_argument("--json", action="store_true", help="one object a line for each kind of change")
    parser.set_defaults(run=replay)


def replay(options: argparse.Namespace) -> int:
    """Exit code 1 when something would change."""
    import orjson

    from meshguard.storage.index import Index
    from meshguard.storage.query import entries

    policy = load_policies(options.policy)
    changes: Counter[_Change] = Counter()
    examples: dict[_Change, str] = {}
    seen: dict[tuple[Any, ...], Replayed | None] = {}
    total = skipped = 0
    alike = not any(rule.conditions for rule in policy.rules)  # equal requests get equal answers, at whatever time
    with Index(place_of(options)) as index:
        index.update()
        for _, entry in entries(index, filter_of(options), limit=options.limit):
            total += 1
            who, what, why = entry.get("who") or {}, entry.get("what") or {}, entry.get("why") or {}
            asked = (who.get("principal"), who.get("subject"), what.get("method"), what.get("path"), what.get("host"), what.get("port"))
            if not alike or asked not in seen:
                if len(seen) > 100_000:
                    seen.clear()
                seen[asked] = replay_entry(policy, entry)
            told = seen[asked]
            if told is None:
                skipped += 1
                continue
            before = "deny" if why.get("verdict") == "deny" else "allow"
            if told.verdict == before and (told.rule == why.get("rule", "") or before == "deny"):
                continue
            by, rule = why.get("rule") or why.get("reason") or "-", told.rule or "-"
            caller, method, route = who.get("principal") or "anonymous", what.get("method", ""), what.get("route") or "-"
            key: _Change = (before, by, told.verdict, rule, caller, method, route, ", ".join(told.uncertain))
            changes[key] += 1
            examples.setdefault(key, f"{what.get('path', '')} ({entry.get('id', '')})")
    for key, count in changes.most_common():
        before, by, after, rule, caller, method, route, uncertain = key
        if options.json:
            told_row = {
                "count": count,
                "before": before,
                "by": by,
                "after": after,
                "rule": rule,
                "principal": caller,
                "method": method,
                "route": route,
                "uncertain": uncertain,
                "example": examples[key],
            }
            print(orjson.dumps(told_row).decode())
        else:
            doubt = f"  (uncertain: {uncertain} is not on record)" if uncertain else ""
            print(f"{count:>8}  {before} by {by} -> {after} by {rule}: {caller} {method} {examples[key]}{doubt}")
    changed = sum(changes.values())
    print(f"{total} decisions, {changed} would change, {skipped} were refused before any policy", file=sys.stderr)
    return 1 if changed else 0
