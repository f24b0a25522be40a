"""Parts for the tests of HTTP/1.1 connections: a transport in memory, and a handler whose streams the test answers by hand."""

from __future__ import annotations

import asyncio
from typing import Any

from meshguard.model.errors import RequestError
from meshguard.model.messages import NO_BODY, RequestHead
from meshguard.model.reasons import INTERNAL_ERROR, POLICY_DENIED, Reason
from meshguard.net.channel import PlainChannel
from meshguard.net.http1_server import Http1Connection
from meshguard.net.limits import ConnectionLimits
from meshguard.wire.events import WireLimits
from meshguard.wire.http1 import RequestParser
from meshguard.wire.semantics import FieldRules
from tests.harness.strict import Data, End, Head, Parser

__all__ = ["Client", "Exchange", "Handler", "MemoryTransport"]


class MemoryTransport(asyncio.Transport):
    """What was written, and what was asked of the transport. The test itself tells the protocol that the connection is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.writes = 0
        self.closed = False
        self.aborted = False
        self.eof_written = False
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 1234), "sockname": ("192.0.2.2", 443)}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high, low)

    def write(self, data: Any) -> None:
        assert not self.closed, "a write on a closed transport"
        assert not self.eof_written, "a write after the end"
        self.written += data
        self.writes += 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_written = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def take(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        return data


class Exchange:
    """A stream as the door sees it; the test answers it."""

    def __init__(self, door: Http1Connection, head: RequestHead | None) -> None:
        self.door: Http1Connection | None = door
        self.head = head
        self.body = b""
        self.ended = head is None or head.length == NO_BODY
        self.trailers = b""
        self.gone = ""
        self.failure: Exception | None = None
        self.paused = False
        self.expired: list[float] = []
        self.started = False

    def request_data(self, data: bytes) -> None:
        assert self.door is not None, "data for an exchange that is over"
        self.body += data

    def request_end(self, trailers: bytes) -> None:
        assert self.door is not None
        assert not self.ended
        self.ended = True
        self.trailers = trailers

    def flush_request(self) -> None: ...

    def client_gone(self, why: str, kind: str = "client") -> None:
        self.gone = why
        self.door = None

    def dismiss(self, why: str, kind: str) -> bool:
        return False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def fail(self, exc: Exception) -> None:
        self.failure = exc
        if self.started:
            door, self.door = self.door, None
            assert door is not None
            door.reset()
        else:
            self.refuse(exc.reason if isinstance(exc, RequestError) else INTERNAL_ERROR)

    def expire(self, now: float) -> None:
        self.expired.append(now)

    # what the journey does

    def _over(self) -> Http1Connection:
        door, self.door = self.door, None
        assert door is not None
        return door

    def refuse(self, reason: Reason = POLICY_DENIED, body: bytes = b"no") -> None:
        door = self._over()
        door.send_refusal(reason, b"", body)
        door.exchange_over(self.ended)

    def answer(self, body: bytes = b"ok", status: int = 200) -> None:
        door = self._over()
        door.send_whole(status, b"", body)
        door.exchange_over(self.ended)

    def begin(self, length: int, status: int = 200, specials: list[tuple[bytes, bytes]] | None = None) -> None:
        assert self.door is not None
        self.started = True
        self.door.send_head(status, b"", length, specials or [])

    def end(self, trailers: bytes = b"") -> None:
        door = self._over()
        door.send_end(trailers)
        door.exchange_over(self.ended)


class Handler:
    """Exchanges in the order in which they began. Paths answer by themselves: `/now` at once, `/no` with a refusal, `/raise` not at all."""

    def __init__(self) -> None:
        self.crowded = False
        self.exchanges: list[Exchange] = []
        self.refused: list[RequestError] = []
        self.lost: list[str] = []
        self.welcomed = 0

    def welcome(self, door: Any, channel: Any) -> Any:
        self.welcomed += 1
        return "peer"

    def begin(self, door: Any, peer: Any, head: RequestHead) -> None:
        assert door.stream is None, "two exchanges at once"
        exchange = Exchange(door, head)
        door.stream = exchange
        self.exchanges.append(exchange)
        match head.target:
            case b"/now":
                exchange.answer(b"%d" % len(self.exchanges))
            case b"/no":
                exchange.refuse()
            case b"/raise":
                raise ZeroDivisionError

    def refuse_head(self, door: Any, peer: Any, error: RequestError) -> None:
        exchange = Exchange(door, None)
        door.stream = exchange
        self.refused.append(error)
        exchange.refuse(error.reason)

    def farewell(self, door: Any, peer: Any, reason: str) -> None:
        self.lost.append(reason)


class Client:
    """The client's end of one connection."""

    def __init__(self, limits: ConnectionLimits | None = None, engine: Any = None, methods: tuple[str, ...] = ()) -> None:
        self.handler = Handler()
        self.limits = limits or ConnectionLimits()
        self.door = Http1Connection(self.handler, engine or RequestParser(WireLimits(), FieldRules()), self.limits)
        self.transport = MemoryTransport()
        self.channel = PlainChannel(self.door)
        self.channel.connection_made(self.transport)
        self.parser = Parser("response")
        self.parser.methods = list(methods)

    def send(self, data: bytes) -> None:
        self.channel.data_received(data)

    def finish(self) -> None:
        """Our side is over."""
        if not self.channel.eof_received():
            self.transport.close()

    def lose(self, exc: Exception | None = None) -> None:
        self.channel.connection_lost(exc)

    def events(self) -> list[Head | Data | End]:
        return self.parser.feed(self.transport.take())

    def answers(self) -> list[tuple[int, bytes]]:
        """(status, body) of each answer that came since the last call; all of them have to be whole."""
        out: list[tuple[int, bytes]] = []
        for event in self.events():
            if isinstance(event, Head):
                out.append((event.status, b""))
            elif isinstance(event, Data):
                out[-1] = (out[-1][0], out[-1][1] + event.data)
        return out

    @property
    def open(self) -> bool:
        return not self.transport.closed and not self.transport.eof_written

    @property
    def last(self) -> Exchange:
        return self.handler.exchanges[-1]
