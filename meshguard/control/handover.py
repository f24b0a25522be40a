"""A new process takes over from a running one: the listening sockets, the admin port and what is shared in memory go along.

The running process starts the same command line again, out of whatever installation stands there now, and gives it copies of its
descriptors. Both accept from the same sockets then, so no connection is lost in a queue. When the new one serves, it says so on a
pipe, and the old one finishes what it has. When it ends or does not become ready in time, the old one goes on as before.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshguard.model.errors import MeshguardError

__all__ = [
    "GENTLE_S",
    "VARIABLE",
    "Estate",
    "Inheritance",
    "SuccessorFailed",
    "inherit",
    "read_contained",
    "spawn_again",
    "start_successor",
    "write_contained",
]

VARIABLE = "MESHGUARD_HANDOVER"
"""Environment variable that tells the new process which descriptors are what."""
GENTLE_S = 5.0
"""For how long connections that idle at a hand-over may still send one request (it is answered with `connection: close`)."""
_READY = b"ready\n"
_END_S = 5.0


class SuccessorFailed(MeshguardError):
    """The new process did not become ready; the old one goes on."""


@dataclass(slots=True)
class Estate:
    """What is handed over, as descriptors: `sockets` by listener address, the `admin` socket (-1: none), `shared` by name."""

    sockets: Mapping[str, list[int]]
    admin: int = -1
    shared: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Inheritance:
    """What was taken over; empty in a process that was started by hand."""

    sockets: dict[str, list[socket.socket]] = field(default_factory=dict)
    admin: socket.socket | None = None
    shared: dict[str, int] = field(default_factory=dict)
    ready_fd: int = -1

    def tell_ready(self) -> None:
        """To the process that waits to end. Harmless when there is none."""
        if self.ready_fd >= 0:
            try:
                os.write(self.ready_fd, _READY)
            except OSError:
                pass  # it is gone already: nothing is lost
            os.close(self.ready_fd)
            self.ready_fd = -1

    def discard(self) -> None:
        """Closes sockets of addresses that are no longer configured."""
        for group in self.sockets.values():
            for sock in group:
                sock.close()
        self.sockets.clear()


def write_contained(entries: list[dict[str, Any]]) -> int:
    """The quarantine in force, in a file in memory for the new process: also one that is kept nowhere outlives a hand-over."""
    descriptor = os.memfd_create("meshguard-quarantine", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(json.dumps(entries).encode())
    return descriptor


def read_contained(descriptor: int) -> list[dict[str, Any]]:
    """What `write_contained` wrote. Raises OSError, ValueError."""
    entries: list[dict[str, Any]] = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0) or b"[]")
    return entries


def inherit(environment: MutableMapping[str, str]) -> Inheritance:
    """Takes over what the starting process says in its environment, once. Raises MeshguardError where that cannot be used."""
    text = environment.pop(VARIABLE, "")
    if not text:
        return Inheritance()
    try:
        said = json.loads(text)
        taken = Inheritance(
            {address: [_socket(number) for number in numbers] for address, numbers in said["sockets"].items()},
            _socket(said["admin"]) if said["admin"] >= 0 else None,
            {name: _kept(number) for name, number in said["shared"].items()},
            _kept(said["ready"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as exc:
        raise MeshguardError(f"{VARIABLE} cannot be used: {exc}") from exc
    return taken


def _socket(number: int) -> socket.socket:
    sock = socket.socket(fileno=_kept(number))
    sock.setblocking(False)
    return sock


def _kept(number: int) -> int:
    os.set_inheritable(number, False)
    return int(number)


def spawn_again(variables: Mapping[str, str], descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """This command line once more, by the installation that stands there now, with these descriptors. Raises OSError."""
    environment = {**os.environ, **variables}
    return subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, pass_fds=descriptors, stdin=subprocess.DEVNULL)


async def start_successor(estate: Estate, timeout_s: float) -> int:
    """Starts this command line again with `estate`; its process id, once it serves. Raises SuccessorFailed, and then it is ended."""
    ready, told = os.pipe()
    try:
        said = {"sockets": dict(estate.sockets), "admin": estate.admin, "shared": dict(estate.shared), "ready": told}
        numbers = [told, *(number for group in estate.sockets.values() for number in group), *estate.shared.values()]
        if estate.admin >= 0:
            numbers.append(estate.admin)
        try:
            process = spawn_again({VARIABLE: json.dumps(said)}, numbers)
        except OSError as exc:
            raise SuccessorFailed(f"it could not be started: {exc.strerror}") from exc
        finally:
            os.close(told)
        try:
            async with asyncio.timeout(timeout_s):
                word = await _read(ready)
        except TimeoutError:
            await asyncio.to_thread(_end, process)
            raise SuccessorFailed(f"it was not ready within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            process.kill()
            raise
        if word != _READY:
            await asyncio.to_thread(_end, process)
            raise SuccessorFailed(f"it ended before it was ready, with status {process.returncode}")
        process.returncode = 0  # it outlives this process: nobody waits for it, and Popen does not complain
        return process.pid
    finally:
        os.close(ready)


async def _read(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def readable() -> None:
        if not future.done():
            future.set_result(os.read(fd, 64))

    loop.add_reader(fd, readable)
    try:
        return await future
    finally:
        loop.remove_reader(fd)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_S if process.poll() is not None else 0.5)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
