"""`meshguard capture`: send the traffic of an application through its listeners, by netfilter rules.

Exit status: 0 done, 1 the rules cannot be made or were refused, 2 wrong use, or a program that is not there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from meshguard.net.capture_rules import CaptureRules

__all__ = ["register"]

_EXAMPLES = """\
examples:
  meshguard capture print --config sidecar.yaml --uid 1337 --ports 80,8080
  meshguard capture apply --config sidecar.yaml --uid 1337 --inbound-ports 8080 --exclude 169.254.0.0/16
  meshguard capture remove
"""
_LONGEST_S = 30.0


class CaptureError(MeshguardError):
    """The rules could not be made or put in place."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `capture`; its `run` takes the parsed arguments and returns the exit status."""
    parser = subparsers.add_parser(
        "capture",
        help="send an application's traffic through the listeners, by netfilter rules",
        description="Rules for the listeners with `capture: redirect` or `tproxy`, in one nftables table of their own. `print` changes"
        " nothing; `apply` and `remove` need root (CAP_NET_ADMIN), in the network namespace of the application.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text in (
        ("print", "show the rules, for `nft -f`, and the routes"),
        ("apply", "put the rules in force, in place of former ones"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration with the listeners")
        action.add_argument("--ports", type=_ports, default=(), metavar="N,N", help="ports that the application calls; absent: all")
        action.add_argument("--inbound-ports", type=_ports, default=(), metavar="N,N", help="ports that the application listens on")
        action.add_argument("--uid", type=int, action="append", default=[], metavar="N", help="user of the proxy, whose calls are exempt")
        action.add_argument("--gid", type=int, action="append", default=[], metavar="N", help="group of the proxy")
        action.add_argument("--mark", type=_number, action="append", default=[], metavar="N", help="mark of packets that are exempt")
        action.add_argument("--exclude", action="append", default=[], metavar="CIDR", help="addresses that are left alone")
        action.add_argument("--exclude-ports", type=_ports, default=(), metavar="N,N", help="ports that are left alone")
        action.set_defaults(run=_print if name == "print" else _apply)
    actions.add_parser("remove", help="take the rules away", description="take the rules away").set_defaults(run=_remove)


def _number(text: str) -> int:
    return int(text, 0)


def _ports(text: str) -> tuple[int, ...]:
    ports = tuple(int(part) for part in text.split(","))
    if not all(0 < port < 65536 for port in ports):
        raise ValueError
    return ports


def _rules(arguments: argparse.Namespace) -> CaptureRules:
    from meshguard.control.settings.load import load_configuration
    from meshguard.net.capture_rules import CaptureRules, Door

    listeners = load_configuration(arguments.config, now=time.time(), files=False).configuration.listeners.values()
    doors = [
        Door(
            listener.address.port,
            6 if ":" in listener.address.host else 4,
            listener.direction == "outbound",
            listener.capture == "tproxy",
            arguments.ports if listener.direction == "outbound" else arguments.inbound_ports,
        )
        for listener in listeners
        if listener.capture != "none"
    ]
    if not doors:
        raise CaptureError(f"{arguments.config}: no listener with `capture: redirect` or `capture: tproxy`")
    try:
        return CaptureRules(doors, arguments.uid, arguments.gid, arguments.mark, tuple(arguments.exclude), tuple(arguments.exclude_ports))
    except ValueError as exc:
        raise CaptureError(f"expected {exc}") from exc


def _print(arguments: argparse.Namespace) -> int:
    from meshguard.net.capture_rules import routing_commands

    rules = _rules(arguments)
    sys.stdout.write(rules.script())
    if rules.transparent:
        for command in routing_commands():
            print("# ip " + " ".join(command))
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    from meshguard.net.capture_rules import routing_commands

    rules = _rules(arguments)
    _forget_routes()
    if rules.transparent:  # first: a marked packet without its route would leave the machine
        for command in routing_commands():
            _ip(command)
    _nft(rules.script())
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from meshguard.net.capture_rules import remove_script

    _nft(remove_script())
    _forget_routes()
    return 0


def _forget_routes() -> None:
    """Takes back what an earlier `apply` has routed, as often as it is there; where nothing is, nothing happens."""
    from meshguard.net.capture_rules import routing_commands

    for command in routing_commands(remove=True):
        while _run(["ip", *command]).returncode == 0 and "del" in command:
            pass


def _ip(arguments: list[str]) -> None:
    done = _run(["ip", *arguments])
    if done.returncode != 0 and not (arguments[0] == "-6" and not os.path.exists("/proc/net/if_inet6")):
        raise CaptureError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _nft(script: str) -> None:
    done = _run(["nft", "-f", "-"], script)
    if done.returncode != 0:
        raise CaptureError(f"nft refused the rules: {done.stderr.strip()}")


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=_LONGEST_S)
    except FileNotFoundError as exc:
        raise CaptureError(f"{command[0]} is not installed (packages nftables and iproute2)") from exc
    except subprocess.TimeoutExpired as exc:
        raise CaptureError(f"{command[0]} did not end within {_LONGEST_S:g} s") from exc
