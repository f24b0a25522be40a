"""WebSocket peers of the process tests: exact frames out and in, and an upstream that answers by `wsproto`."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.harness.client import RawClient, get
from tests.harness.strict import Head, Parser
from tests.harness.upstream import Exchange, Script

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
MASK = b"\x37\xfa\x21\x3d"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def accept_of(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


def masked(payload: bytes, key: bytes) -> bytes:
    return bytes(octet ^ key[index % 4] for index, octet in enumerate(payload))


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes = MASK, width: int = 0) -> bytes:
    """One frame; `mask` empty for a server's, `width` 2 or 8 forces the longer form of the length."""
    length = len(payload)
    width = width or (0 if length < 126 else 2 if length < 65536 else 8)
    short = {0: length, 2: 126, 8: 127}[width]
    head = bytes([fin << 7 | rsv << 4 | opcode, (0x80 if mask else 0) | short]) + (length.to_bytes(width, "big") if width else b"")
    return head + mask + (masked(payload, mask) if mask else payload)


def close(code: int | None = None, reason: bytes = b"", **more: Any) -> bytes:
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason, **more)


class Frame(NamedTuple):
    fin: bool
    rsv: int
    opcode: int
    masked: bool
    payload: bytes

    @property
    def code(self) -> int | None:
        return int.from_bytes(self.payload[:2], "big") if self.payload else None


def parse(data: bytes) -> tuple[list[Frame], bytes]:
    """(whole frames, the rest)."""
    frames = []
    while len(data) >= 2:
        length, at = data[1] & 127, 2
        if length > 125:
            width = 2 if length == 126 else 8
            length, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
        has_mask = bool(data[1] & 0x80)
        key, at = (data[at : at + 4], at + 4) if has_mask else (b"", at)
        if len(data) < at + length:
            break
        payload = data[at : at + length]
        frames.append(Frame(bool(data[0] >> 7), data[0] >> 4 & 7, data[0] & 15, has_mask, masked(payload, key) if has_mask else payload))
        data = data[at + length :]
    return frames, data


def handshake(path: str = "/ws", *fields: str, key: str = KEY) -> bytes:
    base = ["Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    return get(path, fields=[*base, *fields])


class WebSocketClient(RawClient):
    """A client that has upgraded: `answer` is the 101."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None, path: str = "/ws", *fields: str, **options: Any) -> None:
        super().__init__(address, tls, **options)
        self._rest = b""
        try:
            self.send(handshake(path, *fields))
            self.answer = self.switched()
        except BaseException:
            self.close()
            raise

    def switched(self) -> Head:
        while b"\r\n\r\n" not in self._rest:
            data = self.receive()
            assert data, f"no answer but {self._rest!r}"
            self._rest += data
        end = self._rest.index(b"\r\n\r\n") + 4
        head, self._rest = self._rest[:end], self._rest[end:]
        parser = Parser("response")
        parser.methods.append("GET")
        event = parser.feed(head)[0]
        assert isinstance(event, Head)
        assert event.status == 101, head
        assert event.get("sec-websocket-accept") == accept_of(KEY)
        return event

    def frame(self) -> Frame:
        while True:
            frames, _ = parse(self._rest)
            if frames:
                first = frames[0]
                self._rest = self._rest[_size(self._rest) :]
                assert not first.masked
                return first
            data = self.receive()
            assert data, f"the connection ended with {self._rest!r}"
            self._rest += data

    def frames_to_end(self) -> list[Frame]:
        """Every frame until the connection ends."""
        while data := self.receive():
            self._rest += data
        frames, rest = parse(self._rest)
        assert rest == b"", rest
        return frames


def _size(data: bytes) -> int:
    """Octets of the first frame, which is whole."""
    length, at = data[1] & 127, 2
    if length > 125:
        width = 2 if length == 126 else 8
        length, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
    return at + (4 if data[1] & 0x80 else 0) + length


class Socket:
    """The upstream's side after its 101; `seen` is everything that came."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.seen = bytearray()
        self.ended = False

    async def read(self) -> bytes:
        """The next octets, b"" at the end (orderly or not)."""
        data = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            data = await self.exchange.connection.reader.read(65536)
        self.seen += data
        self.ended = not data
        self.exchange.upstream.changed()
        return data

    async def send(self, data: bytes) -> None:
        await self.exchange.send(data)

    def end(self) -> None:
        self.ended = True
        self.exchange.close()
        self.exchange.upstream.changed()

    @property
    def frames(self) -> list[Frame]:
        return parse(bytes(self.seen))[0]


Serve = Callable[[Socket], Awaitable[None]]


async def echo(socket: Socket) -> None:
    """What a server does, by `wsproto`."""
    accepted = getattr(socket, "extensions", [])
    connection = Connection(ConnectionType.SERVER, accepted)
    while data := await socket.read():
        connection.receive_data(data)
        for event in connection.events():
            if isinstance(event, Ping):
                await socket.send(connection.send(event.response()))
            elif isinstance(event, CloseConnection):
                await socket.send(connection.send(event.response()))
                socket.end()
                return
            elif isinstance(event, TextMessage | BytesMessage):
                await socket.send(connection.send(Message(event.data, event.frame_finished, event.message_finished)))


async def swallow(socket: Socket) -> None:
    """Reads to the end and says nothing."""
    while await socket.read():
        pass


class Answers:
    """A script for `Upstream.on`: the sockets it has opened, in order."""

    def __init__(self, serve: Serve = echo, *fields: str, behind: bytes = b"", deflate: bool = False) -> None:
        self.sockets: list[Socket] = []
        self._serve = serve
        self._fields = fields
        self._behind = behind
        self._deflate = deflate

    async def script(self, exchange: Exchange) -> None:
        await exchange.read()
        head = exchange.request.head
        socket = Socket(exchange)
        fields = list(self._fields)
        if self._deflate:
            extension = PerMessageDeflate()
            agreed = extension.accept(head.get("sec-websocket-extensions"))
            fields.append(f"Sec-WebSocket-Extensions: permessage-deflate; {agreed}" if isinstance(agreed, str) and agreed else "X: y")
            socket.extensions = [extension]  # type: ignore[attr-defined]
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_of(head.get('sec-websocket-key'))}",
            *fields,
        ]
        self.sockets.append(socket)
        await socket.send("\r\n".join(lines).encode() + b"\r\n\r\n" + self._behind)
        exchange.upstream.changed()
        exchange.connection.closing = True  # no further request on it
        await self._serve(socket)

    @property
    def as_script(self) -> Script:
        return self.script


def steady(value: Callable[[], int], looks: int = 40) -> Callable[[], bool]:
    """For `eventually`: the value has not changed for a number of looks."""
    history: list[int] = []

    def look() -> bool:
        history.append(value())
        return len(history) > looks and len(set(history[-looks:])) == 1

    return look
