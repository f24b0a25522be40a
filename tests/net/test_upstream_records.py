"""An upstream connection over TLS in memory: what lies unread below it, and in which state it is given back."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

import pytest

from meshguard.model.messages import ResponseHead
from meshguard.model.reasons import Reason
from meshguard.net.channel import TlsChannel
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.endpoint import Endpoint, parse_address
from meshguard.net.http1_client import UpstreamConnection
from meshguard.wire.events import WireLimits
from meshguard.wire.http1 import ResponseParser
from tests.net.cluster_parts import run, turns
from tests.net.test_tls import client_context, server_context

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


class Peer(asyncio.Transport):
    """The transport of the channel, with a TLS server at its other end."""

    def __init__(self) -> None:
        super().__init__()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server_context(mode="server").wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.paused = self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.incoming.write(data)

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


class Pool:
    """The cluster, as far as a connection knows it: uses a connection that is given back at once for the request that waits."""

    def __init__(self) -> None:
        self.released: list[UpstreamConnection] = []
        self.discarded: list[UpstreamConnection] = []
        self.waiting: Asked | None = None

    def release(self, connection: UpstreamConnection) -> None:
        self.released.append(connection)
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            connection.start(waiting, b"GET /b HTTP/1.1\r\n\r\n", b"GET", False)

    def discard(self, connection: UpstreamConnection, reason: Reason | None = None) -> None:
        self.discarded.append(connection)

    lost = discard

    def answered(self, endpoint: Endpoint, status: int) -> None: ...


class Asked:
    """An exchange: keeps what it is answered, pauses the connection where `slow`."""

    def __init__(self, connection: UpstreamConnection, *, slow: bool = False) -> None:
        self.connection = connection
        self.slow = slow
        self.body = b""
        self.heads = 0
        self.failures: list[Reason] = []

    def response_whole(self, head: ResponseHead, body: bytes) -> None:
        self.response_head(head)
        self.response_data(body)
        self.response_end(b"")

    def response_head(self, head: ResponseHead) -> None:
        self.heads += 1

    def response_data(self, data: bytes) -> None:
        self.body += data
        if self.slow:
            self.connection.channel.pause_reading()

    def response_end(self, trailers: bytes) -> None:
        self.connection.finish(True)

    def flush_response(self) -> None: ...

    def upstream_failed(self, reason: Reason, detail: str) -> None:
        self.failures.append(reason)

    def fail(self, exc: Exception) -> None:
        raise exc


class Story:
    """A connected channel with its connection, peer and pool."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.peer = Peer()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        endpoint = Endpoint(parse_address("127.0.0.1:1"))
        self.connection = UpstreamConnection(cast(Cluster, self.pool), endpoint, ResponseParser(WireLimits()), None, ready)
        self.channel = TlsChannel(self.connection, client_context(), None)
        self.channel.connection_made(self.peer)
        for _ in range(4):
            try:
                self.peer.tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            self.deliver()
        assert ready.done()

    def ask(self, **how: Any) -> Asked:
        asked = Asked(self.connection, **how)
        self.connection.start(asked, b"GET /a HTTP/1.1\r\n\r\n", b"GET", False)
        self.connection.flush()
        return asked

    def deliver(self) -> None:
        """All records written so far, in one segment."""
        data = self.peer.outgoing.read()
        if data:
            self.channel.data_received(data)


def story(test: Callable[[Story], Any]) -> None:
    async def tell() -> None:
        await test(Story())

    run(tell())


def test_a_connection_with_nothing_unread_is_given_back() -> None:
    async def tell(s: Story) -> None:
        asked = s.ask()
        s.peer.tls.write(GOOD)
        s.deliver()
        assert (asked.body, s.pool.released, s.pool.discarded) == (b"good", [s.connection], [])

    story(tell)


@pytest.mark.parametrize("slow", [False, True], ids=["read", "paused"])
@pytest.mark.parametrize("extra", ["whole", "half"])
def test_an_answer_in_the_next_record_is_nobodys(extra: str, slow: bool) -> None:
    """Whole or as yet half a record: it lies there when the first answer is complete, so the connection is not used again."""

    async def tell(s: Story) -> None:
        asked = s.ask(slow=slow)
        s.pool.waiting = other = Asked(s.connection)
        if slow:  # the first piece pauses the channel: the end of the answer and the extra one wait in memory
            s.peer.tls.write(GOOD[:-1])
            s.peer.tls.write(GOOD[-1:])
        else:
            s.peer.tls.write(GOOD)
        good = s.peer.outgoing.read()
        s.peer.tls.write(EVIL)
        evil = s.peer.outgoing.read()
        first = evil if extra == "whole" else evil[:-1]
        s.channel.data_received(good + first)
        if slow:
            assert asked.body == b"goo"
            asked.slow = False
            s.channel.resume_reading()
            await turns()
        assert asked.body == b"good"
        if not s.peer.closed:
            s.channel.data_received(evil[len(first) :])
        await turns()
        assert (other.heads, other.body) == (0, b"")
        assert s.pool.released == []
        assert s.pool.discarded == [s.connection]
        assert s.connection.closed

    story(tell)


def test_a_pause_ends_with_its_exchange() -> None:
    """The last piece of an answer pauses the connection (a slow client); given back, it reads again."""

    async def tell(s: Story) -> None:
        s.ask(slow=True)
        s.peer.tls.write(GOOD)
        s.deliver()
        if s.connection in s.pool.released:
            assert not s.peer.paused
            other = s.ask()
            s.peer.tls.write(GOOD)
            s.deliver()
            await turns()
            assert other.body == b"good"
        else:
            assert s.connection.closed

    story(tell)
