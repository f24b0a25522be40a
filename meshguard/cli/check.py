"""`meshguard check`: every error of configurations and policies at once, with file, line and what was expected.

A configuration is checked with the policies it points at; policies on their own are checked together, as one policy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshguard.model.errors import DocumentError, Problem

if TYPE_CHECKING:
    from meshguard.control.policies import LoadedPolicy
    from meshguard.control.settings.load import LoadedConfiguration
    from meshguard.sources.documents import Document

__all__ = ["CONFIG_KEYS", "POLICY_KEYS", "annotation", "register"]

CONFIG_KEYS = frozenset(
    (
        *("profile", "identity", "jwt", "listeners", "clusters", "policies", "keys"),
        *("decision_log", "telemetry", "admin", "limits", "drain_s"),
        *("quarantine", "bundle", "fleet"),
        *("workers", "restart_s"),
        *("ledger",),
        *("packs", "shadow"),
    )
)
POLICY_KEYS = frozenset(("roles", "rules", "fields", "tests"))

_EXAMPLES = """\
examples:
  meshguard check config/sidecar.yaml            a configuration and the policies it points at
  meshguard check policies/                      policies only, as one policy
  meshguard check --format github *.yaml         annotations on the lines of a pull request
  meshguard check --show-effective sidecar.yaml  every value in force and where it comes from
  meshguard check --profiles                     what strict, migration and development mean
  meshguard check --pack pci-dss-4.0 sidecar.yaml            put it to a control pack
  meshguard check --pack list                                which packs there are, with their controls
  meshguard check --pack mesh-hardening --format sarif sidecar.yaml > findings.sarif

exit code: 0 no problem, 1 problems, 2 wrong usage or a file that cannot be read
"""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that is no error and worth a look; `line` 0 when it concerns the whole file."""

    file: str
    text: str
    line: int = 0


@dataclass
class Report:
    """What was looked at and what was found."""

    documents: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    loaded: list[LoadedConfiguration] = field(default_factory=list)
    rules: int = 0
    unreadable: bool = False
    covered: set[Path] = field(default_factory=set)
    subjects: list[tuple[LoadedConfiguration | None, LoadedPolicy | None]] = field(default_factory=list)

_TOLD = ("column", "expected", "file", "line", "nearest", "path", "value")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "check",
        help="check configurations and policies, and show what is in effect",
        description="Check documents and name every error in them, with its line and what was expected.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="*", help="configurations, policies, or directories of policies")
    parser.add_argument("--kind", choices=("auto", "config", "policy"), default="auto", help="default: told apart by their keys")
    parser.add_argument("--format", choices=("text", "json", "github", "sarif"), default="text", help="form of the output (default: text)")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    parser.add_argument("--no-files", dest="files", action="store_false", help="certificates and keys need not exist on this machine")
    parser.add_argument("--show-effective", action="store_true", help="print the effective configuration with the origin of each value")
    parser.add_argument("--profiles", action="store_true", help="print what each profile sets and permits")
    parser.add_argument("--pack", metavar="NAME", action="append", default=[], help="a control pack to judge by, or `list`; repeatable")
    parser.add_argument("--observed", type=Path, metavar="FILE", help="decision log (JSON lines): which permissions are used (with --pack)")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Checks and prints; returns the exit code."""
    if options.profiles:
        _print_profiles()
        if not options.file:
            return 0
    if "list" in options.pack:
        from meshguard.cli.check_packs import print_packs

        print_packs(options.format)
        return 0
    if not options.file:
        options.parser.print_usage(sys.stderr)
        print("meshguard check: name at least one file", file=sys.stderr)
        return 2
    if options.format == "sarif" and not options.pack:
        print("meshguard check: --format sarif goes with --pack NAME", file=sys.stderr)
        return 2
    report = check([Path(name) for name in options.file], kind=options.kind, files=options.files)
    if options.pack and not report.problems:
        from meshguard.cli.check_packs import judge_by

        return judge_by(report.subjects, options.pack, options.observed, options.format)
    if options.format == "json":
        print(json.dumps(_as_json(report, effective=options.show_effective), indent=2, ensure_ascii=False))
    elif options.format == "github":
        _print_github(report)
    else:
        _print_text(report, effective=options.show_effective)
    return 2 if report.unreadable else 1 if report.problems else 0


def check(paths: Sequence[Path], *, kind: str = "auto", files: bool = True, environment: Mapping[str, str] | None = None) -> Report:
    """Checks the documents at `paths` and in the directories among them. Policies that no configuration there points at are taken
    together as one policy."""
    from meshguard.sources.documents import find_documents, read

    report = Report()
    policies: list[Document] = []
    found: list[Path] = []
    for path in paths:
        try:
            found.extend(find_documents([path]) if path.is_dir() else [path])
        except DocumentError as exc:
            report.problems.extend(exc.problems)
    for path in found:
        try:
            document = read(path, environment=environment)
        except DocumentError as exc:
            report.problems.extend(exc.problems)
            report.unreadable |= not path.is_file() or not os.access(path, os.R_OK)
            continue
        told = kind if kind != "auto" else _kind(document)
        if told == "config":
            report.documents.append((str(path), "config"))
            _check_configuration(document, path, report, files, environment)
        elif told == "policy":
            policies.append(document)
        else:
            report.problems.append(
                Problem(
                    str(path),
                    "",
                    "a configuration (listeners, clusters, policies, ...) or a policy (roles, rules, fields, tests)",
                    line=1,
                    column=1,
                    value=told,
                )
            )
    alone = [document for document in policies if Path(document.file).resolve() not in report.covered]
    if alone:
        report.subjects.append((None, _check_policies(alone, None, report, environment)))
    return report


def _kind(document: Document) -> str:
    """`config`, `policy`, or what the document is instead."""
    values = document.values
    if not isinstance(values, Mapping):
        return "a list" if isinstance(values, list) else "a single value"
    config, policy = len(CONFIG_KEYS & values.keys()), len(POLICY_KEYS & values.keys())
    if config == policy:
        return "the keys " + ", ".join(list(map(str, values))[:8])
    return "config" if config > policy else "policy"


def _check_configuration(document: Document, path: Path, report: Report, files: bool, environment: Mapping[str, str] | None) -> None:
    from meshguard.control.settings.load import configuration_from

    base = path.resolve().parent
    try:
        loaded = configuration_from(document, base, now=time.time(), environment=environment, files=files)
    except DocumentError as exc:
        report.problems.extend(exc.problems)
        values = document.values if isinstance(document.values, Mapping) else {}
        named = values.get("policies")
        keys = values.get("keys")
        keysets = list(keys) if isinstance(keys, Mapping) else []
        policies = [base / name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        existing = [policy for policy in policies if policy.exists()]  # the others are among the problems already
        if existing:
            _check_policies(existing, keysets, report, environment)
        return
    report.loaded.append(loaded)
    report.notes.extend(Note(str(path), note) for note in loaded.notes)
    if files:
        from meshguard.control.contracts import load_contracts

        try:
            load_contracts(loaded.configuration, None)
        except DocumentError as exc:
            report.problems.extend(exc.problems)
    policy = None
    if loaded.configuration.policies:
        policy = _check_policies(loaded.configuration.policies, list(loaded.configuration.keys), report, environment)
    if loaded.configuration.shadow is not None:
        _check_policies(loaded.configuration.shadow.policies, list(loaded.configuration.keys), report, environment)
    report.subjects.append((loaded, policy))
    if loaded.configuration.packs and policy is not None:
        from meshguard.cli.check_packs import violations

        report.notes.extend(Note(problem.file, text, problem.line) for problem, text in violations(loaded, policy))


def _check_policies(
    paths: Sequence[Path | Document], keysets: Sequence[str] | None, report: Report, environment: Mapping[str, str] | None
) -> LoadedPolicy | None:
    from meshguard.control.policies import load_policy
    from meshguard.sources.documents import find_documents

    try:
        report.covered |= {path.resolve() for path in find_documents(item for item in paths if isinstance(item, Path))}
        loaded = load_policy([_near(item) if isinstance(item, Path) else item for item in paths], keysets=keysets, environment=environment)
    except DocumentError as exc:
        report.problems.extend(exc.problems)
        return None
    report.documents.extend((document.file, "policy") for document in loaded.documents)
    report.rules += loaded.compiled.rule_count
    report.notes.extend(
        Note(warning.file, f"{warning.path}: worth a look, not {warning.expected}", warning.line) for warning in loaded.warnings
    )
    return loaded


def _near(path: Path) -> Path:
    """Relative to the working directory where it is below: what people and annotations of a repository call it."""
    try:
        return path.relative_to(Path.cwd().resolve())
    except ValueError:
        return path


def _as_json(report: Report, *, effective: bool) -> dict[str, Any]:
    from meshguard.control.settings.effective import effective_values

    out: dict[str, Any] = {
        "ok": not report.problems,
        "documents": [{"file": file, "kind": kind} for file, kind in report.documents],
        "rules": report.rules,
        "problems": [{name: getattr(problem, name) for name in _TOLD} for problem in report.problems],
        "notes": [{"file": note.file, "line": note.line, "note": note.text} for note in report.notes],
    }
    if effective:
        out["effective"] = [effective_values(loaded) for loaded in report.loaded]
    return out


def _print_text(report: Report, *, effective: bool) -> None:
    if effective:
        from meshguard.control.settings.effective import effective_text

        for loaded in report.loaded:
            print(effective_text(loaded), end="")
    for problem in report.problems:
        print(problem, file=sys.stderr)
    for note in report.notes:
        print(f"{note.file}:{note.line}: note: {note.text}" if note.line else f"{note.file}: note: {note.text}", file=sys.stderr)
    if report.problems:
        files = len({problem.file for problem in report.problems})
        print(f"{_count(len(report.problems), 'problem')} in {_count(files, 'file')}", file=sys.stderr)
    else:
        print(f"no problem in {_count(len(report.documents), 'document')}, {_count(report.rules, 'rule')}", file=sys.stderr)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_github(report: Report) -> None:
    """Workflow commands: `::error file=...,line=...,col=...::message`, with the escapes that they need."""
    for problem in report.problems:
        message = f"{problem.path or '(document)'}: expected {problem.expected}"
        message += f", got {problem.value}" if problem.value else ""
        message += f"; did you mean {problem.nearest}?" if problem.nearest else ""
        print(annotation("error", problem.file, problem.line, problem.column, message))
    for note in report.notes:
        print(annotation("warning", note.file, note.line, 0, note.text))


def annotation(level: str, file: str, line: int, column: int, message: str) -> str:
    """One workflow command."""
    place = f",line={line}" if line else ""
    place += f",col={column}" if column else ""
    return f"::{level} file={_property(file)}{place},title=meshguard::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _print_profiles() -> None:
    from meshguard.control.settings.profiles import table

    rows = list(table())
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
