"""What shadows would have done, added up for people: by rule and effect, with callers, calls and examples. Everything is bounded.

Rows of three kinds: `rule` (rules with `shadow: true`), `candidate` (a whole policy beside the live one, by the rule or reason it would
have decided by), `field` (field rules with `mode: shadow`). The same rows are made here while requests pass and, from the ledger, by
`meshguard shadow report`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from meshguard.model.record import RequestRecord
from meshguard.model.verdicts import CandidateResult

__all__ = ["CALLS", "EXAMPLES", "ROWS", "ShadowCounts", "Tally", "merged", "observed"]

ROWS = 500
CALLS = 100
"""Of one row: the first so many (caller, method, path); what comes later is counted together."""
EXAMPLES = 5
OTHER = ("(other)", "", "")
ANONYMOUS = "(nobody)"
_MAX_PATH = 256
WOULD = "would_"
"""How operations of field rules in shadow begin."""

Seen = tuple[str, str, str, str, str, str]
"""Kind, name, effect, caller, method, path."""


class Tally:
    """Rows by (kind, name, effect). Each: {kind, name, effect, count, since, until, calls: [[caller, method, path, count]], examples}."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._calls: dict[tuple[str, str, str], dict[tuple[str, str, str], int]] = {}
        self.dropped = 0

    def add(self, seen: Seen, decision_id: str, when: float, count: int = 1) -> None:
        """`when` in epoch seconds."""
        kind, name, effect, caller, method, path = seen
        key = (kind, name, effect)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= ROWS:
                self.dropped += count
                return
            row = self._rows[key] = {"kind": kind, "name": name, "effect": effect, "count": 0, "since": when, "until": when, "examples": []}
            self._calls[key] = {}
        row["count"] += count
        row["since"], row["until"] = min(row["since"], when), max(row["until"], when)
        examples = row["examples"]
        if decision_id and decision_id not in examples:
            examples.append(decision_id)
            del examples[:-EXAMPLES]
        calls = self._calls[key]
        call = (caller, method, path if len(path) <= _MAX_PATH else path[: _MAX_PATH - 1] + "…")
        if call not in calls and len(calls) >= CALLS:
            call = OTHER
        calls[call] = calls.get(call, 0) + count

    def forget(self, kind: str) -> None:
        """Drops the rows of a kind."""
        for key in [key for key in self._rows if key[0] == kind]:
            del self._rows[key], self._calls[key]

    def rows(self) -> list[dict[str, Any]]:
        """The most frequent first."""
        out = []
        for key, row in self._rows.items():
            calls = sorted(self._calls[key].items(), key=lambda item: -item[1])
            out.append({**row, "examples": list(row["examples"]), "calls": [[*call, count] for call, count in calls]})
        return sorted(out, key=lambda row: (-row["count"], row["kind"], row["name"], row["effect"]))


def merged(parts: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of several processes as one."""
    tally = Tally()
    for rows in parts:
        for row in rows:
            key = (row["kind"], row["name"], row["effect"])
            for caller, method, path, count in row["calls"]:
                tally.add((*key, caller, method, path), "", row["since"], count)
            for example in row["examples"]:
                tally.add((*key, "", "", ""), example, row["until"], 0)
    for found in (tally_rows := tally.rows()):
        found["calls"] = [call for call in found["calls"] if call[3]]
    return tally_rows


def observed(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    """(kind, name, effect, count) of what shadows would have done to a decision on record."""
    why = entry.get("why") or {}
    for shadow in why.get("shadow") or ():
        yield "rule", str(shadow.get("rule", "")), str(shadow.get("effect", "")), 1
    candidate = entry.get("candidate")
    if candidate:
        yield "candidate", str(candidate.get("rule") or candidate.get("reason") or "-"), str(candidate.get("effect", "")), 1
    for act in entry.get("fields") or ():
        if str(act.get("operation", "")).startswith(WOULD):
            yield "field", str(act.get("field", "")), str(act["operation"]), int(act.get("count", 1))


class ShadowCounts:
    """The tally of a process, fed by `request_metrics` with requests on which some shadow had something to say."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._compared: dict[str, int] = {}
        self._digest = ""

    def begin(self, digest: str) -> None:
        """This candidate is asked from now on ("": none): what another one would have done is of no use any more."""
        if digest != self._digest:
            self._digest = digest
            self._compared.clear()
            self._tally.forget("candidate")

    def compared(self, record: RequestRecord, result: CandidateResult, when: float) -> None:
        """The candidate was asked."""
        self._compared[result.effect] = self._compared.get(result.effect, 0) + 1
        if result.effect != "same":
            self._add(record, "candidate", result.rule_id or result.reason or "-", result.effect, when)

    def rule(self, record: RequestRecord, rule_id: str, effect: str, when: float) -> None:
        """A rule in shadow would have decided otherwise."""
        self._add(record, "rule", rule_id, effect, when)

    def field(self, record: RequestRecord, field: str, operation: str, count: int, when: float) -> None:
        """A field rule in shadow would have acted."""
        self._add(record, "field", field, operation, when, count)

    def _add(self, record: RequestRecord, kind: str, name: str, effect: str, when: float, count: int = 1) -> None:
        plan, principal = record.plan, record.principal
        caller = principal.spiffe_id if principal is not None else record.subject or ANONYMOUS
        call = (plan.method, plan.path) if plan is not None else ("", "")
        self._tally.add((kind, name, effect, caller, *call), record.decision_id, when, count)

    def read(self) -> dict[str, Any]:
        """{"compared": {effect: count}, "rows": rows of the tally}."""
        return {"compared": dict(self._compared), "rows": self._tally.rows()}
