"""The rules of RFC 9113 that concern octets, as a client must hold them. See `test_server_rules` for the form."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.wire.http2.client import Http2Client
from meshguard.wire.http2.engine import Http2Limits
from tests.wire.http2.peer import (
    CLIENTS,
    PREFACE,
    SETTINGS,
    WITH_PRIORITY,
    Sink,
    block,
    client,
    cont,
    data,
    feed,
    frame,
    frames,
    goaway,
    headers,
    number,
    ping,
    rst,
    sent,
    settings,
    window,
)

ASK = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = (b":status", b"200")
LENGTH = (OK, (b"content-length", b"3"))
OPEN = headers(1, OK, end=False)
R, G = "RST_STREAM 1 ", "GOAWAY "

RULES: dict[str, tuple[bytes, str]] = {
    "4.2 a frame above the limit": (frame(0, 0, 1, bytes(16385)), G + "FRAME_SIZE_ERROR"),
    "4.3 a block that does not decode": (headers(1, raw=b"\x80"), G + "COMPRESSION_ERROR"),
    "5.1 HEADERS on an idle stream": (headers(5, OK), G + "PROTOCOL_ERROR"),
    "5.1 HEADERS on an even stream": (headers(2, OK), G + "PROTOCOL_ERROR"),
    "5.1 DATA on an idle stream": (data(5, b"x"), G + "PROTOCOL_ERROR"),
    "5.1 DATA on an even stream": (data(2, b"x"), G + "PROTOCOL_ERROR"),
    "5.1 RST_STREAM on an idle stream": (rst(5), G + "PROTOCOL_ERROR"),
    "5.1 WINDOW_UPDATE on an idle stream": (window(5, 1), G + "PROTOCOL_ERROR"),
    "5.1 HEADERS on a closed stream": (headers(1, OK) + headers(1, OK), G + "STREAM_CLOSED"),
    "5.1 DATA on a closed stream": (headers(1, OK) + data(1, b"x"), G + "STREAM_CLOSED"),
    "5.1 WINDOW_UPDATE on a closed stream": (headers(1, OK) + window(1, 7), ""),
    "5.1 RST_STREAM on a closed stream": (headers(1, OK) + rst(1), ""),
    "5.3.1 a stream that depends on itself": (headers(1, raw=number(1) + b"\x10" + block(OK), flags=WITH_PRIORITY), R + "PROTOCOL_ERROR"),
    "6.1 DATA before a head": (data(1, b"x"), R + "PROTOCOL_ERROR"),
    "6.1 DATA behind an interim head": (headers(1, (b":status", b"103"), end=False) + data(1, b"x"), R + "PROTOCOL_ERROR"),
    "6.5.2 ENABLE_PUSH 1": (settings((2, 1)), G + "PROTOCOL_ERROR"),
    "6.5.2 ENABLE_PUSH 0": (settings((2, 0)), "SETTINGS ACK"),
    "6.6 PUSH_PROMISE": (frame(5, 4, 1, number(2) + block((b":method", b"GET"))), G + "PROTOCOL_ERROR"),
    "6.6 PUSH_PROMISE on stream 0": (frame(5, 4, 0, number(2)), G + "PROTOCOL_ERROR"),
    "6.10 another frame in a block": (frame(1, 0, 1, b"") + ping(), G + "PROTOCOL_ERROR"),
    "6.10 CONTINUATION outside": (OPEN + cont(1, b"", end=True), G + "PROTOCOL_ERROR"),
    "8.1 an interim head that ends": (headers(1, (b":status", b"100")), R + "PROTOCOL_ERROR"),
    "8.1 trailers that do not end": (OPEN + headers(1, (b"a", b"b"), end=False), R + "PROTOCOL_ERROR"),
    "8.1 trailers with a status": (OPEN + headers(1, OK), R + "PROTOCOL_ERROR"),
    "8.1.1 less than content-length, DATA": (headers(1, *LENGTH, end=False) + data(1, b"ab", end=True), R + "PROTOCOL_ERROR"),
    "8.1.1 more than content-length": (headers(1, *LENGTH, end=False) + data(1, b"abcd"), R + "PROTOCOL_ERROR"),
    "8.1.1 less than content-length, trailers": (headers(1, *LENGTH, end=False) + headers(1), R + "PROTOCOL_ERROR"),
    "8.1.1 less than content-length, HEADERS": (headers(1, *LENGTH), R + "PROTOCOL_ERROR"),
    "8.1.1 DATA for 204": (headers(1, (b":status", b"204"), end=False) + data(1, b"x"), R + "PROTOCOL_ERROR"),
    "8.2 upper case": (headers(1, OK, (b"A", b"b")), R + "PROTOCOL_ERROR"),
    "8.2.2 connection-specific": (headers(1, OK, (b"keep-alive", b"1")), R + "PROTOCOL_ERROR"),
    "8.3.2 no status": (headers(1, (b"a", b"b")), R + "PROTOCOL_ERROR"),
    "8.3.2 a request's field": (headers(1, OK, (b":path", b"/")), R + "PROTOCOL_ERROR"),
    "8.6 101": (headers(1, (b":status", b"101"), end=False), R + "PROTOCOL_ERROR"),
}  # fmt: skip


# Where the library ends the connection instead of the stream, or says nothing about a stream that is closed on both sides by then.
CLOSED = "closed"
BY_THE_LIBRARY = {
    "5.3.1 a stream that depends on itself": G + "PROTOCOL_ERROR",
    "6.1 DATA before a head": G + "PROTOCOL_ERROR",
    "6.1 DATA behind an interim head": G + "PROTOCOL_ERROR",
    "8.1 an interim head that ends": G + "PROTOCOL_ERROR",
    "8.1 trailers that do not end": G + "PROTOCOL_ERROR",
    "8.1 trailers with a status": CLOSED,
    "8.1.1 less than content-length, trailers": CLOSED,
    "8.1.1 less than content-length, HEADERS": CLOSED,
    "8.2 upper case": CLOSED,
    "8.2.2 connection-specific": CLOSED,
    "8.3.2 no status": CLOSED,
    "8.3.2 a request's field": CLOSED,
}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, kind: str) -> None:
    octets, said = RULES[name]
    if kind == "reference":
        said = BY_THE_LIBRARY.get(name, said)
    engine, sink = client(None, ASK, ASK, kind=kind)
    if said == CLOSED:
        feed(engine, [octets])
        assert ("aborted", 1, "PROTOCOL_ERROR", False) in sink.calls
        return
    feed(engine, [octets])
    assert [line for line in sent(engine) if not line.startswith("WINDOW_UPDATE")] == ([said] if said else [])
    assert [call[1] for call in sink.calls if call[0] == "failed"] == ([said.split()[-1]] if said.startswith("GOAWAY") else [])
    assert ("aborted", 1, "PROTOCOL_ERROR", False) in sink.calls or not said.startswith("RST")
    before = list(sink.calls)
    feed(engine, [headers(3, OK)])
    if said.startswith("GOAWAY"):
        assert (sink.calls, engine.take()) == (before, b"")
    else:
        assert sink.calls[-1] == ("response", 3, 200)


TOLD: dict[str, tuple[bytes, bytes, list[tuple[Any, ...]]]] = {
    "a head alone": (ASK, headers(1, OK), [("response", 1, 200)]),
    "a body": (ASK, OPEN + data(1, b"abc", end=True), [("response", 1, 200), ("data", 1, b"abc"), ("end", 1, b"")]),
    "trailers": (
        ASK, OPEN + data(1, b"abc") + headers(1, (b"grpc-status", b"0")),
        [("response", 1, 200), ("data", 1, b"abc"), ("end", 1, b"grpc-status: 0\r\n")],
    ),
    "trailers only": (ASK, headers(1, OK, (b"grpc-status", b"7")), [("response", 1, 200)]),
    "interim heads": (
        ASK, headers(1, (b":status", b"100"), end=False) + headers(1, (b":status", b"103"), end=False) + headers(1, OK),
        [("response", 1, 100), ("response", 1, 103), ("response", 1, 200)],
    ),
    "nothing is told behind a head that says there is nothing": (
        ASK, headers(1, (b":status", b"204"), end=False) + data(1, end=True), [("response", 1, 204)],
    ),
    "HEAD": (HEAD, headers(1, *LENGTH, end=False) + data(1, end=True), [("response", 1, 200)]),
    "a length of 0": (ASK, headers(1, OK, (b"content-length", b"0"), end=False) + data(1, end=True), [("response", 1, 200)]),
    "a reset": (ASK, rst(1, 7), [("aborted", 1, "REFUSED_STREAM", True)]),
    "CONTINUATION": (ASK, frame(1, 1, 1, block(OK)[:4]) + cont(1, block(OK)[4:], end=True), [("response", 1, 200)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("name", TOLD)
def test_told(name: str, kind: str) -> None:
    head, octets, told = TOLD[name]
    engine, sink = client(None, head, kind=kind)
    feed(engine, [octets])
    assert sink.calls == told
    assert engine.streams == 0
    assert engine.free == 100


def test_the_greeting() -> None:
    sink = Sink()
    engine = Http2Client(sink, Http2Limits(stream_window_bytes=70000))
    engine.start()
    greeting = engine.take()
    assert greeting.startswith(PREFACE)
    first, second = frames(greeting)
    assert (str(first), str(second)) == ("SETTINGS", f"WINDOW_UPDATE 0 {(1 << 20) - 65535}")
    assert number(2, 2) + number(0) in first.payload
    assert number(4, 2) + number(70000) in first.payload
    engine.receive(headers(1, OK), 0.0)
    assert sink.calls == [("failed", "PROTOCOL_ERROR")]


def test_requests_take_odd_streams_and_count() -> None:
    engine, _ = client(Http2Limits(streams=3))
    assert [engine.request(ASK, b"https", True) for _ in range(2)] == [1, 3]
    assert (engine.streams, engine.free) == (2, 1)
    assert engine.request(ASK, b"https", False) == 5
    assert engine.free == 0
    assert sent(engine) == ["HEADERS 1 END_STREAM", "HEADERS 3 END_STREAM", "HEADERS 5"]


def test_the_peer_limits_streams() -> None:
    engine, sink = client()
    assert engine.free == 100
    feed(engine, [settings((3, 2))])
    assert engine.free == 2
    engine.request(ASK, b"http", True)
    feed(engine, [settings((3, 0))])
    assert engine.free == 0
    feed(engine, [headers(1, OK), settings((3, 4000))])
    assert engine.free == 100  # ours bounds it
    assert sink.calls == [("response", 1, 200)]


def test_capacity_is_told() -> None:
    told = []

    class Listening(Sink):
        def capacity(self) -> None:
            told.append(engine.free)

    sink = Listening()
    engine = Http2Client(sink, Http2Limits(streams=10))
    engine.start()
    feed(engine, [SETTINGS])
    assert told == [10]
    for _ in range(4):
        engine.request(ASK, b"http", True)
    feed(engine, [headers(1, OK), rst(3), headers(5, (b":status", b"1")), OPEN.replace(number(1), number(7)) + data(7, b"", end=True)])
    assert told == [10, 7, 8, 9, 10]


def test_stream_ids_run_out() -> None:
    engine, _ = client()
    engine._next = 2**31 - 1
    assert engine.free == 100
    assert engine.request(ASK, b"http", True) == 2**31 - 1
    assert engine.free == 0


def test_6_8_goaway_drops_what_was_not_processed() -> None:
    engine, sink = client(None, ASK, ASK, ASK)
    feed(engine, [goaway(3, 0)])
    assert sink.calls == [("goaway", 3, "NO_ERROR")]
    assert (engine.free, engine.streams) == (0, 2)
    feed(engine, [headers(5, OK), headers(3, OK), headers(1, OK)])  # 5 is late, and of no interest
    assert sink.calls[1:] == [("response", 3, 200), ("response", 1, 200)]
    assert engine.streams == 0


def test_our_goaway_takes_no_more_requests() -> None:
    engine, sink = client(None, ASK)
    engine.goaway(0)
    assert engine.free == 0
    assert sent(engine) == ["GOAWAY NO_ERROR"]
    feed(engine, [headers(1, OK)])
    assert sink.calls == [("response", 1, 200)]


def test_a_reset_of_ours_ignores_what_is_late() -> None:
    engine, sink = client(None, ASK, ASK)
    engine.reset(1, 8)
    assert sent(engine) == ["RST_STREAM 1 CANCEL"]
    changing = block((b":status", b"200"), (b"x", b"y"), first=0x40)
    feed(engine, [headers(1, raw=changing, end=False), data(1, b"abc"), headers(1, (b"a", b"b")), rst(1)])
    assert sink.calls == []
    feed(engine, [headers(3, raw=b"\xbf\xbe")])  # the table was kept in step
    assert sink.told() == [("response", 3, 200, {"status": 200, "block": b"x: y\r\n", "length": 0, "minor": 2, "keep_alive": True,
                                                 "specials": [], "size": sink.heads[0].size})]  # fmt: skip


def test_a_request_in_pieces() -> None:
    engine, sink = client()
    stream = engine.request(b"POST / HTTP/1.1\r\nhost: a\r\n\r\n", b"http", False)
    assert engine.send_data(stream, b"abc", False) == 0
    feed(engine, [headers(1, OK)])  # an early answer
    assert engine.streams == 1
    engine.send_trailers(stream, b"x: y\r\n")
    assert (engine.streams, engine.free) == (0, 100)
    assert sent(engine) == ["HEADERS 1", "DATA 1 3", "HEADERS 1 END_STREAM"]
    assert sink.calls == [("response", 1, 200)]


def test_our_ping_may_be_answered() -> None:
    engine, sink = client(Http2Limits(control_burst=1, control_per_s=0))  # SETTINGS took the token
    for _ in range(5):
        engine.ping(b"abcdefgh")
        assert sent(engine) == ["PING"]
        feed(engine, [ping(b"abcdefgh", ack=True)])
    assert sink.calls == []
    feed(engine, [ping(ack=True)])
    assert sink.calls == [("failed", "ENHANCE_YOUR_CALM")]


def test_extended_connect_is_known_once_the_peer_says_so() -> None:
    engine, sink = client()
    assert not engine.peer_extended_connect
    feed(engine, [settings((8, 1))])
    assert engine.peer_extended_connect
    feed(engine, [settings((8, 0))])
    assert sink.calls == [("failed", "PROTOCOL_ERROR")]


def test_nothing_is_asked_after_the_end_of_the_connection() -> None:
    engine, sink = client(None, ASK)
    feed(engine, [window(0, 0)])
    assert sent(engine) == ["GOAWAY PROTOCOL_ERROR"]
    assert engine.free == 0
    stream = engine.request(ASK, b"http", False)
    engine.send_data(stream, b"x", True)
    assert engine.take() == b""
    assert sink.calls == [("failed", "PROTOCOL_ERROR")]
