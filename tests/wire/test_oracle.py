"""Against h11: whatever the default engine accepts, h11 accepts with the same meaning. And the reference engine equals the default one.

Intended disagreements, where h11 accepts and this engine refuses, are not looked for here (tests/wire/corpus.py lists them). The other
way round there are two. An empty line in front of a request, which RFC 9112 section 2.2 asks to ignore and h11 refuses: h11 gets to see the
stream without it. And Transfer-Encoding or Content-Length in a trailer section, which are dropped here whatever they say, while h11 judges
their values.
"""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshguard.wire.serialise import framing_line, status_line
from tests.harness.grammar import Meaning, bent_requests
from tests.harness.grammar import requests as valid_requests
from tests.wire.corpus import REQUESTS, RESPONSES
from tests.wire.drive import DEFAULT, REFERENCE, requests_of, responses_of
from tests.wire.oracle import agree, h11_events, judged_apart, meaning_of


def check_request(data: bytes, pieces: list[bytes]) -> None:
    if judged_apart(data):
        return
    ours = requests_of(pieces)
    if ours.refusal == "":
        agree(ours, h11_events(h11.SERVER, data, []))
    other = requests_of(pieces, make=REFERENCE)
    assert meaning_of(other) == meaning_of(ours), (other.detail, ours.detail)


@pytest.mark.parametrize(("data", "refusal"), REQUESTS.values(), ids=REQUESTS.keys())
def test_the_corpus_of_requests(data: bytes, refusal: str) -> None:
    check_request(data, [data])


@pytest.mark.parametrize(("data", "refusal"), RESPONSES.values(), ids=RESPONSES.keys())
def test_the_corpus_of_responses(data: bytes, refusal: str) -> None:
    ours = responses_of([data], eof=True)
    if not ours.refusal:
        agree(ours, h11_events(h11.CLIENT, data, [], eof=True))


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


segmentations = st.lists(st.integers(0, 5000), max_size=6)


@settings(max_examples=250, deadline=None)
@given(first=valid_requests(), second=valid_requests(), cuts=segmentations)
def test_valid_requests(first: tuple[bytes, Meaning], second: tuple[bytes, Meaning], cuts: list[int]) -> None:
    data = first[0] + second[0]
    pieces = split(data, cuts)
    check_request(data, pieces)
    ours = requests_of(pieces)
    assert ours.refusal == ""
    for message, (_, meaning) in zip(ours.messages, (first, second), strict=True):
        assert message.head["method"] == meaning.method.encode()
        assert message.head["target"] == meaning.target.encode()
        assert message.head["authority"] == meaning.host.encode()
        assert message.body == meaning.body


@settings(max_examples=300, deadline=None)
@given(data=bent_requests(), cuts=segmentations)
def test_bent_requests(data: bytes, cuts: list[int]) -> None:
    check_request(data, split(data, cuts))


# ---- streams made of pieces that matter for framing


_bits = [
    b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n", b"Host: a\r\n", b"Host: b:1\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n", b"Content-Length : 5\r\n", b"content-length:\t5 \r\n", b"Content-Length: 5, 5\r\n", b"Content-Length: 05\r\n",
    b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:CHUNKED\t\r\n", b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n", b"X: y\r\n", b" z\r\n", b"Connection: close\r\n", b"Connection: x, keep-alive\r\n",
    b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n", b"TE: trailers\r\n", b"Trailer: x\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n",
    b"\r", b"hello",
    b"5\r\nhello\r\n", b"5;a=b\r\nhello\r\n", b"5 \r\nhello\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0;x\r\nHost: b\r\nA:\r\n\r\n",
    b"0\r\n", b"a\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n", b"X_Y: z\r\n",
    b"\x00", b"\xff",
    b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.sampled_from(_bits), min_size=1, max_size=10), cuts=segmentations)
@example(parts=[b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\n"],
cuts=[])
def test_assembled_requests(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    check_request(data, split(data, cuts))


_answers = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 404 \r\n", b"HTTP/1.1 204 x\r\n", b"HTTP/1.1 304 x\r\n", b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 100 x\r\n\r\n",
    b"HTTP/1.1 103 x\r\nLink: a\r\n\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: 5, 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Connection: close, x\r\n", b"X: y\r\n", b"X-Meshguard-A: b\r\n",
    b"X_Y: z\r\n",
    b"Keep-Alive: 5\r\n", b"\r\n", b"\r\n", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"5;x\r\nhello\r\n", b"\n",
    b" z\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(st.sampled_from(_answers), min_size=1, max_size=9),
    methods=st.lists(st.sampled_from([b"GET", b"HEAD"]), max_size=4),
    cuts=segmentations,
    eof=st.booleans(),
)
def test_assembled_responses(parts: list[bytes], methods: list[bytes], cuts: list[int], eof: bool) -> None:
    data = b"".join(parts)
    ours = responses_of(split(data, cuts), methods=methods, eof=eof)
    assert ours.same() == responses_of([data], methods=methods, eof=eof).same()
    if not ours.refusal and not judged_apart(data):
        agree(ours, h11_events(h11.CLIENT, data, list(methods), eof=eof))


# ---- what we write


@settings(max_examples=200, deadline=None)
@given(request=valid_requests(), cuts=segmentations)
def test_a_request_that_is_serialised_again_says_the_same(request: tuple[bytes, Meaning], cuts: list[int]) -> None:
    """As the journey does it: our own start line and framing around the block."""
    data, meaning = request
    message = requests_of([data]).messages[0]
    head = message.head
    out = b"%b %b HTTP/1.1\r\nhost: %b\r\n%bvia: 1.1 meshguard\r\n" % (head["method"], head["target"], head["authority"], head["block"])
    out += framing_line(head["length"]) if head["length"] else b""
    out += b"\r\n" + (data[data.index(b"\r\n\r\n") + 4 :])
    check_request(out, split(out, cuts))
    again = requests_of(split(out, cuts)).messages[0]
    assert again.body == message.body == meaning.body
    assert again.head["block"] == head["block"] + b"via: 1.1 meshguard\r\n"
    assert [again.head[name] for name in ("method", "target", "authority", "length")] == [
        head[name] for name in ("method", "target", "authority", "length")
    ]
    third = requests_of([b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (head["method"], head["target"], head["authority"], head["block"])])
    assert third.messages[0].head["block"] == head["block"], "what left once leaves unchanged"


@pytest.mark.parametrize("status", [200, 201, 299, 404, 418, 499, 500, 599])
@pytest.mark.parametrize("body", [b"", b"x", b"\r\n\r\n" * 10])
def test_a_response_head_of_ours_is_read_by_all(status: int, body: bytes) -> None:
    data = status_line(status) + b"x: y\r\n" + framing_line(len(body)) + b"\r\n" + body
    ours = responses_of([data])
    assert ours.messages[0].body == body
    assert ours.messages[0].complete
    agree(ours, h11_events(h11.CLIENT, data, []))


def test_the_default_is_the_default() -> None:
    assert requests_of([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], make=DEFAULT).messages
