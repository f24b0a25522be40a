"""`meshguard serve`: runs the proxy."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshguard.control.runtime import Runtime

__all__ = ["register"]

_EXAMPLES = """examples:
  meshguard serve                                the embedded defaults: 127.0.0.1:8443 in front of 127.0.0.1:8080
  meshguard serve --config config/sidecar.yaml   a real configuration
  kill -HUP PID                                  reload all documents; a bad one keeps the last good state
  kill -TERM PID                                 drain and end
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve", help="run the proxy", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="configuration document (default: the embedded one)")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", choices=("json", "text"), help="default: text on a terminal, else json")
    parser.set_defaults(run=serve)


def serve(options: argparse.Namespace) -> int:
    """Runs until a signal ends it. Exit status 0 after an orderly end; problems of the start come as errors."""
    from meshguard.control.process import run
    from meshguard.control.settings.load import default_configuration, load_configuration
    from meshguard.telemetry.logs import configure, default_format
    from meshguard.telemetry.metrics import Registry
    from meshguard.telemetry.redaction import Redactor

    registry = Registry()
    handler = configure(options.log_level, options.log_format or default_format(), registry, Redactor())
    load = partial(load_configuration, options.config) if options.config else default_configuration
    try:
        run(lambda: load(now=time.time()), registry, _announce if sys.stderr.isatty() else None)
    finally:
        handler.close_within(2.0)
    return 0


def _announce(runtime: Runtime) -> None:
    for name, listener in runtime.listeners.items():
        logging.getLogger(__name__).info("listener %s on %s:%s", name, *listener.address)
