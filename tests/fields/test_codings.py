"""Content codings: decoded within limits, however they are cut; bombs, tails and cut-off streams are refused."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.fields.codings import (
    CODINGS,
    MAX_RATIO,
    CodingError,
    UnavailableCodingError,
    decode_body,
    encode_body,
    new_decoder,
    new_encoder,
)
from meshguard.fields.transforms import Transform
from meshguard.model.errors import RequestError
from meshguard.model.reasons import BODY_OVER_LIMIT
from tests.fields.parts import RULE, Counter, reader, transform

LIMIT = 1 << 20


def _there(coding: str) -> bool:
    try:
        new_decoder(coding)
    except UnavailableCodingError:
        return False
    return True


codings = pytest.mark.parametrize(
    "coding", [pytest.param(name, marks=pytest.mark.skipif(not _there(name), reason="its library is not installed")) for name in CODINGS]
)


@codings
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=3000), places=st.lists(st.integers(0, 4000), max_size=5))
def test_what_is_encoded_decodes_however_it_is_cut(coding: str, data: bytes, places: list[int]) -> None:
    coded = encode_body(coding, data)
    assert decode_body(coding, coded, LIMIT) == data
    decoder = new_decoder(coding)
    edges = sorted({0, len(coded), *(place % (len(coded) + 1) for place in places)})
    assert b"".join(decoder.feed(coded[start:end], LIMIT) for start, end in pairwise(edges)) == data
    decoder.finish()


@codings
def test_a_reader_gets_each_piece_at_once(coding: str) -> None:
    encoder, decoder = new_encoder(coding), new_decoder(coding)
    for piece in (b"one\n", b"two\n", b"three\n" * 1000):
        assert decoder.feed(encoder.feed(piece), LIMIT) == piece
    decoder.feed(encoder.finish(), LIMIT)
    decoder.finish()


@codings
@pytest.mark.parametrize("size", [LIMIT + 1, 50 << 20])
def test_bombs_are_refused_before_they_unfold(coding: str, size: int) -> None:
    bomb = encode_body(coding, b"\0" * size)
    with pytest.raises(CodingError):
        decode_body(coding, bomb, LIMIT)
    with pytest.raises(CodingError, match=f"{MAX_RATIO} times"):
        decode_body(coding, bomb, size)


@codings
def test_streams_that_are_not_whole_or_not_alone_are_refused(coding: str) -> None:
    coded = encode_body(coding, b'{"card":"4111"}' * 50)
    for bad in (coded[:-1], coded[: len(coded) // 2], coded + b"x", coded + coded, b"", b"x" + coded, b'{"card":"4111"}', b"\0" * 40):
        with pytest.raises(CodingError):
            decode_body(coding, bad, LIMIT)
    decoder = new_decoder(coding)
    decoder.feed(coded, LIMIT)
    with pytest.raises(CodingError):
        decoder.feed(b"x", LIMIT)


def test_what_is_not_handled_is_not_handled() -> None:
    for coding in ("deflate", "compress", "x-gzip", "GZIP", "", "os"):
        for make in (new_decoder, new_encoder):
            with pytest.raises(UnavailableCodingError):
                make(coding)


def test_a_missing_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("brotli", "backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    for coding in ("br", "zstd"):
        with pytest.raises(UnavailableCodingError, match="not installed"):
            new_decoder(coding)
        with pytest.raises(RequestError) as caught:
            _apply(transform(RULE), b"x", coding)
        assert caught.value.reason.status == 415


def _apply(found: Transform, body: bytes, coding: str, *roles: str, limit: int = LIMIT) -> bytes:
    return found.apply(body, "application/json", reader(*roles), Counter(), 0.0, coding=coding, limit=limit).body


BODY = b'{"payment":{"card":"4111"},"pad":"' + b"x" * 500 + b'"}'


@codings
def test_a_coded_body_is_treated_inside(coding: str) -> None:
    found = transform({**RULE, "on": "both"}, direction="request")
    coded = encode_body(coding, BODY)
    sealed = _apply(found, coded, coding)
    assert b"4111" not in decode_body(coding, sealed, LIMIT)
    assert decode_body(coding, _apply(found, sealed, coding, "billing"), LIMIT) == BODY
    untouched = encode_body(coding, b'{"x":1}')
    assert _apply(found, untouched, coding) is untouched
    with pytest.raises(RequestError) as caught:
        _apply(found, coded, coding, limit=100)
    assert caught.value.reason is BODY_OVER_LIMIT


def test_other_writers_of_gzip_are_read() -> None:
    import io

    named = io.BytesIO()
    with gzip.GzipFile("name.json", "wb", fileobj=named) as file:
        file.write(BODY)
    stored = zlib.compressobj(0, zlib.DEFLATED, 31)
    for coded in (named.getvalue(), gzip.compress(BODY, 9), stored.compress(BODY) + stored.flush()):
        assert decode_body("gzip", coded, LIMIT) == BODY
