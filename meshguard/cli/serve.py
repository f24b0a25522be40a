"""`meshguard serve`: runs the proxy."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshguard.control.runtime import Runtime
    from meshguard.control.settings.load import LoadedConfiguration
    from meshguard.control.workers.template import Birth

__all__ = ["register"]

_EXAMPLES = """examples:
  meshguard serve                                the embedded defaults: 127.0.0.1:8443 in front of 127.0.0.1:8080
  meshguard serve --config config/sidecar.yaml   a real configuration
  meshguard serve --workers auto                 one process for each core, behind one port
  kill -HUP PID                                  reload all documents; a bad one keeps the last good state
  kill -USR2 PID                                 a new process, of the code installed now, takes over without a failed request
  kill -TERM PID                                 drain and end
"""
_LOG_CLOSE_S = 2.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve", help="run the proxy", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="configuration document (default: the embedded one)")
    parser.add_argument("--workers", type=_workers, metavar="N", help="processes behind one port, or auto (default: as configured, else 1)")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", choices=("json", "text"), help="default: text on a terminal, else json")
    parser.set_defaults(run=serve)


def _workers(text: str) -> int:
    from meshguard.control.workers.count import worker_count

    try:
        return worker_count(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def serve(options: argparse.Namespace) -> int:
    """Runs until a signal ends it. Exit status 0 after an orderly end; problems of the start come as errors."""
    from meshguard.control.handover import inherit
    from meshguard.telemetry.logs import configure, default_format
    from meshguard.telemetry.metrics import Registry
    from meshguard.telemetry.redaction import Redactor

    template = os.environ.pop("MESHGUARD_TEMPLATE", "")
    if template:
        return _template(options, int(template))
    inheritance = inherit(os.environ)
    registry = Registry()
    handler = configure(options.log_level, options.log_format or default_format(), registry, Redactor())
    workers = options.workers
    if workers is None and options.config:
        from meshguard.control.workers.count import configured_workers

        workers = configured_workers(options.config)
    try:
        if workers is not None and workers > 1:
            import asyncio

            from meshguard.control.workers.supervisor import Supervisor

            supervisor = Supervisor(workers, registry, inheritance)
            handler.share(supervisor.log_lock)
            asyncio.run(supervisor.main())
        else:
            from meshguard.control.process import run

            run(_loader(options), registry, _announce if sys.stderr.isatty() else None, inheritance, handler)
    finally:
        handler.close_within(_LOG_CLOSE_S)
    return 0


def _loader(options: argparse.Namespace) -> Callable[[], LoadedConfiguration]:
    from meshguard.control.settings.load import default_configuration, load_configuration

    load = partial(load_configuration, options.config) if options.config else default_configuration
    return lambda: load(now=time.time())


def _template(options: argparse.Namespace, descriptor: int) -> int:
    """The same command line as the process that workers are forked from (`control.workers.template`)."""
    import socket

    from meshguard.control.workers import worker  # all that workers need is loaded once, before the fork  # noqa: F401
    from meshguard.control.workers.template import serve_template
    from meshguard.telemetry.logs import default_format, formatter
    from meshguard.telemetry.redaction import Redactor

    os.set_inheritable(descriptor, False)
    direct = logging.StreamHandler(sys.stderr)  # no thread: what forks must not have one
    direct.setFormatter(formatter(options.log_format or default_format(), Redactor()))
    logging.basicConfig(level=options.log_level.upper(), handlers=[direct], force=True)
    load = _loader(options)

    def work(birth: Birth) -> int:
        return _work(options, birth, load)

    return serve_template(socket.socket(fileno=descriptor), load, work)


def _work(options: argparse.Namespace, birth: Birth, load: Callable[[], LoadedConfiguration]) -> int:
    from meshguard.control.workers.worker import run_worker
    from meshguard.model.errors import MeshguardError
    from meshguard.telemetry.logs import configure, default_format
    from meshguard.telemetry.metrics import Registry
    from meshguard.telemetry.redaction import Redactor

    registry = Registry()
    handler = configure(options.log_level, options.log_format or default_format(), registry, Redactor())
    if "log" in birth.shared:
        handler.share(birth.shared["log"])
    try:
        return run_worker(birth, load, registry, handler)
    except* (MeshguardError, OSError) as group:
        for exc in group.exceptions:
            logging.getLogger(__name__).error("the worker cannot serve", extra={"data": {"worker": birth.number, "error": str(exc)}})
    finally:
        handler.close_within(_LOG_CLOSE_S)
    return 1


def _announce(runtime: Runtime) -> None:
    for name, listener in runtime.listeners.items():
        logging.getLogger(__name__).info("listener %s on %s:%s", name, *listener.address)
