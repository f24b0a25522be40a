"""Floods and bombs of HTTP/2, on both engines: each ends with the right error, after a bounded number of frames and with bounded memory.

`security.md`, section 2: rapid reset (CVE-2023-44487), made-you-reset (CVE-2025-8671), CONTINUATION (CVE-2024-27316 and others), PING,
SETTINGS, PRIORITY, empty frames, 0-length headers (CVE-2019-9511 to 9518), HPACK bombs. The real process meets them end to end.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from meshguard.wire.http2.engine import Http2Limits
from tests.wire.http2.peer import (
    CLIENTS,
    GET,
    PADDED,
    SERVERS,
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
    priority,
    rst,
    sent,
    server,
    settings,
    window,
)

LIMITS = Http2Limits(control_burst=50, control_per_s=10.0, reset_burst=20, reset_per_s=5.0)
OPEN = headers(1, *GET, end=False)
Attack = Callable[[int], bytes]
both = pytest.mark.parametrize("kind", SERVERS)


def control(make: Attack, opening: bytes = b"") -> tuple[Attack, bytes, int]:
    return make, opening, LIMITS.control_burst


def resets(make: Attack, opening: bytes = b"") -> tuple[Attack, bytes, int]:
    return make, opening, LIMITS.reset_burst


def stream(index: int) -> int:
    return 2 * index + 3


# name: (the frames of round n, what opens the connection, how many rounds are free)
FLOODS: dict[str, tuple[Attack, bytes, int]] = {
    "PING": control(lambda n: ping()),
    "PING answers that nobody asked for": control(lambda n: ping(ack=True)),
    "SETTINGS": control(lambda n: settings()),
    "SETTINGS with values": control(lambda n: settings((4, 1000 + n), (3, n))),
    "SETTINGS acknowledgements": control(lambda n: settings(ack=True)),
    "PRIORITY": control(lambda n: priority(stream(n), 1)),
    "WINDOW_UPDATE of the connection": control(lambda n: window(0, 1)),
    "WINDOW_UPDATE of a stream": control(lambda n: window(1, 1), OPEN),
    "WINDOW_UPDATE of a closed stream": control(lambda n: window(1, 1), OPEN + rst(1)),
    "RST_STREAM of a closed stream": control(lambda n: rst(1), OPEN + rst(1)),
    "GOAWAY": control(lambda n: goaway(0)),
    "empty DATA": control(lambda n: data(1), OPEN),
    "DATA of padding": control(lambda n: data(1, b"", padding=0), OPEN),
    "unknown frames": control(lambda n: frame(0xBB, 0, 0, b"x")),
    "trailers of a stream that we reset": control(lambda n: headers(1), headers(1, (b":bad", b""))),
    "rapid reset": resets(lambda n: headers(stream(n), *GET) + rst(stream(n))),
    "rapid reset of open requests": resets(lambda n: headers(stream(n), *GET, end=False) + data(stream(n), b"x") + rst(stream(n))),
    "malformed requests": resets(lambda n: headers(stream(n), *GET, (b"A", b"b"))),
    "zero-length names": resets(lambda n: headers(stream(n), *GET, (b"", b""))),
    "made you reset: a window of 0": resets(lambda n: headers(stream(n), *GET) + window(stream(n), 0)),
    "made you reset: a window too large": resets(lambda n: headers(stream(n), *GET) + window(stream(n), 2**31 - 1)),
    "made you reset: DATA behind the end": resets(lambda n: headers(stream(n), *GET) + data(stream(n), b"x", end=True)),
    "made you reset: HEADERS behind the end": resets(lambda n: headers(stream(n), *GET) + headers(stream(n))),
    "made you reset: PRIORITY of a wrong length": resets(lambda n: headers(stream(n), *GET) + frame(2, 0, stream(n), b"x")),
    "made you reset: PRIORITY on itself": resets(lambda n: headers(stream(n), *GET) + priority(stream(n), stream(n))),
    "made you reset: content-length": resets(
        lambda n: headers(stream(n), *GET, (b"content-length", b"1"), end=False) + data(stream(n), b"xx")
    ),
    "made you reset: trailers": resets(lambda n: headers(stream(n), *GET, end=False) + headers(stream(n), (b":path", b"/"))),
    "made you reset: streams above the limit": resets(
        lambda n: headers(stream(n) + 200, *GET), b"".join(headers(2 * n + 1, *GET) for n in range(100))
    ),
}  # fmt: skip


@both
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends(name: str, kind: str) -> None:
    make, opening, free = FLOODS[name]
    engine, sink = server(LIMITS, None, opening, kind=kind)
    rounds = 0
    written = 0
    while not any(call[0] == "failed" for call in sink.calls):
        assert rounds <= free, "it goes on and on"
        engine.receive(make(rounds), 0.0)
        rounds += 1
        written += len(engine.take())
    assert sink.calls[-1] == ("failed", "ENHANCE_YOUR_CALM")
    assert rounds >= free - 2  # the greeting and the opening may have cost a token
    assert written <= 100 * (rounds + 1)


@both
@pytest.mark.parametrize("name", FLOODS)
def test_at_a_modest_rate_it_is_no_flood(name: str, kind: str) -> None:
    make, opening, free = FLOODS[name]
    engine, sink = server(LIMITS, None, opening, kind=kind)
    per_s = LIMITS.control_per_s if free == LIMITS.control_burst else LIMITS.reset_per_s
    for index in range(3 * free):
        engine.receive(make(index), 1.0 + index / per_s)
        if index % 90 == 0:
            engine.take()
        assert not any(call[0] == "failed" for call in sink.calls), index


@both
def test_resets_of_both_directions_share_one_budget(kind: str) -> None:
    engine, sink = server(LIMITS, kind=kind)
    for index in range(LIMITS.reset_burst + 1):
        last = rst(stream(index)) if index % 2 else window(stream(index), 0)
        engine.receive(headers(stream(index), *GET) + last, 0.0)
    assert sink.calls[-1] == ("failed", "ENHANCE_YOUR_CALM")


@both
def test_a_reader_of_much_data_may_update_its_windows(kind: str) -> None:
    """Ten updates for each frame of ours are no flood; the eleventh spends a token."""
    engine, sink = server(LIMITS, None, settings((4, 2**20)), window(0, 2**20), headers(1, *GET), kind=kind)
    engine.send_head(1, 200, b"", False)
    for _ in range(60):
        engine.send_data(1, b"x" * 1000, False)
        feed(engine, [window(0, 100)] * 5 + [window(1, 100)] * 4 + [ping()])
        engine.take()
    assert sink.calls == [("request", 1)]
    feed(engine, [window(0, 1)] * 60)
    assert sink.calls[-1] == ("failed", "ENHANCE_YOUR_CALM")


@both
def test_answers_that_nobody_reads_do_not_pile_up(kind: str) -> None:
    limits = Http2Limits(control_burst=10**6, reset_burst=10**6, queue_bytes=10_000)
    floods: list[Iterator[bytes]] = [
        (ping() for _ in range(10_000)),
        (settings() for _ in range(10_000)),
        (headers(2 * n + 1, (b":bad", b"")) for n in range(10_000)),
        (headers(2 * n + 1, *GET) + window(2 * n + 1, 0) for n in range(10_000)),
    ]
    for flood in floods:
        engine, sink = server(limits, kind=kind)
        for octets in flood:
            engine.receive(octets, 0.0)
            if sink.calls and sink.calls[-1][0] == "failed":
                break
        assert sink.calls[-1] == ("failed", "ENHANCE_YOUR_CALM")
        assert len(engine.take()) <= 10_000 + 17


# -- blocks -----------------------------------------------------------------------------------------------------------------


@both
def test_continuation_that_does_not_end(kind: str) -> None:
    for payload in (b"", b"x", bytes(16384)):
        engine, sink = server(kind=kind)
        engine.receive(frame(1, 0, 1, b""), 0.0)
        for _ in range(9):
            assert not sink.calls or len(payload) > 1
            engine.receive(cont(1, payload), 0.0)
        assert sink.calls == [("failed", "ENHANCE_YOUR_CALM")]
        assert sent(engine) == ["GOAWAY ENHANCE_YOUR_CALM"]


@both
def test_a_block_is_bounded_in_octets_too(kind: str) -> None:
    engine, sink = server(Http2Limits(continuation_frames=1000, control_burst=10**6), kind=kind)
    engine.receive(frame(1, 0, 1, bytes(16384)), 0.0)
    frames_taken = 1
    while not sink.calls:
        engine.receive(cont(1, bytes(16384)), 0.0)
        frames_taken += 1
    assert sink.calls == [("failed", "ENHANCE_YOUR_CALM")]
    assert frames_taken <= 6  # twice the 32 KiB of a head, and a frame


@both
def test_empty_headers_in_continuation_cost_tokens(kind: str) -> None:
    engine, sink = server(LIMITS, kind=kind)
    for index in range(60):
        if sink.calls and sink.calls[-1][0] == "failed":
            break
        engine.receive(frame(1, 1, stream(index), b"") + cont(stream(index), block(*GET), end=True), 0.0)
    assert sink.calls[-1] == ("failed", "ENHANCE_YOUR_CALM")


def test_an_hpack_bomb_is_answered_and_costs_little() -> None:
    """4 KiB in the table, named by thousands of single octets: 60 MB of fields that nobody ever makes."""
    engine, sink = server(Http2Limits(reset_burst=10**6))
    large = block((b"bomb", b"x" * 4000), first=0x40)
    engine.receive(headers(1, raw=block(*GET) + large), 0.0)
    bomb = block(*GET) + b"\xbe" * 16000
    tracemalloc.start()
    try:
        for index in range(20):
            engine.receive(headers(stream(index), raw=bomb), 0.0)
            engine.reset(stream(index), 0)
            engine.take()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sink.calls[1:] == [("refused", stream(index), "head_too_large", True) for index in range(20)]
    assert peak < 2_000_000


def test_a_bomb_with_few_fields() -> None:
    engine, sink = server()
    engine.receive(headers(1, raw=block(*GET) + block((b"bomb", b"x" * 4000), first=0x40) + b"\xbe" * 9), 0.0)
    assert sink.calls == [("refused", 1, "head_too_large", True)]


@pytest.mark.parametrize("name", [b"cookie", b"host", b"a_b", b"content-length", b"x"])
def test_fields_that_are_joined_or_dropped_count(name: bytes) -> None:
    for raw in (block(*[(name, b"1")] * 97), block((name, b"1" * 700), first=0x40) + b"\xbe" * 59):
        engine, sink = server()
        engine.receive(headers(1, raw=block(*GET) + raw), 0.0)
        assert sink.calls == [("refused", 1, "head_too_large", True)]


def test_the_table_is_bounded() -> None:
    engine, _ = server(Http2Limits(reset_burst=10**6, streams=10**6))
    for index in range(300):
        engine.receive(headers(stream(index), raw=block(*GET) + block((b"n%d" % index, b"v" * 50), first=0x40)), 0.0)
    assert engine._decoder.table_octets <= 4096
    assert len(engine._decoder._dynamic) <= 128


def test_a_connection_that_has_served_many_streams_holds_little() -> None:
    """Nothing of a stream stays but its number, for the last few."""
    engine, sink = server()

    def serve(first: int, count: int) -> None:
        for index in range(first, first + count):
            engine.receive(headers(stream(index), *GET, end=False) + data(stream(index), b"x" * 100, end=True), float(index))
            engine.send_whole(stream(index), 200, b"a: b\r\n", b"y" * 100)
            engine.receive(window(0, 100), float(index))
            engine.take()
            sink.calls.clear()
            sink.heads.clear()

    serve(0, 1500)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        serve(1500, 1500)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
    assert engine.streams == 0


def test_octets_of_a_frame_that_is_too_large_are_never_kept() -> None:
    engine, sink = server()
    engine.receive(number(16385, 3), 0.0)
    engine.receive(b"\0\0\0\0\0\1", 0.0)
    assert sink.calls == [("failed", "FRAME_SIZE_ERROR")]
    engine.receive(bytes(10**6), 0.0)
    assert not engine._pieces


def test_octet_by_octet_is_linear() -> None:
    """A frame that comes in single octets is put together once."""
    engine, sink = server(None, None, OPEN)
    for octet in data(1, b"x" * 16384):
        engine.receive(bytes((octet,)), 0.0)
    assert sink.calls[-1] == ("data", 1, b"x" * 16384)


# -- the other direction ----------------------------------------------------------------------------------------------------

ASK = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
FROM_A_SERVER: dict[str, Attack] = {
    "PING": lambda n: ping(),
    "SETTINGS": lambda n: settings(),
    "empty DATA": lambda n: data(1),
    "PRIORITY": lambda n: priority(1, 3),
    "padding alone": lambda n: frame(0, PADDED, 1, b"\0"),
    "GOAWAY": lambda n: goaway(2**31 - 1),
    "WINDOW_UPDATE": lambda n: window(0, 1),
}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("name", FROM_A_SERVER)
def test_a_server_may_not_flood_us_either(name: str, kind: str) -> None:
    engine, sink = client(LIMITS, ASK, kind=kind)
    engine.receive(headers(1, (b":status", b"200"), end=False), 0.0)
    for index in range(LIMITS.control_burst + 20):
        engine.receive(FROM_A_SERVER[name](index), 0.0)
    assert sink.calls[-1] == ("failed", "ENHANCE_YOUR_CALM")


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_server_that_makes_us_reset(kind: str) -> None:
    engine, sink = client(LIMITS, kind=kind)
    for _ in range(LIMITS.reset_burst + 1):
        number_ = engine.request(ASK, b"http", True)
        engine.receive(headers(number_, (b"no", b"status")), 0.0)
    assert sink.calls[-1] == ("failed", "ENHANCE_YOUR_CALM")


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_server_may_refuse_as_many_requests_as_we_send(kind: str) -> None:
    engine, sink = client(LIMITS, kind=kind)
    for _ in range(10 * LIMITS.reset_burst):
        engine.receive(rst(engine.request(ASK, b"http", True), 7), 0.0)
    assert {call[0] for call in sink.calls} == {"aborted"}
    assert [one.kind for one in frames(engine.take())].count("GOAWAY") == 0
