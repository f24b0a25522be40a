"""Connections at their edges, over transports in memory: not attached yet, or closed with a peer that takes nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, time
from typing import Any

import pytest

from meshguard.model.errors import RequestError
from meshguard.model.messages import RequestHead
from meshguard.net.channel import PlainChannel
from meshguard.net.http1_server import ConnectionLimits, Http1Connection
from meshguard.net.listener import Listener, TlsGate
from meshguard.wire import http1, reference
from meshguard.wire.events import WireLimits
from meshguard.wire.semantics import FieldRules
from tests.net.test_tls import server_context

ENGINES = {"default": http1.RequestParser, "reference": reference.RequestReader}


class Stuck(asyncio.Transport):
    """A transport whose peer reads nothing: what is written stays, `close` waits for it, only `abort` ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.held = b""
        self.closing = self.ended = False

    def take(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        protocol.connection_made(self)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return len(self.held)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing, "written after the end"
        self.held += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        if not self.held:
            self.abort()

    def abort(self) -> None:
        """The loop tells the protocol later; here the test is the loop (`settle`)."""
        self.closing = self.ended = True

    def settle(self) -> None:
        if self.ended:
            self.protocol.connection_lost(None)


class Host:
    """The handler: answers every request at once with a body."""

    crowded = False

    def __init__(self) -> None:
        self.doors: set[Http1Connection] = set()

    def welcome(self, door: Any, channel: Any) -> object:
        return self

    def begin(self, door: Any, peer: Any, head: RequestHead) -> None:
        door.stream = self
        door.send_whole(200, b"", b"answer")
        door.exchange_over(True)

    def refuse_head(self, door: Any, peer: Any, error: RequestError) -> None:
        raise AssertionError(error)

    def farewell(self, door: Any, peer: Any, reason: str) -> None:
        self.doors.discard(door)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def new_door(host: Host, engine: str) -> Callable[[], Http1Connection]:
    limits = ConnectionLimits(idle_s=1.0, handshake_s=1.0)
    return lambda: Http1Connection(host, ENGINES[engine](WireLimits(), FieldRules((), "refuse")), limits)


@pytest.mark.parametrize("last", ["close", "keep-alive", "half-closed"])
def test_an_answer_that_is_not_taken_is_given_up(last: str, host: Host, new_door: Callable[[], Http1Connection]) -> None:
    """All of it is written, the exchange is over, and the peer reads nothing: the buffer and the connection do not stay for ever."""
    door = new_door()
    host.doors.add(door)
    transport = Stuck()
    channel = PlainChannel(door)
    transport.take(channel)
    channel.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"Connection: close\r\n" if last == "close" else b"") + b"\r\n")
    assert transport.held.endswith(b"answer")
    if last == "half-closed":
        channel.eof_received()
    door.expire(monotonic() + 0.5)
    assert not transport.ended, "it had half a second to take its answer"
    for look in (1.5, 3.0, 4.5):
        door.expire(monotonic() + look)
        transport.settle()
    assert transport.ended
    assert host.doors == set()


@pytest.mark.parametrize("end", ["finish", "abandon", "expire"])
@pytest.mark.parametrize("kind", ["plaintext", "tls", "permissive"])
def test_a_connection_that_is_accepted_at_the_very_end(kind: str, end: str, host: Host, new_door: Callable[[], Http1Connection]) -> None:
    """Between accepting and attaching lies a turn of the loop. A shutdown in just that turn neither fails nor leaves the connection."""
    gate = TlsGate(None if kind == "plaintext" else server_context(), 10, time() + 60 if kind == "permissive" else 0.0)
    listener = Listener("door", ("127.0.0.1", 0), gate, new_door, host.doors, lambda share: None)
    protocol = listener._accept()
    (door,) = host.doors
    if end == "finish":
        listener.finish()
    elif end == "abandon":
        listener.abandon("shutdown")
    else:
        door.expire(monotonic() + 5)  # a loop that was busy for longer than a handshake may take
    transport = Stuck()
    transport.take(protocol)
    if end != "abandon" and not transport.closing:  # without a request it may also be ended by the next look
        door.expire(monotonic() + 5)
    assert transport.closing
    transport.settle()
    assert host.doors == set()
