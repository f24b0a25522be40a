"""`meshguard`: the registry of subcommands and what all of them share: help, errors, exit codes.

A subcommand is a module of this package with `register(subparsers)`, which adds its parser and sets the default `run` to a
function of the parsed arguments that returns an exit code. Only the module of the command that is called is imported: the
data plane must not wait for what it does not use.

Exit codes: 0 done, 1 the answer is no (problems found, a test failed), 2 wrong usage or an input that cannot be read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module, util
from types import ModuleType

from meshguard import __version__

__all__ = ["COMMANDS", "main"]

COMMANDS: tuple[tuple[str, str], ...] = (
    ("serve", "run the proxy"),
    ("check", "check configurations and policies, and show what is in effect"),
    ("test", "run the tests that stand in policies"),
    ("diff", "what changes between two policies, by meaning and over recorded traffic"),
    ("reach", "who can call what, allowed against observed"),
    ("shadow", "what rules, policies and field rules in shadow would have done"),
    ("explain", "why a request was allowed or denied, from the ledger"),
    ("audit", "query, verify and prove the ledger"),
    ("schema", "print the JSON Schema of a document, for editors"),
    ("identity", "make a development CA and identities, inspect certificates"),
    ("keys", "make, show and rotate keysets of protected fields"),
    ("bundle", "build, sign and verify the policy as one signed, versioned file"),
    ("quarantine", "cut an identity out of the mesh at once, and let it in again"),
    ("fleet", "the store that instances share: make it, see who enforces what"),
    ("capture", "send an application's traffic through the listeners, by netfilter rules"),
    ("fields", "seal, open and rewrap stored values; report what is protected"),
    ("demo", "a guided tour: two workloads, a policy, a protected field"),
    ("top", "live requests, rates, latencies and decisions of one instance"),
    ("version", "print the version"),
)
"""Every subcommand with its line of help, in the order of a user's first day."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    _no_plugins()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(_called(argv))
    try:
        options = parser.parse_args(argv)
    except SystemExit as exc:  # argparse has said why
        return exc.code if isinstance(exc.code, int) else 2
    if not hasattr(options, "run"):
        parser.print_help(sys.stderr)
        return 2
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from meshguard.model.errors import DocumentError, MeshguardError, UsageError

    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except DocumentError as exc:
        print(exc, file=sys.stderr)
        count = len(exc.problems)
        print(f"meshguard: {count} problem{'s' if count != 1 else ''}", file=sys.stderr)
        return 2 if any(problem.unreadable for problem in exc.problems) else 1
    except UsageError as exc:
        print(f"meshguard: {exc}", file=sys.stderr)
        return 2
    except MeshguardError as exc:
        print(f"meshguard: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output went away (`| head`): not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:
        print(f"meshguard: {exc.filename or 'system'}: {exc.strerror or exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _no_plugins() -> None:
    """Tells pydantic that it has no plugins. It would look for them in the metadata of every installed package: whatever lies there could
    change how documents are validated, and the look costs a start 30 ms and 1 MB."""
    if "pydantic" not in sys.modules:
        loader = ModuleType("pydantic.plugin._loader")
        setattr(loader, "get_plugins", tuple)  # noqa: B010 # a module takes any attribute, but not for a type checker
        sys.modules.setdefault(loader.__name__, loader)


def _called(argv: Sequence[str]) -> str | None:
    """The name of the subcommand on the command line, when it is one."""
    for argument in argv:
        if not argument.startswith("-"):
            return argument if argument in dict(COMMANDS) else None
    return None


class _Help(argparse.HelpFormatter):
    """argparse forgets the indent of subcommands when it measures their names."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


def _parser(called: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meshguard",
        description="A security proxy for service meshes: mTLS identity, per-request policy, field-level encryption, decision records.",
        epilog="meshguard COMMAND --help shows a command with examples.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"meshguard {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, line in COMMANDS:
        module = f"meshguard.cli.{name}"
        if name == called and util.find_spec(module) is not None:
            import_module(module).register(subparsers)
        else:
            subparsers.add_parser(name, help=line, add_help=False)
    return parser
