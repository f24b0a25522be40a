"""The chunked coding: what we encode, strict readers decode; the decoder takes no octet that is not its own."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.errors import RequestError
from meshguard.wire.chunked import LAST_CHUNK, ChunkDecoder, encode_chunk, encode_last_chunk
from meshguard.wire.events import WireLimits
from meshguard.wire.fields import NOT_IN_TRAILERS, remove_fields, split_block
from tests.harness.strict import Data, End, Parser

LIMITS = WireLimits()
trailers = st.lists(
    st.tuples(st.sampled_from([b"x-sum", b"Grpc-Status", b"a", *NOT_IN_TRAILERS]), st.sampled_from([b"", b"1", b"a b"])), max_size=4
).map(lambda pairs: b"".join(b"%b: %b\r\n" % pair for pair in pairs))
bodies = st.lists(st.binary(min_size=1, max_size=60), max_size=6)


def decode(pieces: list[bytes]) -> tuple[bytes, bytes | None, bytes]:
    """(body, trailers or None while incomplete, what was not used)."""
    decoder, body, buffer = ChunkDecoder(LIMITS), b"", b""
    for index, piece in enumerate(pieces):
        buffer += piece
        data, used, end = decoder.decode(buffer)
        body += data
        buffer = buffer[used:]
        if end is not None:
            return body, end.trailers, buffer + b"".join(pieces[index + 1 :])
    return body, None, buffer


def encode(parts: list[bytes], block: bytes) -> bytes:
    return b"".join(map(encode_chunk, parts)) + encode_last_chunk(block)


@settings(max_examples=300, deadline=None)
@given(bodies, trailers, st.binary(max_size=20), st.lists(st.integers(0, 400), max_size=6))
def test_round_trip(parts: list[bytes], block: bytes, behind: bytes, cuts: list[int]) -> None:
    data = encode(parts, block) + behind
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    assert decode(pieces) == (b"".join(parts), remove_fields(block, NOT_IN_TRAILERS), behind)


@settings(max_examples=150, deadline=None)
@given(bodies, trailers)
def test_other_readers_agree(parts: list[bytes], block: bytes) -> None:
    block = remove_fields(block, (b"transfer-encoding", b"content-length"))  # h11 judges their values, in trailers too
    data = encode(parts, block)
    strict = Parser("request")
    events = strict.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    assert b"".join(event.data for event in events if isinstance(event, Data)) == b"".join(parts)
    assert isinstance(events[-1], End)
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    body = b""
    while type(event := reader.next_event()) is not h11.EndOfMessage:
        if type(event) is h11.Data:
            body += event.data
    assert body == b"".join(parts)
    ours = [(name.lower(), value) for name, value in split_block(block)]
    assert [(name.lower().encode(), value.encode("latin-1")) for name, value in events[-1].trailers] == ours
    assert [(bytes(name), bytes(value)) for name, value in event.headers] == ours


def test_the_last_chunk() -> None:
    assert encode_last_chunk() == LAST_CHUNK
    assert decode([LAST_CHUNK]) == (b"", b"", b"")
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


@settings(max_examples=500, deadline=None)
@given(bodies, st.integers(0, 500), st.binary(min_size=1, max_size=2))
def test_a_damaged_body_never_reads_as_another_whole_one_with_more_data(parts: list[bytes], where: int, damage: bytes) -> None:
    """Octets put in front of a line are refused or make an honest reading; nothing but RequestError comes out."""
    data = encode(parts, b"")
    where %= len(data)
    try:
        body, end, rest = decode([data[:where] + damage + data[where:]])
    except RequestError as error:
        assert error.reason.code in ("malformed_chunk", "malformed_trailers")  # noqa: PT017
        return
    if end is not None:
        assert len(body) + len(rest) <= len(data) + len(damage)


@pytest.mark.parametrize("size", [b"fffffffffffffff", b"7FFFFFFFFFFFFFFF"[1:]])
def test_the_largest_size_waits_for_its_data(size: bytes) -> None:
    assert decode([size + b"\r\nabc"]) == (b"abc", None, b"")


@pytest.mark.parametrize("data", [b"5\r\nhello\r\n", b"5\r\nhello", b"5\r\nhel", b"5\r", b"5", b"", b"0\r\n", b"0\r\n\r", b"0\r\nA: b\r\n"])
def test_an_incomplete_body_is_never_over(data: bytes) -> None:
    assert decode([data])[1] is None
