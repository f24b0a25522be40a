"""The HTTP/1.1 door over a transport in memory, its exchanges answered by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.messages import CHUNKED, NO_BODY, UNTIL_CLOSE
from meshguard.model.reasons import MALFORMED_CHUNK, MALFORMED_REQUEST, POLICY_DENIED, QUARANTINED
from meshguard.net.channel import HIGH_WATER
from meshguard.net.limits import ConnectionLimits
from meshguard.wire.events import WireLimits
from meshguard.wire.reference import RequestReader
from meshguard.wire.semantics import FieldRules
from tests.harness.strict import Data, End, Head
from tests.net.http1_parts import Client

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
NOW = b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
CHUNKS = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(target: bytes = b"/x", length: int = 5, *lines: bytes) -> bytes:
    return b"\r\n".join((b"POST %b HTTP/1.1" % target, b"Host: a", b"Content-Length: %d" % length, *lines, b"", b""))


@pytest.fixture(params=["default", "reference"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(engine=RequestReader(WireLimits(), FieldRules()) if request.param == "reference" else None)


# ---- one after the other


def test_a_request_and_its_answer(client: Client) -> None:
    client.send(GET)
    assert client.answers() == []
    client.last.answer(b"hello")
    assert client.answers() == [(200, b"hello")]
    assert client.open
    client.send(GET)
    client.last.answer(b"again")
    assert client.answers() == [(200, b"again")]


def test_pipelined_requests_are_begun_one_after_the_other(client: Client) -> None:
    client.send(GET + POST + b"hello" + CHUNKS + b"2\r\nab\r\n0\r\n\r\n" + GET)
    seen = []
    for number in range(4):
        assert len(client.handler.exchanges) == number + 1
        exchange = client.last
        assert exchange.ended
        seen.append(exchange.body)
        exchange.answer(b"%d" % number)
    assert client.answers() == [(200, b"%d" % number) for number in range(4)]
    assert seen == [b"", b"hello", b"ab", b""]


def test_answers_at_once_keep_their_order(client: Client) -> None:
    client.send(NOW * 5)
    assert client.answers() == [(200, b"%d" % number) for number in range(1, 6)]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.booleans())
def test_every_interleaving_gives_every_answer_once(data: st.DataObject, reference: bool) -> None:
    """Octets come and answers are given in any order; requests with and without body, answered at once or later, refused or not."""
    kinds = [GET, NOW, POST + b"hello", CHUNKS + b"3\r\nabc\r\n0\r\nX: y\r\n\r\n", b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n",
    post(b"/no") + b"hello"]
    stream = b"".join(data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6)))
    total = stream.count(b" HTTP/1.1")

    async def run() -> None:
        client = Client(engine=RequestReader(WireLimits(), FieldRules()) if reference else None)
        rest, answers = stream, []
        for _ in range(200):
            waiting = client.door.stream
            if rest and (waiting is None or not waiting.ended or data.draw(st.booleans())):
                size = data.draw(st.integers(1, len(rest)))
                client.send(rest[:size])
                rest = rest[size:]
            elif waiting is not None and waiting.ended:
                client.last.answer(b"later")
            else:
                break
            await asyncio.sleep(0)
            answers += client.answers()
        assert len(client.handler.exchanges) == len(answers) == total
        assert not client.transport.closed
        for exchange, (status, body) in zip(client.handler.exchanges, answers, strict=True):
            assert exchange.head is not None
            assert (status, body) == ((403, b"no") if exchange.head.target == b"/no" else (200, body))

    asyncio.run(run())


def test_many_requests_in_one_read_leave_the_loop_to_others() -> None:
    """security.md 6: at most 32 requests of a connection in one turn."""

    async def run() -> None:
        for kind in (NOW, b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n"):
            client = Client()
            client.send(kind * 100)
            assert 1 <= len(client.handler.exchanges) <= 33
            for _ in range(6):
                await asyncio.sleep(0)
            assert len(client.answers()) == 100

    asyncio.run(run())


def test_nothing_is_begun_for_a_client_that_is_gone() -> None:
    """What waits for the next turn dies with its connection: nobody would look after its deadlines."""

    async def run() -> None:
        client = Client()
        client.send(GET * 40 + POST)
        while client.door.stream is not None and client.last.ended:
            client.last.answer()
        begun = len(client.handler.exchanges)
        assert begun < 41
        client.lose()
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(client.handler.exchanges) == begun
        assert client.handler.lost == [""]

    asyncio.run(run())


# ---- refusals


def test_a_refused_request_without_body_leaves_the_connection_open(client: Client) -> None:
    client.send(GET)
    client.last.refuse()
    assert client.answers() == [(403, b"no")]
    assert client.open
    client.send(NOW)
    assert client.answers() == [(200, b"2")]


def test_a_short_body_of_a_refused_request_is_drained(client: Client) -> None:
    client.send(POST + b"he")
    client.last.refuse()
    assert client.answers() == [(403, b"no")]
    client.send(b"llo" + NOW)
    assert client.answers() == [(200, b"2")]
    assert client.open


def test_a_chunked_body_of_a_refused_request_is_drained_up_to_a_limit(client: Client) -> None:
    client.send(CHUNKS)
    client.last.refuse()
    client.send(b"3\r\nabc\r\n0\r\n\r\n" + NOW)
    assert client.answers() == [(403, b"no"), (200, b"2")]
    client.send(CHUNKS)
    client.last.refuse()
    for _ in range(20):
        client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    assert client.transport.eof_written
    client.send(b"0\r\n\r\n" + NOW)
    assert len(client.handler.exchanges) == 3, "nothing behind a connection that is given up is a request"


def test_a_long_body_of_a_refused_request_ends_the_connection(client: Client) -> None:
    client.send(post(length=65537) + b"x" * 100)
    client.last.refuse()
    head, *_ = client.events()
    assert isinstance(head, Head)
    assert head.all("connection") == ["close"]
    assert client.transport.eof_written
    assert not client.transport.closed, "it lingers, so that the answer is not lost to a reset"
    client.send(NOW * 10)
    assert len(client.handler.exchanges) == 1
    client.send(b"x" * 70000)
    assert client.transport.aborted


def test_a_malformed_chunk_while_draining_ends_the_connection(client: Client) -> None:
    client.send(CHUNKS)
    client.last.refuse()
    client.send(b"zz\r\n" + NOW)
    assert client.answers() == [(403, b"no")]
    assert client.transport.eof_written
    assert len(client.handler.exchanges) == 1


@pytest.mark.parametrize("reason", [QUARANTINED, MALFORMED_REQUEST])
def test_a_reason_that_closes_closes(client: Client, reason: Any) -> None:
    client.send(GET)
    client.last.refuse(reason)
    assert b"connection: close" in client.transport.take()
    assert client.transport.closed


def test_a_refusal_with_a_pipelined_request_behind_it_lingers(client: Client) -> None:
    client.send(GET + NOW)
    client.last.refuse(QUARANTINED)
    assert client.answers() == [(403, b"no")]
    assert client.transport.eof_written
    assert len(client.handler.exchanges) == 1


def test_a_refusal_of_head_has_no_body() -> None:
    client = Client(methods=("HEAD",))
    client.send(b"HEAD /no HTTP/1.1\r\nHost: a\r\n\r\n")
    head, end = client.events()
    assert isinstance(head, Head)
    assert isinstance(end, End)
    assert head.get("content-length") == "2"


def test_a_head_that_cannot_be_parsed_is_a_request_of_its_own(client: Client) -> None:
    client.send(GET)
    client.last.answer()
    client.send(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n" + NOW)
    assert client.answers() == [(200, b"ok"), (400, b"no")]
    assert [error.reason.code for error in client.handler.refused] == ["malformed_request"]
    assert not client.open
    assert len(client.handler.exchanges) == 1


def test_a_malformed_pipelined_request_does_not_disturb_the_one_before(client: Client) -> None:
    client.send(GET + b"nonsense\r\n\r\n")
    assert client.handler.refused == []
    client.last.answer()
    assert client.answers() == [(200, b"ok"), (400, b"no")]


def test_a_body_that_breaks_the_rules_ends_its_exchange(client: Client) -> None:
    client.send(CHUNKS + b"3\r\nabc\r\n")
    exchange = client.last
    client.send(b"zz\r\n" + NOW)
    assert getattr(exchange.failure, "reason", None) is MALFORMED_CHUNK
    assert client.answers() == [(400, b"no")]
    assert not client.open
    assert len(client.handler.exchanges) == 1


def test_a_body_that_breaks_the_rules_after_the_answer_has_begun_cuts_it(client: Client) -> None:
    client.send(CHUNKS + b"3\r\nabc\r\n")
    client.last.begin(CHUNKED)
    client.last.door.send_data(b"part")  # type: ignore[union-attr]
    client.send(b"zz\r\n")
    assert client.transport.aborted
    assert b"0\r\n\r\n" not in client.transport.take()


def test_an_exception_in_the_handler_is_a_500_and_the_end(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.send(b"GET /raise HTTP/1.1\r\nHost: a\r\n\r\n" + NOW)
    assert client.answers() == [(500, b"no")]
    assert not client.open
    assert len(client.handler.exchanges) == 1


# ---- answers


@pytest.mark.parametrize("length", [0, 1, 5, CHUNKED, UNTIL_CLOSE])
@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 304])
def test_framing_of_answers(length: int, minor: int, method: str, status: int) -> None:
    """Whatever the upstream's framing was, the client can tell where the answer ends."""
    bodiless = method == "HEAD" or status in (204, 304)
    if bodiless:
        length = NO_BODY
    client = Client(methods=(method,))
    client.send(f"{method} /x HTTP/1.{minor}\r\nHost: a\r\n\r\n".encode())
    client.last.begin(length, status)
    body = b"" if bodiless else b"hello" if length < 0 else b"x" * length
    if body:
        client.last.door.send_data(body)  # type: ignore[union-attr]
    client.last.end()
    events = client.events()
    if client.transport.closed:
        events += client.parser.eof()
    assert b"".join(event.data for event in events if isinstance(event, Data)) == body
    assert isinstance(events[-1], End)
    head = events[0]
    assert isinstance(head, Head)
    assert client.transport.closed is (minor == 0)
    assert bool(head.all("connection")) is client.transport.closed
    if bodiless and not head.all("content-length"):
        assert not head.all("transfer-encoding")


def test_a_described_length_is_passed_for_head() -> None:
    client = Client(methods=("HEAD",))
    client.send(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n")
    client.last.begin(NO_BODY, 200, [(b"content-length", b"77")])
    client.last.end()
    head = client.events()[0]
    assert isinstance(head, Head)
    assert head.get("content-length") == "77"


def test_trailers_of_a_chunked_answer(client: Client) -> None:
    client.send(GET)
    client.last.begin(CHUNKED)
    client.last.door.send_data(b"x")  # type: ignore[union-attr]
    client.last.end(b"grpc-status: 0\r\n")
    end = client.events()[-1]
    assert isinstance(end, End)
    assert end.trailers == [("grpc-status", "0")]


def test_a_short_answer_is_one_write(client: Client) -> None:
    client.send(GET)
    client.last.begin(CHUNKED)
    client.last.door.send_data(b"a")  # type: ignore[union-attr]
    client.last.door.send_data(b"b")  # type: ignore[union-attr]
    client.last.end()
    assert client.transport.writes == 1


def test_a_long_answer_does_not_gather(client: Client) -> None:
    client.send(GET)
    client.last.begin(CHUNKED)
    for _ in range(100):
        client.last.door.send_data(b"x" * 4096)  # type: ignore[union-attr]
    assert len(client.transport.written) > 400_000 - HIGH_WATER - 5000


def test_interim_answers_go_to_http_1_1_only() -> None:
    for minor, expected in ((1, [103, 200]), (0, [200])):
        client = Client()
        client.send(b"GET /x HTTP/1.%d\r\nHost: a\r\n\r\n" % minor)
        client.last.door.send_interim(103, b"link: </a>\r\n")  # type: ignore[union-attr]
        client.last.answer()
        assert [status for status, _ in client.answers()] == expected


@pytest.mark.parametrize(("lines", "stays"), [(b"", True), (b"Connection: close\r\n", False)])
def test_the_client_may_ask_for_the_end(client: Client, lines: bytes, stays: bool) -> None:
    client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n%b\r\n" % lines)
    client.last.answer()
    written = client.transport.take()
    assert (b"connection: close" in written) is not stays
    assert client.open is stays


def test_an_early_answer_ends_the_connection(client: Client) -> None:
    """The upstream answered before the request was over: the answer goes, the rest of the body is not worth waiting for."""
    client.send(POST + b"he")
    client.last.answer()
    assert client.answers() == [(200, b"ok")]
    assert client.transport.eof_written
    client.send(b"llo" + NOW)
    assert len(client.handler.exchanges) == 1


# ---- Expect


def test_a_refused_expectation_closes_since_the_body_may_come_or_not(client: Client) -> None:
    client.send(post(b"/no", 5, b"Expect: 100-continue"))
    assert client.answers() == [(403, b"no")]
    assert not client.open


def test_continue_is_sent_on_demand(client: Client) -> None:
    client.send(post(b"/x", 5, b"Expect: 100-continue"))
    assert client.transport.take() == b""
    client.last.door.send_continue()  # type: ignore[union-attr]
    assert client.transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    client.last.answer()
    assert client.answers() == [(200, b"ok")]
    assert client.open


# ---- back-pressure


def test_a_held_body_is_not_read(client: Client) -> None:
    client.send(POST + b"he")
    client.last.door.hold_request()  # type: ignore[union-attr]
    assert not client.transport.reading
    client.send(b"llo")
    assert client.last.body == b"he"
    client.last.door.release_request()  # type: ignore[union-attr]
    assert client.transport.reading
    assert client.last.body == b"hello"
    assert client.last.ended


def test_holding_in_the_middle_of_data_keeps_order(client: Client) -> None:
    client.send(CHUNKS)
    exchange = client.last

    def data(piece: bytes) -> None:
        exchange.body += piece
        assert exchange.door is not None
        exchange.door.hold_request()

    exchange.request_data = data  # type: ignore[method-assign]
    client.send(b"1\r\na\r\n")
    client.send(b"1\r\nb\r\n1\r\nc\r\n")
    client.send(b"0\r\n\r\n" + NOW)
    for _ in range(10):
        if exchange.ended:
            break
        assert exchange.door is not None
        exchange.door.release_request()
    assert exchange.body == b"abc"
    assert exchange.ended
    exchange.answer()
    assert client.answers() == [(200, b"ok"), (200, b"2")]


def test_pipelined_octets_are_bounded(client: Client) -> None:
    client.send(GET)
    size = 0
    while client.transport.reading and size < 10 * HIGH_WATER:
        client.send(NOW * 100)
        size += len(NOW) * 100
    assert not client.transport.reading
    assert size < 3 * HIGH_WATER


def test_what_was_held_goes_on_after_the_answer() -> None:
    async def run() -> None:
        client = Client()
        client.send(GET + NOW * 3000)
        assert not client.transport.reading
        client.last.answer()
        for _ in range(200):
            await asyncio.sleep(0)
        assert client.transport.reading
        assert len(client.answers()) == 3001

    asyncio.run(run())


def test_a_slow_reader_pauses_its_exchange(client: Client) -> None:
    client.send(GET)
    client.channel.pause_writing()
    assert client.last.paused
    client.channel.resume_writing()
    assert not client.last.paused
    client.last.answer()
    client.channel.pause_writing()  # nothing under way: nothing to pause


# ---- ends


def test_a_client_that_goes_away_ends_its_exchange(client: Client) -> None:
    client.send(POST)
    exchange = client.last
    client.lose(ConnectionResetError())
    assert exchange.gone == "ConnectionResetError"
    assert client.handler.lost == ["ConnectionResetError"]


def test_a_client_that_closes_its_side_still_gets_its_answer(client: Client) -> None:
    client.send(GET)
    client.finish()
    assert not client.transport.closed
    client.last.answer()
    assert client.answers() == [(200, b"ok")]
    assert client.transport.closed


def test_a_client_that_closes_its_side_when_idle_is_closed(client: Client) -> None:
    client.finish()
    assert client.transport.closed


def test_half_a_head_and_the_end(client: Client) -> None:
    client.send(GET[:10])
    client.finish()
    assert client.transport.closed
    assert client.handler.exchanges == []


def test_what_came_in_full_before_the_clients_end_is_answered() -> None:
    client = Client()
    client.send(GET + GET)
    client.finish()
    client.last.answer(b"1")
    client.last.answer(b"2")
    assert client.answers() == [(200, b"1"), (200, b"2")]
    assert not client.open


def test_a_body_that_can_never_be_whole_ends_its_exchange_at_once() -> None:
    """The client closed its side inside a body: nothing can complete it, and the upstream must not wait for it."""
    for data in (POST + b"he", CHUNKS + b"2\r\nab\r\n"):
        client = Client()
        client.send(data)
        exchange = client.last
        client.finish()
        assert exchange.gone or exchange.failure is not None
        assert not client.open


# ---- deadlines, by the sweep


def limits(**changes: float) -> ConnectionLimits:
    return ConnectionLimits(**changes)  # type: ignore[arg-type]


def later(seconds: float) -> float:
    return monotonic() + seconds


@pytest.mark.parametrize(("seconds", "closed"), [(59, False), (61, True)])
def test_an_idle_connection_is_closed(client: Client, seconds: float, closed: bool) -> None:
    client.door.expire(later(seconds))
    assert client.transport.closed is closed
    assert client.transport.take() == b""


@pytest.mark.parametrize("data", [b"G", GET[:-1], b"\r\nGET /"])
def test_a_slow_head_is_refused(data: bytes) -> None:
    client = Client()
    client.send(data)
    client.door.expire(later(9))
    assert client.open
    client.door.expire(later(11))
    assert client.answers() == [(408, b"no")]
    assert not client.open
    assert client.handler.refused[0].reason.code == "request_timeout"


def test_a_slow_head_behind_another_request_has_its_own_time(client: Client) -> None:
    client.send(GET + b"GET /")
    client.door.expire(later(30))
    assert client.open, "the exchange under way has its own deadlines"
    client.last.answer()
    client.door.expire(later(9))
    assert client.open
    client.door.expire(later(11))
    assert [status for status, _ in client.answers()] == [200, 408]


def test_a_head_that_came_in_time_leaves_no_deadline_behind(client: Client) -> None:
    client.send(GET[:10])
    client.send(GET[10:])
    client.last.answer()
    client.door.expire(later(30))
    assert client.open
    assert client.answers() == [(200, b"ok")]


def test_an_exchange_looks_after_its_own_time(client: Client) -> None:
    client.send(GET)
    now = later(1000)
    client.door.expire(now)
    assert client.last.expired == [now]
    assert client.open


def test_a_handshake_that_never_ends() -> None:
    from meshguard.net.http1_server import Http1Connection
    from meshguard.wire.http1 import RequestParser
    from tests.net.http1_parts import Handler, MemoryTransport

    door = Http1Connection(Handler(), RequestParser(WireLimits(), FieldRules()), ConnectionLimits())
    transport = MemoryTransport()
    from meshguard.net.channel import PlainChannel

    channel = PlainChannel(door)
    channel._attach(transport)
    door.attached(channel)
    door.expire(later(4))
    assert not transport.closed
    door.expire(later(6))
    assert transport.aborted


def test_draining_has_its_time_from_the_refusal_on(client: Client) -> None:
    """A connection that was idle for long is not out of time when the body of a refused request comes."""
    client.door._since -= 50
    client.send(POST)
    client.last.refuse()
    client.door.expire(later(30))
    assert not client.transport.closed
    client.door.expire(later(61))
    assert client.transport.aborted


def test_lingering_ends_soon(client: Client) -> None:
    client.send(post(length=100_000))
    client.last.refuse()
    assert client.transport.eof_written
    client.door.expire(later(1))
    assert not client.transport.closed
    client.door.expire(later(3))
    assert client.transport.aborted


def test_a_client_that_does_not_take_its_answer_is_cut_off(client: Client) -> None:
    """Closed in order, but the transport still has octets for a peer that does not read."""
    client.door.finish()
    assert client.transport.closed
    client.door.expire(later(30))
    assert not client.transport.aborted
    client.door.expire(later(61))
    assert client.transport.aborted


def test_a_client_that_does_not_read_gets_no_further_answers_made(client: Client) -> None:
    client.channel.pause_writing()
    client.send(NOW * 10)
    assert len(client.handler.exchanges) <= 1
    size = 0
    while client.transport.reading and size < 10 * HIGH_WATER:
        client.send(NOW * 100)
        size += len(NOW) * 100
    assert not client.transport.reading


def test_a_crowd_is_not_kept_alive(client: Client) -> None:
    client.handler.crowded = True
    client.send(GET)
    client.last.answer()
    assert b"connection: close" in client.transport.take()
    assert not client.open


# ---- finish, cut, abandon


def test_finish_closes_an_idle_connection(client: Client) -> None:
    client.door.finish()
    assert client.transport.closed


def test_finish_lets_the_exchange_under_way_end(client: Client) -> None:
    client.send(GET + NOW)
    client.door.finish()
    assert not client.transport.closed
    client.last.answer()
    assert b"connection: close" in client.transport.take()
    assert len(client.handler.exchanges) == 1
    assert not client.open


def test_finish_in_the_middle_of_a_head_answers_it(client: Client) -> None:
    client.send(GET[:10])
    client.door.finish()
    client.send(GET[10:])
    client.last.answer()
    assert [status for status, _ in client.answers()] == [200]
    assert not client.open


@pytest.mark.parametrize("end", ["cut", "abandon"])
def test_ends_at_once(client: Client, end: str) -> None:
    client.send(POST)
    exchange = client.last
    action: Callable[[str], None] = getattr(client.door, end)
    action("quarantined")
    assert exchange.gone == "quarantined"
    assert client.transport.aborted
    assert client.transport.take() == b""


def test_cut_of_an_idle_connection_is_orderly(client: Client) -> None:
    client.door.cut("expired")
    assert client.transport.closed
    assert not client.transport.aborted


def test_a_reset_writes_nothing_more(client: Client) -> None:
    client.send(GET)
    client.last.begin(5)
    client.last.door.send_data(b"ab")  # type: ignore[union-attr]
    client.last.door.reset()  # type: ignore[union-attr]
    assert client.transport.aborted
    assert client.transport.take() == b""


def test_refusals_name_a_date_and_their_length(client: Client) -> None:
    client.send(GET)
    client.last.refuse(POLICY_DENIED)
    head = client.events()[0]
    assert isinstance(head, Head)
    assert head.get("date").endswith(" GMT")
    assert head.get("content-length") == "2"
