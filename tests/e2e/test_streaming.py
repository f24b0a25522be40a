"""Streaming: nothing waits for the end of a body, nothing is held without bound, and a slow side slows the other."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Town
from tests.harness.client import RawClient, chunked, get
from tests.harness.proxy import eventually
from tests.harness.strict import Truncated
from tests.harness.upstream import Exchange, raw

Dial = Callable[..., RawClient]
MIB = 1 << 20
LARGE = 50 * MIB


def test_request_chunks_arrive_before_the_last_is_sent(engine: str, dial: Dial, town: Town) -> None:
    with dial(engine) as client:
        client.send(get("/stream/up", method="POST", fields=["Transfer-Encoding: chunked"]), expect="POST")
        seen = town.upstream.wait(
            lambda: [s for s in town.upstream.requests if s.target == "/stream/up" and not s.complete], "the head without a body"
        )[-1]
        client.send(b"5\r\nfirst\r\n")
        town.upstream.wait(lambda: bytes(seen.body) == b"first", "the first chunk")
        client.send(b"6\r\nsecond\r\n")
        town.upstream.wait(lambda: bytes(seen.body) == b"firstsecond", "the second chunk")
        client.send(b"0\r\n\r\n")
        assert client.response().json["body_bytes"] == 11


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_answer_pieces_arrive_before_the_last_is_sent(framing: str, engine: str, dial: Dial, town: Town) -> None:
    go = town.upstream.event()

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        field = {"chunked": b"Transfer-Encoding: chunked\r\n", "length": b"Content-Length: 10\r\n", "close": b""}[framing]
        await exchange.send(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n" + (b"5\r\nfirst\r\n" if framing == "chunked" else b"first"))
        await go.wait()
        await exchange.send(b"4\r\nlast\r\n0\r\n\r\n" if framing == "chunked" else b"again")
        if framing == "close":
            exchange.close()

    with town.upstream.on("/stream/down", script), dial(engine) as client:
        client.send(get("/stream/down"), expect="GET")
        assert client.head().status == 200
        pieces = client.body()
        assert next(pieces) == b"first"
        go.set()
        assert b"".join(pieces) == (b"last" if framing == "chunked" else b"again")


def test_large_upload(engine: str, dial: Dial, town: Town) -> None:
    block = bytes(range(256)) * 256
    digest = hashlib.sha256()
    before = town.proxy.rss_bytes()
    top = before
    with dial(engine, deadline_s=30) as client:
        client.send(get("/stream/big-up", method="POST", fields=[f"Content-Length: {LARGE}"]), expect="POST")
        for i in range(LARGE // len(block)):
            client.send(block)
            digest.update(block)
            if i % 50 == 0:
                top = max(top, town.proxy.rss_bytes())
        answer = client.response()
    assert answer.json["body_bytes"] == LARGE
    assert answer.json["sha256"] == digest.hexdigest()
    assert top - before < 12 * MIB, f"{(top - before) / MIB:.1f} MiB for a streamed upload"


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_large_download(framing: str, engine: str, dial: Dial, town: Town) -> None:
    block = bytes(range(256)) * 256

    async def script(exchange: Exchange) -> None:
        head = b"Transfer-Encoding: chunked" if framing == "chunked" else b"Content-Length: %d" % LARGE
        await exchange.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        for _ in range(LARGE // len(block)):
            await exchange.send(b"%x\r\n%s\r\n" % (len(block), block) if framing == "chunked" else block)
        if framing == "chunked":
            await exchange.send(b"0\r\n\r\n")

    before = town.proxy.rss_bytes()
    digest, total, top = hashlib.sha256(), 0, before
    with town.upstream.on("/stream/big-down", script), dial(engine, deadline_s=30) as client:
        client.send(get("/stream/big-down"), expect="GET")
        assert client.head().status == 200
        for i, piece in enumerate(client.body()):
            digest.update(piece)
            total += len(piece)
            if i % 200 == 0:
                top = max(top, town.proxy.rss_bytes())
    assert total == LARGE
    assert digest.hexdigest() == hashlib.sha256(block * (LARGE // len(block))).hexdigest()
    assert top - before < 12 * MIB, f"{(top - before) / MIB:.1f} MiB for a streamed download"


def test_a_slow_client_slows_the_upstream(engine: str, dial: Dial, town: Town) -> None:
    """The client does not read: the upstream is stopped after what sockets and the 64 KiB buffer hold, not after 50 MB."""
    sent = 0
    stalled = threading.Event()

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
        block = b"x" * 65536
        while sent < LARGE:
            try:
                await asyncio.wait_for(exchange.send(block), 1.0)
            except TimeoutError:
                stalled.set()
                await exchange.send(b"")
            sent += len(block)

    before = town.proxy.rss_bytes()
    with town.upstream.on("/stream/stall", script), dial(engine, receive_buffer=65536, deadline_s=30) as client:
        client.send(get("/stream/stall"), expect="GET")
        assert client.head().status == 200
        assert stalled.wait(10), f"the upstream could send {sent} bytes to a client that does not read"
        assert sent < 24 * MIB, sent  # kernel socket buffers are most of it
        assert town.proxy.rss_bytes() - before < 12 * MIB
        assert sum(len(piece) for piece in client.body()) == LARGE


def test_back_pressure_ends_with_its_exchange(engine: str, dial: Dial, town: Town) -> None:
    """A pooled upstream connection whose reading was stopped for a slow client is read again in the next exchange. The end of the body
    has to arrive while the client's buffer is full: chance, so often enough."""

    async def large(exchange: Exchange) -> None:
        await exchange.answer(200, b"x" * 6_000_000)

    with town.upstream.on("/stream/large", large):
        for _ in range(25):
            with dial(engine, receive_buffer=4096) as slow, dial(engine, deadline_s=3) as other:
                slow.send(get("/stream/large"), expect="GET")
                assert slow.head().status == 200
                assert sum(map(len, slow.body())) == 6_000_000
                assert other.request(get("/open/next")).status == 200


def test_a_slow_upstream_slows_the_client(engine: str, dial: Dial, town: Town) -> None:
    go = town.upstream.event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await exchange.read()
        await exchange.answer(200, str(exchange.request.body_bytes).encode())

    before = town.proxy.rss_bytes()
    with town.upstream.on("/stream/stall-up", script), dial(engine, deadline_s=30) as client:
        client.send(get("/stream/stall-up", method="POST", fields=[f"Content-Length: {LARGE}"]), expect="POST")
        client.sock.settimeout(1.0)
        sent, block = 0, b"y" * 65536
        while sent < LARGE:
            try:
                client.sock.sendall(block)
            except TimeoutError:
                break
            sent += len(block)
        assert sent < 24 * MIB, f"{sent} bytes were taken while the upstream did not read"
        assert town.proxy.rss_bytes() - before < 12 * MIB
        go.set()


def test_a_client_that_leaves_ends_the_upstream_exchange(engine: str, dial: Dial, town: Town) -> None:
    """Half an upload, and during a download: the upstream is told, the request never looks complete."""
    with dial(engine) as client:
        client.send(get("/stream/leave", method="POST", fields=["Content-Length: 100"]) + b"half")
        seen = town.upstream.wait(
            lambda: [s for s in town.upstream.requests if s.target == "/stream/leave" and s.body_bytes == 4], "half a body"
        )[-1]
    town.upstream.wait(lambda: seen.aborted, "the end")
    assert not seen.complete
    left = threading.Event()

    async def endless(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                await exchange.send(b"1000\r\n" + b"z" * 4096 + b"\r\n")
        except ConnectionError:
            left.set()
            raise

    with town.upstream.on("/stream/endless", endless):
        with dial(engine) as client:
            client.send(get("/stream/endless"), expect="GET")
            assert client.head().status == 200
            next(client.body())
        assert left.wait(6), "the upstream of a client that left goes on sending"


def test_a_client_that_resets_leaves_no_descriptor(engine: str, dial: Dial, town: Town) -> None:
    with dial(engine) as client:
        client.request(get("/open/warm"))
    before = town.proxy.descriptors()
    for _ in range(30):
        client = dial(engine)
        client.send(get("/stream/reset", method="POST", fields=["Content-Length: 10"]) + b"abc")
        client.reset()
    eventually(lambda: town.proxy.descriptors() <= before + 4, "the release of descriptors")


def test_duplex(engine: str, dial: Dial, town: Town) -> None:
    """The answer begins before the request ends, and both go on (no half-duplex dead-lock)."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while piece := await exchange.piece():
            await exchange.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        await exchange.send(b"0\r\n\r\n")

    with town.upstream.on("/stream/duplex", script), dial(engine) as client:
        client.send(get("/stream/duplex", method="POST", fields=["Transfer-Encoding: chunked"]), expect="POST")
        assert client.head().status == 200
        pieces = client.body()
        for word in (b"one", b"two", b"three"):
            client.send(b"%x\r\n%s\r\n" % (len(word), word))
            got = b""
            while len(got) < len(word):
                got += next(pieces)
            assert got == word
        client.send(b"0\r\n\r\n")
        assert list(pieces) == []
        assert client.request(get("/open/after")).status == 200


def test_truncated_answers_are_visible(engine: str, dial: Dial, town: Town) -> None:
    for data in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ):
        with town.upstream.on("/stream/cut", raw(data, close=True)), dial(engine) as client:
            client.send(get("/stream/cut"), expect="GET")
            try:
                assert client.response().status == 502
            except Truncated:
                continue


def test_many_clients_at_once(engine: str, dial: Dial, town: Town) -> None:
    """40 connections, 25 requests each with their own bodies: every answer belongs to its request."""
    problems: list[str] = []

    def work(number: int) -> None:
        try:
            with dial(engine, deadline_s=20) as client:
                for i in range(25):
                    body = f"{number}-{i}".encode() * (i + 1)
                    data = (
                        get(f"/open/many/{number}/{i}", method="POST", body=body)
                        if i % 2
                        else get(f"/open/many/{number}/{i}", method="POST", fields=["Transfer-Encoding: chunked"]) + chunked(body)
                    )
                    answer = client.request(data)
                    if (answer.status, answer.json["target"], answer.json["sha256"]) != (
                        200,
                        f"/open/many/{number}/{i}",
                        hashlib.sha256(body).hexdigest(),
                    ):
                        problems.append(repr(answer))
        except Exception as exc:
            problems.append(repr(exc))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
