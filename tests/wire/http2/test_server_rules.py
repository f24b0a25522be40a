"""The rules of RFC 9113 sections 3 to 8 that concern octets, as a server must hold them: what was received, what is said, what is told.

Each case begins behind the greeting. `G` is GOAWAY and the end, `R` is RST_STREAM; the section stands in the name.
"""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.server import Http2Server
from meshguard.wire.semantics import FieldRules
from tests.wire.http2.peer import (
    GET,
    PADDED,
    PREFACE,
    SERVERS,
    SETTINGS,
    WITH_PRIORITY,
    Sink,
    block,
    cont,
    data,
    frame,
    frames,
    goaway,
    headers,
    number,
    ping,
    priority,
    rst,
    sent,
    server,
    settings,
    window,
)

OPEN = headers(1, *GET, end=False)
DONE = headers(1, *GET)
BODY = (*GET, (b"content-length", b"3"))
B = block(*GET)
HALF = len(B) // 2


def R(code: str, stream: int = 1) -> list[str]:
    return [f"RST_STREAM {stream} {code}"]


def G(code: str) -> list[str]:
    return [f"GOAWAY {code}"]


# name: (octets, what is said)
RULES: dict[str, tuple[bytes, list[str]]] = {
    # frames
    "4.1 an unknown type is ignored": (frame(0xB, 0xFF, 5, b"xyz"), []),
    "4.1 an unknown type on stream 0 is ignored": (frame(0xEE, 0, 0, b""), []),
    "4.1 unknown flags are ignored": (frame(6, 0xFE, 0, b"12345678"), ["PING ACK"]),
    "4.1 the reserved bit is ignored": (frame(8, 0, 2**31, number(5)), []),
    "4.2 a frame above the limit": (frame(0, 0, 1, bytes(16385)), G("FRAME_SIZE_ERROR")),
    "4.2 a header is enough to refuse it": (b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", G("FRAME_SIZE_ERROR")),
    "4.2 an unknown frame above the limit": (frame(0xB, 0, 0, bytes(16385)), G("FRAME_SIZE_ERROR")),
    "4.2 a frame at the limit": (OPEN + data(1, bytes(16384)), []),
    "4.3 a block that does not decode": (headers(1, raw=b"\x80"), G("COMPRESSION_ERROR")),
    "4.3 a truncated block": (headers(1, raw=B[:-1]), G("COMPRESSION_ERROR")),
    "4.3 trailers that do not decode": (OPEN + headers(1, raw=b"\xff"), G("COMPRESSION_ERROR")),
    "4.3 a block of a refused stream still counts": (
        headers(1, *GET, end=False, raw=B + block((b"Bad", b"x"), first=0x40)) + headers(3, raw=B + b"\xbe"),
        R("PROTOCOL_ERROR") + R("PROTOCOL_ERROR", 3),
    ),
    # DATA
    "6.1 on stream 0": (data(0, b"x"), G("PROTOCOL_ERROR")),
    "6.1 on an idle stream": (data(1, b"x"), G("PROTOCOL_ERROR")),
    "6.1 on a stream only we could open": (data(2, b"x"), G("PROTOCOL_ERROR")),
    "6.1 behind END_STREAM": (DONE + data(1, b"x"), R("STREAM_CLOSED")),
    "6.1 padding as long as the payload": (OPEN + frame(0, PADDED, 1, b"\x04abc"), G("PROTOCOL_ERROR")),
    "6.1 padding longer than the payload": (OPEN + frame(0, PADDED, 1, b"\x09abc"), G("PROTOCOL_ERROR")),
    "6.1 no pad length": (OPEN + frame(0, PADDED, 1, b""), G("FRAME_SIZE_ERROR")),
    "6.1 nothing but padding": (OPEN + data(1, b"", padding=7), []),
    # HEADERS
    "6.2 on stream 0": (headers(0, *GET), G("PROTOCOL_ERROR")),
    "6.2 padding longer than the payload": (headers(1, raw=b"\x09abc", flags=PADDED), G("PROTOCOL_ERROR")),
    "6.2 no pad length": (headers(1, raw=b"", flags=PADDED), G("FRAME_SIZE_ERROR")),
    "6.2 no room for a priority": (headers(1, raw=b"\0\0\0\0", flags=WITH_PRIORITY), G("FRAME_SIZE_ERROR")),
    "5.3.1 a stream that depends on itself": (headers(1, raw=number(1) + b"\x10" + B, flags=WITH_PRIORITY), R("PROTOCOL_ERROR")),
    "5.3.1 the same in trailers": (OPEN + headers(1, raw=number(1) + b"\x10", flags=WITH_PRIORITY), R("PROTOCOL_ERROR")),
    # PRIORITY
    "6.3 ignored on an open stream": (OPEN + priority(1, 3), []),
    "6.3 ignored on an idle stream": (priority(9, 3), []),
    "6.3 ignored on a stream that we refused": (headers(1, (b":bad", b"")) + priority(1, 3), R("PROTOCOL_ERROR")),
    "6.3 on stream 0": (priority(0, 3), G("PROTOCOL_ERROR")),
    "6.3 of another length": (OPEN + frame(2, 0, 1, b"\0\0\0\3"), R("FRAME_SIZE_ERROR")),
    "6.3 of another length, no stream": (frame(2, 0, 1, b"\0\0\0\3"), G("FRAME_SIZE_ERROR")),
    "6.3 on itself": (OPEN + priority(1, 1), R("PROTOCOL_ERROR")),
    "6.3 on itself, no stream": (priority(1, 1), G("PROTOCOL_ERROR")),
    # RST_STREAM
    "6.4 on stream 0": (rst(0), G("PROTOCOL_ERROR")),
    "6.4 on an idle stream": (rst(1), G("PROTOCOL_ERROR")),
    "6.4 on a stream only we could open": (rst(2), G("PROTOCOL_ERROR")),
    "6.4 of another length": (OPEN + frame(3, 0, 1, b"\0\0\0"), G("FRAME_SIZE_ERROR")),
    "6.4 closes": (OPEN + rst(1), []),
    "6.4 twice": (OPEN + rst(1) + rst(1), []),
    "5.1 DATA behind it": (OPEN + rst(1) + data(1, b"x"), G("STREAM_CLOSED")),
    "5.1 HEADERS behind it": (OPEN + rst(1) + headers(1), G("STREAM_CLOSED")),
    "5.1 WINDOW_UPDATE behind it": (OPEN + rst(1) + window(1, 1), []),
    # SETTINGS
    "6.5 acknowledged": (settings((3, 7)), ["SETTINGS ACK"]),
    "6.5 unknown ones are ignored": (settings((0xAAAA, 7), (0, 0)), ["SETTINGS ACK"]),
    "6.5 on a stream": (frame(4, 0, 1), G("PROTOCOL_ERROR")),
    "6.5 of another length": (frame(4, 0, 0, bytes(5)), G("FRAME_SIZE_ERROR")),
    "6.5 an acknowledgement with a payload": (frame(4, 1, 0, bytes(6)), G("FRAME_SIZE_ERROR")),
    "6.5.2 ENABLE_PUSH 0": (settings((2, 0)), ["SETTINGS ACK"]),
    "6.5.2 ENABLE_PUSH 2": (settings((2, 2)), G("PROTOCOL_ERROR")),
    "6.5.2 INITIAL_WINDOW_SIZE": (settings((4, 2**31)), G("FLOW_CONTROL_ERROR")),
    "6.5.2 INITIAL_WINDOW_SIZE, largest": (settings((4, 2**31 - 1)), ["SETTINGS ACK"]),
    "6.5.2 MAX_FRAME_SIZE, low": (settings((5, 16383)), G("PROTOCOL_ERROR")),
    "6.5.2 MAX_FRAME_SIZE, high": (settings((5, 2**24)), G("PROTOCOL_ERROR")),
    "6.5.2 MAX_FRAME_SIZE, largest": (settings((5, 2**24 - 1)), ["SETTINGS ACK"]),
    "RFC 8441 3 ENABLE_CONNECT_PROTOCOL 2": (settings((8, 2)), G("PROTOCOL_ERROR")),
    "RFC 8441 3 ENABLE_CONNECT_PROTOCOL taken back": (settings((8, 1)) + settings((8, 0)), ["SETTINGS ACK", *G("PROTOCOL_ERROR")]),
    # PUSH_PROMISE
    "6.6 from a client": (OPEN + frame(5, 4, 1, number(2) + B), G("PROTOCOL_ERROR")),
    # PING
    "6.7 answered": (ping(b"abcdefgh"), ["PING ACK"]),
    "6.7 an acknowledgement is not": (ping(ack=True), []),
    "6.7 on a stream": (frame(6, 0, 1, bytes(8)), G("PROTOCOL_ERROR")),
    "6.7 of another length": (frame(6, 0, 0, bytes(7)), G("FRAME_SIZE_ERROR")),
    # GOAWAY
    "6.8 on a stream": (frame(7, 0, 1, bytes(8)), G("PROTOCOL_ERROR")),
    "6.8 too short": (frame(7, 0, 0, bytes(7)), G("FRAME_SIZE_ERROR")),
    "6.8 told": (goaway(0, 2), []),
    # WINDOW_UPDATE
    "6.9 zero on the connection": (window(0, 0), G("PROTOCOL_ERROR")),
    "6.9 zero on a stream": (OPEN + window(1, 0), R("PROTOCOL_ERROR")),
    "6.9 of another length": (OPEN + frame(8, 0, 1, b"\0\0\1"), G("FRAME_SIZE_ERROR")),
    "6.9 on an idle stream": (window(1, 1), G("PROTOCOL_ERROR")),
    "6.9.1 above the largest, connection": (window(0, 2**31 - 1), G("FLOW_CONTROL_ERROR")),
    "6.9.1 above the largest, stream": (OPEN + window(1, 2**31 - 1), R("FLOW_CONTROL_ERROR")),
    "6.9.1 the largest": (OPEN + window(0, 2**31 - 65536) + window(1, 2**31 - 65536), []),
    "6.9.2 above the largest by SETTINGS": (
        OPEN + window(1, 2**31 - 65536) + settings((4, 65536)),
        ["SETTINGS ACK", "GOAWAY FLOW_CONTROL_ERROR"],
    ),
    "6.9 half-closed takes it": (DONE + window(1, 5), []),
    # CONTINUATION
    "6.10 outside a block": (cont(1, B, end=True), G("PROTOCOL_ERROR")),
    "6.10 behind a complete block": (DONE + cont(1, b"", end=True), G("PROTOCOL_ERROR")),
    "6.10 of another stream": (frame(1, 1, 1, B[:HALF]) + cont(3, B[HALF:], end=True), G("PROTOCOL_ERROR")),
    "6.10 another frame in between": (frame(1, 1, 1, B[:HALF]) + ping(), G("PROTOCOL_ERROR")),
    "6.10 an unknown frame in between": (frame(1, 1, 1, B[:HALF]) + frame(0xB, 0, 0), G("PROTOCOL_ERROR")),
    "6.10 HEADERS in between": (frame(1, 1, 1, B[:HALF]) + headers(3, *GET), G("PROTOCOL_ERROR")),
    # streams
    "5.1.1 an even stream": (headers(2, *GET), G("PROTOCOL_ERROR")),
    "5.1.1 a stream below the last one": (headers(5, *GET) + headers(3, *GET), G("PROTOCOL_ERROR")),
    "5.1 HEADERS behind END_STREAM": (DONE + headers(1), R("STREAM_CLOSED")),
    "8.1 trailers that do not end the stream": (OPEN + headers(1, (b"a", b"b"), end=False), R("PROTOCOL_ERROR")),
    "8.1 trailers with a pseudo-header field": (OPEN + headers(1, (b":path", b"/")), R("PROTOCOL_ERROR")),
    "8.1 trailers with upper case": (OPEN + headers(1, (b"A", b"b")), R("PROTOCOL_ERROR")),
    "8.1.1 less than content-length, DATA": (headers(1, *BODY, end=False) + data(1, b"ab", end=True), R("PROTOCOL_ERROR")),
    "8.1.1 more than content-length, DATA": (headers(1, *BODY, end=False) + data(1, b"abcd"), R("PROTOCOL_ERROR")),
    "8.1.1 more than it says, later": (headers(1, *BODY, end=False) + data(1, b"abc") + data(1, b"d", end=True), R("PROTOCOL_ERROR")),
    "8.1.1 less than content-length, trailers": (headers(1, *BODY, end=False) + data(1, b"ab") + headers(1), R("PROTOCOL_ERROR")),
    "8.1.1 less than content-length, HEADERS": (headers(1, *BODY), R("PROTOCOL_ERROR")),
    "8.1.1 content-length 0 and DATA": (headers(1, *GET, (b"content-length", b"0"), end=False) + data(1, b"x"), R("PROTOCOL_ERROR")),
    "8.1.1 padding is no content": (headers(1, *BODY, end=False) + data(1, b"abc", end=True, padding=50), []),
    "8.2 upper case": (headers(1, *GET, (b"A", b"b")), R("PROTOCOL_ERROR")),
    "8.2.2 connection-specific": (headers(1, *GET, (b"connection", b"x")), R("PROTOCOL_ERROR")),
    "8.3.1 no path": (headers(1, *GET[:3]), R("PROTOCOL_ERROR")),
    "RFC 8441 5 not offered": (headers(1, (b":method", b"CONNECT"), *GET[1:], (b":protocol", b"x"), end=False), R("PROTOCOL_ERROR")),
}  # fmt: skip


# Where the library has another word for the same: it ends the connection instead of the stream, or says it in another order.
BY_THE_LIBRARY = {
    "5.3.1 a stream that depends on itself": G("PROTOCOL_ERROR"),
    "5.3.1 the same in trailers": G("PROTOCOL_ERROR"),
    "8.1 trailers that do not end the stream": G("PROTOCOL_ERROR"),
    "RFC 8441 3 ENABLE_CONNECT_PROTOCOL taken back": ["SETTINGS ACK", "SETTINGS ACK", *G("PROTOCOL_ERROR")],
    "6.9.2 above the largest by SETTINGS": G("FLOW_CONTROL_ERROR"),
    "5.1.1 a stream below the last one": G("STREAM_CLOSED"),
}


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, kind: str) -> None:
    octets, said = RULES[name]
    if kind == "reference":
        said = BY_THE_LIBRARY.get(name, said)
    engine, sink = server(None, None, octets, kind=kind)
    assert [line for line in sent(engine) if not line.startswith("WINDOW_UPDATE")] == said
    failed = [call for call in sink.calls if call[0] == "failed"]
    over = [line.split()[-1] for line in said if line.startswith("GOAWAY")]
    assert [call[1] for call in failed] == over
    resets = [call for call in sink.calls if call[0] == "aborted" and not call[3]]
    refused = [call for call in sink.calls if call[0] == "refused"]
    assert len(resets) + len(refused) == sum(line.startswith("RST") for line in said)
    before = list(sink.calls)
    engine.receive(headers(101, *GET), 0.0)
    if over:
        assert (sink.calls, engine.take()) == (before, b"")
    else:
        assert sink.calls[-1] == ("request", 101)  # the connection goes on


# name: (octets, what is told)
TOLD: dict[str, tuple[bytes, list[tuple[Any, ...]]]] = {
    "a request": (DONE, [("request", 1)]),
    "a request in CONTINUATION": (frame(1, 1, 1, B[:3]) + cont(1, B[3:9]) + cont(1, b"") + cont(1, B[9:], end=True), [("request", 1)]),
    "padding and priority": (
        frame(1, 4 | 1 | PADDED | WITH_PRIORITY, 1, b"\x04" + number(3) + b"\x10" + B + bytes(4)),
        [("request", 1)],
    ),
    "a body and its end": (OPEN + data(1, b"ab") + data(1, b"c", end=True), [("request", 1), ("data", 1, b"abc"), ("end", 1, b"")]),
    "an empty end": (OPEN + data(1, end=True), [("request", 1), ("end", 1, b"")]),
    "padding": (OPEN + data(1, b"ab", padding=5), [("request", 1), ("padding", 1, 6), ("data", 1, b"ab")]),
    "trailers": (
        OPEN + data(1, b"ab") + headers(1, (b"x", b"y")),
        [("request", 1), ("data", 1, b"ab"), ("end", 1, b"x: y\r\n")],
    ),
    "content-length": (headers(1, *BODY, end=False) + data(1, b"abc") + headers(1), [("request", 1), ("data", 1, b"abc"), ("end", 1, b"")]),
    "a reset": (OPEN + rst(1, 8), [("request", 1), ("aborted", 1, "CANCEL", True)]),
    "nothing behind a reset of ours": (
        headers(1, *BODY, end=False) + data(1, b"abcd") + data(1, b"more") + headers(1) + window(1, 0) + rst(1) + headers(3, *GET),
        [("request", 1), ("aborted", 1, "PROTOCOL_ERROR", False), ("request", 3)],
    ),
    "GOAWAY": (DONE + goaway(0, 11), [("request", 1), ("goaway", 0, "ENHANCE_YOUR_CALM")]),
    "a limit is answered on the stream": (
        headers(1, *GET, *[(b"a", b"b")] * 100, end=False) + data(1, b"x", end=True),
        [("refused", 1, "head_too_large", True), ("data", 1, b"x"), ("end", 1, b"")],
    ),
    "a malformed head is not": (headers(1, *GET, (b"A", b"b"), end=False) + data(1, b"x"), [("refused", 1, "malformed_request", False)]),
    "two streams": (
        OPEN + headers(3, *GET, end=False) + data(1, b"a") + data(3, b"b", end=True),
        [("request", 1), ("request", 3), ("data", 1, b"a"), ("data", 3, b"b"), ("end", 3, b"")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("name", TOLD)
def test_told(name: str, kind: str) -> None:
    octets, told = TOLD[name]
    _, sink = server(None, None, octets, kind=kind)
    joined: list[tuple[Any, ...]] = []
    for call in sink.calls:
        if call[0] == "data" and joined and joined[-1][:2] == call[:2]:
            joined[-1] = (*call[:2], joined[-1][2] + call[2])
        else:
            joined.append(call)
    assert joined == told


# -- the beginning ----------------------------------------------------------------------------------------------------------


def fresh(limits: Http2Limits | None = None) -> tuple[Http2Server, Sink]:
    sink = Sink()
    engine = Http2Server(sink, limits or Http2Limits(), FieldRules())
    engine.start()
    return engine, sink


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"\0", b"P" * 24])
def test_3_4_a_wrong_preface(octets: bytes) -> None:
    for pieces in ([octets], [bytes((octet,)) for octet in octets]):
        engine, sink = fresh()
        for piece in pieces:
            engine.receive(piece, 0.0)
        assert sink.calls == [("failed", "PROTOCOL_ERROR")]


@pytest.mark.parametrize("first", [ping(), headers(1, *GET), settings(ack=True), window(0, 1), frame(0xB, 0, 0)])
def test_3_4_the_first_frame_is_settings(first: bytes) -> None:
    engine, sink = fresh()
    engine.receive(PREFACE + first, 0.0)
    assert sink.calls == [("failed", "PROTOCOL_ERROR")]


def test_what_we_announce() -> None:
    limits = Http2Limits(streams=7, stream_window_bytes=1 << 17, frame_bytes=20000, table_bytes=1000, head_bytes=999, extended_connect=True)
    engine, _ = fresh(limits)
    first, second = frames(engine.take())
    pairs = {int.from_bytes(first.payload[i : i + 2], "big"): int.from_bytes(first.payload[i + 2 : i + 6], "big")
             for i in range(0, len(first.payload), 6)}  # fmt: skip
    assert pairs == {1: 1000, 3: 7, 4: 1 << 17, 5: 20000, 6: 999, 8: 1, 9: 1}
    assert str(second) == f"WINDOW_UPDATE 0 {(1 << 20) - 65535}"


def test_our_frame_limit_may_be_larger() -> None:
    engine, sink = fresh(Http2Limits(frame_bytes=20000))
    engine.receive(PREFACE + SETTINGS + settings(ack=True) + OPEN + data(1, bytes(20000)), 0.0)
    assert sink.calls[-1][:2] == ("data", 1)
    engine.receive(data(1, bytes(20001)), 0.0)
    assert sink.calls[-1] == ("failed", "FRAME_SIZE_ERROR")


# -- the limit of streams and the end -----------------------------------------------------------------------------------------


def test_5_1_2_streams_above_the_limit_are_refused() -> None:
    engine, sink = server(Http2Limits(streams=2), None, *(headers(n, *GET) for n in (1, 3, 5)))
    assert sent(engine) == R("REFUSED_STREAM", 5)
    assert sink.calls == [("request", 1), ("request", 3)]
    assert engine.streams == 2
    engine.send_whole(1, 204, b"", b"")
    engine.receive(headers(7, *GET), 0.0)
    assert sink.calls[-1] == ("request", 7)


def test_a_stream_that_is_half_closed_counts() -> None:
    engine, sink = server(Http2Limits(streams=1), None, OPEN)
    engine.send_head(1, 200, b"", True)
    assert engine.streams == 1
    engine.receive(headers(3, *GET), 0.0)
    assert sink.calls == [("request", 1)]
    engine.reset(1, 0)
    assert engine.streams == 0
    assert sent(engine) == ["HEADERS 1 END_STREAM", *R("REFUSED_STREAM", 3), *R("NO_ERROR")]


def test_6_8_an_announced_end_takes_requests_still() -> None:
    engine, sink = server(None, None, DONE)
    engine.goaway(0, 2**31 - 1)
    engine.receive(headers(3, *GET), 0.0)
    assert sink.calls[-1] == ("request", 3)
    engine.goaway(0)
    first, second = frames(engine.take())
    assert (first.payload[:4], second.payload[:4]) == (number(2**31 - 1), number(3))
    engine.receive(headers(5, *GET), 0.0)
    assert sink.calls[-1] == ("request", 3)
    assert sent(engine) == R("REFUSED_STREAM", 5)
    engine.send_whole(1, 200, b"", b"x")
    assert sent(engine) == ["HEADERS 1", "DATA 1 1 END_STREAM"]


def test_6_8_goaway_names_the_last_stream_that_was_processed() -> None:
    engine, _ = server(None, None, DONE, headers(7, *GET), ping(b"1"))
    (last,) = frames(engine.take())
    assert (str(last), last.payload[:4]) == ("GOAWAY FRAME_SIZE_ERROR", number(7))


# -- answers ----------------------------------------------------------------------------------------------------------------


def test_a_whole_answer() -> None:
    engine, _ = server(None, None, DONE, headers(3, *GET))
    assert engine.send_whole(1, 200, b"A: b\r\n", b"body") == 0
    assert engine.send_whole(3, 404, b"", b"") == 0
    assert sent(engine) == ["HEADERS 1", "DATA 1 4 END_STREAM", "HEADERS 3 END_STREAM"]
    assert engine.streams == 0


def test_an_answer_in_pieces() -> None:
    engine, _ = server(None, None, DONE)
    engine.send_interim(1, 103, b"link: x\r\n")
    engine.send_head(1, 200, b"a: b\r\n", False)
    assert engine.send_data(1, b"x", False) == 0
    assert engine.send_data(1, b"", False) == 0
    engine.send_trailers(1, b"grpc-status: 0\r\n")
    assert sent(engine) == ["HEADERS 1", "HEADERS 1", "DATA 1 1", "HEADERS 1 END_STREAM"]


def test_no_trailers_end_by_an_empty_frame() -> None:
    engine, _ = server(None, None, DONE)
    engine.send_head(1, 200, b"", False)
    engine.send_trailers(1, b"")
    assert sent(engine) == ["HEADERS 1", "DATA 1 0 END_STREAM"]


def test_nothing_is_sent_on_a_stream_that_is_over() -> None:
    engine, sink = server(None, None, DONE)
    engine.send_whole(1, 200, b"", b"x")
    engine.take()
    engine.send_head(1, 200, b"", True)
    engine.send_interim(1, 103, b"")
    engine.send_data(1, b"x", True)
    engine.send_trailers(1, b"a: b\r\n")
    engine.reset(1, 8)
    engine.consumed(1, 5)
    engine.send_whole(99, 200, b"", b"x")
    assert engine.take() == b""
    engine.receive(headers(3, *GET, end=False), 0.0)
    engine.send_head(3, 200, b"", True)
    engine.take()
    engine.send_data(3, b"x", False)
    engine.send_trailers(3, b"")
    assert engine.take() == b""
    assert sink.calls == [("request", 1), ("request", 3)]


def test_4_3_a_long_block_goes_on_in_continuation() -> None:
    engine, _ = server(None, None, DONE)
    engine.send_head(1, 200, b"a: %b\r\n" % (b"x" * 40000), True)
    assert sent(engine) == ["HEADERS 1 END_STREAM", "CONTINUATION 1", "CONTINUATION 1"]


def test_nothing_is_sent_after_the_end_of_the_connection() -> None:
    engine, sink = server(None, None, DONE, window(0, 0))
    assert sent(engine) == G("PROTOCOL_ERROR")
    engine.send_whole(1, 200, b"", b"x")
    engine.send_data(1, b"x", True)
    engine.send_trailers(1, b"")
    engine.send_interim(1, 103, b"")
    engine.reset(1, 8)
    engine.goaway(0)
    engine.ping(b"12345678")
    engine.consumed(1, 10**6)
    assert engine.take() == b""
    assert sink.calls == [("request", 1), ("failed", "PROTOCOL_ERROR")]


class Answering(Sink):
    """Ends everything from inside its callbacks."""

    def request(self, stream: int, head: Any) -> None:
        super().request(stream, head)
        if stream % 4 == 1:
            self.engine.send_whole(stream, 200, b"", b"x")
        else:
            self.engine.reset(stream, 8)

    def data(self, stream: int, octets: bytes) -> None:
        super().data(stream, octets)
        self.engine.reset(stream, 8)


def test_a_sink_may_end_a_stream_from_a_callback() -> None:
    sink = Answering()
    engine = Http2Server(sink, Http2Limits(), FieldRules())
    sink.engine = engine
    engine.start()
    engine.receive(PREFACE + SETTINGS + OPEN + data(1, b"abc", end=True) + headers(3, *GET, end=False) + data(3, b"x", end=True), 0.0)
    assert sink.calls == [("request", 1), ("data", 1, b"abc"), ("request", 3)]
    assert sent(engine)[-4:] == ["HEADERS 1", "DATA 1 1 END_STREAM", "RST_STREAM 1 CANCEL", "RST_STREAM 3 CANCEL"]
    assert engine.streams == 0


# -- repeated heads -----------------------------------------------------------------------------------------------------------


def test_a_repeated_block_means_the_same_until_the_table_changes() -> None:
    engine, sink = server()
    engine.receive(headers(1, raw=B + block((b"x-a", b"1"), (b"te", b"trailers"), first=0x40)), 0.0)
    repeated = B + b"\xbe\xbf"  # te, x-a
    for stream in (3, 5):
        engine.receive(headers(stream, raw=repeated), 0.0)
    engine.receive(headers(7, raw=repeated, end=False), 0.0)
    engine.receive(headers(9, raw=repeated + block((b"x-b", b"2"), first=0x40)), 0.0)  # te is 63, x-b is 62 now
    engine.receive(headers(11, raw=repeated), 0.0)
    told = sink.told()
    heads = [call[2] for call in told]
    assert [head["block"] for head in heads] == [b"x-a: 1\r\n"] * 4 + [b"x-a: 1\r\nx-b: 2\r\n", b"x-b: 2\r\n"]
    assert heads[1] == heads[2]
    assert heads[1] is not heads[2]
    assert (heads[2]["length"], heads[3]["length"]) == (0, -1)
    sink.heads[1].specials.append((b"mine", b""))
    sink.heads[1].block = b""
    engine.receive(headers(13, raw=repeated), 0.0)
    assert sink.heads[-1].block == b"x-b: 2\r\n"
    assert sink.heads[-1].specials == [(b"te", b"trailers")]


def test_the_memory_of_heads_is_bounded() -> None:
    engine, _ = server(Http2Limits(streams=1000))
    for index in range(100):
        engine.receive(headers(2 * index + 1, *GET, (b"x", b"%d" % index)), 0.0)
    assert 0 < len(engine._heads) <= 8
    engine.receive(headers(1001, *GET, (b"x", b"v" * 3000)), 0.0)
    assert all(len(octets) <= 256 for octets, _ in engine._heads)
