"""Header lists of the `h2` library to canonical heads, through the very parsers of HTTP/1.1 (RFC 9113 section 8).

A list is checked as HTTP/2 demands (names, pseudo-header fields, what belongs to a connection), then written down as an HTTP/1.1
head and read by the strict engine: so the value grammar, the rules of a listener and what a field means are those of HTTP/1.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.messages import CHUNKED, NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead
from meshguard.model.reasons import AMBIGUOUS_AUTHORITY, HEAD_TOO_LARGE, MALFORMED_REQUEST, TARGET_TOO_LONG
from meshguard.wire.events import WireLimits
from meshguard.wire.fields import NOT_IN_TRAILERS, remove_fields, split_block
from meshguard.wire.grammar import TOKEN
from meshguard.wire.http1 import RequestParser, ResponseParser
from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.semantics import FieldRules

__all__ = ["FIELD_OVERHEAD", "Malformed", "pairs_of_block", "pairs_of_request", "request_of", "response_of", "trailers_of"]

FIELD_OVERHEAD = 32
"""Octets that each field counts besides its name and value (RFC 9113 section 6.5.2)."""

Fields = Sequence[tuple[bytes, bytes]]

# RFC 9113 section 8.2.1: no upper case; the rest is the token of RFC 9110.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]++").fullmatch
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?").fullmatch
_VISIBLE = re.compile(rb"[\x21-\x7e]++").fullmatch
_STATUS = re.compile(rb"[1-5][0-9][0-9]").fullmatch
_OF_A_CONNECTION = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_REQUEST_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))


class Malformed(Exception):
    """RFC 9113 section 8.1.1: the stream ends with PROTOCOL_ERROR, nobody is answered."""


def _take_apart(fields: Fields, known: frozenset[bytes]) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """(pseudo-header fields, regular fields in order with the cookie crumbs joined). Raises Malformed."""
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    crumbs: list[bytes] = []
    for name, value in fields:
        name, value = bytes(name), bytes(value)
        if name.startswith(b":"):
            if name not in known or name in pseudo or regular or crumbs:
                raise Malformed(f"pseudo-header field {name!r}")
            pseudo[name] = value
        elif _NAME(name) is None or _VALUE(value) is None:
            raise Malformed("a field that HTTP/2 does not allow")
        elif name in _OF_A_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
            raise Malformed("a field of a connection")
        elif name == b"cookie":
            crumbs.append(value)
        else:
            regular.append((name, value))
    if crumbs:
        regular.append((b"cookie", b"; ".join(crumbs)))
    return pseudo, regular


def _lines(fields: Fields) -> bytes:
    return b"".join(b"%b: %b\r\n" % pair for pair in fields)


def check_size(fields: Fields, limits: Http2Limits) -> None:
    """Raises RequestError(HEAD_TOO_LARGE): what was decoded counts, also what is dropped or joined later."""
    size = sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in fields)
    if size > limits.head_bytes or len(fields) > limits.fields:
        raise RequestError(HEAD_TOO_LARGE, f"{size} octets, {len(fields)} fields")


def request_of(fields: Fields, ended: bool, limits: Http2Limits, wire: WireLimits, rules: FieldRules) -> RequestHead:
    """The head of a request; `ended` says that its stream is over. Raises Malformed, RequestError (answerable)."""
    check_size(fields, limits)
    pseudo, regular = _take_apart(fields, _REQUEST_PSEUDO)
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    protocol = pseudo.get(b":protocol")
    if TOKEN(method) is None or (protocol is not None and (method != b"CONNECT" or not limits.extended_connect or TOKEN(protocol) is None)):
        raise Malformed("method or protocol")
    if method == b"CONNECT" and protocol is None:
        if b":path" in pseudo or b":scheme" in pseudo:
            raise Malformed("CONNECT with a path or scheme")
        path = b"*"
    elif pseudo.get(b":scheme") not in (b"http", b"https"):
        raise Malformed("scheme")
    elif _VISIBLE(path) is None or b"#" in path or (path[:1] != b"/" and not (path == b"*" and method == b"OPTIONS")):
        raise Malformed("path")
    if len(method) + len(path) + 10 > limits.request_line_bytes:
        raise RequestError(TARGET_TOO_LONG, f"{len(path)} octets")
    hosts = [value for name, value in regular if name == b"host"]
    authority = pseudo.get(b":authority")
    if len(hosts) > 1 or (hosts and authority is not None and hosts[0].lower() != authority.lower()):
        raise RequestError(AMBIGUOUS_AUTHORITY, "Host and :authority disagree")
    if authority is None:
        authority = hosts[0] if hosts else b""
    if _VISIBLE(authority) is None:
        raise RequestError(AMBIGUOUS_AUTHORITY, "no authority")
    line = b"%b %b HTTP/1.1\r\n" % (b"GET" if protocol is not None else method, path)
    raw = b"%bhost: %b\r\n%b\r\n" % (line, authority, _lines([field for field in regular if field[0] != b"host"]))
    parser = RequestParser(wire, rules)
    parser.receive(raw)
    head = parser.next()
    if type(head) is not RequestHead or parser.buffered:
        raise RequestError(MALFORMED_REQUEST, "the engines disagree on where the head ends")
    declared = any(name == b"content-length" for name, _ in regular)
    if ended:
        if head.length:
            raise Malformed("a content-length and no body")
    elif not declared or head.length == NO_BODY:
        head.length = CHUNKED
    head.expect = not ended and any(name == b"expect" for name, _ in regular)
    head.minor = 2
    head.keep_alive = True
    head.size = len(raw)
    head.scheme = pseudo.get(b":scheme", b"")
    if protocol is not None:
        head.method = method
        head.length = CHUNKED
        head.specials = [(b":protocol", protocol), *head.specials]
    return head


def response_of(fields: Fields, ended: bool, method: bytes, wire: WireLimits) -> ResponseHead:
    """The head of a response to `method`. Raises Malformed."""
    size = sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in fields)
    if size > wire.head_bytes or len(fields) > wire.fields:
        raise Malformed("response head too large")
    pseudo, regular = _take_apart(fields, frozenset((b":status",)))
    status = pseudo.get(b":status", b"")
    if _STATUS(status) is None or status == b"101":
        raise Malformed("status")
    parser = ResponseParser(wire)
    parser.restart(method)
    parser.receive(b"HTTP/1.1 %b\r\n%b\r\n" % (status, _lines(regular)))
    try:
        head = parser.next()
    except UpstreamError as exc:
        raise Malformed(exc.detail) from exc
    if type(head) is not ResponseHead or parser.buffered:
        raise Malformed("the engines disagree on where the head ends")
    if head.status < 200 and ended:
        raise Malformed("an interim response that ends its stream")
    if head.length == UNTIL_CLOSE:
        head.length = NO_BODY if ended else CHUNKED
    elif head.length and ended:
        raise Malformed("a content-length and no body")
    head.minor = 2
    head.keep_alive = True
    return head


def trailers_of(fields: Fields, limits: Http2Limits) -> bytes:
    """The field block of a trailer section. Raises Malformed."""
    try:
        check_size(fields, limits)
    except RequestError as exc:
        raise Malformed(exc.detail) from exc
    _, regular = _take_apart(fields, frozenset())
    return remove_fields(_lines(regular), NOT_IN_TRAILERS)


def pairs_of_block(block: bytes) -> list[tuple[bytes, bytes]]:
    """A field block as a header list: names in lower case, without what belongs to a connection."""
    return [(key, value) for name, value in split_block(block) if (key := name.lower()) not in _OF_A_CONNECTION]


def pairs_of_request(head: bytes, scheme: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """(method, header list) of a serialised HTTP/1.1 request head of our own making."""
    line, _, block = head.partition(b"\r\n")
    method, target, _ = line.split(b" ")
    protocol = []
    if b":protocol: " in block[:10] or b"\n:protocol: " in block:  # the name is no token: it is not among the fields
        before, _, rest = block.partition(b":protocol: ")
        value, _, after = rest.partition(b"\r\n")
        protocol, block = [value], before + after
    fields = pairs_of_block(block)
    authority = [value for name, value in fields if name == b"host"]
    pseudo = [(b":method", b"CONNECT" if protocol else method), (b":scheme", scheme), (b":path", target)]
    if authority:
        pseudo.append((b":authority", authority[0]))
    if protocol:
        pseudo.append((b":protocol", protocol[0]))
    return method, pseudo + [(name, value) for name, value in fields if name != b"host"]
