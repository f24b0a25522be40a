"""The same however the octets are cut; and the h2 library as oracle and as peer: what ours accepts it accepts with the same meaning.

Intended differences, each where h2 is laxer or stricter than we are:
- ours refuses by value grammar, content-length on every end, floods, limits and rules of the house: h2 accepts;
- an increment of 0 for a stream that is over is ignored by ours, and ends the connection in h2;
- h2 ends the connection where ours resets a stream (a malformed head, flow control of a stream, a length that does not agree), and is
  itself stricter in nothing that a request of ours needs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.messages import RequestHead
from meshguard.wire.fields import split_block
from meshguard.wire.http2.client import Http2Client
from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.server import Http2Server
from meshguard.wire.semantics import FieldRules
from tests.wire.http2 import peer
from tests.wire.http2.peer import GET, PREFACE, SETTINGS, Sink, block, client, cont, data, feed, frame, headers, ping, rst, window
from tests.wire.http2.test_client_rules import RULES as CLIENT_RULES
from tests.wire.http2.test_client_rules import TOLD as CLIENT_TOLD
from tests.wire.http2.test_server_rules import RULES, TOLD

ASK = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
LIMITS = Http2Limits()


def serve(pieces: list[bytes], limits: Http2Limits = LIMITS) -> tuple[list[tuple[Any, ...]], bytes]:
    """What a server tells its owner, and what it says in the end."""
    sink = Sink()
    engine = Http2Server(sink, limits, FieldRules())
    sink.engine = engine
    engine.start()
    feed(engine, pieces)
    return sink.told(), engine.take()


def ask(pieces: list[bytes]) -> tuple[list[tuple[Any, ...]], bytes]:
    engine, sink = client(None, ASK, ASK)
    feed(engine, pieces)
    return sink.told(), engine.take()


def cuts(octets: bytes, edges: list[int]) -> list[bytes]:
    places = sorted({0, len(octets), *(edge % (len(octets) + 1) for edge in edges)})
    return [octets[a:b] for a, b in pairwise(places)]


SERVED = {**{name: octets for name, (octets, _) in RULES.items()}, **{name: octets for name, (octets, _) in TOLD.items()}}
ANSWERS = {**{name: octets for name, (octets, _) in CLIENT_RULES.items()}, **{name: case[1] for name, case in CLIENT_TOLD.items()}}


@pytest.mark.parametrize("name", [name for name in SERVED if len(SERVED[name]) < 5000])
def test_a_server_octet_by_octet(name: str) -> None:
    octets = PREFACE + SETTINGS + SERVED[name]
    assert serve([octets[i : i + 1] for i in range(len(octets))]) == serve([octets])


@pytest.mark.parametrize("name", [name for name in ANSWERS if len(ANSWERS[name]) < 5000])
def test_a_client_octet_by_octet(name: str) -> None:
    octets = ANSWERS[name]
    assert ask([octets[i : i + 1] for i in range(len(octets))]) == ask([octets])


@given(st.lists(st.sampled_from(sorted(SERVED)), min_size=1, max_size=6), st.lists(st.integers(0, 2**20), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_segmentation_of_any_frames(names: list[str], edges: list[int]) -> None:
    octets = PREFACE + SETTINGS + b"".join(SERVED[name] for name in names)
    assert serve(cuts(octets, edges)) == serve([octets])


# -- the library judges the same octets -------------------------------------------------------------------------------------

_STREAM = st.sampled_from([1, 1, 3, 3, 5, 7, 2, 0])
_FIELD = st.sampled_from([
    (b"accept", b"x"), (b"cookie", b"a=b"), (b"cookie", b"c=d"), (b"te", b"trailers"), (b"content-length", b"3"), (b"content-length", b"0"),
    (b"x", b""), (b"host", b"shop.example"), (b"host", b"other"), (b"connection", b"x"), (b"Upper", b"x"), (b":path", b"/b"), (b"y", b" z"),
    (b"te", b"gzip"), (b"traceparent", b"00-1"), (b"a_b", b"c"), (b"transfer-encoding", b"chunked"), (b"expect", b"100-continue"),
])  # fmt: skip
_EXTRA = st.lists(_FIELD, max_size=4)


@st.composite
def _some_frame(draw: st.DrawFn) -> bytes:
    stream = draw(_STREAM)
    end = draw(st.booleans())
    match draw(st.integers(0, 11)):
        case 0 | 1 | 2 | 3:
            return headers(stream, *GET, *draw(_EXTRA), end=end)
        case 4 | 5:
            return data(
                stream, draw(st.sampled_from([b"", b"abc", b"x" * 500])), end=end, padding=draw(st.sampled_from([None, None, 0, 7]))
            )
        case 6:
            return headers(stream, *draw(_EXTRA), end=draw(st.sampled_from([True, True, False])))
        case 7:
            octets = block(*GET, *draw(_EXTRA))
            return frame(1, int(end), stream, octets[:9]) + cont(draw(st.sampled_from([stream, stream, 1])), octets[9:], end=True)
        case 8:
            return rst(stream)
        case 9:
            return window(stream, draw(st.sampled_from([1, 1000, 2**31 - 1])))
        case 10:
            return draw(
                st.sampled_from([ping(), peer.settings((4, 100)), peer.settings((5, 1)), peer.priority(9, 7), frame(0xB, 0, 0, b"x")])
            )
        case _:
            return headers(stream, raw=draw(st.binary(max_size=12)), end=end)


def judged_by_h2(octets: list[bytes]) -> tuple[list[tuple[Any, ...]], bool]:
    """Events as ours are told, up to the first error; whether there was one."""
    library = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    library.initiate_connection()
    library.receive_data(PREFACE + SETTINGS)
    told: list[tuple[Any, ...]] = []
    try:
        for piece in octets:
            for event in library.receive_data(piece):
                match event:
                    case h2.events.RequestReceived():
                        told.append(("request", event.stream_id, [(bytes(n), bytes(v)) for n, v in event.headers]))
                    case h2.events.DataReceived():
                        if event.data:
                            told.append(("data", event.stream_id, bytes(event.data)))
                    case h2.events.TrailersReceived():
                        told.append(("trailers", event.stream_id, [(bytes(n), bytes(v)) for n, v in event.headers]))
                    case h2.events.StreamEnded():
                        told.append(("end", event.stream_id))
                    case h2.events.StreamReset():
                        told.append(("aborted", event.stream_id, event.remote_reset))
    except (h2.exceptions.ProtocolError, hpack.HPACKError):
        return told, True
    return told, False


@given(st.lists(_some_frame(), min_size=1, max_size=7))
@settings(max_examples=400, deadline=None)
def test_what_ours_accepts_the_library_accepts_with_the_same_meaning(pieces: list[bytes]) -> None:
    sink = Sink()
    engine = Http2Server(sink, LIMITS, FieldRules(underscores="allow"))
    engine.start()
    engine.receive(PREFACE + SETTINGS, 0.0)
    accepted = []
    for piece in pieces:  # up to the first thing that ours does not accept
        before = len(sink.calls)
        engine.receive(piece, 0.0)
        if any(call[0] in ("failed", "refused") or (call[0] == "aborted" and not call[3]) for call in sink.calls[before:]):
            del sink.calls[before:]
            break
        accepted.append(piece)
    theirs, failed = judged_by_h2(accepted)
    assert not failed, "the library does not accept what ours does"
    heads = iter(sink.heads)
    mine: list[tuple[Any, ...]] = []
    for call in sink.calls:
        if call[0] == "request":
            head = next(heads)
            assert isinstance(head, RequestHead)
            mine.append((*call, head))
            if not head.length:
                mine.append(("end", call[1]))
        elif call[0] == "data":
            mine.append(call)
        elif call[0] == "end":
            mine.append(("end", call[1], call[2]))
        elif call[0] == "aborted":
            mine.append(("aborted", call[1], True))
    expected = [event for event in theirs if event[0] != "trailers"]
    trailers = {event[1]: event[2] for event in theirs if event[0] == "trailers"}
    assert [event[:2] for event in mine] == [event[:2] for event in expected]
    for ours, other in zip(mine, expected, strict=True):
        if ours[0] == "request":
            pseudo = {name: value for name, value in other[2] if name[:1] == b":"}
            head = ours[2]
            assert (head.method, head.target, head.authority) == (pseudo[b":method"], pseudo[b":path"], pseudo[b":authority"])
            regular = sorted((n, v) for n, v in other[2] if n[:1] != b":" and n not in (b"host", b"content-length", b"expect", b"cookie"))
            crumbs = [value for name, value in other[2] if name == b"cookie"]
            block_fields = split_block(head.block)
            assert sorted([*head.specials, *(pair for pair in block_fields if pair[0] != b"cookie")]) == regular
            assert [value for name, value in block_fields if name == b"cookie"] == ([b"; ".join(crumbs)] if crumbs else [])
        elif ours[0] == "data":
            assert ours[2] == other[2]
        elif ours[0] == "end" and len(ours) == 3 and ours[2]:
            assert set(split_block(ours[2])) <= set(trailers[ours[1]])


# -- the library as peer ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.binary(max_size=20_000), st.binary(max_size=20_000), st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_exchanges_with_the_library_both_ways(exchanges: list[tuple[bytes, bytes, bool, bool]], ours_serves: bool) -> None:
    """Requests and answers of any sizes, with and without trailers, arrive whole whichever side is ours."""
    sink = Sink()
    config = h2.config.H2Configuration(client_side=ours_serves, header_encoding=None)
    library = h2.connection.H2Connection(config)
    library.initiate_connection()
    engine: Any = Http2Server(sink, LIMITS, FieldRules()) if ours_serves else Http2Client(sink, LIMITS)
    sink.engine = engine
    engine.start()
    got: dict[int, bytes] = {}
    trailers: dict[int, list[tuple[bytes, bytes]]] = {}
    waiting: dict[int, list[Any]] = {}

    def push() -> None:
        for stream, (body, last) in list(waiting.items()):
            while body:
                room = min(library.local_flow_control_window(stream), library.max_outbound_frame_size)
                if room <= 0:
                    break
                library.send_data(stream, body[:room])
                body = body[room:]
            waiting[stream][0] = body
            if not body:
                library.send_headers(stream, last, end_stream=True) if last else library.end_stream(stream)
                del waiting[stream]

    def exchange() -> None:
        for _ in range(1000):
            push()
            mine, theirs = engine.take(), library.data_to_send()
            if not mine and not theirs:
                return
            engine.receive(theirs, 0.0)
            for event in library.receive_data(mine):
                if isinstance(event, h2.events.DataReceived):
                    got[event.stream_id] = got.get(event.stream_id, b"") + bytes(event.data)
                    library.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers[event.stream_id] = [(bytes(n), bytes(v)) for n, v in event.headers]
        raise AssertionError("it never ends")

    exchange()
    for index, (asked, _, one, _) in enumerate(exchanges):
        stream = 2 * index + 1
        if ours_serves:
            library.send_headers(stream, GET)
            waiting[stream] = [asked, [(b"t", b"1")] if one else []]
        else:
            assert engine.request(b"POST / HTTP/1.1\r\nhost: a\r\n\r\n", b"http", False) == stream
            engine.send_data(stream, asked, False)
            engine.send_trailers(stream, b"t: 1\r\n" if one else b"")
    exchange()
    for index, (_, answered, _, two) in enumerate(exchanges):
        stream = 2 * index + 1
        if ours_serves:
            engine.send_head(stream, 200, b"a: b\r\n", False)
            engine.send_data(stream, answered, False)
            engine.send_trailers(stream, b"u: 2\r\n" if two else b"")
        else:
            library.send_headers(stream, [(b":status", b"200")])
            waiting[stream] = [answered, [(b"u", b"2")] if two else []]
    exchange()
    assert engine.streams == 0
    for index, (asked, answered, one, two) in enumerate(exchanges):
        stream = 2 * index + 1
        to_us, to_them = (asked, answered) if ours_serves else (answered, asked)
        assert b"".join(call[2] for call in sink.calls if call[:2] == ("data", stream)) == to_us
        assert got.get(stream, b"") == to_them
        ends = [call[2] for call in sink.calls if call[:2] == ("end", stream)]
        assert ends == [(b"t: 1\r\n" if one else b"") if ours_serves else (b"u: 2\r\n" if two else b"")]
        sent_by_us = ([(b"u", b"2")] if two else []) if ours_serves else ([(b"t", b"1")] if one else [])
        assert trailers.get(stream, []) == sent_by_us
