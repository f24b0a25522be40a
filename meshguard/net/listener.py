"""Listening sockets: accept, choose the channel (plaintext, TLS, or by the first byte), and look after deadlines.

One sweep per listener stands in for a timer per connection and request: setting and cancelling one costs 0.85 us, a look 0.1 us.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from meshguard.model.reasons import PLAINTEXT_REFUSED
from meshguard.net.channel import Application, Channel, PlainChannel, TlsChannel
from meshguard.net.limits import ConnectionLimits
from meshguard.net.listening import bind
from meshguard.net.stream import Stream
from meshguard.wire.events import RequestEngine

if TYPE_CHECKING:
    from meshguard.net.census import Row
    from meshguard.net.passing import Passing

__all__ = ["SWEEP_S", "Door", "Listener", "ServerDoor", "TlsGate"]

log = logging.getLogger(__name__)

SWEEP_S = 0.25
"""Seconds between two looks at deadlines: they are kept to this precision."""
_BACKLOG = 1024
_TLS_HANDSHAKE = 0x16  # first octet of a TLS record with a ClientHello (RFC 8446 section 5.1)


class Door(Application, Protocol):
    """An application that the listener can look after."""

    def expire(self, now: float) -> None: ...
    def finish(self) -> None: ...
    def wind_down(self) -> None: ...
    def abandon(self, why: str) -> None: ...


class ServerDoor(Door, Protocol):
    """A downstream connection, whichever protocol it speaks. `peer` is None until it is established."""

    peer: Any
    draining: bool

    @property
    def protocol(self) -> str: ...

    @property
    def exchanges(self) -> list[Stream]:
        """What is under way."""
        ...

    def recall(self, overstays: Callable[[Stream], bool]) -> bool:
        """Ends what `overstays` says may no longer run; true when the whole connection ends with it."""

    def cut(self, why: str) -> None:
        """The caller may no longer be served."""

    def adopt(self, engine: RequestEngine, limits: ConnectionLimits) -> None:
        """Other settings of the listener; `engine` is a fresh one of HTTP/1.1."""


class TlsGate:
    """What a listener lets in. `context` is None for plaintext; it is replaced whole on rotation, so that new handshakes use the new
    one. `plaintext_until` (epoch seconds) ends plaintext where it is only permitted for a time: beside TLS, or alone (0: no end).
    `limit` bounds the connections, with `overall` those of all workers together; `buffer_bytes` is the high-water mark of what waits to be
    written to one."""

    __slots__ = ("buffer_bytes", "context", "limit", "overall", "plaintext_until")

    def __init__(self, context: ssl.SSLContext | None, limit: int, plaintext_until: float = 0.0, buffer_bytes: int = 65536) -> None:
        self.context = context
        self.limit = limit
        self.overall = False
        self.plaintext_until = plaintext_until
        self.buffer_bytes = buffer_bytes


D = TypeVar("D", bound=Door)


class Listener(Generic[D]):
    """One address. `doors` is the set of its live connections, which the door factory's applications leave by themselves."""

    def __init__(
        self,
        name: str,
        address: tuple[str, int],
        gate: TlsGate,
        new_door: Callable[[], D],
        doors: set[D],
        on_load: Callable[[float], None],
    ) -> None:
        self.name = name
        self.address = address
        self.gate = gate
        self.refused = 0
        self.accepted = 0
        self.row: Row | None = None  # where several workers serve
        self.passing: Passing | None = None
        self._new_door = new_door
        self._on_load = on_load  # told the share of the limit that is in use
        self._doors = doors
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._sweep: asyncio.TimerHandle | None = None

    def bind(self, given: Sequence[socket.socket] = ()) -> None:
        """Takes the address, without accepting yet: by the sockets of another process that are `given`, or by binding. Raises OSError."""
        self._sockets = list(given) or [bind(*self.address)]

    def take_any_destination(self) -> None:
        """Connections to other addresses may be sent here (`capture: tproxy`). After `bind`. Raises PermissionError."""
        from meshguard.net.original import make_transparent

        for sock in self._sockets:
            make_transparent(sock)

    def release(self) -> None:
        """Gives up an address that was bound and not used."""
        if not self._servers:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()

    async def start(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        if not self._sockets:
            self.bind()
        for sock in self._sockets:
            self._servers.append(await loop.create_server(self._accept, sock=sock, backlog=_BACKLOG))
        self._sweep = loop.call_later(SWEEP_S, self._look)

    async def adopt(self, sock: socket.socket) -> asyncio.Server:
        """Accepts from one more socket of the same address as well, until the returned server is closed (or all are)."""
        server = await asyncio.get_running_loop().create_server(self._accept, sock=sock, backlog=_BACKLOG)
        self._servers.append(server)
        return server

    def let_go(self, server: asyncio.Server) -> None:
        """No longer accepts from a socket that was adopted."""
        if server in self._servers:
            self._servers.remove(server)
            server.close()

    @property
    def descriptors(self) -> list[int]:
        """Of the sockets, for a process that is to accept from them too."""
        return [sock.fileno() for server in self._servers for sock in server.sockets]

    @property
    def listening(self) -> bool:
        return bool(self._servers)

    @property
    def connections(self) -> int:
        return len(self._doors)

    def _accept(self) -> asyncio.Protocol:
        """The protocol of a new connection: our own, or that of one which goes to a worker with fewer."""
        row, passing = self.row, self.passing
        if row is not None and passing is not None:
            to = passing.target(row, len(self._doors))
            if to >= 0:
                return passing.sender(self.name, to, self.welcome)
        return self.welcome()

    def welcome(self) -> asyncio.Protocol:
        """The protocol of a connection that is served here, or refused."""
        gate = self.gate
        ended = gate.context is None and gate.plaintext_until and time() >= gate.plaintext_until
        own = len(self._doors) + 1
        count = own + self._others(own)
        if ended or count > gate.limit:
            self.refused += 1
            if self.row is not None:
                self.row.set(own - 1)
            return _Refused()
        self.accepted += 1
        door = self._new_door()
        self._doors.add(door)
        self._on_load(count / gate.limit)
        if self._sweep is not None and not self._servers:  # it was on its way here when this worker stopped to accept
            asyncio.get_running_loop().call_later(SWEEP_S, door.wind_down)
        if gate.context is None:
            return PlainChannel(door, gate.buffer_bytes)
        if gate.plaintext_until > time():
            return _Sniffer(door, gate)
        return TlsChannel(door, gate.context, plaintext_answer=_PLAINTEXT_ANSWER, buffer_bytes=gate.buffer_bytes)

    def _others(self, own: int) -> int:
        """Connections of other workers that count here, where this one has `own`. It says so first: of two workers that take the last
        place at the same moment none may see only itself."""
        row = self.row
        if row is None:
            return 0
        row.set(own)
        if not self.gate.overall:
            return 0
        others = row.others()
        if own + others > self.gate.limit:
            row.bury()
            others = row.others()
        return others

    def _look(self) -> None:
        now = monotonic()
        if self.passing is not None:
            self.passing.beat(now)
        for door in list(self._doors):
            try:
                door.expire(now)
            except Exception:
                # the outermost loop of the sweep: one connection's trouble must not end the deadlines of all others
                log.exception("a deadline could not be applied")
                door.abandon("internal error")
        own = len(self._doors)
        self._on_load((own + self._others(own)) / self.gate.limit)
        self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._look)

    def stop_accepting(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def wind_down(self) -> None:
        """No new connection, and the next answer of each is its last; idle ones may still send one request. For a hand-over: closing
        an idle connection at once would lose the request that is on its way to us at this moment."""
        self.stop_accepting()
        for door in list(self._doors):
            door.wind_down()

    def finish(self) -> None:
        """No new connection, no further request on the old ones; idle ones close."""
        self.stop_accepting()
        for door in list(self._doors):
            door.finish()

    def abandon(self, why: str) -> None:
        """Cuts what is left."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for door in list(self._doors):
            door.abandon(why)


def _plaintext_answer() -> bytes:
    reason = PLAINTEXT_REFUSED
    body = (
        f'{{"type":"urn:meshguard:problem:{reason.code}","title":"{reason.title}","status":{reason.status},"code":"{reason.code}"}}\n'
    ).encode("ascii")
    return b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        len(body),
        body,
    )


_PLAINTEXT_ANSWER = _plaintext_answer()


class _Refused(asyncio.Protocol):
    """A connection above the limit: closed at once, before it can cost a handshake."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Sniffer(asyncio.Protocol):
    """The first octet decides between TLS and plaintext (`tls: permissive`)."""

    def __init__(self, door: Door, gate: TlsGate) -> None:
        self._door = door
        self._gate = gate

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        # until the first octet is here, the connection can be looked after like any other
        self._door.attached(cast(Channel, _Unborn(transport)))

    def data_received(self, data: bytes) -> None:
        gate = self._gate
        channel: Channel = PlainChannel(self._door, gate.buffer_bytes)
        if data[0] == _TLS_HANDSHAKE and gate.context is not None:
            channel = TlsChannel(self._door, gate.context, buffer_bytes=gate.buffer_bytes)
        self._transport.set_protocol(channel)
        channel.connection_made(self._transport)
        channel.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.lost("closed before the first octet")


class _Unborn:
    """What deadlines see of a connection that has said nothing yet."""

    closed = False

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def abort(self) -> None:
        self._transport.close()

    close = abort
