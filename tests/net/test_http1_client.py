"""The upstream side over a transport in memory: what is written, what an exchange hears, and when a connection is used again."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.errors import IdentityError
from meshguard.model.messages import ResponseHead
from meshguard.model.reasons import UPSTREAM_MALFORMED, UPSTREAM_RESET, UPSTREAM_TIMEOUT, Reason
from meshguard.net.channel import PlainChannel
from meshguard.net.http1_client import UpstreamConnection
from meshguard.wire.events import WireLimits
from meshguard.wire.http1 import ResponseParser
from tests.net.http1_parts import MemoryTransport

HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"content-length: 5\r\n\r\nhello"


class Cluster:
    """What becomes of a connection."""

    def __init__(self) -> None:
        self.fate: list[tuple[str, Reason | None]] = []
        self.statuses: list[int] = []

    def release(self, connection: Any) -> None:
        self.fate.append(("released", None))

    def discard(self, connection: Any, reason: Reason | None) -> None:
        self.fate.append(("discarded", reason))

    def lost(self, connection: Any) -> None:
        self.fate.append(("lost", None))

    def answered(self, endpoint: Any, status: int) -> None:
        self.statuses.append(status)


class Exchange:
    """What an exchange hears; like the real one it gives the connection back when the response is whole."""

    def __init__(self, upstream: Upstream, *, complete: bool = True) -> None:
        self.upstream = upstream
        self.complete = complete
        self.heads: list[ResponseHead] = []
        self.body = b""
        self.trailers: bytes | None = None
        self.failure: tuple[str, str] | None = None
        self.exception: Exception | None = None
        self.flushes = 0
        self.paused = 0

    @property
    def over(self) -> bool:
        return self.trailers is not None or self.failure is not None or self.exception is not None

    def response_whole(self, head: ResponseHead, body: bytes) -> None:
        self.response_head(head)
        self.response_data(body)
        self.response_end(b"")

    def response_head(self, head: ResponseHead) -> None:
        assert not self.over
        self.heads.append(head)

    def response_data(self, data: bytes) -> None:
        assert not self.over
        assert data
        self.body += data

    def response_end(self, trailers: bytes) -> None:
        assert not self.over
        self.trailers = trailers
        self.upstream.connection.finish(self.complete)

    def flush_response(self) -> None:
        self.flushes += 1

    def upstream_failed(self, reason: Reason, detail: str) -> None:
        assert not self.over
        self.failure = (reason.code, detail)
        self.upstream.connection.drop(reason)

    def upstream_paused(self) -> None:
        self.paused += 1

    def upstream_resumed(self) -> None:
        self.paused -= 1

    def fail(self, exc: Exception) -> None:
        self.exception = exc
        self.upstream.connection.abandon()


class Upstream:
    """One connection, its cluster and the upstream's end of it."""

    def __init__(self, verify: Any = None) -> None:
        self.cluster = Cluster()
        self.ready: Any = Future()  # the same interface as asyncio's, without a loop
        endpoint: Any = SimpleNamespace(failures=0, key="192.0.2.9:80")
        cluster: Any = self.cluster
        self.connection = UpstreamConnection(cluster, endpoint, ResponseParser(WireLimits()), verify, self.ready)
        self.transport = MemoryTransport()
        self.channel = PlainChannel(self.connection)
        self.channel.connection_made(self.transport)

    def start(self, *, method: bytes = b"GET", chunked: bool = False, complete: bool = True, head: bytes = HEAD) -> Exchange:
        exchange = Exchange(self, complete=complete)
        self.connection.start(exchange, head, method, chunked)
        return exchange

    def ask(self, method: bytes = b"GET") -> Exchange:
        exchange = self.start(method=method)
        self.connection.flush()
        return exchange

    def answer(self, data: bytes) -> None:
        self.channel.data_received(data)

    def close(self) -> None:
        self.channel.eof_received()


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


# ---- writing


def test_a_request_without_body_is_one_write(upstream: Upstream) -> None:
    upstream.ask()
    assert upstream.transport.take() == HEAD
    assert upstream.transport.writes == 1


def test_the_head_goes_with_the_first_data(upstream: Upstream) -> None:
    upstream.start()
    upstream.connection.send_data(b"hello")
    upstream.connection.send_end(b"")
    upstream.connection.flush()
    assert upstream.transport.take() == HEAD + b"hello"
    assert upstream.transport.writes == 1


def test_a_chunked_request_and_its_trailers(upstream: Upstream) -> None:
    upstream.start(chunked=True)
    upstream.connection.send_data(b"hello")
    upstream.connection.send_data(b"x" * 20)
    upstream.connection.send_end(b"a: b\r\n")
    assert upstream.transport.take().endswith(b"\r\n" + b"x" * 20 + b"\r\n"), "the end is not written before the flush"
    upstream.connection.flush()
    assert upstream.transport.take() == b"0\r\na: b\r\n\r\n"


def test_a_request_that_is_given_up_never_looks_complete(upstream: Upstream) -> None:
    upstream.start(chunked=True)
    upstream.connection.send_data(b"hello")
    upstream.connection.abandon()
    assert upstream.transport.take() == HEAD + b"5\r\nhello\r\n"
    assert upstream.transport.aborted
    assert upstream.cluster.fate == [("discarded", None)]


# ---- reading


@pytest.mark.parametrize(
    ("data", "method", "status", "body", "fate"),
    [
        (WHOLE, b"GET", 200, b"hello", "released"),
        (OK + b"content-length: 0\r\n\r\n", b"GET", 200, b"", "released"),
        (OK + b"content-length: 5\r\n\r\n", b"HEAD", 200, b"", "released"),
        (OK + b"transfer-encoding: chunked\r\n\r\n", b"HEAD", 200, b"", "released"),
        (b"HTTP/1.1 204 x\r\n\r\n", b"GET", 204, b"", "released"),
        (b"HTTP/1.1 304 x\r\ncontent-length: 9\r\n\r\n", b"GET", 304, b"", "released"),
        (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"GET", 200, b"hello", "released"),
        (OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello", b"GET", 200, b"hello", "discarded"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"GET", 200, b"hello", "discarded"),
        (WHOLE + b"x", b"GET", 200, b"hello", "discarded"),
        (WHOLE + WHOLE, b"GET", 200, b"hello", "discarded"),
        (OK + b"content-length: 5\r\n\r\nhello", b"HEAD", 200, b"", "discarded"),
        (b"HTTP/1.1 204 x\r\ncontent-length: 1\r\n\r\na", b"GET", 204, b"", "discarded"),
    ],
)
@pytest.mark.parametrize("pieces", ["whole", "octets"])
def test_responses_and_reuse(upstream: Upstream, data: bytes, method: bytes, status: int, body: bytes, fate: str, pieces: str) -> None:
    exchange = upstream.ask(method)
    if pieces == "whole":
        upstream.answer(data)
    else:
        for index in range(len(data)):
            if not upstream.transport.closed:
                upstream.answer(data[index : index + 1])
    assert [head.status for head in exchange.heads] == [status]
    assert exchange.body == body
    assert exchange.trailers == b""
    if pieces == "whole" or fate == "released":
        assert upstream.cluster.fate == [(fate, None)]
    else:  # octet by octet what is too much comes when the connection is already given back: then it is lost there
        assert upstream.cluster.fate[-1][0] in ("discarded", "lost")
    assert upstream.transport.closed is (fate == "discarded")


def test_trailers_reach_the_exchange(upstream: Upstream) -> None:
    exchange = upstream.ask()
    upstream.answer(OK + b"transfer-encoding: chunked\r\n\r\n0\r\ngrpc-status: 0\r\n\r\n")
    assert exchange.trailers == b"grpc-status: 0\r\n"


def test_a_connection_is_used_again(upstream: Upstream) -> None:
    for _ in range(3):
        exchange = upstream.ask()
        upstream.answer(WHOLE)
        assert exchange.body == b"hello"
    assert upstream.cluster.fate == [("released", None)] * 3
    assert upstream.connection.reused


def test_interim_answers_and_then_the_answer(upstream: Upstream) -> None:
    exchange = upstream.ask()
    upstream.answer(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nlink: a\r\n\r\n" + WHOLE)
    assert [head.status for head in exchange.heads] == [100, 103, 200]
    assert upstream.cluster.fate == [("released", None)]


def test_an_early_answer_is_not_followed_by_reuse(upstream: Upstream) -> None:
    """The request is not complete: the connection has half a message on it."""
    exchange = upstream.start(chunked=True, complete=False)
    upstream.connection.send_data(b"part")
    upstream.answer(WHOLE)
    assert exchange.body == b"hello"
    assert upstream.cluster.fate == [("discarded", None)]
    assert upstream.transport.closed


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01",
        b"HTTP/2.0 200 OK\r\n\r\n", b"\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", OK + b"transfer-encoding: chunked, gzip\r\n\r\n", OK + b"x" * 40000,
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx y\r\n\r\n",
    ],
)  # fmt: skip
def test_what_breaks_the_rules_is_reset(upstream: Upstream, data: bytes) -> None:
    exchange = upstream.ask()
    upstream.answer(data)
    assert exchange.failure is not None
    assert exchange.failure[0] == "upstream_malformed"
    assert exchange.trailers is None
    assert upstream.transport.aborted
    assert upstream.cluster.fate == [("discarded", UPSTREAM_MALFORMED)]


def test_five_hundreds_are_counted(upstream: Upstream) -> None:
    for status in (200, 404, 500, 503):
        upstream.ask()
        upstream.answer(b"HTTP/1.1 %d x\r\ncontent-length: 1\r\n\r\na" % status)
    assert upstream.cluster.statuses == [500, 503]


# ---- what nobody asked for


@pytest.mark.parametrize("when", ["before the first request", "after an answer"])
@pytest.mark.parametrize("data", [b"x", b"\r\n", WHOLE, b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n"])
def test_unsolicited_octets_end_the_connection(upstream: Upstream, when: str, data: bytes) -> None:
    if when == "after an answer":
        upstream.ask()
        upstream.answer(WHOLE)
    upstream.answer(data)
    assert upstream.transport.closed
    assert upstream.connection.closed
    assert upstream.cluster.fate[-1] == ("lost", None)


def test_the_end_of_an_idle_connection(upstream: Upstream) -> None:
    upstream.ask()
    upstream.answer(WHOLE)
    upstream.close()
    assert upstream.connection.closed
    assert upstream.cluster.fate == [("released", None), ("lost", None)]
    upstream.channel.connection_lost(None)
    assert upstream.cluster.fate == [("released", None), ("lost", None)], "told once"


# ---- the end in each state


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (b"", False),
        (b"HTTP/1.1 2", False),
        (OK + b"x: y\r\n", False),
        (b"HTTP/1.1 100 x\r\n\r\n", False),
        (OK + b"content-length: 5\r\n\r\n", False),
        (OK + b"content-length: 5\r\n\r\nhell", False),
        (OK + b"transfer-encoding: chunked\r\n\r\n", False),
        (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", False),
        (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", False),
        (OK + b"\r\n", True),
        (OK + b"\r\nhello", True),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", True),
    ],
)
@pytest.mark.parametrize("how", ["end", "reset"])
def test_the_upstream_ends(upstream: Upstream, data: bytes, complete: bool, how: str) -> None:
    """Only an orderly end ends a body, and only one without a length; everything else is a cut."""
    exchange = upstream.ask()
    if data:
        upstream.answer(data)
    if how == "end":
        upstream.close()
    else:
        upstream.channel.connection_lost(ConnectionResetError())
    if complete and how == "end":
        assert exchange.trailers == b""
        assert exchange.failure is None
        assert upstream.cluster.fate == [("discarded", None)]
    else:
        assert exchange.trailers is None
        assert exchange.failure is not None
        assert exchange.failure[0] == "upstream_reset"
        assert upstream.cluster.fate == [("discarded", UPSTREAM_RESET)]
    assert upstream.connection.closed


def test_a_kept_connection_that_dies_unanswered_is_nobodys_fault(upstream: Upstream) -> None:
    upstream.ask()
    upstream.answer(WHOLE)
    exchange = upstream.ask()
    upstream.close()
    assert exchange.failure is not None
    assert upstream.cluster.fate == [("released", None), ("discarded", None)]


def test_a_kept_connection_that_dies_inside_an_answer_is_a_fault(upstream: Upstream) -> None:
    upstream.ask()
    upstream.answer(WHOLE)
    upstream.ask()
    upstream.answer(OK + b"content-length: 5\r\n\r\nhe")
    upstream.close()
    assert upstream.cluster.fate[-1] == ("discarded", UPSTREAM_RESET)


def test_a_deadline_resets(upstream: Upstream) -> None:
    upstream.ask()
    upstream.connection.drop(UPSTREAM_TIMEOUT)
    assert upstream.transport.aborted
    assert upstream.cluster.fate == [("discarded", UPSTREAM_TIMEOUT)]
    upstream.channel.connection_lost(None)
    assert len(upstream.cluster.fate) == 1


def test_an_exception_in_the_exchange_ends_the_connection(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = upstream.ask()

    def broken(head: ResponseHead) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(exchange, "response_head", broken)
    upstream.answer(OK + b"content-length: 5\r\n\r\nhe")
    assert isinstance(exchange.exception, ZeroDivisionError)
    assert upstream.transport.aborted


def test_nothing_after_an_abandoned_exchange_reaches_anybody(upstream: Upstream) -> None:
    exchange = upstream.ask()
    upstream.answer(OK + b"content-length: 5\r\n\r\nhe")
    upstream.connection.abandon()
    body = exchange.body
    upstream.answer(b"llo")
    assert exchange.body == body
    assert upstream.transport.aborted


# ---- becoming ready


def test_ready_after_the_identity_is_checked() -> None:
    seen: list[object] = []
    upstream = Upstream(verify=seen.append)
    assert upstream.ready.done()
    assert upstream.ready.exception() is None
    assert seen == [upstream.channel]


def test_a_wrong_identity_is_never_sent_anything() -> None:
    def verify(channel: Any) -> None:
        raise IdentityError("unexpected_identity")

    upstream = Upstream(verify=verify)
    assert isinstance(upstream.ready.exception(), IdentityError)
    assert upstream.transport.aborted
    assert upstream.connection.closed
    assert upstream.transport.take() == b""


def test_back_pressure_reaches_the_exchange(upstream: Upstream) -> None:
    exchange = upstream.ask()
    upstream.channel.pause_writing()
    assert exchange.paused == 1
    upstream.channel.resume_writing()
    assert exchange.paused == 0
    upstream.answer(WHOLE)
    upstream.channel.pause_writing()
    assert exchange.paused == 0


# ---- any answer in any segmentation


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([
            WHOLE, OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 103 x\r\n\r\n" + WHOLE,
            b"HTTP/1.1 204 x\r\n\r\n",
            OK + b"content-length: 0\r\n\r\n",
        ]),
        min_size=1, max_size=4,
    ),
    st.data(),
)  # fmt: skip
def test_answers_belong_to_their_requests(answers: list[bytes], data: st.DataObject) -> None:
    """One after the other over one connection, each cut anywhere: every exchange hears its own answer and nothing else."""
    upstream = Upstream()
    for answer in answers:
        exchange = upstream.ask()
        while answer:
            size = data.draw(st.integers(1, len(answer)))
            upstream.answer(answer[:size])
            answer = answer[size:]
        assert exchange.over
        assert exchange.failure is None
        assert upstream.cluster.fate[-1] == ("released", None)
    assert len(upstream.cluster.fate) == len(answers)
