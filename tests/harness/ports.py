"""Loopback ports for processes under test: several test runs on one machine never hand out the same one."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

__all__ = ["Refusing", "free_port"]

# Below the ephemeral range, so that no outgoing connection takes a port before the process binds it.
FIRST, LAST = 15000, 31000
RANGE = 500


def _claim() -> tuple[socket.socket, range]:
    """A range that no other test run holds, and the socket that holds it: whoever binds the first port owns the rest."""
    for first in range(FIRST, LAST, RANGE):
        guard = socket.socket()
        try:
            guard.bind(("127.0.0.1", first))
        except OSError:
            guard.close()
            continue
        return guard, range(first + 1, first + RANGE)
    raise AssertionError("no range of ports is free: are there dozens of test runs on this machine?")


def _ports() -> Iterator[int]:
    """The ports of this test run, each once before any comes again; those in use are left out."""
    guard, mine = _claim()
    with guard:
        refused = 0
        for port in itertools.cycle(mine):
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    refused += 1
                    assert refused < RANGE, "no free port"
                    continue
            refused = 0
            yield port


_mine = _ports()


def free_port() -> int:
    """A port nobody listens on, which no other call, here or in another test run, has just been given."""
    return next(_mine)


class Refusing:
    """A port that refuses connections as long as this lives: it is bound, so that nobody else takes it, but not listened on."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Refusing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
