"""HTTP/2 to HTTP/1.1 without a change of meaning: nothing in a field becomes a line, a length or a second request.

Each case writes the accepted head down as HTTP/1.1 with the framing that the exchange would use, and an independent strict reader must find
exactly one request in it.
"""

from __future__ import annotations

from itertools import product

import h11
import pytest

from meshguard.model.messages import NO_BODY, RequestHead
from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.semantics import FieldRules
from tests.wire.http2.peer import GET, data, headers, server

NASTY = [
    b"\r\n", b"\n", b"\r", b"\0", b"\x7f", b"\x0b", b"\x1b", b"\xc2\x85", b"\xe2\x80\xa8", b" ", b"\t", b":", b"", b"x\r\nhost: evil",
    b"a HTTP/1.1\r\nhost: evil\r\n\r\nGET /admin", b"\r\ntransfer-encoding: chunked", b"a\r\n b", b"#", b"?", b"%0d%0a", b"\xff",
]  # fmt: skip
PLACES = (
    "method",
    "path",
    "authority",
    "scheme",
    "name",
    "value",
    "cookie",
    "host",
    "te",
    "content-length",
    "trailer name",
    "trailer value",
)


def fields_with(place: str, text: bytes) -> list[tuple[bytes, bytes]]:
    pseudo = dict(GET)
    regular: list[tuple[bytes, bytes]] = []
    match place:
        case "method" | "path" | "authority" | "scheme":
            name = b":" + place.encode()
            pseudo[name] = pseudo[name] + text
        case "name":
            regular = [(b"x" + text, b"v")]
        case "value":
            regular = [(b"x", b"v" + text + b"w")]
        case "cookie":
            regular = [(b"cookie", b"a=b"), (b"cookie", b"c" + text)]
        case "host":
            regular = [(b"host", b"shop.example" + text)]
        case "te":
            regular = [(b"te", b"trailers" + text)]
        case "content-length":
            regular = [(b"content-length", b"3" + text)]
    return [*pseudo.items(), *regular]


def as_http1(head: RequestHead) -> bytes:
    framing = (
        b"" if head.length == NO_BODY else b"transfer-encoding: chunked\r\n" if head.length < 0 else b"content-length: %d\r\n" % head.length
    )
    body = b"" if head.length == NO_BODY else b"3\r\nabc\r\n0\r\n\r\n" if head.length < 0 else b"a" * head.length
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n%b" % (head.method, head.target, head.authority, head.block, framing, body)


@pytest.mark.parametrize(("place", "text"), [pair for pair in product(PLACES, NASTY) if not pair[0].startswith("trailer")])
def test_nothing_in_a_field_becomes_a_line(place: str, text: bytes) -> None:
    for underscores in ("drop", "allow"):
        engine, sink = server(None, FieldRules(underscores=underscores))
        engine.receive(headers(1, *fields_with(place, text), end=False), 0.0)
        (call,) = sink.calls
        if call[0] == "refused":
            continue
        assert call == ("request", 1)
        head = sink.heads[0]
        assert isinstance(head, RequestHead)
        reader = h11.Connection(h11.SERVER)
        octets = as_http1(head)
        assert octets.count(b"\r\n\r\n") <= 2
        reader.receive_data(octets)
        request = reader.next_event()
        assert isinstance(request, h11.Request)
        assert (request.method, request.target) == (head.method, head.target)
        names = [name for name, _ in request.headers]
        assert names.count(b"host") == 1
        assert len(names) <= 1 + 1 + 1  # Host, ours of the framing, the one under test
        assert b"\r" not in head.target + head.authority
        assert head.target.startswith(b"/")


@pytest.mark.parametrize("text", [text for text in NASTY if set(text) & set(b"\r\n\0 \x7f\x0b\x1b:\xff\xc2\xe2#?") or not text])
def test_trailers_hold_no_other_line(text: bytes) -> None:
    for name, value in ((b"x" + text, b"v"), (b"x", b"v" + text + b"w"), (b"x", text)):
        engine, sink = server()
        engine.receive(headers(1, *GET, end=False) + headers(1, (name, value)), 0.0)
        last = sink.calls[-1]
        if last[0] == "end":
            assert last[2].count(b"\r\n") == last[2].count(b"\n") == last[2].count(b"\r") == 1
            assert b"\0" not in last[2]
        else:
            assert last == ("aborted", 1, "PROTOCOL_ERROR", False)


@pytest.mark.parametrize(
    ("declared", "pieces", "good"),
    [
        (b"3", [b"abc"], True),
        (b"3", [b"a", b"bc"], True),
        (b"3", [b"ab"], False),
        (b"3", [b"abc", b"d"], False),
        (b"0", [b"x"], False),
        (b"0", [], True),
        (b"999999999999999999", [b"abc"], False),
    ],
)
@pytest.mark.parametrize("ending", ["DATA", "empty DATA", "trailers"])
def test_the_body_is_what_content_length_says(declared: bytes, pieces: list[bytes], good: bool, ending: str) -> None:
    """On every way a stream may end; what h2 leaves to its user."""
    engine, sink = server()
    engine.receive(headers(1, *GET, (b"content-length", declared), end=False), 0.0)
    for index, piece in enumerate(pieces):
        engine.receive(data(1, piece, end=ending == "DATA" and index == len(pieces) - 1), 0.0)
    if ending == "empty DATA" or (ending == "DATA" and not pieces):
        engine.receive(data(1, end=True), 0.0)
    elif ending == "trailers":
        engine.receive(headers(1, (b"a", b"b")), 0.0)
    assert (sink.calls[-1][0] == "end") is good
    assert (("aborted", 1, "PROTOCOL_ERROR", False) in sink.calls) is not good
    assert sum(len(call[2]) for call in sink.calls if call[0] == "data") <= int(declared)


@pytest.mark.parametrize("name", [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"])
@pytest.mark.parametrize("value", [b"chunked", b"close, x-secret", b"h2c", b"", b"websocket"])
def test_fields_of_a_connection_never_pass(name: bytes, value: bytes) -> None:
    engine, sink = server()
    engine.receive(headers(1, *GET, (name, value), end=False), 0.0)
    assert sink.calls == [("refused", 1, "malformed_request", False)]


def test_a_method_cannot_be_chosen_by_the_protocol() -> None:
    """Extended CONNECT is never seen as another method, and only where it was offered."""
    connect = [(b":method", b"CONNECT"), *GET[1:], (b":protocol", b"websocket")]
    for limits, told in ((Http2Limits(), "refused"), (Http2Limits(extended_connect=True), "request")):
        engine, sink = server(limits)
        engine.receive(headers(1, *connect, end=False), 0.0)
        assert sink.calls[0][0] == told
    engine, sink = server(Http2Limits(extended_connect=True))
    engine.receive(headers(1, *GET, (b":protocol", b"websocket"), end=False), 0.0)
    assert sink.calls == [("refused", 1, "malformed_request", False)]
