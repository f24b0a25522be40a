"""`meshguard check --pack`: a configuration and its policy put to control packs; text, JSON, annotations of pull requests, or SARIF 2.1.0.

Exit status: 0 nothing is violated (what could not be judged is told), 1 something is, 2 an unknown pack or a file that cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshguard import __version__
from meshguard.control.packs.catalogue import PACKS, pack_of
from meshguard.control.packs.judge import judge
from meshguard.control.packs.model import Pack, Result, Subject

if TYPE_CHECKING:
    from meshguard.control.policies import LoadedPolicy
    from meshguard.control.settings.load import LoadedConfiguration
    from meshguard.model.errors import Problem
    from meshguard.policy.reach import Edge

__all__ = ["judge_by", "print_packs", "violations"]

_KINDS = {"satisfied": "pass", "violated": "fail", "not_assessed": "review", "not_applicable": "notApplicable"}
"""Our words and those of SARIF (`kind` of a result, section 3.27.9)."""
_WORDS = {"satisfied": "ok", "violated": "VIOLATED", "not_assessed": "not assessed", "not_applicable": "n/a"}


def judge_by(
    subjects: Sequence[tuple[LoadedConfiguration | None, LoadedPolicy | None]], names: Sequence[str], observed: Path | None, form: str
) -> int:
    """Judges and prints; the exit status."""
    try:
        packs = [pack_of(name) for name in dict.fromkeys(names)]
    except KeyError as exc:
        known = ", ".join(pack.name for pack in PACKS)
        print(f"meshguard check: no control pack {exc.args[0]!r}; there are {known}", file=sys.stderr)
        return 2
    results = [
        result
        for loaded, policy in subjects
        for result in judge(Subject(loaded, policy, _observed(policy, observed) if policy is not None else None), packs)
    ]
    {"json": _json, "sarif": _sarif, "github": _github}.get(form, _text)(packs, results)
    return int(any(result.status == "violated" for result in results))


def violations(loaded: LoadedConfiguration, policy: LoadedPolicy) -> Iterator[tuple[Problem, str]]:
    """(place, words) of what violates the packs that the configuration itself names."""
    for result in judge(Subject(loaded, policy), [pack_of(name) for name in loaded.configuration.packs]):
        for problem in result.problems:
            yield problem, f"{result.pack.cited(result.control)}: {_message(result, problem)}"


def _observed(policy: LoadedPolicy, file: Path | None) -> list[Edge] | None:
    if file is None:
        return None
    from meshguard.cli.diff import calls_of, readings_of
    from meshguard.cli.reach import call_of
    from meshguard.policy.reach import observed_edges, reach

    return observed_edges(reach(policy.compiled, readings_of), map(call_of, calls_of(file)))


def print_packs(form: str) -> None:
    """Every pack with its controls."""
    if form == "json":
        told = [
            {
                "pack": pack.name,
                "title": pack.title,
                "source": pack.source,
                "controls": [
                    {"id": control.id, "title": control.title, "checks": list(control.checks), "per_request": list(control.request)}
                    for control in pack.controls
                ],
            }
            for pack in PACKS
        ]
        print(json.dumps(told, indent=2))
        return
    for pack in PACKS:
        print(f"{pack.name}  {pack.title} ({pack.source})")
        for control in pack.controls:
            print(f"  {control.id:<9}{control.title}{'  [per request]' if control.request else ''}")


def _message(result: Result, problem: Problem) -> str:
    where = f"{problem.path}: " if problem.path else ""
    return f"{result.control.title}: {where}expected {problem.expected}" + (f", got {problem.value}" if problem.value else "")


def _counts(results: Sequence[Result]) -> dict[str, int]:
    return {status: sum(result.status == status for result in results) for status in _KINDS}


def _text(packs: Sequence[Pack], results: Sequence[Result]) -> None:
    for result in results:
        print(f"{_WORDS[result.status]:<13}{result.pack.cited(result.control)}  {result.control.title}")
        for problem in result.problems:
            print(f"             {problem}")
        if result.status in ("not_assessed", "not_applicable"):
            for note in result.notes:
                print(f"             {note}")
    counts = _counts(results)
    print(
        f"{counts['violated']} violated, {counts['satisfied']} satisfied, {counts['not_assessed']} not assessed, "
        f"{counts['not_applicable']} not applicable",
        file=sys.stderr,
    )


def _json(packs: Sequence[Pack], results: Sequence[Result]) -> None:
    told = {
        "ok": not any(result.status == "violated" for result in results),
        "packs": [pack.name for pack in packs],
        "summary": _counts(results),
        "controls": [result.structured() for result in results],
    }
    print(json.dumps(told, indent=2, ensure_ascii=False))


def _github(packs: Sequence[Pack], results: Sequence[Result]) -> None:
    from meshguard.cli.check import annotation

    for result in results:
        for problem in result.problems:
            text = f"{result.pack.cited(result.control)}: {_message(result, problem)}"
            print(annotation("error", problem.file, problem.line, problem.column, text))


def _sarif(packs: Sequence[Pack], results: Sequence[Result]) -> None:
    """Static Analysis Results Interchange Format 2.1.0 (OASIS): each control is a rule, each finding a result with its place."""
    rules = [
        {
            "id": pack.cited(control),
            "name": f"{pack.name} {control.id}",
            "shortDescription": {"text": control.title},
            "fullDescription": {"text": f"{control.title} ({pack.source}, {control.id})"},
            "defaultConfiguration": {"level": "error"},
            "properties": {"tags": [pack.name]},
        }
        for pack in packs
        for control in pack.controls
    ]
    index = {str(rule["id"]): number for number, rule in enumerate(rules)}
    found = []
    for result in results:
        cited = result.pack.cited(result.control)
        base = {"ruleId": cited, "ruleIndex": index[cited], "kind": _KINDS[result.status]}
        if result.status != "violated":
            text = "; ".join(result.notes) or result.control.title
            found.append({**base, "level": "none", "message": {"text": text}})
        for problem in result.problems:
            found.append({**base, "level": "error", "message": {"text": _message(result, problem)}, **_place(problem)})
    driver = {"name": "meshguard", "version": __version__, "rules": rules}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": found}
    print(json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False))


_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def _place(problem: Problem) -> dict[str, Any]:
    if not problem.line:
        return {}
    file = Path(problem.file)
    if file.is_absolute() and file.is_relative_to(Path.cwd().resolve()):
        file = file.relative_to(Path.cwd().resolve())
    region = {"startLine": problem.line, **({"startColumn": problem.column} if problem.column else {})}
    uri = file.as_uri() if file.is_absolute() else file.as_posix()
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}
    if problem.path:
        location["logicalLocations"] = [{"fullyQualifiedName": problem.path}]
    return {"locations": [location]}
