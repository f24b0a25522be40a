"""A raw client: exact bytes in a given segmentation out, strictly parsed answers in; over TLS or plaintext."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from tests.harness.strict import Data, End, Head, Parser, Truncated

DEADLINE_S = 8.0


class NoAnswer(AssertionError):
    """The peer stayed silent until the deadline."""


@dataclass
class Response:
    """One answer. `interim` are the 1xx heads before it; `raw_head` its exact bytes."""

    head: Head
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interim: list[Head] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.head.status

    def get(self, name: str, default: str = "") -> str:
        return self.head.get(name, default)

    @property
    def json(self) -> dict:  # type: ignore[type-arg]
        return orjson.loads(self.body)

    @property
    def problem(self) -> dict:  # type: ignore[type-arg]
        """The RFC 9457 document; fails when the answer is not one or disagrees with the wire."""
        assert self.get("content-type").split(";")[0] == "application/problem+json", (self.head.raw, self.body[:300])
        document = orjson.loads(self.body)
        assert document["status"] == self.status, (document, self.status)
        return document

    @property
    def decision_id(self) -> str:
        """The id that a refusal names, for the decision log."""
        prefix = "urn:meshguard:decision:"
        instance = self.problem["instance"]
        assert instance.startswith(prefix), instance
        return instance.removeprefix(prefix)

    def __repr__(self) -> str:
        return f"Response({self.status} {self.head.reason} {self.body[:160]!r})"


def segments(data: bytes, how: str) -> list[bytes]:
    """Cuts `data`: `whole`, `bytes` (each byte alone), `halves`, `crlf` (between every CR and LF), `lines`, `threes`."""
    if how == "whole" or len(data) < 2:
        return [data]
    if how == "bytes":
        return [data[i : i + 1] for i in range(len(data))]
    if how == "halves":
        return [data[: len(data) // 2], data[len(data) // 2 :]]
    if how == "crlf":
        return [p for p in data.replace(b"\r\n", b"\r\0SPLIT\0\n").split(b"\0SPLIT\0") if p]
    if how == "lines":
        return data.splitlines(keepends=True)
    if how == "threes":
        return [data[i : i + 3] for i in range(0, len(data), 3)]
    raise ValueError(how)


class RawClient:
    """One connection. Every wait ends at `deadline_s`."""

    def __init__(
        self,
        address: tuple[str, int],
        tls: ssl.SSLContext | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        receive_buffer: int = 0,
        session: ssl.SSLSession | None = None,
        server_name: str | None = None,
    ) -> None:
        self.deadline_s = deadline_s
        raw = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if receive_buffer:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            raw.settimeout(deadline_s)
            raw.connect(address)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.local = raw.getsockname()
            self.sock: socket.socket = raw
            if tls is not None:
                self.sock = tls.wrap_socket(raw, server_hostname=server_name, session=session)
        except BaseException:
            raw.close()
            raise
        self.parser = Parser("response")
        self._events: list[Head | Data | End] = []
        self.eof = False
        self.received = 0

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Ends the connection with RST."""
        import struct

        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def send(self, data: bytes | Iterable[bytes], *, expect: str | Iterable[str] | None = None) -> None:
        """Sends the segments one by one. A peer that has answered and closed already is not an error here."""
        if expect is not None:
            self.parser.methods.extend([expect] if isinstance(expect, str) else expect)
        for part in [data] if isinstance(data, bytes | bytearray) else data:
            try:
                self.sock.sendall(part)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                return

    def receive(self, limit: int = 65536) -> bytes:
        """The next bytes, b"" at the end (orderly or reset)."""
        try:
            data = self.sock.recv(limit)
        except TimeoutError:
            raise NoAnswer(f"nothing within {self.deadline_s} s; pending {self.parser.pending[:200]!r}") from None
        except (ConnectionResetError, ssl.SSLError, OSError):
            data = b""
        self.received += len(data)
        if not data:
            self.eof = True
        return data

    def _pull(self) -> Head | Data | End:
        deadline = time.monotonic() + self.deadline_s
        while not self._events:
            if self.eof:
                raise Truncated("end of connection, no (further) answer")
            if time.monotonic() > deadline:
                raise NoAnswer(f"no complete answer within {self.deadline_s} s")
            data = self.receive()
            self._events += self.parser.feed(data) if data else self.parser.eof()
        return self._events.pop(0)

    def head(self) -> Head:
        """The next head (interim ones included)."""
        event = self._pull()
        assert isinstance(event, Head), event
        return event

    def body(self) -> Iterator[bytes]:
        """The pieces of the body as they arrive, after `head`."""
        while True:
            event = self._pull()
            if isinstance(event, End):
                self.trailers = event.trailers
                return
            assert isinstance(event, Data)
            yield event.data

    def response(self) -> Response:
        """The next final answer with its interim ones."""
        interim: list[Head] = []
        while True:
            head = self.head()
            if head.status >= 200:
                break
            assert isinstance(self._pull(), End)
            interim.append(head)
        body = b"".join(self.body())
        return Response(head, body, self.trailers, interim)

    def request(self, data: bytes, method: str | None = None) -> Response:
        self.send(data, expect=method or data.split(b" ", 1)[0].decode("latin-1"))
        return self.response()

    def rest(self) -> list[Response]:
        """Every answer until the connection ends; a cut-off one at the end raises `Truncated`."""
        out = []
        while True:
            try:
                out.append(self.response())
            except Truncated:
                if not self.parser.between_messages:
                    raise
                return out

    def assert_closed(self) -> None:
        """The peer ends the connection without another byte."""
        assert not self._events, f"more than was expected: {self._events}"
        data = b"" if self.eof else self.receive()
        assert data == b"", f"expected the end of the connection, got {data[:300]!r}"


def get(
    path: str = "/", *, host: str = "shop.example", fields: Iterable[str] = (), method: str = "GET", body: bytes | None = None
) -> bytes:
    """The bytes of an ordinary request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def chunked(*parts: bytes, trailers: bytes = b"") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"
