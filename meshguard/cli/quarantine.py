"""`meshguard quarantine`: cuts an identity out of the mesh on a running node, lists who is out, lets it in again.

Speaks to the admin API of the node. The address and the token come from its configuration (`--config`), or are said.

Exit status: 0 done, 1 refused by the node, 2 wrong use or a node that cannot be reached.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshguard.model.durations import seconds_of

__all__ = ["register"]

_EXAMPLES = """\
examples:
  meshguard quarantine add spiffe://shop.example/ns/prod/sa/billing --ttl 1h --reason "leaked key" --config sidecar.yaml
  meshguard quarantine add 'spiffe://shop.example/ns/dev/**' --config sidecar.yaml
  meshguard quarantine add serial:5f3a91 --reason "this certificate only" --config sidecar.yaml
  meshguard quarantine list --config sidecar.yaml
  meshguard quarantine remove spiffe://shop.example/ns/prod/sa/billing --admin 127.0.0.1:9901 --token-file admin.token
  meshguard quarantine add spiffe://shop.example/ns/prod/sa/billing --fleet --key security.key --config sidecar.yaml
  meshguard quarantine restore /var/lib/meshguard/fleet/quarantine.json --config sidecar.yaml
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "quarantine",
        help="cut an identity out of the mesh at once, and let it in again",
        description="Cuts an identity out on a running node: new requests are refused, open streams and connections end, both ways.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="quarantine_command", metavar="COMMAND", required=True)
    for name, what, run in (
        ("add", "cut an identity out", _add),
        ("remove", "let it in again", _remove),
        ("list", "who is cut out", _list),
    ):
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if name != "list":
            command.add_argument("target", metavar="TARGET", help="SPIFFE ID, pattern of them, or serial:HEX of one certificate")
        if name == "add":
            command.add_argument("--ttl", type=_duration, default=0.0, metavar="TIME", help="30s, 15m, 1h, 7d; absent: until it is removed")
            command.add_argument("--reason", default="", help="kept on record")
        command.add_argument("--config", type=Path, metavar="FILE", help="configuration of the node")
        command.add_argument("--admin", metavar="HOST:PORT", help="admin address of the node (default: the configured one)")
        command.add_argument("--token-file", type=Path, metavar="FILE", help="file with its admin token (default: the configured one)")
        command.add_argument("--json", action="store_true", help="machine-readable output")
        command.add_argument("--fleet", action="store_true", help="on every instance of the fleet, through its store (needs --config)")
        if name != "list":
            _add_change(command)
        command.set_defaults(run=run)
    restore = commands.add_parser("restore", help="put the fleet's set that an instance has kept back into a store that lost it")
    restore.add_argument("file", type=Path, metavar="FILE", help="quarantine.json of the state directory of an instance")
    restore.add_argument("--config", type=Path, required=True, metavar="FILE", help="with a `fleet` section")
    restore.add_argument("--wait", type=float, default=5.0, metavar="SECONDS", help="for the instances to take it (default 5)")
    restore.add_argument("--json", action="store_true", help="machine-readable output")
    restore.set_defaults(run=_restore)


def _add_change(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("with --fleet")
    group.add_argument(
        "--key", type=Path, action="append", default=[], metavar="FILE", help="private key that signs the change, PEM; repeatable"
    )
    group.add_argument("--ask-password", action="store_true", help="keys are encrypted")
    group.add_argument("--wait", type=float, default=5.0, metavar="SECONDS", help="for the instances to take it (default 5)")
    group.add_argument("--discard", action="store_true", help="give up a set that the store has lost: whoever was in it is let in")


def _duration(text: str) -> float:
    try:
        seconds = float(text) if text.isdecimal() else seconds_of(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 366 * 86400:
        raise argparse.ArgumentTypeError("a time such as 30s, 15m, 1h or 7d, at most a year")
    return seconds


def _restore(options: argparse.Namespace) -> int:
    from meshguard.cli import fleet_quarantine

    return fleet_quarantine.restore(options)


def _add(options: argparse.Namespace) -> int:
    if options.fleet:
        from meshguard.cli import fleet_quarantine

        return fleet_quarantine.add(options)
    body = {"target": options.target, "reason": options.reason, "ttl_s": options.ttl, "by": getpass.getuser()}
    return _show(options, _call(options, "POST", {}, json.dumps(body).encode()))


def _remove(options: argparse.Namespace) -> int:
    if options.fleet:
        from meshguard.cli import fleet_quarantine

        return fleet_quarantine.remove(options)
    return _show(options, _call(options, "DELETE", {"target": options.target, "by": getpass.getuser()}))


def _list(options: argparse.Namespace) -> int:
    if options.fleet:
        from meshguard.cli import fleet_quarantine

        return fleet_quarantine.listed(options)
    return _show(options, _call(options, "GET", {}))


def _call(options: argparse.Namespace, method: str, query: dict[str, str], body: bytes = b"") -> Any:
    from meshguard.cli.node import call, node_of

    return call(node_of(options), method, "/quarantine", query, body)


def _show(options: argparse.Namespace, listed: Any) -> int:
    if options.json:
        print(json.dumps(listed, indent=2))
        return 0
    fleet = listed.get("fleet", {"quarantine": []})
    for scope, entry in [("", entry) for entry in listed["quarantine"]] + [(" (fleet)", entry) for entry in fleet["quarantine"]]:
        until = f"until {_time(entry['until'])}" if entry["until"] else "until it is removed"
        print(f"{entry['target']}{scope}  since {_time(entry['since'])} {until}  by {entry['by']}  {entry['reason']}".rstrip())
    if not listed["quarantine"] and not fleet["quarantine"]:
        print("nobody is quarantined")
    if fleet.get("store") == "away":
        print(f"note: the fleet's store is away; its set number {fleet['sequence']} is the last one known here", file=sys.stderr)
    if not listed["persistent"] and (listed["quarantine"] or "fleet" not in listed):
        print("note: quarantine.path is not configured, a restart of the node ends this", file=sys.stderr)
    return 0


def _time(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s or time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
