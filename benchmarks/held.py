"""Long streams through a proxy: HTTP/2 streams and WebSockets that stay open, each echoed message by message by an upstream in here.

Raw frames (RFC 9113) of the few kinds that are needed, so that a thousand streams cost little here. One event loop has the clients and the
upstream: its clock says when the last octet of a caller came through, at both ends.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.candidates import HOST
from benchmarks.rules import GRPC

__all__ = ["MESSAGE", "SOCKETS", "Caller", "Echo", "WebSocketEcho", "client_context", "open_callers", "until"]

MESSAGE = 64
SOCKETS = "/sockets"
"""Prefix of the paths of WebSockets."""
_PATIENCE_S = 20.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_LARGE = 0x7FFF0000


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(prefix: bytes, *texts: str) -> bytes:
    return prefix + b"".join(bytes((len(text),)) + text.encode() for text in texts)


_OPENING = _frame(_SETTINGS, 0, 0, b"\x00\x04" + _LARGE.to_bytes(4, "big")) + _frame(_WINDOW, 0, 0, (_LARGE - 65535).to_bytes(4, "big"))
_ASKED = (
    b"\x83\x87"  # POST, https
    + _literal(b"\x04", GRPC + "/Watch")
    + _literal(b"\x01", HOST)
    + _literal(b"\x0f\x10", "application/grpc")
    + _literal(b"\x00", "te", "trailers")
)
_ANSWERED = b"\x88" + _literal(b"\x0f\x10", "application/grpc")


class _Frames(asyncio.Protocol):
    """Cuts what arrives into frames; answers SETTINGS and PING."""

    def __init__(self) -> None:
        self._rest = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        start = 0
        while len(data) - start >= 9:
            end = start + 9 + int.from_bytes(data[start : start + 3], "big")
            if len(data) < end:
                break
            kind, flags = data[start + 3], data[start + 4]
            if kind == _SETTINGS and not flags & 1:
                self.transport.write(_frame(_SETTINGS, 1, 0))
            elif kind == _PING and not flags & 1:
                self.transport.write(_frame(_PING, 1, 0, data[start + 9 : end]))
            else:
                self.take(kind, flags, int.from_bytes(data[start + 5 : start + 9], "big"), data[start + 9 : end])
            start = end
        self._rest = data[start:]

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        raise NotImplementedError


class Echo(_Frames):
    """The upstream of the streams: sends each message back. `last` is when (time.monotonic) a caller's last octet came: messages
    begin with the letter of their caller after the five octets of the gRPC frame."""

    last: dict[int, float] = {}
    connections: set[Echo] = set()

    def __init__(self) -> None:
        super().__init__()
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connections.add(self)
        self.transport.write(_OPENING)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    @classmethod
    def abort_all(cls) -> None:
        """Ends every connection: a closed loop alone would leave them open with nobody reading."""
        for each in list(cls.connections):
            each.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            self._rest += data
            if len(self._rest) < len(_PREFACE):
                return
            self._begun, data, self._rest = True, self._rest[len(_PREFACE) :], b""
        super().data_received(data)

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS:
            self.transport.write(_frame(_HEADERS, 4, stream, _ANSWERED))
        elif kind == _DATA and payload:
            self.last[payload[5]] = time.monotonic()
            self.transport.write(_frame(_DATA, 0, stream, payload))


class Caller(_Frames):
    """One HTTP/2 connection of the caller `letter` with `count` open streams. `last`: when its last octet of an answer came. `lost`: why
    streams ended, and how many did."""

    def __init__(self, letter: str, count: int) -> None:
        super().__init__()
        self._message = b"\x00" + (MESSAGE - 5).to_bytes(4, "big") + letter.encode() * (MESSAGE - 5)
        self.streams = [1 + 2 * number for number in range(count)]
        self._turn = 0
        self.sent, self.echoed = 0, 0
        self.last = 0.0
        self.lost: Counter[str] = Counter()
        self.closing = False
        self._open = 0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        opened = (_frame(_HEADERS, 4, stream, _ASKED) for stream in self.streams)
        self.transport.write(_PREFACE + _OPENING + b"".join(opened))

    def say(self, count: int) -> None:
        """A message on each of the next `count` streams in turn."""
        if self.transport.is_closing():
            return
        turns = [self.streams[(self._turn + number) % len(self.streams)] for number in range(count)]
        self._turn += count
        self.sent += count
        self.transport.write(b"".join(_frame(_DATA, 0, stream, self._message) for stream in turns))

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self.last = time.monotonic()
            self.echoed += len(payload) // MESSAGE
        elif kind == _HEADERS:
            if flags & 1:
                self.lost["ended"] += 1
            self._open += 1
            if self._open == len(self.streams) and not self.ready.done():
                self.ready.set_result(None)
        elif kind == _RESET:
            self.lost[f"reset {int.from_bytes(payload, 'big')}"] += 1
        elif kind == _GOAWAY:
            self.lost["goaway"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closing:
            self.lost["connection lost"] += 1
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("lost before its streams were open"))

    def close(self) -> None:
        self.closing = True
        self.transport.abort()

    @property
    def waiting(self) -> int:
        """Messages whose echo has not come."""
        return self.sent - self.echoed


class WebSocketEcho(asyncio.Protocol):
    """One client's WebSocket: a message now and then, each echoed by the upstream."""

    def __init__(self) -> None:
        from benchmarks.websocket import frame

        self._message, self._expected = frame(b"a" * MESSAGE, b"mask"), len(frame(b"a" * MESSAGE, b""))
        self.sent, self._octets = 0, 0
        self.lost: Counter[str] = Counter()
        self.closing = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        head = f"GET {SOCKETS}/1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        transport.write((head + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self.ready.done():
            self._octets += len(data)
        elif data.startswith(b"HTTP/1.1 101"):
            self.ready.set_result(None)
        else:
            self.ready.set_exception(ConnectionError(f"no WebSocket: {data[:60]!r}"))

    def say(self, count: int) -> None:
        if not self.transport.is_closing():
            self.sent += 1
            self.transport.write(self._message)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closing:
            self.lost["connection lost"] += 1
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("lost before the WebSocket was open"))

    def close(self) -> None:
        self.closing = True
        self.transport.abort()

    @property
    def waiting(self) -> int:
        return self.sent - self._octets // self._expected


def client_context(certs: Path, name: str, protocol: str) -> ssl.SSLContext:
    """mTLS with the certificate `name` of the bench, and one ALPN protocol."""
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.check_hostname = False  # an SVID names a workload, not a host
    context.set_alpn_protocols([protocol])
    context.load_cert_chain(certs / f"{name}.both.pem")
    return context


async def until(holds: Callable[[], bool], timeout_s: float) -> bool:
    """Looks every 10 ms; whether it came to hold in time."""
    for _ in range(int(timeout_s / 0.01)):
        if holds():
            return True
        await asyncio.sleep(0.01)
    return holds()


async def open_callers(port: int, context: ssl.SSLContext, letter: str, connections: int, streams: int) -> list[Caller]:
    """So many connections with so many streams each, all of them answered."""
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(connections):
        _, caller = await loop.create_connection(lambda: Caller(letter, streams), "127.0.0.1", port, ssl=context)
        made.append(caller)
    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.gather(*(caller.ready for caller in made))
    return made
