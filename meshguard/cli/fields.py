"""`meshguard fields`: seal, open and rewrap values at rest, and report what is protected. Prints a plaintext only where `open` is asked
for it.

Exit status: 0 done, 1 documents that could not be treated, or problems in the rules, 2 wrong use or no such file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["register"]

_EXAMPLES = """\
examples:
  meshguard fields seal orders.ndjson --config sidecar.yaml -o orders.sealed.ndjson
  meshguard fields rewrap orders.sealed.ndjson --config sidecar.yaml --in-place --workers 4
  meshguard fields rewrap big.ndjson --config sidecar.yaml -o big.new.ndjson --resume
  zcat dump.gz | meshguard fields open - --config sidecar.yaml --rule card-number | consumer
  meshguard fields report --config sidecar.yaml --decisions decisions.log > evidence.md
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fields` and its commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    parser = subparsers.add_parser(
        "fields",
        help="seal, open and rewrap stored values; report what is protected",
        description="Apply the field rules of a configuration to stored JSON, and report on them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="fields_command", metavar="COMMAND", required=True)
    for name, what in (
        ("seal", "seal what the field rules select; what is sealed already stays"),
        ("open", "open what the field rules select: the output holds plaintext"),
        ("rewrap", "seal anew, under the primary version, what an older version has sealed"),
    ):
        _at_rest(commands, name, what)
    report = commands.add_parser("report", help="evidence: every protected field, its readers and keys", description=_REPORT)
    _configured(report)
    report.add_argument("--decisions", type=Path, action="append", default=[], metavar="FILE", help="decision logs to count in (NDJSON)")
    report.add_argument("--metrics", type=Path, metavar="FILE", help="a saved scrape of /metrics to count in")
    report.add_argument("--json", action="store_true", help="JSON instead of Markdown")
    report.set_defaults(run=_report)


_REPORT = "List every protected field with its readers, keys, last rotation and decryptions, and the clauses of standards they serve."


def _at_rest(commands: Any, name: str, what: str) -> None:
    command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}. JSON or NDJSON.")
    command.add_argument("file", metavar="FILE", help="the documents; - for standard input")
    _configured(command)
    place = command.add_mutually_exclusive_group()
    place.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the result goes (default: standard output)")
    place.add_argument("--in-place", action="store_true", help="replace FILE when all of it is done")
    command.add_argument("--format", choices=("json", "ndjson"), help="default: by the file's suffix, NDJSON for a stream")
    command.add_argument("--rule", action="append", default=[], metavar="ID", help="only these rules (default: all that select in JSON)")
    command.add_argument("--tenant", default="", help="the tenant of the documents, for rules that take it from the caller")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="processes for NDJSON (default: 1)")
    command.add_argument("--resume", action="store_true", help="go on where an interrupted run with the same output ended")
    command.add_argument("--keep-going", action="store_true", help="pass documents on that cannot be treated, and count them")
    command.set_defaults(run=_treat)


def _configured(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration with policies and keys")


def _treat(options: argparse.Namespace) -> int:
    from meshguard.cli.at_rest import run

    return run(options)


def _report(options: argparse.Namespace) -> int:
    from meshguard.cli.fields_report import run

    return run(options)
