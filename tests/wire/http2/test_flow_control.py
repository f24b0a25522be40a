"""Flow control both ways (RFC 9113 sections 5.2 and 6.9): nothing beyond a window, nothing lost, nothing stuck, everyone in turn."""

from __future__ import annotations

from collections import Counter

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.server import Http2Server
from meshguard.wire.semantics import FieldRules
from tests.wire.http2.peer import (
    GET,
    PREFACE,
    SETTINGS,
    Sink,
    data,
    feed,
    frames,
    goaway,
    headers,
    rst,
    sent,
    server,
    settings,
    window,
)

DONE = headers(1, *GET)
OPEN = headers(1, *GET, end=False)


def payload(octets: bytes) -> Counter[int]:
    counts: Counter[int] = Counter()
    for one in frames(octets):
        if one.kind == "DATA":
            counts[one.stream] += len(one.payload)
    return counts


# -- what we may send -------------------------------------------------------------------------------------------------------


def test_data_beyond_the_stream_window_waits() -> None:
    engine, sink = server(None, None, settings((4, 10)), DONE)
    engine.send_head(1, 200, b"", False)
    assert engine.send_data(1, b"a" * 25, False) == 15
    assert engine.send_data(1, b"b" * 5, False) == 20
    engine.send_trailers(1, b"x: y\r\n")
    assert sent(engine) == ["SETTINGS ACK", "HEADERS 1", "DATA 1 10"]
    feed(engine, [window(1, 18)])
    assert sent(engine) == ["DATA 1 15", "DATA 1 3"]
    assert sink.calls == [("request", 1)]
    feed(engine, [window(1, 2)])
    assert sent(engine) == ["DATA 1 2", "HEADERS 1 END_STREAM"]
    assert sink.calls == [("request", 1), ("writable", 1)]
    assert engine.streams == 0


def test_data_beyond_the_connection_window_waits() -> None:
    engine, sink = server(None, None, settings((4, 10**6)), DONE)
    assert engine.send_whole(1, 200, b"", b"a" * 70000) == 70000 - 65535
    assert sum(payload(engine.take()).values()) == 65535
    feed(engine, [window(1, 100)])
    assert engine.take() == b""
    feed(engine, [window(0, 4464)])
    assert sent(engine) == ["DATA 1 4464"]
    feed(engine, [window(0, 1)])
    assert sent(engine) == ["DATA 1 1 END_STREAM"]
    assert sink.calls == [("request", 1), ("writable", 1)]


def test_an_end_needs_no_window() -> None:
    engine, _ = server(None, None, settings((4, 0)), DONE, headers(3, *GET))
    engine.send_head(1, 200, b"", False)
    assert engine.send_data(1, b"", True) == 0
    engine.send_head(3, 200, b"", False)
    assert engine.send_data(3, b"x", False) == 1
    assert engine.send_data(3, b"", True) == 1
    assert sent(engine) == ["SETTINGS ACK", "HEADERS 1", "DATA 1 0 END_STREAM", "HEADERS 3"]
    feed(engine, [window(3, 1)])
    assert sent(engine) == ["DATA 3 1 END_STREAM"]


def test_6_9_2_a_changed_initial_window_changes_every_stream() -> None:
    engine, sink = server(None, None, settings((4, 10)), DONE)
    engine.send_whole(1, 200, b"", b"a" * 30)
    engine.take()
    feed(engine, [settings((4, 5)), window(1, 4)])  # -5, then -1
    assert sent(engine) == ["SETTINGS ACK"]
    feed(engine, [settings((4, 7))])  # 1
    assert sent(engine) == ["SETTINGS ACK", "DATA 1 1"]
    feed(engine, [settings((4, 3), (4, 1000))])  # the last of them counts
    assert sent(engine) == ["SETTINGS ACK", "DATA 1 19 END_STREAM"]
    assert sink.calls[-1] == ("writable", 1)


def test_frames_are_as_large_as_the_peer_takes() -> None:
    engine, _ = server(None, None, DONE)
    engine.send_whole(1, 200, b"", b"a" * 40000)
    assert sent(engine)[1:] == ["DATA 1 16384", "DATA 1 16384", "DATA 1 7232 END_STREAM"]
    feed(engine, [settings((5, 20000)), window(0, 100000), headers(3, *GET)])
    engine.take()
    engine.send_whole(3, 200, b"", b"a" * 40000)
    assert sent(engine)[1:] == ["DATA 3 20000", "DATA 3 20000 END_STREAM"]


def test_streams_take_turns() -> None:
    engine, _ = server(None, None, settings((4, 10**6)), *(headers(n, *GET) for n in (1, 3, 5)))
    for stream in (1, 3, 5):
        engine.send_whole(stream, 200, b"", b"a" * 100_000)
    engine.take()
    total: Counter[int] = Counter()
    for _ in range(6):
        feed(engine, [window(0, 16384)])
        total += payload(engine.take())
    assert total == {1: 32768, 3: 32768, 5: 32768}
    feed(engine, [window(0, 16384 * 6)])
    total = payload(engine.take())
    assert total[1] == 100_000 - 65535 - 32768  # the rest of it
    assert abs(total[3] - total[5]) <= 16384
    assert engine.streams == 2


def test_a_stream_with_a_shut_window_holds_nobody_up() -> None:
    engine, _ = server(None, None, DONE, headers(3, *GET), settings((4, 100)))
    engine.send_whole(1, 200, b"", b"a" * 1000)
    assert engine.send_whole(3, 200, b"", b"b" * 100) == 0
    assert payload(engine.take()) == {1: 100, 3: 100}


def test_what_waits_is_dropped_with_its_stream() -> None:
    for end in (lambda engine: feed(engine, [rst(1)]), lambda engine: engine.reset(1, 8)):
        engine, _ = server(None, None, settings((4, 10)), DONE)
        engine.send_whole(1, 200, b"", b"a" * 1000)
        end(engine)
        engine.take()
        feed(engine, [settings((4, 10**6)), window(0, 10**6)])
        assert sent(engine) == ["SETTINGS ACK"]
        assert not engine._waiting


class Pump(Sink):
    """Sends more from inside `writable`."""

    left = 5

    def writable(self, stream: int) -> None:
        super().writable(stream)
        if self.left:
            self.left -= 1
            self.engine.send_data(stream, b"x" * 30, not self.left)


def test_a_sink_may_send_from_writable() -> None:
    sink = Pump()
    engine = Http2Server(sink, Http2Limits(), FieldRules())
    sink.engine = engine
    engine.start()
    feed(engine, [PREFACE + SETTINGS + settings((4, 10)) + DONE])
    engine.send_head(1, 200, b"", False)
    engine.send_data(1, b"x" * 30, False)
    total = payload(engine.take())
    for _ in range(40):
        feed(engine, [window(1, 7)])
        total += payload(engine.take())
    assert total == {1: 180}
    assert engine.streams == 0


# -- what the peer may send -------------------------------------------------------------------------------------------------


def test_the_peer_stops_at_the_stream_window() -> None:
    engine, sink = server(Http2Limits(stream_window_bytes=65535), None, OPEN)
    sink.engine = None  # consumes nothing
    for _ in range(3):
        feed(engine, [data(1, b"x" * 16384)])
    feed(engine, [data(1, b"x" * 16383)])
    assert sink.calls[-1][0] == "data"
    feed(engine, [data(1, b"x")])
    assert sink.calls[-1] == ("aborted", 1, "FLOW_CONTROL_ERROR", False)
    assert sent(engine) == ["RST_STREAM 1 FLOW_CONTROL_ERROR"]


def test_padding_counts() -> None:
    engine, sink = server(Http2Limits(stream_window_bytes=65535), None, OPEN)
    sink.engine = None
    for _ in range(255):
        feed(engine, [data(1, b"x", padding=254)])  # 256 octets
    assert sink.calls[-1] == ("data", 1, b"x")
    feed(engine, [data(1, b"x", padding=254)])
    assert sink.calls[-1] == ("aborted", 1, "FLOW_CONTROL_ERROR", False)


def test_the_peer_stops_at_the_connection_window() -> None:
    engine, sink = server(Http2Limits(connection_window_bytes=100_000), None, OPEN, headers(3, *GET, end=False))
    sink.engine = None
    for _ in range(3):
        feed(engine, [data(1, b"x" * 16384), data(3, b"x" * 16384)])
    feed(engine, [data(1, b"x" * 1696)])
    assert sink.calls[-1][0] == "data"
    feed(engine, [data(3, b"x")])
    assert sink.calls[-1] == ("failed", "FLOW_CONTROL_ERROR")


def test_what_is_consumed_is_given_back() -> None:
    engine, sink = server(Http2Limits(stream_window_bytes=1000, connection_window_bytes=65536), None, OPEN)
    sink.engine = None
    feed(engine, [data(1, b"x" * 600)])
    engine.consumed(1, 499)
    assert engine.take() == b""
    engine.consumed(1, 1)
    assert sent(engine) == ["WINDOW_UPDATE 1 500"]
    feed(engine, [data(1, b"x" * 900)])
    assert sink.calls[-1][0] == "data"
    feed(engine, [data(1, b"x")])
    assert sink.calls[-1] == ("aborted", 1, "FLOW_CONTROL_ERROR", False)


def test_the_connection_gets_back_what_streams_that_are_over_took() -> None:
    """Dropped DATA counts on the connection for ever, unless it is given back."""
    limits = Http2Limits(connection_window_bytes=65535, reset_burst=1000)
    engine, sink = server(limits)
    for index in range(100):
        stream = 2 * index + 1
        feed(engine, [headers(stream, *GET, (b"content-length", b"1"), end=False), data(stream, b"x" * 16000), data(stream, b"late" * 100)])
        engine.take()
    assert all(call[0] != "failed" for call in sink.calls)


def test_windows_below_the_default_hold_from_the_acknowledgement_on() -> None:
    sink = Sink()
    engine = Http2Server(sink, Http2Limits(stream_window_bytes=1000), FieldRules())
    engine.start()
    feed(engine, [PREFACE + SETTINGS, OPEN, data(1, b"x" * 16384)])
    assert sink.calls[-1][0] == "data"
    feed(engine, [settings(ack=True), data(1, b"x")])
    assert sink.calls[-1] == ("aborted", 1, "FLOW_CONTROL_ERROR", False)


def test_no_window_for_a_stream_that_has_ended() -> None:
    engine, sink = server(Http2Limits(stream_window_bytes=1000), None, OPEN, data(1, b"x" * 900, end=True))
    assert sink.calls[-1] == ("end", 1, b"")
    assert sent(engine) == ["WINDOW_UPDATE 1 900"]  # it was consumed before the end was known
    engine.consumed(1, 900)
    assert sent(engine) == []


def test_goaway_of_the_peer_changes_nothing_for_data() -> None:
    _, sink = server(None, None, OPEN, goaway(0), data(1, b"x", end=True))
    assert sink.calls[-2:] == [("data", 1, b"x"), ("end", 1, b"")]


# -- against the library ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 50_000), st.integers(2000, 40_000)), min_size=1, max_size=3),
    st.integers(0, 70_000),
    st.integers(16384, 30_000),
    st.lists(st.integers(1, 40_000), max_size=4),
)
@options(max_examples=30, deadline=None)
def test_everything_arrives_within_the_windows_of_the_library(
    bodies: list[tuple[int, int]], initial: int, largest: int, steps: list[int]
) -> None:
    """h2 as client raises where we overrun a window or a frame size; each window opens in the steps given, then widely."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    client.initiate_connection()
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: initial, h2.settings.SettingCodes.MAX_FRAME_SIZE: largest})
    sink = Sink()
    engine = Http2Server(sink, Http2Limits(), FieldRules())
    engine.start()
    got: Counter[int] = Counter()
    ended = set()

    def exchange() -> None:
        while True:
            engine.receive(client.data_to_send(), 0.0)
            octets = engine.take()
            if not octets:
                return
            for event in client.receive_data(octets):
                if isinstance(event, h2.events.DataReceived):
                    got[event.stream_id] += len(event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)

    for index in range(len(bodies)):
        client.send_headers(2 * index + 1, GET, end_stream=True)
    exchange()
    for index, (size, piece) in enumerate(bodies):
        stream = 2 * index + 1
        engine.send_head(stream, 200, b"", False)
        for start in range(0, size, piece):
            engine.send_data(stream, bytes(min(piece, size - start)), False)
        engine.send_data(stream, b"", True)
    exchange()
    for step in [*steps, 2**30]:
        for index in range(len(bodies)):
            if 2 * index + 1 not in ended:
                client.increment_flow_control_window(step, 2 * index + 1)
        client.increment_flow_control_window(step)
        exchange()
    assert dict(+got) == {2 * index + 1: size for index, (size, _) in enumerate(bodies) if size}
    assert len(ended) == len(bodies)
    assert engine.streams == 0


@pytest.mark.parametrize("window_octets", [1, 2, 1000, 65535, 1 << 20])
def test_the_library_can_always_send_to_us(window_octets: int) -> None:
    """However small our windows are, an upload of the library goes through if its data is consumed."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    client.initiate_connection()
    sink = Sink()
    engine = Http2Server(sink, Http2Limits(stream_window_bytes=window_octets, connection_window_bytes=65535), FieldRules())
    sink.engine = engine
    engine.start()
    engine.receive(client.data_to_send(), 0.0)
    client.receive_data(engine.take())
    engine.receive(client.data_to_send(), 0.0)
    client.send_headers(1, GET)
    left = min(200_000, 300 * window_octets)
    total = left
    while left:
        room = min(client.local_flow_control_window(1), client.max_outbound_frame_size, left)
        assert room > 0, "stuck"
        client.send_data(1, bytes(room), end_stream=room == left)
        left -= room
        engine.receive(client.data_to_send(), 0.0)
        octets = engine.take()
        if octets:
            client.receive_data(octets)
            engine.receive(client.data_to_send(), 0.0)
    assert sum(len(call[2]) for call in sink.calls if call[0] == "data") == total
    assert sink.calls[-1] == ("end", 1, b"")
