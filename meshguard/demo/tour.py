"""Runs the demonstration: the sample service, the proxy in front of it, and the requests, to try by hand or checked here."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meshguard.demo.orders import OrdersService
from meshguard.demo.place import Place
from meshguard.demo.scenario import STEPS, Ports, ask, command, mismatch
from meshguard.model.errors import MeshguardError

__all__ = ["DemoError", "Wanted", "check", "running", "show"]

READY_S = 15.0
END_S = 5.0


class DemoError(MeshguardError):
    """The demonstration cannot run; the text says why and where to look."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Ports that are asked for; each falls back to a free one. 0 asks for any."""

    proxy: int = 8443
    service: int = 8080
    admin: int = 9901


@contextlib.contextmanager
def running(directory: Path, wanted: Wanted, say: Callable[[str], None]) -> Iterator[tuple[Place, Ports, subprocess.Popen[bytes]]]:
    """The service and the proxy, ready; both end with the context. Raises MeshguardError, OSError."""
    place = Place(directory)
    place.prepare()
    taken: set[int] = set()
    service = OrdersService(_free("service", wanted.service, taken, say))
    service.start()
    try:
        ports = Ports(_free("proxy", wanted.proxy, taken, say), service.port)
        process = _serve(place, ports, admin := _free("admin", wanted.admin, taken, say))
        try:
            _wait(process, place, admin)
            yield place, ports, process
        finally:
            _end(process)
    finally:
        service.stop()


def show(place: Place, ports: Ports, say: Callable[[str], None]) -> None:
    """Prints what runs where, and the requests to try."""
    say(f"meshguard on https://127.0.0.1:{ports.proxy} in front of the orders service on http://127.0.0.1:{ports.service}")
    say("")
    for step in STEPS:
        say(f"# {step.title}: {_expected(step.status)}")
        say(command(step, place, ports))
    say("")
    say(f"Edit {place.configuration} or policies/orders.yaml: changes are taken over at once.")
    say(f"Every decision: tail -f {place.decisions}     the proxy's own log: {place.log}")


def check(place: Place, ports: Ports, say: Callable[[str], None]) -> bool:
    """Makes every request itself; True when each answers as it says."""
    good = True
    for step in STEPS:
        wrong = mismatch(step, ask(step, place, ports))
        say(f"{'FAILED' if wrong else 'ok':6s} {step.title}" + (f": {wrong}" if wrong else ""))
        good = good and not wrong
    return good


def _expected(status: int) -> str:
    return str(status) if status else "the connection fails"


def _free(what: str, port: int, taken: set[int], say: Callable[[str], None]) -> int:
    """`port` if nothing listens on it, else a free one; never one of `taken`, which it joins."""
    for candidate in (port, *([0] * 20)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
        if found in taken:
            continue
        taken.add(found)
        if port not in (0, found):
            say(f"port {port} for the {what} is in use: taking {found}")
        return found
    raise DemoError(f"no free port for the {what}")


def _serve(place: Place, ports: Ports, admin: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "DEMO_PORT": str(ports.proxy),
        "DEMO_SERVICE_PORT": str(ports.service),
        "DEMO_ADMIN_PORT": str(admin),
    }
    arguments = [sys.executable, "-m", "meshguard", "serve", "--config", str(place.configuration)]
    with place.log.open("ab") as log:
        # Its own session: Ctrl-C reaches this process, which ends the proxy in order.
        return subprocess.Popen(arguments, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _wait(process: subprocess.Popen[bytes], place: Place, admin: int) -> None:
    """Returns when the proxy says that it is ready. Raises DemoError with the end of its log."""
    started, size = time.monotonic(), place.log.stat().st_size
    while time.monotonic() - started < READY_S:
        if process.poll() is not None:
            raise DemoError(f"the proxy ended at once, see {place.log}:\n{place.log.read_text(errors='replace')[max(0, size - 2000) :]}")
        if _is_ready(admin):
            return
        time.sleep(0.02)
    raise DemoError(f"the proxy was not ready after {READY_S:g} s, see {place.log}")


def _is_ready(admin: int) -> bool:
    link = http.client.HTTPConnection("127.0.0.1", admin, timeout=1)
    try:
        link.request("GET", "/readyz")
        return link.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        link.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_S)
