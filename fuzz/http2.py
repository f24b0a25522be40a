"""Targets of HTTP/2: octets of a connection, of a field block, and strings in the Huffman code. Registered in `fuzz.targets`."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise
from typing import Any

import hpack
import hpack.huffman_table

from meshguard.wire.grammar import FIELD_BLOCK
from meshguard.wire.http2.client import Http2Client
from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.field_book import REGULAR, request_book
from meshguard.wire.http2.hpack_decoder import HpackDecoder, HpackError
from meshguard.wire.http2.huffman import HuffmanError, decode_huffman
from meshguard.wire.http2.server import Http2Server
from meshguard.wire.semantics import FieldRules
from tests.wire.http2.peer import (
    PREFACE,
    SETTINGS,
    Sink,
    block,
    client,
    cont,
    data,
    frame,
    frames,
    headers,
    ping,
    priority,
    rst,
    settings,
    window,
)

__all__ = ["H2_WORDS", "HPACK_WORDS", "hpack_block", "http2_client", "http2_server", "huffman"]

_RULES = FieldRules()
_LIMITS = Http2Limits(streams=3, head_bytes=400, fields=8, stream_window_bytes=200, connection_window_bytes=65535, control_burst=20,
                      reset_burst=4, queue_bytes=300, continuation_frames=2)  # fmt: skip
_ASK = b"POST / HTTP/1.1\r\nhost: a\r\n\r\n"


def _pieces(octets: bytes) -> tuple[list[bytes], bytes]:
    """The first octet says in how many pieces (at most 8) the rest comes, the next ones where it is cut."""
    count = octets[0] % 8 if octets else 0
    text = octets[1 + count :]
    edges = sorted({0, len(text), *(cut * len(text) // 255 for cut in octets[1 : 1 + count])})
    return [text[a:b] for a, b in pairwise(edges)], text


def _judge(engine: Any, sink: Sink, octets: bytes, limits: Http2Limits) -> None:
    """What must hold after any octets."""
    said = frames(octets)
    over = [one for one in said if one.kind == "GOAWAY"]
    failed = [call for call in sink.calls if call[0] == "failed"]
    assert len(over) == len(failed) <= 1
    assert not over or said[-1] is over[0], "something is said behind the end"
    assert engine.streams == len(engine._table) <= limits.streams
    assert engine._decoder.table_octets <= 4096
    assert engine._gathered <= 9 + 16384 + len(octets) + 65536
    begun = [call[1] for call in sink.calls if call[0] in ("request", "refused")]
    assert begun == sorted(set(begun)), "a stream began twice"
    done: dict[int, str] = {}
    for name, stream, *_ in sink.calls:
        if name in ("goaway", "failed"):
            continue
        allowed = {"": True, "end": name in ("aborted", "writable"), "aborted": False}
        assert allowed[done.get(stream, "")], f"{name} behind the end of a stream"
        if name in ("end", "aborted"):
            done[stream] = name
    for call in sink.calls:
        if call[0] == "end":
            assert FIELD_BLOCK(call[2]) is not None
    for head in sink.heads:
        assert FIELD_BLOCK(head.block) is not None
        assert b"\n" not in getattr(head, "target", b"") + getattr(head, "authority", b"")


def _serve(pieces: list[bytes], answers: bool) -> tuple[Any, Sink, bytes]:
    sink = Sink()
    engine = Http2Server(sink, _LIMITS, _RULES)
    sink.engine = engine
    engine.start()
    engine.receive(PREFACE + SETTINGS + settings(ack=True), 0.0)
    engine.take()
    for piece in pieces:
        engine.receive(piece, 0.0)
    if answers:
        for call in list(sink.calls):
            if call[0] == "request":
                engine.send_whole(call[1], 200, b"a: b\r\n", b"x" * 300)
    return engine, sink, engine.take()


def http2_server(octets: bytes) -> Hashable:
    """However a connection is cut a server says and tells the same; one end, in order, within every bound."""
    pieces, text = _pieces(octets)
    answers = len(octets) % 2 == 1
    engine, sink, said = _serve([text], answers)
    _judge(engine, sink, said, _LIMITS)
    again, other, said_again = _serve(pieces, answers)
    assert said_again == said, "the segmentation matters"
    assert other.told() == sink.told(), "the segmentation matters"
    assert again.streams == engine.streams
    engine.receive(headers(2**31 - 1, raw=b""), 1000.0)
    return (
        tuple(call[0] for call in sink.calls[:6]),
        sink.calls[-1][1] if sink.calls and sink.calls[-1][0] == "failed" else "",
        len(said) > 0,
    )


def _ask(pieces: list[bytes]) -> tuple[Http2Client, Sink, bytes]:
    engine, sink = client(_LIMITS, _ASK)
    stream = engine.request(_ASK, b"http", False)
    engine.send_data(stream, b"x" * 100, False)
    for piece in pieces:
        engine.receive(piece, 0.0)
    engine.send_trailers(stream, b"t: 1\r\n")
    return engine, sink, engine.take()


def http2_client(octets: bytes) -> Hashable:
    """The same of a client."""
    pieces, text = _pieces(octets)
    engine, sink, said = _ask([text])
    _judge(engine, sink, said, _LIMITS)
    _, other, said_again = _ask(pieces)
    assert said_again == said, "the segmentation matters"
    assert other.told() == sink.told(), "the segmentation matters"
    assert 0 <= engine.free <= _LIMITS.streams
    return (tuple(call[0] for call in sink.calls[:6]), sink.calls[-1][1] if sink.calls and sink.calls[-1][0] == "failed" else "")


def hpack_block(octets: bytes) -> Hashable:
    """What decodes means to the hpack library what it means to us, block after block; what does not decode it refuses too."""
    subject = HpackDecoder(request_book(_RULES), 4096)
    oracle = hpack.Decoder()
    shape: list[object] = []
    for piece in octets.split(b"\xff\xff\xff\xff"):
        try:
            expected = [(bytes(name), bytes(value)) for name, value in oracle.decode(piece, raw=True)]
        except (hpack.HPACKError, IndexError):
            expected = None
        refusal = ""
        try:
            entries = subject.decode(piece)
        except HpackError as error:
            refusal = str(error)
        if refusal:
            assert expected is None or "too large" in refusal, "the library takes it"
            return (*shape, refusal)
        got = [(name, text[len(name) + 2 : -2] if kind == REGULAR else text) for kind, text, name, _ in entries]
        assert got == expected
        assert sum(entry[3] for entry in subject._dynamic) == subject.table_octets <= 4096
        shape.append((tuple(entry[0] for entry in entries[:4]), len(subject._dynamic)))
    return tuple(shape[:4])


def huffman(octets: bytes) -> Hashable:
    """Both of our decoders say what the hpack library says."""
    try:
        expected: bytes | None = hpack.huffman_table.decode_huffman(octets)
    except hpack.HPACKDecodingError:
        expected = None
    try:
        got: bytes | None = decode_huffman(octets)
    except HuffmanError:
        got = None
    assert got == expected
    return (got is None, len(octets) < 12, octets[-1:] == b"\xff", max(got or b"\0") > 0x7F)


_GET = block((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a"))
H2_WORDS = (
    *(headers(stream, raw=_GET, end=end) for stream in (1, 3, 5) for end in (True, False)),
    *(headers(stream, (b":status", b"200"), end=False) for stream in (1, 3)),
    *(data(1, body, end=end) for body in (b"", b"abc") for end in (True, False)),
    data(3, b"x" * 150, padding=20),
    headers(1, (b"a", b"b")),
    headers(3, raw=_GET + block((b"content-length", b"3")), end=False),
    frame(1, 0, 5, _GET[:10]),
    cont(5, _GET[10:], end=True),
    rst(1),
    rst(3, 0),
    window(0, 1000),
    window(1, 1),
    window(1, 0),
    settings((4, 50)),
    settings((4, 2**31 - 1), (5, 16384)),
    settings((1, 0)),
    settings(ack=True),
    ping(),
    priority(1, 1),
    frame(7, 0, 0, bytes(8)),
    frame(5, 4, 1, bytes(4)),
    frame(0xB, 0, 0, b"x"),
)
HPACK_WORDS = (
    b"\x82", b"\xbe", b"\x40\x01a\x01b", b"\x00", b"\x10", b"\x20", b"\x3f\xe1\x1f",
    b"\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
    b"\xff", b"\x7f", b"\x80", b"\x0f\x2f", b"\xff\xff\xff\xff", b"\x85\xae\xc3\x77\x1a\x4b", b"\x08", b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f",
)  # fmt: skip
