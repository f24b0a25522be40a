"""Starting and ending processes, and what /proc says about them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["PortKeeper", "connect", "descriptors", "memory_kib", "start", "stop", "tree", "wait_port"]


def tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return [each for each in found if Path("/proc", str(each)).exists()]


def memory_kib(pids: Sequence[int]) -> dict[str, int]:
    """Resident and proportional set size in KiB, summed over the processes."""
    total = {"rss": 0, "pss": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
                name = line.split(":")[0].lower()
                if name in total:
                    total[name] += int(line.split()[1])
    return total


def descriptors(pids: Sequence[int]) -> int:
    """Open file descriptors, summed over the processes."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/fd"))
    return count


class PortKeeper:
    """Hands out loopback ports that are free and that it has not handed out before."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def port(self) -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in self._taken:
                self._taken.add(port)
                return port


def connect(port: int, timeout_s: float = 5.0) -> socket.socket:
    """A TCP connection to a port of the loopback."""
    return socket.create_connection(("127.0.0.1", port), timeout_s)


def start(
    command: Sequence[object],
    core: int | None,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a process in its own session on one core (None: any), its output appended to `log`."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    with log.open("ab") as out:
        return subprocess.Popen(
            [*pinned, *map(str, command)],
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], patience_s: float = 2.0) -> None:
    """Ends the process and its descendants, each by its id: asked first, then by force."""
    pids = tree(process.pid)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            process.poll()
            pids = [pid for pid in pids if Path("/proc", str(pid)).exists()]
            if not pids:
                return
            time.sleep(0.02)


def wait_port(port: int, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Returns when something listens on the port. Raises RuntimeError when the process ended or the time is over."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"ended with status {process.returncode} before port {port} was open")
        try:
            connect(port, 0.2).close()
            return
        except OSError:
            time.sleep(0.005)
    raise RuntimeError(f"port {port} not open after {timeout_s} s")
