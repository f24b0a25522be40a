"""From decoded fields to heads that mean what they mean in HTTP/1.1 (RFC 9113 section 8).

A request that breaks a rule of HTTP/2 is malformed: its stream is reset. One that breaks a limit or a rule of ours is answered, as on
HTTP/1.1. INVARIANT: the result is that of `semantics` for the same fields written down as an HTTP/1.1 head (a property test holds it), and
what was put together also passes the expression of a whole HTTP/1.1 head: whatever a mistake lets in, a line end in a field cannot be.
"""

from __future__ import annotations

from meshguard.model.errors import MeshguardError, RequestError
from meshguard.model.messages import CHUNKED, NO_BODY, RequestHead, ResponseHead
from meshguard.model.reasons import (
    AMBIGUOUS_AUTHORITY,
    AMBIGUOUS_FIELD,
    AMBIGUOUS_FRAMING,
    EXPECTATION_FAILED,
    HEAD_TOO_LARGE,
    METHOD_NOT_SUPPORTED,
    TARGET_TOO_LONG,
)
from meshguard.wire.fields import NOT_IN_TRAILERS
from meshguard.wire.grammar import CONTENT_LENGTH, FIELD_BLOCK, PLAIN_REQUEST_HEAD, REQUEST_HEAD
from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.field_book import (
    AUTHORITY,
    COOKIE,
    EXPECT,
    HOST,
    LENGTH,
    MALFORMED,
    METHOD,
    PATH,
    PROTOCOL,
    REFUSED,
    REGULAR,
    SCHEME,
    SPECIAL,
    STATUS,
    Entry,
    RequestBook,
)

__all__ = ["UNDECLARED", "MalformedHead", "content_type_of", "request_of", "response_of", "trailers_of"]

UNDECLARED = -1
"""A body without content-length."""
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))
_BODILESS = frozenset((204, 304))
_DROPPED_FROM_TRAILERS = frozenset(NOT_IN_TRAILERS)


class MalformedHead(MeshguardError):
    """RFC 9113 section 8.1.1: the stream ends with PROTOCOL_ERROR."""


def request_of(entries: list[Entry], ended: bool, limits: Http2Limits, book: RequestBook) -> tuple[RequestHead, int]:
    """(head, content-length or UNDECLARED) of a request; `ended`: its stream is over. `size` of the head is what was decoded, with 32
    octets a field. Raises MalformedHead, or RequestError (HEAD_TOO_LARGE, TARGET_TOO_LONG, AMBIGUOUS_AUTHORITY, AMBIGUOUS_FIELD,
    AMBIGUOUS_FRAMING, METHOD_NOT_SUPPORTED, EXPECTATION_FAILED)."""
    if len(entries) > limits.fields:
        raise RequestError(HEAD_TOO_LARGE, f"{len(entries)} fields")
    lines: list[bytes] = []
    specials: list[tuple[bytes, bytes]] = []
    crumbs: list[bytes] = []
    pseudo: dict[int, bytes] = {}
    host: bytes | None = None
    length: bytes | None = None
    refusal: RequestError | None = None
    expect = False
    regular = False
    total = 0
    for kind, text, name, size in entries:
        total += size
        if not kind:
            lines.append(text)
            regular = True
        elif kind > MALFORMED:
            if regular or kind in pseudo:
                raise MalformedHead("a pseudo-header field twice or behind others")
            pseudo[kind] = text
        else:
            regular = True
            if kind == SPECIAL:
                specials.append((name, text))
            elif kind == COOKIE:
                crumbs.append(text)
            elif kind == LENGTH:
                if length is not None:
                    refusal = refusal or RequestError(AMBIGUOUS_FRAMING, "several Content-Length fields")
                length = text
            elif kind == HOST:
                if host is not None:
                    refusal = refusal or RequestError(AMBIGUOUS_AUTHORITY, "several Host fields")
                host = text
            elif kind == EXPECT:
                if text.lower() != b"100-continue":
                    refusal = refusal or RequestError(EXPECTATION_FAILED)
                expect = True
            elif kind == REFUSED:
                refusal = refusal or RequestError(AMBIGUOUS_FIELD, "underscore in a field name")
            elif kind == MALFORMED:
                raise MalformedHead("a field that HTTP/2 does not allow")
    method, path = _target(pseudo, limits)
    if total > limits.head_bytes:
        raise RequestError(HEAD_TOO_LARGE, f"{total} octets")
    if len(method) + len(path) + 10 > limits.request_line_bytes:
        raise RequestError(TARGET_TOO_LONG, f"{len(path)} octets")
    if method in _REFUSED_METHODS and PROTOCOL not in pseudo:
        raise RequestError(METHOD_NOT_SUPPORTED, method.decode())
    if refusal is not None:
        raise refusal
    if length is not None and CONTENT_LENGTH(length) is None:
        raise RequestError(AMBIGUOUS_FRAMING, "Content-Length is not a decimal number")
    authority = pseudo.get(AUTHORITY)
    if authority is None:
        authority = host
    elif host is not None and host.lower() != authority.lower():
        raise RequestError(AMBIGUOUS_AUTHORITY, "Host and :authority disagree")
    if not authority:
        raise RequestError(AMBIGUOUS_AUTHORITY, "no authority")
    if crumbs:
        cookie = b"; ".join(crumbs).rstrip(b" ")  # empty crumbs
        if book.cookies_cut:
            specials.append((b"cookie", cookie))
        else:
            lines.append(b"cookie: %b\r\n" % cookie)
    block = b"".join(lines)
    written = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (method, path, authority, block)
    match = REQUEST_HEAD(written) if book.underscores else PLAIN_REQUEST_HEAD(written)
    if match is None or match.end() != len(written):
        raise MalformedHead("not a head of HTTP/1.1")
    declared = int(length) if length is not None else UNDECLARED
    head = RequestHead()
    head.length = CHUNKED
    protocol = pseudo.get(PROTOCOL)
    if protocol is not None:
        if length is not None:
            raise MalformedHead("an extended CONNECT with a content-length")
        specials.insert(0, (b":protocol", protocol))
    elif ended:
        if declared > 0:
            raise MalformedHead("a content-length and no body")
        head.length = NO_BODY
    elif declared > 0:
        head.length = declared
    head.method = method
    head.target = path
    head.scheme = pseudo.get(SCHEME, b"")
    head.authority = authority
    head.block = block
    head.minor = 2
    head.keep_alive = True
    head.expect = expect and head.length != NO_BODY
    head.specials = specials
    head.size = total
    return head, declared


def _target(pseudo: dict[int, bytes], limits: Http2Limits) -> tuple[bytes, bytes]:
    """(method, path), where the pseudo-header fields are complete (RFC 9113 sections 8.3.1 and 8.5, RFC 8441 section 4)."""
    method = pseudo.get(METHOD)
    path = pseudo.get(PATH)
    if method is None:
        raise MalformedHead("no method")
    if PROTOCOL in pseudo:
        if method != b"CONNECT" or not limits.extended_connect or AUTHORITY not in pseudo:
            raise MalformedHead("an extended CONNECT that was not offered")
    elif method == b"CONNECT":
        if path is not None or SCHEME in pseudo or AUTHORITY not in pseudo:
            raise MalformedHead("CONNECT takes an authority and nothing else")
        return method, b"*"
    if path is None or SCHEME not in pseudo:
        raise MalformedHead("no path or scheme")
    if path == b"*" and method != b"OPTIONS":
        raise MalformedHead("'*' is a path of OPTIONS only")
    return method, path


def content_type_of(entries: list[Entry]) -> bytes:
    """Of a head that was refused: the value, or nothing where there is none or it is not a plain field."""
    for kind, text, name, _ in entries:
        if kind == REGULAR and name == b"content-type":
            return text[len(b"content-type: ") : -2]
    return b""


def response_of(entries: list[Entry], ended: bool, method: bytes, limits: Http2Limits) -> tuple[ResponseHead, int]:
    """The same of a response to `method`; a length that only describes (HEAD, 304) is in `specials`, and the body it may then have is 0.
    Raises MalformedHead."""
    lines: list[bytes] = []
    specials: list[tuple[bytes, bytes]] = []
    status: bytes | None = None
    length: bytes | None = None
    regular = False
    total = 0
    for kind, text, name, size in entries:
        total += size
        if not kind:
            lines.append(text)
            regular = True
        elif kind == STATUS:
            if regular or status is not None:
                raise MalformedHead("a pseudo-header field twice or behind others")
            status = text
        elif kind == SPECIAL:
            specials.append((name, text))
            regular = True
        elif kind == LENGTH:
            if length is not None or CONTENT_LENGTH(text) is None:
                raise MalformedHead("content-length")
            length = text
            regular = True
        else:
            raise MalformedHead("a field that HTTP/2 does not allow")
    if status is None or status == b"101":
        raise MalformedHead("status")
    if total > limits.head_bytes or len(entries) > limits.fields:
        raise MalformedHead("response head too large")
    head = ResponseHead()
    head.status = code = int(status)
    head.block = b"".join(lines)
    if FIELD_BLOCK(head.block) is None:
        raise MalformedHead("not a field block of HTTP/1.1")
    head.minor = 2
    head.keep_alive = True
    head.specials = specials
    head.size = total
    declared = UNDECLARED
    if code < 200 or code in _BODILESS or method == b"HEAD":
        head.length = NO_BODY
        if code >= 200:
            declared = 0
        elif ended:
            raise MalformedHead("an interim response that ends its stream")
        if length is not None and (method == b"HEAD" or code == 304):
            specials.append((b"content-length", length))
    else:
        if length is not None:
            declared = int(length)
        if ended and declared > 0:
            raise MalformedHead("a content-length and no body")
        head.length = NO_BODY if ended else CHUNKED if length is None else declared
    return head, declared


def trailers_of(entries: list[Entry], limits: Http2Limits) -> bytes:
    """The field block of a trailer section, without what may not come in one (RFC 9110 section 6.5.1). Raises MalformedHead."""
    lines = []
    total = 0
    for kind, text, name, size in entries:
        total += size
        if kind >= MALFORMED:
            raise MalformedHead("a trailer field that HTTP/2 does not allow")
        if name not in _DROPPED_FROM_TRAILERS:
            lines.append(text if kind == REGULAR else b"%b: %b\r\n" % (name, text))
    if total > limits.head_bytes or len(entries) > limits.fields:
        raise MalformedHead("trailers too large")
    block = b"".join(lines)
    if FIELD_BLOCK(block) is None:
        raise MalformedHead("not a field block of HTTP/1.1")
    return block
