"""From a grammatical head to a message: framing, authority, connection options (RFC 9110 section 7, RFC 9112 sections 3 and 6).

Both engines come through here, so they cannot differ in what a head means. INVARIANT: the field block that leaves here holds no
framing, no hop-by-hop field, no field a `Connection` line named, and nothing an upstream may take for the caller's identity.
"""

from __future__ import annotations

import re

from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.messages import CHUNKED, NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead
from meshguard.model.reasons import (
    AMBIGUOUS_AUTHORITY,
    AMBIGUOUS_FIELD,
    AMBIGUOUS_FRAMING,
    EXPECTATION_FAILED,
    MALFORMED_REQUEST,
    METHOD_NOT_SUPPORTED,
    UNKNOWN_TRANSFER_CODING,
    UPSTREAM_MALFORMED,
)
from meshguard.wire.fields import (
    NEVER_NOMINATED,
    NOT_IN_TRAILERS,
    REQUEST_CONSUMED,
    RESPONSE_CONSUMED,
    SPOOFABLE,
    is_field_name,
    remove_fields,
    tokens,
)
from meshguard.wire.grammar import CONTENT_LENGTH, UNDERSCORED, field_splitter, usual_request, usual_response

__all__ = ["USUAL_RESPONSE", "FieldRules", "request_head", "response_head", "usual_request_head", "usual_response_head"]

_BODILESS = frozenset((204, 304))
# Connection options that name no field of a block: the usual ones, what was cut before, and what may not be taken away.
_NEVER_IN_A_BLOCK = NEVER_NOMINATED | {b"close", b"keep-alive", b"te", b"trailer", b"upgrade", b"connection", b"proxy-connection"}
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))


class FieldRules:
    """What a listener does with fields: the names it consumes besides the built-in ones (a `*` at the end makes a prefix; `-` and `_` are
    one), and what happens to names with `_`. Raises ValueError for a name that no field can have."""

    __slots__ = ("_split_trailers", "drop_underscored", "refuse_underscored", "split", "usual")

    def __init__(self, strip: tuple[bytes, ...] = (), underscores: str = "drop") -> None:
        for name in strip:
            if not is_field_name(name.removesuffix(b"*")) or b"*" in name[:-1]:
                raise ValueError(f"nothing to strip: {name!r}")
        spoofable = (*SPOOFABLE, *(name.lower().replace(b"_", b"-") for name in strip))
        self.split = field_splitter(REQUEST_CONSUMED, spoofable).split
        self.usual = usual_request(REQUEST_CONSUMED, spoofable)
        self._split_trailers = field_splitter((*REQUEST_CONSUMED, *NOT_IN_TRAILERS), spoofable).split
        self.refuse_underscored = underscores == "refuse"
        self.drop_underscored = underscores == "drop"

    def trailers(self, block: bytes) -> bytes:
        """The trailers that may go on: none that would have been consumed, cut or judged in a head (RFC 9110 section 6.5.1)."""
        return b"".join(self._split_trailers(b"\r\n" + UNDERSCORED.sub(b"", b"\n" + block)[1:])[::3])[2:]


_OF_OURS = (b"x-meshguard-*",)
_SPLIT_RESPONSE = field_splitter(RESPONSE_CONSUMED, _OF_OURS).split
USUAL_RESPONSE = usual_response(RESPONSE_CONSUMED, _OF_OURS)


def usual_request_head(match: re.Match[bytes]) -> RequestHead | None:
    """The message of a `grammar.usual_request` match; None where only the long way may decide. Gives what `request_head` would."""
    method, target, minor, before, host, behind, parent, length, more, parent2, length2, more2, parent3, length3, more3 = match.groups()
    if target[0] != 0x2F or minor != b"1" or method in _REFUSED_METHODS:
        return None
    message = RequestHead()
    if more is None:
        message.block = before + behind if before else behind
        message.length = NO_BODY
        message.specials = []
    else:
        if more2 is not None:
            if more3 is not None:
                if (parent2 is not None and parent3 is not None) or (length2 is not None and length3 is not None):
                    return None  # twice the same field
                parent2, length2, more2 = parent2 or parent3, length2 or length3, more2 + more3
            if (parent is not None and parent2 is not None) or (length is not None and length2 is not None):
                return None
            parent, length, more = parent or parent2, length or length2, more + more2
        message.block = before + behind + more
        message.length = NO_BODY if length is None else int(length)
        message.specials = [] if parent is None else [(b"traceparent", parent)]
    message.size = match.end()
    message.scheme = b""
    message.method = method
    message.target = target
    message.authority = host
    message.minor = 1
    message.keep_alive = True
    message.expect = False
    return message


def usual_response_head(match: re.Match[bytes], method: bytes) -> ResponseHead | None:
    """The same for `USUAL_RESPONSE`. Gives what `response_head` would."""
    status, before, more, length, behind, rest = match.groups()
    code = int(status)
    if code in _BODILESS or method == b"HEAD":
        return None
    message = ResponseHead()
    message.status = code
    message.block = b"%b%b%b%b" % (before, more or b"", behind, rest or b"")
    message.length = int(length)
    message.minor = 1
    message.keep_alive = True
    message.specials = []
    message.size = match.end()
    return message


def request_head(method: bytes, target: bytes, minor: int, head: bytes, rules: FieldRules, plain: bool) -> RequestHead:
    """The request whose head (through the empty line) is `head`; it matched `grammar.REQUEST_HEAD`, or the plain one.

    Raises RequestError: AMBIGUOUS_FRAMING, UNKNOWN_TRANSFER_CODING, AMBIGUOUS_AUTHORITY, AMBIGUOUS_FIELD, METHOD_NOT_SUPPORTED,
    EXPECTATION_FAILED, MALFORMED_REQUEST.
    """
    if method in _REFUSED_METHODS:
        raise RequestError(METHOD_NOT_SUPPORTED, method.decode())
    message = RequestHead()
    message.size = len(head)
    if not plain:
        if rules.refuse_underscored:
            raise RequestError(AMBIGUOUS_FIELD, "underscore in a field name")
        if rules.drop_underscored:
            head = UNDERSCORED.sub(b"", head)
    pieces = rules.split(head)
    line_end = len(method) + len(target) + 12
    block = b"".join(pieces[::3])[line_end:-2]
    host: bytes | None = None
    length: bytes | None = None
    coding: bytes | None = None
    connection: list[bytes] | None = None
    expect = False
    specials: list[tuple[bytes, bytes]] = []
    for index in range(1, len(pieces), 3):
        name = pieces[index].lower()
        value = pieces[index + 1]
        if value[-1:] in b" \t":  # also true for an empty value, which rstrip leaves alone
            value = value.rstrip(b" \t")
        if name == b"host":
            if host is not None:
                raise RequestError(AMBIGUOUS_AUTHORITY, "several Host fields")
            host = value
        elif name == b"content-length":
            if length is not None:
                raise RequestError(AMBIGUOUS_FRAMING, "several Content-Length fields")
            length = value
        elif name == b"transfer-encoding":
            if coding is not None:
                raise RequestError(AMBIGUOUS_FRAMING, "several Transfer-Encoding fields")
            coding = value
        elif name == b"connection":
            if connection is None:
                connection = []
            connection.append(value)
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise RequestError(EXPECTATION_FAILED)
            expect = True
        else:
            specials.append((name, value))
    keep_alive = minor == 1
    if connection is not None:
        options = tokens(connection)
        if b"close" in options:
            keep_alive = False
        if b"upgrade" in options:
            specials.append((b"connection", b"upgrade"))
        nominated = [option for option in options if option not in _NEVER_IN_A_BLOCK]
        if nominated:
            block = remove_fields(block, nominated)
    if coding is not None:
        if length is not None or minor == 0:
            raise RequestError(AMBIGUOUS_FRAMING, "Transfer-Encoding with Content-Length or in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise RequestError(UNKNOWN_TRANSFER_CODING if b"chunked" not in coding.lower() else AMBIGUOUS_FRAMING, "not exactly 'chunked'")
        message.length = CHUNKED
    elif length is not None:
        if CONTENT_LENGTH(length) is None:
            raise RequestError(AMBIGUOUS_FRAMING, "Content-Length is not a decimal number")
        message.length = int(length)
    else:
        message.length = NO_BODY
    message.scheme = b""
    first = target[:1]
    if first != b"/":
        if target == b"*":
            if method != b"OPTIONS":
                raise RequestError(MALFORMED_REQUEST, "'*' is a target of OPTIONS only")
        else:
            if host is None and minor == 1:
                raise RequestError(AMBIGUOUS_AUTHORITY, "no Host")  # also beside an absolute target (RFC 9112 section 3.2)
            target, host = _absolute_form(message, target, host, method)
    if not host:
        if host is not None or minor == 1:
            raise RequestError(AMBIGUOUS_AUTHORITY, "no Host")
        host = b""
    message.method = method
    message.target = target
    message.authority = host
    message.block = block
    message.minor = minor
    message.keep_alive = keep_alive
    message.expect = expect and minor == 1 and message.length != NO_BODY
    message.specials = specials
    return message


def _absolute_form(message: RequestHead, target: bytes, host: bytes | None, method: bytes) -> tuple[bytes, bytes]:
    """Origin-form target and authority of an absolute-form target; it wins over Host and must agree (RFC 9112 section 3.2.2). Of OPTIONS
    without a path it is `*` (section 3.2.4)."""
    scheme, separator, rest = target.partition(b"://")
    scheme = scheme.lower()
    if not separator or scheme not in (b"http", b"https"):
        raise RequestError(MALFORMED_REQUEST, "the target is neither origin-form nor an absolute http(s) URI")
    cut = min((position for mark in b"/?#" if (position := rest.find(mark)) >= 0), default=len(rest))
    authority, target = rest[:cut], rest[cut:]
    if host is not None and host.lower() != authority.lower():
        raise RequestError(AMBIGUOUS_AUTHORITY, "Host and the absolute target disagree")
    message.scheme = scheme
    if not target and method == b"OPTIONS":
        target = b"*"
    elif target[:1] != b"/":
        target = b"/" + target
    return target, authority


def response_head(status: int, minor: int, head: bytes, method: bytes) -> ResponseHead:
    """The response to a request with `method` whose head is `head`; it matched `grammar.RESPONSE_HEAD`.

    Raises UpstreamError(UPSTREAM_MALFORMED) where the framing is in conflict. A length that only describes (HEAD, 304) is in `specials`.
    """
    pieces = _SPLIT_RESPONSE(head)
    joined = b"".join(pieces[::3])
    message = ResponseHead()
    message.size = len(head)
    message.status = status
    message.minor = minor
    length: bytes | None = None
    coding: bytes | None = None
    connection: list[bytes] | None = None
    specials: list[tuple[bytes, bytes]] = []
    for index in range(1, len(pieces), 3):
        name = pieces[index].lower()
        value = pieces[index + 1]
        if value[-1:] in b" \t":
            value = value.rstrip(b" \t")
        if name == b"content-length":
            if length is not None or CONTENT_LENGTH(value) is None:
                raise UpstreamError(UPSTREAM_MALFORMED, "Content-Length")
            length = value
        elif name == b"transfer-encoding":
            if coding is not None or value.lower() != b"chunked" or minor == 0:
                raise UpstreamError(UPSTREAM_MALFORMED, "Transfer-Encoding")
            coding = value
        elif name == b"connection":
            if connection is None:
                connection = []
            connection.append(value)
        else:
            specials.append((name, value))
    if length is not None and coding is not None:
        raise UpstreamError(UPSTREAM_MALFORMED, "Transfer-Encoding with Content-Length")
    block = joined[joined.index(b"\n") + 1 : -2]
    message.keep_alive = minor == 1
    if connection is not None:
        options = tokens(connection)
        if b"close" in options:
            message.keep_alive = False
        if b"upgrade" in options:
            specials.append((b"connection", b"upgrade"))
        nominated = [option for option in options if option not in _NEVER_IN_A_BLOCK]
        if nominated:
            block = remove_fields(block, nominated)
    message.block = block
    message.specials = specials
    if status < 200 or status in _BODILESS or method == b"HEAD":
        message.length = NO_BODY
        if length is not None and (method == b"HEAD" or status == 304):
            specials.append((b"content-length", length))
    elif coding is not None:
        message.length = CHUNKED
    elif length is not None:
        message.length = int(length)
    else:
        message.length = UNTIL_CLOSE
    return message
