"""However a stream is cut, an engine gives the same messages, or refuses for the same reason."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshguard.wire.events import WireLimits
from tests.wire.corpus import REQUESTS, RESPONSES, SMALL_LIMIT_REQUESTS
from tests.wire.drive import DEFAULT, REFERENCE, Run, halves, octets, requests_of, responses_of

SMALL = WireLimits(head_bytes=256, fields=4, request_line_bytes=64, chunk_line_bytes=16, chunk_extension_bytes=40)
ROOMY = WireLimits(head_bytes=300, fields=8)


def cuts_of(data: bytes) -> list[tuple[bytes, ...] | list[bytes]]:
    """Every cut in two of a short stream; of a long one those near its ends and some between; and octet by octet."""
    pairs = list(halves(data))
    if len(pairs) > 700:
        pairs = pairs[:200] + random.Random(7).sample(pairs[200:-200], 100) + pairs[-200:]
    return [*pairs, octets(data)]


def check(whole: Run, cut: Run, refusal: str) -> None:
    assert whole.refusal == refusal, whole.detail
    assert cut.same() == whole.same(), (cut.refusal, cut.detail, whole.refusal, whole.detail)


@pytest.mark.parametrize("make", [DEFAULT, REFERENCE], ids=["default", "reference"])
@pytest.mark.parametrize(("data", "refusal"), REQUESTS.values(), ids=REQUESTS.keys())
def test_requests(make: Any, data: bytes, refusal: str) -> None:
    whole = requests_of([data], make=make)
    for pieces in cuts_of(data):
        check(whole, requests_of(pieces, make=make), refusal)


@pytest.mark.parametrize(("data", "refusal"), SMALL_LIMIT_REQUESTS.values(), ids=SMALL_LIMIT_REQUESTS.keys())
def test_requests_at_their_limits(data: bytes, refusal: str) -> None:
    whole = requests_of([data], limits=SMALL)
    for pieces in cuts_of(data):
        check(whole, requests_of(pieces, limits=SMALL), refusal)


@pytest.mark.parametrize("size", [200, 253, 254, 255, 256, 257, 300])
def test_a_line_is_never_longer_than_a_head(size: int) -> None:
    """Where the configured line is longer than the head, the head's limit is the line's."""
    data = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * (size - 14))
    limits = WireLimits(head_bytes=256, request_line_bytes=8192)
    whole = requests_of([data], limits=limits)
    assert whole.refusal == ("" if len(data) <= 256 else "target_too_long" if size > 254 else "head_too_large")
    for pieces in cuts_of(data):
        assert requests_of(pieces, limits=limits).same() == whole.same()


@pytest.mark.parametrize(("data", "refusal"), RESPONSES.values(), ids=RESPONSES.keys())
@pytest.mark.parametrize("eof", [False, True], ids=["open", "closed"])
def test_responses(data: bytes, refusal: str, eof: bool) -> None:
    whole = responses_of([data], limits=ROOMY, eof=eof)
    for pieces in cuts_of(data):
        cut = responses_of(pieces, limits=ROOMY, eof=eof)
        assert cut.same() == whole.same(), (pieces, cut.detail, whole.detail)
    if not eof:
        assert whole.refusal == refusal, whole.detail


def test_the_response_to_head_has_no_body() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx"
    whole = responses_of([data], methods=[b"HEAD", b"HEAD"], limits=ROOMY)
    assert [message.body for message in whole.messages] == [b"", b"", b"x"]
    assert whole.messages[0].head["specials"] == [(b"content-length", b"5")]
    for pieces in cuts_of(data):
        assert responses_of(pieces, methods=[b"HEAD", b"HEAD"], limits=ROOMY).same() == whole.same()
