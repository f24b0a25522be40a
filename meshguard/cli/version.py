"""`meshguard version`: what runs here, for a report of a problem."""

from __future__ import annotations

import argparse
import platform
import ssl
from importlib import metadata

from meshguard import __version__

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("version", help="print the version", description="Print the version of meshguard.")
    parser.add_argument("--verbose", action="store_true", help="also Python, OpenSSL and the libraries it runs on")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints one line, or with --verbose one for each part."""
    print(f"meshguard {__version__}")
    if options.verbose:
        print(f"python {platform.python_version()} ({platform.system()} {platform.machine()})")
        print(ssl.OPENSSL_VERSION)
        for name in ("cryptography", "h11", "orjson", "pydantic", "pyyaml", "uvloop"):
            print(f"{name} {metadata.version(name)}")
    return 0
