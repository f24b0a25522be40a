"""`meshguard demo`: a guided tour on this machine."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from types import FrameType

__all__ = ["register"]

_EXAMPLES = """examples:
  meshguard demo                     a service, the proxy in front of it, and commands to try; Ctrl-C ends all
  meshguard demo --check             make the requests too, and say whether each is answered as it should be
  meshguard demo --directory ./tour  keep its documents, identities and keys in ./tour
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="a guided tour: identities, a policy, a protected field",
        description="Starts a sample service and the proxy in front of it, with a development CA, a policy and a protected field.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--directory", type=Path, default=Path(".demo"), metavar="DIR", help="made when missing (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8443, help="of the proxy (default: %(default)s; 0: any)")
    parser.add_argument("--service-port", type=_port, default=8080, metavar="PORT", help="of the sample service (default: %(default)s)")
    parser.add_argument("--admin-port", type=_port, default=9901, metavar="PORT", help="of the admin address (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="make every request, exit with 0 when all are answered as they should be")
    parser.set_defaults(run=demo)


def demo(options: argparse.Namespace) -> int:
    """0: ended by the user, or every check held; 1: a check failed."""
    from meshguard.demo.tour import Wanted, check, running, show

    signal.signal(signal.SIGTERM, _interrupt)
    wanted = Wanted(options.port, options.service_port, options.admin_port)
    with running(options.directory, wanted, _say) as (place, ports, process):
        if options.check:
            return 0 if check(place, ports, _say) else 1
        show(place, ports, _say)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            return 0
    _say(f"the proxy ended with status {status}, see {place.log}")
    return 1


def _say(line: str) -> None:
    print(line, flush=True)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError("a port from 0 to 65535")
    return int(text)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
