"""The targets for bodies of field rules: forms, multipart, lines, events, protobuf, gRPC, coded bodies, and the tokens in them.

One invariant holds for all: what is accepted is sealed, sealing it again changes nothing, and opening it gives the same meaning back
(the same octets, but for spellings that no usual encoder writes); whatever is refused is refused by a reason.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Hashable
from types import SimpleNamespace
from urllib.parse import parse_qsl

import brotli

from meshguard.fields.codings import CODINGS, CodingError, decode_body, encode_body
from meshguard.fields.compile import compile_fields
from meshguard.fields.envelope import NotOpenedError
from meshguard.fields.protobuf_schema import Schema
from meshguard.fields.protobuf_values import MessageError, read_message, write_message
from meshguard.fields.transforms import NOBODY_KNOWN, Reader, Transform
from meshguard.model.errors import RequestError
from meshguard.wire.fields import split_block
from meshguard.wire.grammar import FIELD_BLOCK
from tests.fields.orders_proto import descriptor_set, types
from tests.fields.parts import Counter, keyset
from tests.fields.test_protobuf import frame, shop

__all__ = ["WORDS", "coded", "envelope", "events", "form", "grpc", "heads", "lines", "multipart", "protobuf", "values"]

_NOBODY, _READER = Reader(frozenset()), Reader(frozenset(("reader",)))
_RULE = {
    "id": "f",
    "paths": ["/x"],
    "on": "both",
    "select": ["$.a", "$..b"],
    "form": ["a", "b c"],
    "protobuf": {"descriptor": "shop.pb", "fields": ["payment.card", "payment.blob", "tags", "notes"], "request": "shop.v1.Order",
                 "response": "shop.v1.Order"},
    "content_types": ["application/x-ndjson", "text/event-stream", "application/x-www-form-urlencoded", "multipart/form-data",
                      "application/grpc", "application/protobuf"],
    "seal": "k",
    "readers": {"reader": "open"},
    "seal_null": True,
}  # fmt: skip
_LIMIT = 4096
_ORDER = Schema(descriptor_set().SerializeToString()).message("bank.v1.Order")


def _transform() -> Transform:
    source = SimpleNamespace(file="p", value=SimpleNamespace(fields=[_RULE]))
    plan = compile_fields([source], ("reader",), {"k": keyset("k")}, lambda file, name: bytes(shop().SerializeToString())).plan("GET", "/x")
    assert plan is not None
    assert plan.request is not None
    return plan.request


_FOUND = _transform()


def _apply(body: bytes, content_type: str, who: Reader) -> bytes:
    return _FOUND.apply(body, content_type, who, Counter(), 0.0, limit=_LIMIT).body


def _there_and_back(body: bytes, content_type: str) -> tuple[bytes, bytes] | str:
    """(sealed, opened), or why it is refused."""
    try:
        sealed = _apply(body, content_type, _NOBODY)
    except RequestError as error:
        return str(error.detail).partition(" at ")[0]
    assert _apply(sealed, content_type, _NOBODY) == sealed, "sealed twice"
    try:
        return sealed, _apply(sealed, content_type, _READER)
    except RequestError as error:
        return f"shut: {error.reason.code}"  # it came in the form of a sealed value and is none


def form(data: bytes) -> Hashable:
    """A form is refused, or comes back with the same pairs; what is not protected keeps its octets."""
    result = _there_and_back(data, "application/x-www-form-urlencoded")
    if isinstance(result, str):
        return result
    sealed, opened = result
    assert _pairs(opened) == _pairs(data)
    return (sealed == data, opened == data, data.count(b"&") % 4)


def _pairs(data: bytes) -> list[tuple[str, str]]:
    text = re.sub(rb"[\x80-\xff]", lambda match: b"%%%02X" % match[0][0], data).decode("ascii")
    return parse_qsl(text, keep_blank_values=True, encoding="latin-1", max_num_fields=5000)


def multipart(data: bytes) -> Hashable:
    """A form is refused, or comes back octet for octet."""
    result = _there_and_back(data, "multipart/form-data; boundary=B")
    if isinstance(result, str):
        return result
    sealed, opened = result
    assert opened == data
    return (sealed == data, data.count(b"--B"))


def _streamed(data: bytes, content_type: str, who: Reader, pieces: list[bytes]) -> bytes | str:
    stream = _FOUND.stream(_FOUND.check_headers([content_type], []), who, Counter(), _LIMIT)
    try:
        return b"".join([*(stream.feed(piece) for piece in pieces), stream.finish()])
    except RequestError as error:
        return error.reason.code


def _stream(data: bytes, content_type: str) -> Hashable:
    """However it is cut, the same comes out; what is sealed opens."""
    whole = _streamed(data, content_type, _NOBODY, [data])
    single = [data[place : place + 1] for place in range(len(data))]
    assert isinstance(_streamed(data, content_type, _NOBODY, single), str) == isinstance(whole, str)
    if isinstance(whole, str):
        return whole
    assert _streamed(data, content_type, _NOBODY, single) == whole, "the segmentation matters"
    assert _streamed(data, content_type, _NOBODY, [whole]) == whole or b"data" in data, "sealed twice"
    return (whole == data, data.count(b"\n") % 5, isinstance(_streamed(whole, content_type, _READER, [whole]), str))


def lines(data: bytes) -> Hashable:
    """A stream of JSON lines gives the same however it is split, or is refused with a reason."""
    return _stream(data, "application/x-ndjson")


def events(data: bytes) -> Hashable:
    """A stream of server-sent events gives the same however it is split, or is refused with a reason."""
    return _stream(data, "text/event-stream")


def grpc(data: bytes) -> Hashable:
    """A stream of gRPC frames gives the same however it is split, or is refused with a reason."""
    return (_stream(data, "application/grpc"), _stream(frame(data), "application/grpc"))


def protobuf(data: bytes) -> Hashable:
    """A message is refused, or comes back octet for octet where its lengths had their shortest spelling."""
    result = _there_and_back(data, "application/protobuf")
    if isinstance(result, str):
        return result
    sealed, opened = result
    again = _there_and_back(opened, "application/protobuf")
    assert isinstance(again, tuple)
    assert again[1] == opened
    return (sealed == data, opened == data, len(data) % 7)


def values(data: bytes) -> Hashable:
    """A message that is read into values the runtime reads too, and what is written of the values is read as the same."""
    assert _ORDER is not None
    try:
        read = read_message(data, _ORDER)
    except MessageError as error:
        return (error.rule, len(error.path))
    types()["bank.v1.Order"]().ParseFromString(data)
    assert repr(_without_empty(read_message(write_message(read, _ORDER), _ORDER))) == repr(_without_empty(read))
    return tuple(sorted(read))


def _without_empty(value: object) -> object:
    """Whether a list without members was written, as a packed one can be, means nothing."""
    if isinstance(value, dict):
        return {key: _without_empty(each) for key, each in value.items() if each != []}
    return [_without_empty(each) for each in value] if isinstance(value, list) else value


def coded(data: bytes) -> Hashable:
    """What the limits let through is what another decoder reads, and is no longer than the limit; it is encoded to what decodes again."""
    return tuple(_coded(coding, data) for coding in CODINGS)


def _coded(coding: str, data: bytes) -> Hashable:
    try:
        plain = decode_body(coding, data, _LIMIT)
    except CodingError as error:
        return str(error)
    assert len(plain) <= _LIMIT
    if coding == "gzip":
        assert zlib.decompress(data, 31) == plain
    elif coding == "br":
        assert brotli.decompress(data) == plain
    assert decode_body(coding, encode_body(coding, plain), _LIMIT) == plain
    return min(len(plain), 64)


_HEADS = compile_fields(
    [SimpleNamespace(file="p", value=SimpleNamespace(fields=[{
        "id": "h", "paths": ["/x"], "on": "request", "headers": ["x-card", "cookie"], "query": ["a", "b c"], "seal": "k",
        "readers": {"reader": "open"}, "seal_null": True}]))],
    ("reader",), {"k": keyset("k")},
).plan("GET", "/x")  # fmt: skip


def heads(data: bytes) -> Hashable:
    """Of header fields and a query: refused, or what is sealed stays sealed and opens to what it was; other octets stay as they are."""
    assert _HEADS is not None
    rules = _HEADS.request_head
    assert rules is not None
    block, _, query = data.partition(b"\n\n")
    block = b"".join(b"%b\r\n" % line for line in block.split(b"\n") if FIELD_BLOCK(line + b"\r\n") is not None)
    query = bytes(octet for octet in query if 0x21 <= octet < 0x7F and octet != 0x23)
    try:
        sealed, line, _ = rules.apply(block, query, _NOBODY, Counter(), NOBODY_KNOWN)
        again = rules.apply(sealed, line, _NOBODY, Counter(), NOBODY_KNOWN)
    except RequestError as error:
        return str(error.detail).partition(" at ")[0]
    assert again[:2] == (sealed, line), "sealed twice"
    try:
        opened, question, _ = rules.apply(sealed, line, _READER, Counter(), NOBODY_KNOWN)
    except RequestError as error:
        return f"shut: {error.reason.code}"
    assert [(name.lower(), value) for name, value in split_block(opened)] == [(name.lower(), value) for name, value in split_block(block)]
    assert _pairs(question) == _pairs(query)
    return (sealed == block, line == query, len(split_block(block)) % 4, query.count(b"&") % 4)


_ENVELOPE = _FOUND.work(_READER, Counter(), NOBODY_KNOWN)
_SAMPLES = [_apply(b'{"a":%b}' % value, "application/x-ndjson", _NOBODY)[6:-2] for value in (b'"x"', b'{"b":1}', b"12345", b"null")]


def envelope(data: bytes) -> Hashable:
    """What is done to a sealed value: it opens to what was sealed, or fails like every other one; what is no envelope stays plain.

    The first octet chooses a sealed value, each three octets after it change one of its octets: place, place, value.
    """
    token = bytearray(_SAMPLES[data[0] % len(_SAMPLES)]) if data else bytearray(b"x")
    for place in range(1, len(data) - 2, 3):
        token[int.from_bytes(data[place : place + 2]) % len(token)] = 0x20 + data[place + 2] % 0x5F
    raw = b'"%b"' % bytes(token).replace(b"\\", b"a").replace(b'"', b"b")
    try:
        opened = _ENVELOPE.treat(0, raw)
    except NotOpenedError:
        return "shut"
    assert opened in (raw, b'"x"', b'{"b":1}', b"12345", b"null")
    assert opened == raw or raw[1:-1] in _SAMPLES, "an altered value opened"
    return opened == raw


WORDS = {
    "form": (b"&", b"=", b"a", b"a=1", b"b+c=2", b"b%20c=%41", b";", b"%", b"%2b", b"+", b"a[]=1", b"A=1", b"%00", b"\xc3\xa9", b"%C3%A9"),
    "multipart": (b"--B\r\n", b"--B--\r\n", b"\r\n", b"\r\n\r\n", b'Content-Disposition: form-data; name="a"', b'; filename="x"',
        b'name="b c"',
                  b"Content-Type: text/plain", b"\n", b"--", b"a",
        b"\r\n--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B--\r\n"),
    "lines": (b"\n", b"\r\n", b'{"a":1}', b'{"a":1}\n', b'{"b":"x"}\n', b"{", b"}", b" ", b"\\", b"[1]\n", b"null\n", b'{"a":{"b":1}}\n'),
    "events": (b"data: ", b"data:", b"data", b"\n\n", b"\n", b"\r", b"\r\n", b'data: {"a":1}\n\n', b": c\n", b"id: 1\n", b"event: x\n",
        b"[DONE]",
               b"\xef\xbb\xbf", b'data: {"a":\ndata: 1}\n\n', b" "),
    "protobuf": (b"\x12\x06\x0a\x04abcd", b"\x1a\x01x", b"\x08\x01", b"\x2a\x06\x0a\x01k\x12\x01v", b"\x0b\x0c", b"\x80\x01", b"\xff",
        b"\x12\x02\x12\x00",
                 b"\x12", b"\x1a", b"\x00\x00\x00\x00\x05", b"\x01\x00\x00\x00\x01x"),
    "heads": (b"X-Card: 1\n", b"x-card:a b", b"Cookie: a=b", b"\n\n", b"a=1", b"&", b"b+c=2", b"b%20c=%41", b"A=1", b"a[]=1", b"%",
              b"x: y\n",
              b"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..AAAAAAAAAAAAAAAA.AA.AAAAAAAAAAAAAAAAAAAAAA", b"\xe9", b" ", b"%2b", b"="),
    "envelope": (b"\x00", b"\x01\x00\x10A", b"\x02", b"\x03\x00\x60-", b"\x00\x70.", b"\x00\x80_"),
    "coded": (zlib.compress(b"x" * 100, wbits=31), b"\x1f\x8b\x08\x00", zlib.compress(b"\0" * 9000, wbits=31), b"\0\0\xff\xff",
        b"\x03\x00"),
}  # fmt: skip
