"""`meshguard top`: what one instance does at this moment, from its admin API."""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshguard.cli.node import Node

__all__ = ["register"]

_EXAMPLES = """examples:
  meshguard top --config config/sidecar.yaml                 the node with this configuration; q ends
  meshguard top --admin 127.0.0.1:9901 --token-file FILE     the same, said
  meshguard top --config config/sidecar.yaml --once          one picture, of the second that it takes
  meshguard top --config config/sidecar.yaml --once --json   the same for programs
"""
_CLEAR, _HOME, _REST = "\x1b[2J", "\x1b[H", "\x1b[J"
_OPEN, _CLOSE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "top",
        help="live requests, rates, latencies and decisions of one instance",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration of the node")
    parser.add_argument("--admin", metavar="HOST:PORT", help="admin address of the node (default: the configured one)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with its admin token (default: the configured one)")
    parser.add_argument(
        "--interval", type=_seconds, default=None, metavar="S", help="between two pictures (default: 2; with --once: 1)"
    )
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument("--json", action="store_true", help="print JSON, one object for each picture")
    parser.add_argument("--sort", choices=("rate", "p99", "refused"), default="rate", help="order of routes and callers")
    parser.set_defaults(run=top)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("seconds, from 0.1 to 3600")
    return value


def top(options: argparse.Namespace) -> int:
    """Until q or an interrupt; with --once, one picture. Exit status 1 when the admin API cannot be asked."""
    from meshguard.cli.node import node_of
    from meshguard.cli.top_text import picture, text

    node = node_of(options)
    interval = options.interval or (1.0 if options.once else 2.0)
    before = _ask(node)
    if options.once:
        time.sleep(interval)
        return _print(picture(before, _ask(node)), options, text)
    if options.json or not sys.stdout.isatty():
        while True:
            time.sleep(interval)
            after = _ask(node)
            _print(picture(before, after), options, text)
            sys.stdout.flush()
            before = after
    with _screen() as keys:
        while not _quits(keys, interval):
            after = _ask(node)
            size = shutil.get_terminal_size()
            lines = text(picture(before, after), options.sort, size.columns, size.lines - 1)
            sys.stdout.write(_HOME + "".join(line + "\x1b[K\r\n" for line in lines) + _REST)
            sys.stdout.flush()
            before = after
    return 0


def _print(shown: dict[str, Any], options: argparse.Namespace, text: Any) -> int:
    if options.json:
        print(json.dumps(shown))
    else:
        print("\n".join(text(shown, options.sort, shutil.get_terminal_size().columns if sys.stdout.isatty() else 160, None)))
    return 0


def _ask(node: Node) -> dict[str, Any]:
    """Stats with the open requests. Raises NodeError."""
    from meshguard.cli.node import call

    return {**call(node, "GET", "/stats", {}), **call(node, "GET", "/requests", {})}


@contextmanager
def _screen() -> Iterator[int]:
    """The alternate screen, with single keys; everything is as before at the end. Gives the descriptor to read keys from, or -1."""
    import termios
    import tty

    keys, saved = -1, None
    if sys.stdin.isatty():
        keys = sys.stdin.fileno()
        saved = termios.tcgetattr(keys)
        tty.setcbreak(keys)
    sys.stdout.write(_OPEN + _CLEAR)
    sys.stdout.flush()
    try:
        yield keys
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_CLOSE)
        sys.stdout.flush()
        if saved is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, saved)


def _quits(keys: int, interval: float) -> bool:
    """Waits; whether somebody pressed q meanwhile."""
    if keys < 0:
        time.sleep(interval)
        return False
    ready, _, _ = select.select([keys], [], [], interval)
    return bool(ready) and os.read(keys, 16)[:1] in (b"q", b"Q", b"\x1b", b"")
