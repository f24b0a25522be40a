"""Why was this allowed or denied? In words, from the ledger; with --policy also what another policy would say."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshguard.cli.audit_output import plain
from meshguard.cli.ledger_options import add_place, place_of
from meshguard.model.errors import MeshguardError

__all__ = ["register"]

_EXAMPLES = """examples:
  meshguard explain 5f1c2a9e-2a                          a decision id, as a refusal names it
  meshguard explain 4bf92f3577b34da6a3ce929d0e0e4736     a trace id: every decision of the trace
  meshguard explain 5f1c2a9e-2a --policy policies/       and what this policy would say
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="why a request was allowed or denied",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("id", metavar="ID", help="decision id (or urn:meshguard:decision:...), or trace id")
    add_place(parser)
    parser.add_argument("--policy", metavar="FILE", type=Path, action="append", help="put it to this policy too; repeatable")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit code 1 when there is no such decision."""
    import orjson

    from meshguard.cli.audit_replay import load_policies, replay_entry
    from meshguard.cli.containment import containment
    from meshguard.storage.index import Index
    from meshguard.storage.query import Filter, entries

    name = options.id.removeprefix("urn:meshguard:decision:")
    traced = re.fullmatch(r"[0-9a-f]{32}", name) is not None
    policy = load_policies(options.policy) if options.policy else None
    with Index(place_of(options)) as index:
        index.update()
        found = [entry for _, entry in entries(index, Filter(trace=name) if traced else Filter(id=name), limit=100)]
        contained = {entry["id"]: list(containment(index, entry)) for entry in found if not options.json}
    if not found:
        raise MeshguardError(f"no decision has the {'trace' if traced else 'id'} {name}")
    for number, entry in enumerate(reversed(found)):
        replayed = replay_entry(policy, entry) if policy is not None else None
        if options.json:
            told = {"entry": entry, "replayed": None if replayed is None else replayed.explanation.structured()}
            print(orjson.dumps(told).decode())
            continue
        if number:
            print()
        print("\n".join(_words(entry)))
        for line in contained.get(entry["id"], ()):
            print(line)
        if policy is not None:
            print(f"\nunder the policy {policy.digest[:19]}…:")
            if replayed is None:
                print("  it was refused before any policy was asked")
            else:
                print("\n".join(f"  {plain(line)}" for line in replayed.explanation.text().split("\n")))
                if replayed.uncertain:
                    print(f"  uncertain: {', '.join(replayed.uncertain)} is not on record")
    return 0


def _words(entry: Mapping[str, Any]) -> list[str]:
    who, what, why, outcome = (entry.get(name) or {} for name in ("who", "what", "why", "outcome"))
    caller = plain(who.get("principal") or "somebody without a verified identity")
    call = f"{plain(what.get('method') or '?')} {plain(what.get('path') or '(no readable target)')}"
    lines = [f"{entry['time']}  {entry['id']}", f"{caller} asked for {call} at {plain(what.get('host') or '-')}"]
    lines.append({"allow": _allowed, "deny": _denied, "refuse": _refused}.get(why.get("verdict", ""), _failed)(why))
    if why.get("body"):
        lines.append("the body was judged; it is not on record")
    near = why.get("near_miss")
    if near:
        lines.append(f"the nearest rule was {plain(near['rule'])}: it failed by {plain(near['condition'])}{_detail(near)}")
    for shadow in why.get("shadow", ()):
        lines.append(f"shadow rule {plain(shadow['rule'])}: {plain(shadow['effect']).replace('_', ' ')}")
    candidate = entry.get("candidate")
    if candidate:
        by = plain(candidate.get("rule") or candidate.get("reason") or "-")
        lines.append(f"the candidate policy {plain(candidate['effect']).replace('_', ' ')}: {by}")
    for verb in ("violated", "satisfied"):
        cited = (entry.get("controls") or {}).get(verb)
        if cited:
            lines.append(f"controls {verb}: {', '.join(map(plain, cited))}")
    for act in entry.get("fields", ()):
        key = f" with {plain(act['keyset'])} version {act['version']}" if "keyset" in act else ""
        lines.append(f"field {plain(act['field'])}: {plain(act['operation'])} {act['count']} times{key}")
    if entry.get("interrupted"):
        lines.append(f"the answer ({outcome.get('status')}) had begun; its end is not on record (yet, or the process ended)")
    else:
        lines.append(_outcome(outcome))
    if who.get("svid"):
        lines.append(f"identity: serial {plain(who['svid']['serial'])}, thumbprint {plain(who['svid']['thumbprint'])}")
    if why.get("policy_digest"):
        lines.append(f"policy {plain(why['policy_digest'])}, revision {why.get('policy_revision', 0)}")
    if entry.get("trace_id"):
        lines.append(f"trace {plain(entry['trace_id'])}")
    return lines


def _allowed(why: Mapping[str, Any]) -> str:
    return f"ALLOWED by rule {plain(why.get('rule', '-'))}"


def _denied(why: Mapping[str, Any]) -> str:
    if why.get("rule"):
        return f"DENIED by rule {plain(why['rule'])}"
    return f"DENIED: {_reason(why)}"


def _refused(why: Mapping[str, Any]) -> str:
    return f"REFUSED, whatever the policy says: {_reason(why)}{_detail(why)}"


def _failed(why: Mapping[str, Any]) -> str:
    by = f"allowed by rule {plain(why['rule'])}, but " if why.get("rule") else ""
    return f"FAILED: {by}{_reason(why)}{_detail(why)}"


def _reason(why: Mapping[str, Any]) -> str:
    from meshguard.model.reasons import REASONS

    code = why.get("reason", "")
    reason = REASONS.get(code)
    return f"{reason.title.lower()} ({code})" if reason is not None else plain(code or "no reason is on record")


def _detail(told: Mapping[str, Any]) -> str:
    return f" ({plain(told['detail'])})" if told.get("detail") else ""


def _outcome(outcome: Mapping[str, Any]) -> str:
    status = f"answered {outcome['status']}" if outcome.get("status") else "no answer was sent"
    upstream = f" by {plain(outcome['upstream'])}" if outcome.get("upstream") else ""
    early = f", ended early by {plain(outcome['aborted'])}" if outcome.get("aborted") else ""
    fallback = outcome.get("fallback")
    if fallback:
        instead = f"by cluster {plain(fallback['cluster'])}" if "cluster" in fallback else "by a fixed answer"
        upstream += f" (the route's fallback {instead}, because {plain(fallback['because'])})"
    return f"{status}{upstream} after {outcome.get('duration_us', 0) / 1000:.1f} ms{early}"
