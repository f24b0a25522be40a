"""What the process itself uses: address space, CPU, descriptors, threads, and its version. Read when asked, nothing is kept."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator

from meshguard import __version__
from meshguard.telemetry.metrics import Family, Kind, Labels

__all__ = ["process_families"]

_STARTED = time.time()
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def process_families() -> Iterator[Family]:
    """A collector for the registry. Names are those that Prometheus' own client libraries use."""
    build: Labels = (__version__, platform.python_version())
    yield Family("meshguard.build.info", Kind.GAUGE, "The running version", "", ("version", "python"), [(build, 1)])
    yield Family("process.start_time", Kind.GAUGE, "Start of the process, epoch seconds", "s", (), [((), _STARTED)])
    yield Family("process.threads", Kind.GAUGE, "Python threads", "", (), [((), threading.active_count())])
    times = os.times()
    yield Family("process.cpu", Kind.COUNTER, "CPU time of user and system", "s", (), [((), times.user + times.system)])
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = file.read().split()
        yield Family("process.virtual_memory", Kind.GAUGE, "Virtual memory", "By", (), [((), int(pages[0]) * _PAGE_BYTES)])
        yield Family("process.open_fds", Kind.GAUGE, "Open descriptors", "", (), [((), len(os.listdir("/proc/self/fd")))])
    except OSError:  # no /proc (macOS), or no descriptor left to look with
        return
