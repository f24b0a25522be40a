"""Channels over transports in memory, TLS with real contexts: octets, ends and back-pressure, however records are cut."""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import Any

import pytest

from meshguard.net.channel import HIGH_WATER, PlainChannel, TlsChannel
from tests.net.http1_parts import MemoryTransport
from tests.net.test_tls import CLIENT, PARTNER, client_context, server_context


class Application:
    """Writes down what it is told. `echo` answers everything; `reading` False pauses at the next data."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.data = b""
        self.pause_at_data = False
        self.channel: Any = None

    def attached(self, channel: Any) -> None:
        self.channel = channel
        self.log.append("attached")

    def connected(self, channel: Any) -> None:
        self.log.append("connected")

    def received(self, data: bytes) -> None:
        assert data
        assert "connected" in self.log, "data before the handshake"
        assert not any(entry.startswith("lost") for entry in self.log), "data after the end"
        self.data += data
        if self.pause_at_data:
            self.pause_at_data = False
            self.channel.pause_reading()

    def ended(self) -> None:
        self.log.append("ended")

    def lost(self, reason: str) -> None:
        self.log.append(f"lost {reason}".rstrip())

    def pause(self) -> None:
        self.log.append("pause")

    def resume(self) -> None:
        self.log.append("resume")


class Link:
    """Two channels whose transports' octets the test carries over, in pieces of any size."""

    def __init__(self, server: ssl.SSLContext | None = None, client: ssl.SSLContext | None = None, **options: Any) -> None:
        self.server_app, self.client_app = Application(), Application()
        self.server = TlsChannel(self.server_app, server or server_context(), **options)
        self.client = TlsChannel(self.client_app, client or client_context(), "localhost")
        self.to_client, self.to_server = MemoryTransport(), MemoryTransport()
        self.server.connection_made(self.to_client)
        self.client.connection_made(self.to_server)

    def carry(self, size: int = 1 << 30, rounds: int = 60) -> None:
        """Moves what was written until nothing moves any more."""
        for _ in range(rounds):
            moved = False
            for source, target, own in ((self.to_server, self.server, self.to_client), (self.to_client, self.client, self.to_server)):
                data = source.take()
                for at in range(0, len(data), size):
                    if not own.closed:
                        target.data_received(data[at : at + size])
                        moved = True
            if not moved:
                return
        raise AssertionError("it never ends")

    def up(self, size: int = 1 << 30) -> Link:
        self.carry(size)
        assert self.server_app.log[:2] == self.client_app.log[:2] == ["attached", "connected"]
        return self


# ---- plain


def plain() -> tuple[Application, PlainChannel, MemoryTransport]:
    application, transport = Application(), MemoryTransport()
    channel = PlainChannel(application)
    channel.connection_made(transport)
    return application, channel, transport


def test_plain_octets_pass() -> None:
    application, channel, transport = plain()
    channel.data_received(b"abc")
    channel.write(b"def")
    assert application.data == b"abc"
    assert transport.take() == b"def"
    assert application.log == ["attached", "connected"]
    assert (channel.peer, channel.local, channel.tls) == (("192.0.2.1", 1234), ("192.0.2.2", 443), None)
    assert transport.limits == (HIGH_WATER, HIGH_WATER // 4)


def test_a_plain_peer_may_close_its_side() -> None:
    application, channel, transport = plain()
    assert channel.eof_received() is True, "the other direction stays open"
    assert application.log[-1] == "ended"
    channel.write(b"answer")
    assert transport.take() == b"answer"
    channel.close()
    assert channel.eof_received() is False


@pytest.mark.parametrize("end", ["close", "abort", "end_writing"])
def test_after_its_end_a_plain_channel_writes_nothing(end: str) -> None:
    application, channel, transport = plain()
    getattr(channel, end)()
    channel.write(b"late")
    getattr(channel, end)()
    channel.pause_reading()
    channel.resume_reading()
    assert transport.take() == b""
    assert (transport.closed, transport.aborted, transport.eof_written) == (end != "end_writing", end == "abort", end == "end_writing")
    channel.connection_lost(None)
    assert application.log == ["attached", "connected", "lost"]
    channel.connection_lost(OSError())
    channel.pause_writing()
    assert application.log == ["attached", "connected", "lost"], "told once"


def test_the_reason_of_a_loss_is_the_kind_of_error() -> None:
    application, channel, _ = plain()
    channel.connection_lost(ConnectionResetError("who cares"))
    assert application.log[-1] == "lost ConnectionResetError"


# ---- TLS: octets


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 1000, 1 << 30])
def test_records_in_any_cut(size: int) -> None:
    link = Link().up(size)
    link.client.write(b"ping" * 100)
    link.server.write(b"pong" * 5000)
    link.carry(size)
    assert link.server_app.data == b"ping" * 100
    assert link.client_app.data == b"pong" * 5000


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 65536, 1_000_000])
def test_large_writes_are_whole(size: int) -> None:
    link = Link().up()
    data = random.Random(size).randbytes(size)
    if size:
        link.server.write(data)
        link.client.write(data)
    link.carry(70_001)
    assert link.client_app.data == data
    assert link.server_app.data == data


def test_many_writes_keep_their_order() -> None:
    link = Link().up()
    source = random.Random(5)
    parts = [source.randbytes(source.choice([1, 10, 1000, 20000])) for _ in range(60)]
    for part in parts:
        link.client.write(part)
    link.carry(4096)
    assert link.server_app.data == b"".join(parts)


def test_data_behind_the_handshake_in_one_read() -> None:
    """The client's Finished and its first request usually come together."""
    link = Link()
    link.server.data_received(link.to_server.take())
    link.client.data_received(link.to_client.take())
    assert link.client.established
    link.client.write(b"request")
    link.server.data_received(link.to_server.take())
    assert link.server_app.log == ["attached", "connected"]
    assert link.server_app.data == b"request"


def test_both_sides_know_their_peer() -> None:
    link = Link().up()
    assert link.server.tls is not None
    assert link.server.tls.getpeercert(binary_form=True) == CLIENT.der
    assert link.server.tls.version() in ("TLSv1.2", "TLSv1.3")


# ---- TLS: ends


def test_close_is_heard_as_an_orderly_end() -> None:
    link = Link().up()
    link.server.write(b"last words")
    link.server.close()
    link.carry()
    assert link.client_app.data == b"last words"
    assert link.client_app.log[-1] == "ended"
    assert link.to_client.closed


def test_a_side_that_ends_writing_still_reads() -> None:
    link = Link().up()
    link.server.end_writing()
    link.carry()
    assert link.client_app.log[-1] == "ended"
    link.client.write(b"more")
    link.carry()
    assert link.server_app.data == b"more"
    link.server.write(b"late")
    assert link.to_client.take() == b""
    link.server.close()
    assert link.to_client.closed


def test_a_peer_that_closes_its_side_in_order_still_hears_the_answer() -> None:
    """close_notify and then the end of the TCP stream: a half-closed connection, as in plaintext, and no truncation."""
    link = Link().up()
    link.client.write(b"request")
    link.client.end_writing()
    link.carry()
    assert link.server_app.log[-1] == "ended"
    assert link.server.eof_received() is True
    assert link.server_app.log[-1] == "ended", "the end was announced: nothing is truncated"
    link.server.write(b"answer")
    link.carry()
    assert link.client_app.data == b"answer"
    link.server.close()
    assert link.to_client.closed


@pytest.mark.parametrize("with_data", [False, True])
def test_the_end_of_tcp_without_close_notify_is_a_truncation(with_data: bool) -> None:
    link = Link().up()
    if with_data:
        link.server.write(b"part")
        link.carry()
    assert link.client.eof_received() is False
    assert link.client_app.log[-1] == "lost tls: truncated"
    assert "ended" not in link.client_app.log
    assert link.to_server.aborted
    link.client.connection_lost(None)
    assert link.client_app.log.count("lost tls: truncated") == 1
    assert link.client_app.log[-1] == "lost tls: truncated"


def test_an_abort_is_a_truncation_for_the_peer() -> None:
    link = Link().up()
    link.server.write(b"part")
    link.server.abort()
    link.carry()
    assert link.client_app.data == b"part"
    assert "ended" not in link.client_app.log
    link.client.eof_received()
    assert link.client_app.log[-1] == "lost tls: truncated"


def test_half_a_record_and_the_end() -> None:
    link = Link().up()
    link.server.write(b"x" * 1000)
    link.client.data_received(link.to_client.take()[:500])
    link.client.eof_received()
    assert link.client_app.data == b""
    assert link.client_app.log[-1] == "lost tls: truncated"


@pytest.mark.parametrize("where", [5, 20, -1])
def test_a_damaged_record_ends_the_stream(where: int) -> None:
    link = Link().up()
    link.client.write(b"good")
    link.carry()
    link.client.write(b"x" * 100)
    record = bytearray(link.to_server.take())
    record[where] ^= 1
    link.server.data_received(bytes(record))
    assert link.server_app.data == b"good"
    assert link.server_app.log[-1].startswith("lost tls:")
    assert link.to_client.aborted
    link.server.data_received(b"anything")
    assert link.server_app.data == b"good"
    link.server.connection_lost(None)
    assert sum(entry.startswith("lost") for entry in link.server_app.log) == 1


def test_the_end_during_the_handshake() -> None:
    link = Link()
    hello = link.to_server.take()
    link.server.data_received(hello[: len(hello) // 2])
    assert link.server.eof_received() is False
    assert link.to_client.aborted
    link.server.connection_lost(None)
    assert [line.split()[0] for line in link.server_app.log] == ["attached", "lost"]


def test_a_stranger_is_refused_before_the_application_hears_anything() -> None:
    link = Link(client=client_context(PARTNER.issue("/x")))
    link.carry()
    assert "connected" not in link.server_app.log
    assert link.server_app.log[-1].startswith("lost tls:")
    assert link.to_client.closed
    assert link.client_app.log[-1].startswith("lost tls:") or link.to_server.closed or link.client.eof_received() is False
    assert link.server_app.data == b""


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"\x00" * 50, b"SSH-2.0-x\r\n" * 3])
def test_plaintext_on_a_tls_channel(data: bytes) -> None:
    link = Link(plaintext_answer=b"HTTP/1.1 400 Bad Request\r\n\r\n")
    link.server.data_received(data)
    written = link.to_client.take()
    assert (b"HTTP/1.1 400" in written) is data.startswith((b"GET", b"POST"))
    assert link.to_client.closed
    assert link.server_app.log[0] == "attached"
    assert link.server_app.log[-1].startswith("lost tls:")
    assert "connected" not in link.server_app.log


def test_writes_before_the_handshake_are_not_sent_in_the_clear() -> None:
    link = Link()
    link.to_client.take()
    link.server.write(b"secret")
    assert b"secret" not in link.to_client.take()
    link.client.write(b"secret")
    assert b"secret" not in link.to_server.take()


def test_writes_after_the_end_go_nowhere() -> None:
    link = Link().up()
    link.to_client.take()
    link.server.close()
    link.to_client.take()
    link.server.write(b"late")
    link.server.end_writing()
    link.server.close()
    assert link.to_client.take() == b""
    assert not link.to_client.aborted
    link.server.abort()  # a peer that does not take the rest must not keep it
    assert link.to_client.aborted


# ---- TLS: back-pressure


def test_pausing_stops_between_records() -> None:
    """Records that came in the same read as the one that made the application pause wait, and come when it goes on."""

    async def run() -> None:
        link = Link().up()
        link.server_app.pause_at_data = True
        for number in range(5):
            link.client.write(b"%d" % number * 1000)
        link.carry()
        assert link.server_app.data == b"0" * 1000
        assert not link.to_client.reading
        link.server_app.pause_at_data = True
        link.server.resume_reading()
        await asyncio.sleep(0)
        assert link.server_app.data == b"0" * 1000 + b"1" * 1000
        assert not link.to_client.reading
        link.server.resume_reading()
        await asyncio.sleep(0)
        assert link.server_app.data == b"".join(b"%d" % number * 1000 for number in range(5))
        assert link.to_client.reading

    asyncio.run(run())


def test_what_comes_while_paused_waits() -> None:
    async def run() -> None:
        link = Link().up()
        link.server.pause_reading()
        link.client.write(b"abc")
        link.carry()
        assert link.server_app.data == b""
        link.server.resume_reading()
        link.server.resume_reading()
        await asyncio.sleep(0)
        assert link.server_app.data == b"abc"

    asyncio.run(run())


def test_an_orderly_end_behind_held_data_is_heard_last() -> None:
    async def run() -> None:
        link = Link().up()
        link.server_app.pause_at_data = True
        link.client.write(b"a")
        link.client.write(b"b")
        link.client.close()
        link.carry()
        assert link.server_app.data == b"a"
        assert "ended" not in link.server_app.log
        link.server.resume_reading()
        await asyncio.sleep(0)
        assert link.server_app.data == b"ab"
        assert link.server_app.log[-1] == "ended"

    asyncio.run(run())


def test_a_close_while_data_is_held_delivers_nothing_more() -> None:
    async def run() -> None:
        link = Link().up()
        link.server_app.pause_at_data = True
        link.client.write(b"a")
        link.client.write(b"b")
        link.carry()
        link.server.resume_reading()
        link.server.close()
        await asyncio.sleep(0)
        assert link.server_app.data == b"a"

    asyncio.run(run())


def test_the_transports_back_pressure_reaches_the_application() -> None:
    link = Link().up()
    link.server.pause_writing()
    link.server.resume_writing()
    assert link.server_app.log[-2:] == ["pause", "resume"]
