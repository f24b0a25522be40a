"""New connections go from a worker that has many to the one that has the fewest, before the first octet is read.

The kernel deals connections out to the workers by a hash. Many short ones come out even; of eight long ones one worker may get seven, and
stay with them. So a worker that has clearly more than the lightest one passes the next connection on: its descriptor goes through the
lightest one's *inbox*, a socket pair that the supervisor holds, so that what lies in it outlives a worker. "Clearly": more than an eighth
of what it has, so that small differences of many connections cost nothing. Where the inbox is full, the connection stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, cast

from meshguard.net.cluster.tasks import Tasks

if TYPE_CHECKING:
    from meshguard.net.census import Census, Row

__all__ = ["Passing"]

log = logging.getLogger(__name__)

_SHARE = 8
_AT_ONCE = 16
"""Connections taken in one turn of the loop."""
_NAME_BYTES = 1024


class Passing:
    """A worker's part in it. `inbox` is where it takes from, `outboxes` lead to all workers by number. `accept(listener)` gives what
    makes a protocol for a connection that was taken; None for a listener that is not here."""

    def __init__(
        self,
        census: Census,
        inbox: socket.socket,
        outboxes: Sequence[socket.socket],
        accept: Callable[[str], Callable[[], asyncio.Protocol] | None],
    ) -> None:
        self.passed = 0
        self.active = False
        self._census = census
        self._inbox = inbox
        self._outboxes = outboxes
        self._accept = accept
        self._tasks = Tasks("passed connections")
        for sock in (inbox, *outboxes):
            sock.setblocking(False)

    def start(self) -> None:
        """Begins to take."""
        self.active = True
        asyncio.get_running_loop().add_reader(self._inbox.fileno(), self._readable)

    def stop(self) -> None:
        """Nobody sends this worker any more, nor does it send; what is on its way is taken."""
        self.active = False
        self._census.beat(0.0)

    def beat(self, now: float) -> None:
        """By each sweep: this worker is alive."""
        if self.active:
            self._census.beat(now)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._inbox.fileno())
        await self._tasks.close()

    # -- sending --------------------------------------------------------------------------------------------------------

    def target(self, row: Row, own: int) -> int:
        """The worker that a new connection of this listener should go to, where this one has `own`; -1: it stays."""
        if not own or not self.active:
            return -1
        worker, count = row.lightest(len(self._outboxes), monotonic())
        return worker if worker >= 0 and own - count > own // _SHARE else -1

    def sender(self, listener: str, to: int, keep: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """The protocol of a connection that goes to worker `to`; `keep` makes that of one that has to stay."""
        return _Passed(self, listener, to, keep)

    def send(self, listener: str, to: int, descriptor: int) -> bool:
        """False: it could not be sent."""
        try:
            socket.send_fds(self._outboxes[to], [listener.encode()], [descriptor])
        except OSError:  # its inbox is full
            return False
        self._census.sent(to)
        self.passed += 1
        return True

    # -- taking ---------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                name, descriptors, _, _ = socket.recv_fds(self._inbox, _NAME_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                log.exception("passed connections cannot be taken")
                return
            if not descriptors:
                return
            self._census.taken()
            sock = socket.socket(fileno=descriptors[0])
            sock.setblocking(False)
            accept = self._accept(name.decode())
            if accept is None:
                sock.close()
            else:
                self._tasks.spawn(_serve(accept, sock), "take")


async def _serve(accept: Callable[[], asyncio.Protocol], sock: socket.socket) -> None:
    try:
        await asyncio.get_running_loop().connect_accepted_socket(accept, sock)
    except OSError:
        sock.close()  # it has ended on its way


class _Passed(asyncio.Protocol):
    """A connection that goes on to another worker."""

    def __init__(self, passing: Passing, listener: str, to: int, keep: Callable[[], asyncio.Protocol]) -> None:
        self._passing = passing
        self._listener = listener
        self._to = to
        self._keep = keep

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", made)
        transport.pause_reading()  # not an octet may be read here
        sock = transport.get_extra_info("socket")
        descriptor = os.dup(sock.fileno())
        try:
            passed = self._passing.send(self._listener, self._to, descriptor)
        finally:
            os.close(descriptor)
        if passed:
            transport.abort()  # closes our descriptor; the connection lives in the other worker
            return
        protocol = self._keep()
        transport.set_protocol(protocol)
        transport.resume_reading()
        protocol.connection_made(transport)
