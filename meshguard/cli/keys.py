"""`meshguard keys`: make, show and rotate keyset files. Never prints a key.

Exit status: 0 done, 1 refused (a file in the way, a step that a version may not take, key rotation due), 2 wrong use or no such file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshguard.model.errors import KeysetError

if TYPE_CHECKING:
    from meshguard.keys.keyset_file import KeysetRecord

__all__ = ["register"]

_EXAMPLES = """\
examples:
  meshguard keys create keys/orders-pii.json
  meshguard keys list keys/orders-pii.json
  meshguard keys rotate keys/orders-pii.json
  meshguard keys disable keys/orders-pii.json --version 1
  meshguard keys destroy keys/orders-pii.json --version 1 --yes
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` and its commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    parser = subparsers.add_parser(
        "keys",
        help="make, show and rotate keysets of protected fields",
        description="Make, show and rotate keyset files of the file provider. A key is never printed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="keys_command", metavar="COMMAND", required=True)
    create = _command(commands, "create", "make a keyset file with its first version", _create)
    create.add_argument("--name", help="the keyset's name (default: the file name without its suffix)")
    _command(commands, "list", "show versions, states and uses; 1 when a rotation is due", _list)
    _command(commands, "rotate", "make a new primary version; older ones go on to open", _rotate)
    for name, what in (
        ("disable", "let a version open nothing, for now"),
        ("enable", "let a disabled version open again"),
        ("destroy", "delete the key of a disabled version: what it sealed is lost"),
    ):
        command = _command(commands, name, what, _change)
        command.add_argument("--version", type=int, required=True, metavar="N")
        if name == "destroy":
            command.add_argument("--yes", action="store_true", help="really delete it")


def _command(commands: Any, name: str, what: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    command.add_argument("file", type=Path, metavar="FILE", help="the keyset file")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    command.set_defaults(run=run)
    return command


def _create(options: argparse.Namespace) -> int:
    from meshguard.keys.lifecycle import create

    return _show(options, create(options.file, options.name or options.file.stem, time.time()))


def _list(options: argparse.Namespace) -> int:
    from meshguard.keys.keyset_file import read_keyset

    record = read_keyset(options.file)
    _show(options, record)
    return 1 if any(row["needs_rotation"] for row in _rows(options.file, record)) else 0


def _rotate(options: argparse.Namespace) -> int:
    from meshguard.keys.lifecycle import rotate

    return _show(options, rotate(options.file, time.time()))


def _change(options: argparse.Namespace) -> int:
    from meshguard.keys.lifecycle import change

    if options.keys_command == "destroy" and not options.yes:
        print(f"meshguard: version {options.version} and all that it sealed would be lost: say --yes", file=sys.stderr)
        return 2
    return _show(options, change(options.file, options.keys_command, options.version))


def _rows(path: Path, record: KeysetRecord) -> list[dict[str, Any]]:
    from meshguard.fields.keyset import ROTATE_AT, KeyState
    from meshguard.keys.keyset_file import read_uses

    try:
        uses = read_uses(path, record.name)
    except KeysetError:
        uses = {}
    rows = []
    for key in record.keys:
        used = uses.get(key.version)
        due = key.state is KeyState.PRIMARY and (used is None or used >= ROTATE_AT)
        created = datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        rows.append({"version": key.version, "state": key.state.value, "created": created, "uses": used, "needs_rotation": due})
    return rows


def _show(options: argparse.Namespace, record: KeysetRecord) -> int:
    rows = _rows(options.file, record)
    if options.json:
        print(json.dumps({"file": str(options.file), "name": record.name, "versions": rows}))
        return 0
    print(f"keyset {record.name} in {options.file}")
    print(f"  {'version':>7}  {'state':<9}  {'created':<20}  {'uses set aside':>14}")
    for row in rows:
        uses = "unknown" if row["uses"] is None else row["uses"]
        note = "  rotate now" if row["needs_rotation"] else ""
        print(f"  {row['version']:>7}  {row['state']:<9}  {row['created']:<20}  {uses:>14}{note}")
    return 0
