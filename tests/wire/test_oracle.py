"""Against h11: whatever the default engine accepts, h11 accepts with the same meaning. And the reference engine equals the default one.

Intended disagreements, where h11 accepts and this engine refuses, are not looked for here (tests/wire/corpus.py lists them). The other
way round there is one: an empty line in front of a request, which RFC 9112 section 2.2 asks to ignore and h11 refuses; h11 gets to see the
stream without it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshguard.wire.chunked import NOT_IN_TRAILERS
from meshguard.wire.fields import REQUEST_CONSUMED, RESPONSE_CONSUMED, SPOOFABLE, split_block
from meshguard.wire.serialise import framing_line, status_line
from tests.harness.grammar import Meaning, bent_requests
from tests.harness.grammar import requests as valid_requests
from tests.wire.corpus import REQUESTS, RESPONSES
from tests.wire.drive import DEFAULT, REFERENCE, Run, requests_of, responses_of


def h11_events(role: Any, data: bytes, methods: list[bytes], eof: bool = False) -> list[tuple[Any, bytes, Any]]:
    """(head, body, end or None) of each message in `data` up to the first that h11 refuses, with its limits out of the way."""
    out: list[tuple[Any, bytes, Any]] = []
    rest = data
    while rest or not out:
        connection = h11.Connection(role, max_incomplete_event_size=1 << 20)
        if role is h11.CLIENT:
            method = methods.pop(0) if methods else b"GET"
            connection.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
            connection.send(h11.EndOfMessage())
        elif rest.startswith(b"\r\n"):
            rest = rest[2:]
        connection.receive_data(rest)
        if eof:
            connection.receive_data(b"")
        head, body = None, b""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                event = h11.NEED_DATA
            if event is h11.NEED_DATA or type(event) is h11.ConnectionClosed:
                if head is not None:
                    out.append((head, body, None))
                return out
            if event is h11.PAUSED:
                break
            if type(event) is h11.InformationalResponse:
                out.append((event, b"", True))
                if event.status_code == 101:
                    return out
            elif type(event) in (h11.Request, h11.Response):
                head = event
            elif type(event) is h11.Data:
                body += bytes(event.data)
            elif type(event) is h11.EndOfMessage:
                out.append((head, body, event))
                break
        following = connection.trailing_data[0]
        if len(following) >= len(rest):
            break
        rest = following
    return out


def lower(pairs: Any) -> list[tuple[bytes, bytes]]:
    return [(bytes(name).lower(), bytes(value)) for name, value in pairs]


def consumed(name: bytes, names: tuple[bytes, ...], spoofable: tuple[bytes, ...]) -> bool:
    plain = name.replace(b"_", b"-")
    return name in names or any(plain == other or (other.endswith(b"*") and plain.startswith(other[:-1])) for other in spoofable)


def nominated(pairs: list[tuple[bytes, bytes]]) -> set[bytes]:
    return {token.strip(b" \t").lower() for name, value in pairs if name == b"connection" for token in value.split(b",")}


KEPT = {b"host", b"content-length", b"transfer-encoding", b"authorization", b"cookie", b"via", b"content-type", b"content-encoding"}


def agree(ours: Run, theirs: list[tuple[Any, bytes, Any]]) -> None:
    """Head by head: method or status, target, the fields that are left after removal, body, trailers."""
    complete = [message for message in ours.messages if message.complete]
    assert len(theirs) >= len(complete)
    assert len(theirs) >= len(ours.messages), "h11 refuses a head"
    for message, (event, body, end) in zip(ours.messages, theirs, strict=False):
        head = message.head
        pairs = lower(event.headers)
        gone = nominated(pairs) - KEPT
        left = lower(split_block(head["block"]))
        if "method" in head:
            assert head["method"] == event.method
            hosts = [value for name, value in pairs if name == b"host"]
            if head["scheme"]:
                absolute = head["scheme"] + b"://" + hosts[0].lower()
                assert event.target.lower().startswith(absolute) or event.target.lower().startswith(head["scheme"] + b"://")
                sent = event.target[len(absolute) :]
                assert head["target"] == (sent if sent.startswith(b"/") else b"/" + sent if sent or event.method != b"OPTIONS" else b"*")
            else:
                assert head["target"] == event.target
                assert head["authority"] == (hosts[0] if hosts else b"")
            assert head["minor"] == int(event.http_version[-1:])
            expected = [(n, v) for n, v in pairs if not consumed(n, REQUEST_CONSUMED, SPOOFABLE) and n not in gone and b"_" not in n]
        else:
            assert head["status"] == event.status_code
            expected = [(n, v) for n, v in pairs if not consumed(n, RESPONSE_CONSUMED, (b"x-meshguard-*",)) and n not in gone]
        assert left == expected
        if message.complete and end is not True:
            assert message.body == body
            assert end is not None, "h11 does not think that the message is over"
            trailers = [(n, v) for n, v in lower(end.headers) if n not in NOT_IN_TRAILERS]
            assert lower(split_block(message.trailers)) == trailers
        elif not message.complete:
            assert body.startswith(message.body) or message.body.startswith(body)


def meaning_of(run: Run) -> tuple[object, ...]:
    """What both engines have to say alike; h11 gives trailers in lower case, and keeps what it waits for to itself."""
    run.left = 0
    for message in run.messages:
        message.trailers = b"".join(b"%b: %b\r\n" % pair for pair in lower(split_block(message.trailers)))
    return run.same()


def check_request(data: bytes, pieces: list[bytes]) -> None:
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


@settings(max_examples=400, deadline=None)
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


@settings(max_examples=600, deadline=None)
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
    if not ours.refusal:
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
