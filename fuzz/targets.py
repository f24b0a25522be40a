"""The targets. `TARGETS` is their registry: name, function, words that mutations insert."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from itertools import pairwise
from typing import NamedTuple

import h11

from fuzz import bodies
from fuzz.http2 import H2_WORDS, HPACK_WORDS, hpack_block, http2_client, http2_server, huffman
from meshguard.fields.json_locate import locate, locating
from meshguard.fields.json_scan import JsonError, Span, resolve, scan
from meshguard.fields.selectors import Matcher, parse_selector
from meshguard.model.errors import RequestError
from meshguard.wire.authority import parse_authority
from meshguard.wire.chunked import ChunkDecoder, encode_chunk, encode_last_chunk
from meshguard.wire.events import WireLimits
from meshguard.wire.grammar import PLAIN_REQUEST_HEAD, REQUEST_HEAD
from meshguard.wire.semantics import FieldRules, request_head, usual_request_head
from meshguard.wire.target import STRICT, PathOptions, canonicalise
from meshguard.wire.websocket import FrameScanner
from tests.harness.strict import Parser, Violation
from tests.wire.drive import REFERENCE, Run, octets, requests_of, responses_of, slots
from tests.wire.oracle import agree, h11_events, judged_apart, meaning_of

__all__ = ["TARGETS", "Target"]

_SMALL = WireLimits(head_bytes=512, fields=8, request_line_bytes=128, chunk_line_bytes=32, chunk_extension_bytes=64)
_LIMITS = WireLimits()


def _signature(run: Run) -> Hashable:
    shapes = tuple((message.head["length"], bool(message.trailers), message.complete) for message in run.messages[:3])
    return (len(run.messages), shapes, run.refusal, run.detail)


def _cut(data: bytes) -> tuple[list[bytes], bytes]:
    """The first octet says in how many pieces (at most 8) the rest comes, the next ones where it is cut."""
    count = data[0] % 8 if data else 0
    text = data[1 + count :]
    edges = sorted({0, len(text), *(cut * len(text) // 255 for cut in data[1 : 1 + count])})
    return [text[a:b] for a, b in pairwise(edges)], text


def request(data: bytes) -> Hashable:
    """However a stream is cut the engine says the same; what it accepts h11 accepts with the same meaning; both engines are equal."""
    pieces, text = _cut(data)
    for limits in (_LIMITS, _SMALL):
        whole = requests_of([text], limits=limits)
        assert requests_of(pieces, limits=limits).same() == whole.same(), "the segmentation matters"
        assert requests_of(octets(text), limits=limits).same() == whole.same(), "octet by octet differs"
    whole = requests_of([text])
    signature = _signature(whole)
    if judged_apart(text):
        return signature
    if not whole.refusal:
        agree(whole, h11_events(h11.SERVER, text, []))
    assert meaning_of(requests_of(pieces, make=REFERENCE)) == meaning_of(whole), "the engines differ"
    return signature


_RULES = (FieldRules(), FieldRules((b"x-foo-*", b"a", b"te-*"), "allow"), FieldRules(underscores="refuse"))


def usual(data: bytes) -> Hashable:
    """What the one-pass expression takes apart, the long way takes apart alike, in every slot."""
    seen = []
    for rules in _RULES:
        match = rules.usual(data)
        head = usual_request_head(match) if match is not None else None
        seen.append(head is None)
        if head is None:
            continue
        full = PLAIN_REQUEST_HEAD(data)
        plain = full is not None
        full = full or REQUEST_HEAD(data)
        assert full is not None, "not grammatical"
        method, path, minor = full.groups()
        assert slots(request_head(method, path, int(minor), data[: full.end()], rules, plain)) == slots(head)
    return tuple(seen)


def response(data: bytes) -> Hashable:
    """However a stream is cut the engine says the same; what it accepts h11 accepts with the same meaning."""
    pieces, text = _cut(data)
    methods = [b"HEAD", b"GET"] if data and data[0] & 8 else []
    eof = bool(data and data[0] & 16)
    for limits in (_LIMITS, _SMALL):
        whole = responses_of([text], methods=methods, limits=limits, eof=eof)
        assert responses_of(pieces, methods=methods, limits=limits, eof=eof).same() == whole.same(), "the segmentation matters"
        assert responses_of(octets(text), methods=methods, limits=limits, eof=eof).same() == whole.same(), "octet by octet differs"
    whole = responses_of([text], methods=methods, eof=eof)
    if not whole.refusal and not judged_apart(text):
        agree(whole, h11_events(h11.CLIENT, text, list(methods), eof=eof))
    return _signature(whole)


def _decode(pieces: list[bytes], limits: WireLimits) -> tuple[bytes, bytes | None, bytes, str]:
    decoder, body, buffer = ChunkDecoder(limits), b"", b""
    try:
        for index, piece in enumerate(pieces):
            buffer += piece
            data, used, end = decoder.decode(buffer)
            body += data
            buffer = buffer[used:]
            if end is not None:
                return body, end.trailers, buffer + b"".join(pieces[index + 1 :]), ""
    except RequestError as error:
        return b"", None, b"", error.reason.code
    return body, None, buffer, ""


def chunked(data: bytes) -> Hashable:
    """However a body is cut it decodes to the same; what decodes encodes again to what decodes to the same, also for a strict reader."""
    pieces, text = _cut(data)
    for limits in (_LIMITS, _SMALL):
        whole = _decode([text], limits)
        assert _decode(pieces, limits) == whole
        assert _decode(octets(text), limits) == whole
    body, trailers, rest, refusal = whole = _decode([text], _LIMITS)
    if trailers is not None:
        again = (encode_chunk(body) if body else b"") + encode_last_chunk(trailers)
        assert _decode([again], _LIMITS) == (body, trailers, b"", "")
        reader = Parser("request")
        try:
            events = reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + again)
        except Violation as exc:
            raise AssertionError(f"what we write is not strict: {exc}") from exc
        assert reader.between_messages
        assert b"".join(getattr(event, "data", b"") for event in events) == body
    return (refusal, trailers is None, bool(trailers), len(body) > 0, len(rest) > 0)


_OPTIONS = (
    STRICT,
    PathOptions(params="strip"),
    PathOptions(encoded_slash="keep", double_encoding="keep", params="keep", backslash="keep"),
    PathOptions(double_encoding="keep"),
)


def target(data: bytes) -> Hashable:
    """A canonical path is its own canonical form, holds no dot segments or repeated slashes, and is the first of its readings."""
    seen: list[Hashable] = []
    for options in _OPTIONS:
        try:
            made = canonicalise(data, options)
        except RequestError as error:
            seen.append(error.detail)
            continue
        path = made.path
        seen.append(len(made.readings))
        if path == "*":
            assert data == b"*"
            continue
        again = canonicalise(path.encode("ascii"), options)
        assert (again.path, again.readings) == (path, made.readings)
        assert path.startswith("/")
        assert "//" not in path
        assert not {".", ".."} & set(path.split("/"))
        assert made.readings[0] == path.casefold()
        assert all(reading == reading.casefold() for reading in made.readings)
        assert made.query is None or data.endswith(b"?" + made.query)
    return tuple(seen)


def authority(data: bytes) -> Hashable:
    """What is sent is its own canonical form; its host is lower case and holds nothing but a name or an address."""
    try:
        sent, host = parse_authority(data)
    except RequestError as error:
        return error.detail
    assert parse_authority(sent) == (sent, host)
    assert host == host.lower()
    assert sent.startswith(host.encode())
    assert not set(host) & set("@/?#,; \\%")
    return (host.startswith("["), sent.endswith(b"]"), b":" in sent)


def websocket(data: bytes) -> Hashable:
    """However frames are cut the same passes, as it came; what passes an independent reader accepts, and what it refuses does not pass."""
    from wsproto.frame_protocol import FrameProtocol, ParseFailed

    pieces, text = _cut(data)
    seen: list[Hashable] = []
    for compression in (False, True):
        whole, scanner = _scan([text], compression)
        out, slowly = _scan(pieces, compression)
        code = (scanner.violation or (0,))[0]
        assert (slowly.violation or (0,))[0] == code, "the segmentation matters"
        assert (slowly.close_frame, slowly.close_code) == (scanner.close_frame, scanner.close_code)
        assert text.startswith(out)
        assert out.startswith(whole)
        seen += [code, scanner.close_code, scanner.at_boundary, len(whole) > 0]
        if compression or code:
            continue
        assert out == whole
        reader = FrameProtocol(client=False, extensions=[])
        reader.receive_bytes(whole + scanner.close_frame)
        try:
            seen.append(sum(1 for _ in reader.received_frames()))
        except ParseFailed as exc:
            raise AssertionError(f"what passes is not valid: {exc}") from exc
    return tuple(seen)


def _scan(pieces: list[bytes], compression: bool) -> tuple[bytes, FrameScanner]:
    scanner = FrameScanner(masked=True, compression=compression, frame_limit=1000, message_limit=1500)
    out = b""
    for piece in pieces:
        out += scanner.feed(piece)
        while scanner.rest:
            rest, scanner.rest = scanner.rest, b""
            out += scanner.feed(rest)
    return out, scanner


_MATCHERS = tuple(
    Matcher([parse_selector(text) for text in texts], range(len(texts)))
    for texts in (("$.a",), ("$.a.b", "$.c[*].d"), ("$..a",), ("$[*]", "$.a[0]"), ("$.items[*].a", "$.items[1].b", "$..c"))
)


def json_body(data: bytes) -> Hashable:
    """What the exact scanner accepts the standard library accepts, its spans are whole values, the fast way and slices give the same."""
    seen: list[Hashable] = []
    for matcher in _MATCHERS:
        expected, failure = _outcome(lambda chosen=matcher: resolve(scan(data, chosen)))
        found, other = _outcome(lambda chosen=matcher: locate(data, chosen))
        assert found == expected
        assert (failure == "") == (other == ""), "the two ways differ in what they accept"
        for slice_ in (1, 7):
            again, other = _outcome(lambda chosen=matcher, size=slice_: resolve(_in_slices(data, chosen, size)))
            assert (again, failure == "") == (expected, other == ""), "slices differ"
        seen.append(failure if expected is None else min(len(expected), 4))
        if expected is None:
            continue
        json.loads(data)
        for _, outer, start, end in expected:
            assert outer <= start < end
            json.loads(data[start:end])
    return tuple(seen)


def _in_slices(data: bytes, matcher: Matcher, slice_: int) -> list[Span]:
    steps = locating(data, matcher, slice_)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return list(stop.value)


def _outcome(action: Callable[[], list[Span]]) -> tuple[list[Span] | None, str]:
    try:
        return action(), ""
    except JsonError as error:
        return None, str(error).partition(" at ")[0]


class Target(NamedTuple):
    run: Callable[[bytes], Hashable]
    words: tuple[bytes, ...]


_HTTP = (
    *(b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b"\t", b":", b": ", b",", b";", b"\x00", b"\x0b", b"\x7f", b"\xff", b"_", b"\r\n "),
    *(b"Host: a\r\n", b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"chunked"),
    *(
        b"Connection: close\r\n",
        b"Connection: x\r\n",
        b"Expect: 100-continue\r\n",
        b"X_Y: z\r\n",
        b"X-Forwarded-For: 1\r\n",
        b"TE: trailers\r\n",
    ),
    *(
        b"traceparent: 00-1-2-01\r\n",
        b"Upgrade: x\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"5;a=b\r\nhello\r\n",
        b"hello",
    ),
)
_REQUEST = (
    *_HTTP,
    *(
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"HEAD / HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"GET http://a/ HTTP/1.1\r\n",
        b"HTTP/1.1",
    ),
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
)
_RESPONSE = (*_HTTP, b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 x\r\n", b"HTTP/1.1 304 \r\n", b"HTTP/1.1 100 \r\n\r\n", b"HTTP/1.0 200 OK\r\n")
_PATH = (
    *(
        b"/",
        b"//",
        b".",
        b"..",
        b"/../",
        b"/./",
        b"%2e",
        b"%2E",
        b"%2f",
        b"%5c",
        b"%25",
        b"%252e",
        b"%00",
        b"%41",
        b"%c3%a9",
        b"%c0%af",
        b"%",
        b"%u002f",
    ),
    *(
        b";",
        b";a=b",
        b"..;",
        b"?",
        b"#",
        b"\\",
        b"%20",
        b"%3b",
        b"%ef%bc%8f",
        b"%ef%bc%8e",
        b"%ef%bc%85",
        b"::$DATA",
        b"a",
        b"A",
        b"admin",
        b"*",
    ),
)
_JSON = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"a"',
        b'"b"',
        b'"c"',
        b'"d"',
        b'"items"',
        b'"',
        b"\\",
        b"\\u0061",
        b"\\ud800",
        b"\\udc00",
        b"null",
    ),
    *(
        b"true",
        b"1",
        b"-0",
        b"1e5",
        b"01",
        b"NaN",
        b" ",
        b"\n",
        b"\xff",
        b"\xc3\xa9",
        b"\xef\xbb\xbf",
        b'{"a":1}',
        b'{"a":{"b":2}}',
        b'[{"d":1}]',
    ),
)
_AUTHORITY = (
    b"a",
    b".",
    b":",
    b"80",
    b"[",
    b"]",
    b"::",
    b"[::1]",
    b"@",
    b"shop.example",
    b"-",
    b"_",
    b"%",
    b"0",
    b"1.2.3.4",
    b"A",
    b",",
    b" ",
    b"65536",
)

_FRAMES = (
    *(b"\x81\x80abcd", b"\x01\x80abcd", b"\x00\x80abcd", b"\x80\x80abcd", b"\x82\x81abcd\x00", b"\x89\x80abcd", b"\x8a\x81abcd\x01"),
    *(b"\x88\x82abcd\x62\x8a", b"\x88\x80abcd", b"\x81\xfe\x00\x7e", b"\x82\xff" + bytes(8), b"\xc1\x81abcd\xff", b"\x81\x00"),
    *(b"\x81\x82\0\0\0\0\xc3\xa9", b"\x01\x81\0\0\0\0\xc3", b"\x80\x81\0\0\0\0\xa9", b"\0\0\0\0", b"abcd", b"\xed\xa0\x80"),
)

TARGETS: dict[str, Target] = {
    "websocket": Target(websocket, _FRAMES),
    "request": Target(request, _REQUEST),
    "usual": Target(usual, _REQUEST),
    "response": Target(response, _RESPONSE),
    "chunked": Target(chunked, _HTTP),
    "target": Target(target, _PATH),
    "authority": Target(authority, _AUTHORITY),
    "json": Target(json_body, _JSON),
    "http2_server": Target(http2_server, H2_WORDS),
    "http2_client": Target(http2_client, H2_WORDS),
    "hpack": Target(hpack_block, HPACK_WORDS),
    "huffman": Target(huffman, HPACK_WORDS),
    "form": Target(bodies.form, bodies.WORDS["form"]),
    "multipart": Target(bodies.multipart, bodies.WORDS["multipart"]),
    "lines": Target(bodies.lines, bodies.WORDS["lines"]),
    "events": Target(bodies.events, bodies.WORDS["events"]),
    "protobuf": Target(bodies.protobuf, bodies.WORDS["protobuf"]),
    "values": Target(bodies.values, bodies.WORDS["protobuf"]),
    "grpc": Target(bodies.grpc, bodies.WORDS["protobuf"]),
    "coded": Target(bodies.coded, bodies.WORDS["coded"]),
    "heads": Target(bodies.heads, bodies.WORDS["heads"]),
    "envelope": Target(bodies.envelope, bodies.WORDS["envelope"]),
}
