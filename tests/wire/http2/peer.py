"""The other side of an engine, by hand: frames from their parts, field blocks without a table, a sink that remembers what it was told.

Everything here is independent of the engine: its own numbers, its own struct formats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from meshguard.model.errors import RequestError
from meshguard.model.messages import RequestHead, ResponseHead
from meshguard.wire.http2.client import Http2Client
from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.reference import ReferenceClient, ReferenceServer
from meshguard.wire.http2.server import Http2Server
from meshguard.wire.semantics import FieldRules
from tests.wire.drive import slots

__all__ = [
    "CLIENTS",
    "GET",
    "PREFACE",
    "SERVERS",
    "SETTINGS",
    "Frame",
    "Sink",
    "block",
    "client",
    "cont",
    "data",
    "frame",
    "frames",
    "goaway",
    "headers",
    "number",
    "ping",
    "priority",
    "rst",
    "sent",
    "server",
    "settings",
    "window",
]  # fmt: skip

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
KINDS = ("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE", "CONTINUATION")
CODES = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
    "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip


def code_name(code: int) -> str:
    """Codes that nobody has defined mean nothing special (RFC 9113 section 7)."""
    return CODES[code] if code < len(CODES) else f"{code:#x}"


END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 32


def number(value: int, octets: int = 4) -> bytes:
    return value.to_bytes(octets, "big")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return number(len(payload), 3) + bytes((kind, flags)) + number(stream) + payload


def block(*fields: tuple[bytes, bytes], first: int = 0) -> bytes:
    """Literals; `first` is the representation (0: without indexing, 0x10: never indexed, 0x40: with incremental indexing)."""

    def string(value: bytes) -> bytes:
        size = len(value)
        if size < 127:
            return bytes((size,)) + value
        prefix = b"\x7f"
        size -= 127
        while size >= 128:
            prefix += bytes((size & 127 | 128,))
            size >>= 7
        return prefix + bytes((size,)) + value

    return b"".join(bytes((first,)) + string(name) + string(value) for name, value in fields)


GET = ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"shop.example"), (b":path", b"/a"))


def headers(stream: int, *fields: tuple[bytes, bytes], end: bool = True, raw: bytes | None = None, flags: int = 0) -> bytes:
    payload = block(*fields) if raw is None else raw
    return frame(1, END_HEADERS | (END_STREAM if end else 0) | flags, stream, payload)


def cont(stream: int, payload: bytes, end: bool = False) -> bytes:
    return frame(9, END_HEADERS if end else 0, stream, payload)


def data(stream: int, payload: bytes = b"", end: bool = False, padding: int | None = None) -> bytes:
    flags = END_STREAM if end else 0
    if padding is not None:
        return frame(0, flags | PADDED, stream, bytes((padding,)) + payload + bytes(padding))
    return frame(0, flags, stream, payload)


def settings(*pairs: tuple[int, int], ack: bool = False) -> bytes:
    return frame(4, 1 if ack else 0, 0, b"".join(number(key, 2) + number(value) for key, value in pairs))


def rst(stream: int, code: int = 8) -> bytes:
    return frame(3, 0, stream, number(code))


def ping(payload: bytes = b"12345678", ack: bool = False) -> bytes:
    return frame(6, 1 if ack else 0, 0, payload)


def window(stream: int, octets: int) -> bytes:
    return frame(8, 0, stream, number(octets))


def goaway(last: int, code: int = 0) -> bytes:
    return frame(7, 0, 0, number(last) + number(code))


def priority(stream: int, on: int) -> bytes:
    return frame(2, 0, stream, number(on) + b"\x10")


SETTINGS = settings()


@dataclass
class Frame:
    kind: str
    flags: int
    stream: int
    payload: bytes

    def __str__(self) -> str:
        """`RST_STREAM 1 CANCEL`, `GOAWAY CANCEL`, `HEADERS 1`, `WINDOW_UPDATE 0 100` ..."""
        if self.kind == "RST_STREAM":
            return f"RST_STREAM {self.stream} {code_name(int.from_bytes(self.payload, 'big'))}"
        if self.kind == "GOAWAY":
            return f"GOAWAY {CODES[int.from_bytes(self.payload[4:8], 'big')]}"
        if self.kind == "WINDOW_UPDATE":
            return f"WINDOW_UPDATE {self.stream} {int.from_bytes(self.payload, 'big')}"
        end = " END_STREAM" if self.kind in ("DATA", "HEADERS") and self.flags & END_STREAM else ""
        size = f" {len(self.payload)}" if self.kind == "DATA" else ""
        ack = " ACK" if self.kind in ("SETTINGS", "PING") and self.flags & 1 else ""
        return f"{self.kind} {self.stream}{size}{end}{ack}" if self.stream else f"{self.kind}{ack}"


def frames(octets: bytes) -> list[Frame]:
    """The frames that an engine has written; strict about their form."""
    found = []
    octets = octets.removeprefix(PREFACE)
    while octets:
        length = int.from_bytes(octets[:3], "big")
        assert len(octets) >= 9 + length
        stream = int.from_bytes(octets[5:9], "big")
        assert stream < 2**31
        found.append(Frame(KINDS[octets[3]], octets[4], stream, octets[9 : 9 + length]))
        octets = octets[9 + length :]
    return found


def sent(engine: Any) -> list[str]:
    """What an engine has to say, as text."""
    return [str(one) for one in frames(engine.take())]


@dataclass
class Sink:
    """Remembers calls as tuples: heads as (name, stream, head), errors by their reason. Consumes data at once if it knows its `engine`."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    engine: Any = None
    heads: list[RequestHead | ResponseHead] = field(default_factory=list)

    def request(self, stream: int, head: RequestHead) -> None:
        self.heads.append(head)
        self.calls.append(("request", stream))

    def response(self, stream: int, head: ResponseHead) -> None:
        self.heads.append(head)
        self.calls.append(("response", stream, head.status))

    def refused(self, stream: int, error: RequestError, answerable: bool) -> None:
        self.calls.append(("refused", stream, error.reason.code, answerable))

    def data(self, stream: int, octets: bytes) -> None:
        assert octets
        self.calls.append(("data", stream, octets))
        if self.engine is not None:
            self.engine.consumed(stream, len(octets))

    def padding(self, stream: int, octets: int) -> None:
        self.calls.append(("padding", stream, octets))
        if self.engine is not None:
            self.engine.consumed(stream, octets)

    def end(self, stream: int, trailers: bytes) -> None:
        self.calls.append(("end", stream, trailers))

    def aborted(self, stream: int, code: int, by_peer: bool, detail: str) -> None:
        assert by_peer or detail
        self.calls.append(("aborted", stream, code_name(code), by_peer))

    def writable(self, stream: int) -> None:
        self.calls.append(("writable", stream))

    def capacity(self) -> None:
        pass

    def goaway(self, last_stream: int, code: int) -> None:
        self.calls.append(("goaway", last_stream, code_name(code)))

    def failed(self, code: int, detail: str) -> None:
        assert detail
        self.calls.append(("failed", code_name(code)))

    def told(self) -> list[tuple[Any, ...]]:
        """What was told, with the octets of neighbouring pieces of data joined, and heads by their slots."""
        result: list[tuple[Any, ...]] = []
        heads = iter(self.heads)
        for call in self.calls:
            if call[0] in ("request", "response"):
                result.append((*call, slots(next(heads))))
            elif call[0] == "data" and result and result[-1][:2] == call[:2]:
                result[-1] = (*call[:2], result[-1][2] + call[2])
            else:
                result.append(call)
        return result


SERVERS: dict[str, Any] = {"default": Http2Server, "reference": ReferenceServer}
CLIENTS: dict[str, Any] = {"default": Http2Client, "reference": ReferenceClient}
"""Both engines have the same interface; the suites of rules and floods run on both."""


def server(
    limits: Http2Limits | None = None, rules: FieldRules | None = None, *pieces: bytes, kind: str = "default"
) -> tuple[Http2Server, Sink]:
    """A server that has greeted its client: both SETTINGS are exchanged and acknowledged, nothing is left to take."""
    sink = Sink()
    engine = SERVERS[kind](sink, limits or Http2Limits(), rules or FieldRules())
    sink.engine = engine
    engine.start()
    engine.receive(PREFACE + SETTINGS + settings(ack=True), 0.0)
    engine.take()
    feed(engine, pieces)
    return engine, sink


def client(limits: Http2Limits | None = None, *heads: bytes, kind: str = "default") -> tuple[Http2Client, Sink]:
    """A client that has greeted its server and sent these requests, whole."""
    sink = Sink()
    engine = CLIENTS[kind](sink, limits or Http2Limits())
    sink.engine = engine
    engine.start()
    engine.receive(SETTINGS + settings(ack=True), 0.0)
    for head in heads:
        engine.request(head, b"http", True)
    engine.take()
    return engine, sink


def feed(engine: Any, pieces: Iterable[bytes], now: float = 0.0) -> None:
    for piece in pieces:
        engine.receive(piece, now)
