"""The default HTTP/1.1 engine: one strict, linear expression over the whole head, bodies by their framing.

Theory of operation. HEAD: bytes gather until the head is complete; the expression validates all of it, then `semantics` decides
what it means. LENGTH / CHUNKED / UNTIL_CLOSE: data passes by. DONE: nothing is read until `restart()`, so a pipelined request is
never parsed before the one in front of it is answered. An incomplete head is searched only in its new bytes: trying the whole
expression again for each would let a slow client spend quadratic time.
"""

from __future__ import annotations

from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.messages import CHUNKED, NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead
from meshguard.model.reasons import (
    HEAD_TOO_LARGE,
    MALFORMED_REQUEST,
    TARGET_TOO_LONG,
    UNSUPPORTED_VERSION,
    UPSTREAM_MALFORMED,
)
from meshguard.wire.chunked import ChunkDecoder
from meshguard.wire.events import END, EndOfMessage, WireLimits
from meshguard.wire.grammar import FORBIDDEN_IN_HEAD, PLAIN_REQUEST_HEAD, REQUEST_HEAD, REQUEST_LINE, RESPONSE_HEAD
from meshguard.wire.semantics import (
    USUAL_RESPONSE,
    FieldRules,
    request_head,
    response_head,
    usual_request_head,
    usual_response_head,
)

__all__ = ["RequestParser", "ResponseParser", "check_head_size", "check_request_head", "check_request_line"]

_HEAD, _LENGTH, _CHUNKED, _UNTIL_CLOSE, _END, _DONE = range(6)


def check_request_line(line: bytes, limits: WireLimits) -> None:
    """Raises the fitting RequestError for a request line that is not one of HTTP/1.0 or HTTP/1.1."""
    if len(line) > limits.request_line_bytes:
        raise RequestError(TARGET_TOO_LONG, f"{len(line)} octets")
    match = REQUEST_LINE(line)
    if match is None:
        raise RequestError(MALFORMED_REQUEST, "request line")
    if match[3] != b"1" or match[4] not in (b"0", b"1"):
        raise RequestError(UNSUPPORTED_VERSION)


def check_head_size(buffer: bytes, end: int, limits: WireLimits) -> None:
    """Raises RequestError where the complete head `buffer[:end]` is above a limit."""
    if buffer.index(b"\r\n") > limits.request_line_bytes:
        raise RequestError(TARGET_TOO_LONG)
    if end > limits.head_bytes or buffer.count(b"\n", 0, end) > limits.fields + 2:
        raise RequestError(HEAD_TOO_LARGE)


def check_request_head(buffer: bytes, scanned: int, limits: WireLimits) -> None:
    """Raises RequestError where the incomplete head in `buffer`, of which `scanned` octets were checked before, can never be good.

    INVARIANT: what comes first in the stream decides, so that the reason does not depend on how the stream was cut.
    """
    line_limit = limits.request_line_bytes + 2
    line_end = buffer.find(b"\r\n", 0, line_limit)
    bad = FORBIDDEN_IN_HEAD(buffer, max(0, scanned - 1))
    where = len(buffer) if bad is None else bad.start()
    if line_end < 0:
        if where >= line_limit and len(buffer) > line_limit:
            raise RequestError(TARGET_TOO_LONG)
    elif line_end >= scanned - 1:
        check_request_line(buffer[:line_end], limits)
    if bad is not None and where < limits.head_bytes:
        raise RequestError(MALFORMED_REQUEST, "control character or bare line end in the head")
    if len(buffer) > limits.head_bytes:
        raise RequestError(HEAD_TOO_LARGE)


class _Parser:
    """Buffer and body states, common to both directions."""

    __slots__ = ("_buffer", "_chunks", "_left", "_limits", "_pending_end", "_scanned", "_state")

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self._buffer = b""
        self._state = _HEAD
        self._scanned = 0
        self._left = 0
        self._chunks: ChunkDecoder | None = None
        self._pending_end = END

    @property
    def buffered(self) -> int:
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data

    def _begin_body(self, length: int) -> None:
        if length == NO_BODY:
            self._state = _DONE
        elif length == CHUNKED:
            self._state = _CHUNKED
            self._chunks = ChunkDecoder(self._limits)
        elif length == UNTIL_CLOSE:
            self._state = _UNTIL_CLOSE
        else:
            self._state = _LENGTH
            self._left = length

    def _body(self) -> bytes | EndOfMessage | None:
        state = self._state
        if state == _LENGTH:
            data = self._buffer
            if not data:
                return None
            if len(data) > self._left:
                self._buffer = data[self._left :]
                data = data[: self._left]
            else:
                self._buffer = b""
            self._left -= len(data)
            if not self._left:
                self._state = _END
            return data
        if state == _END:
            self._state = _DONE
            return END
        if state == _CHUNKED:
            return self._chunked()
        if state == _UNTIL_CLOSE and self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        return None

    def _chunked(self) -> bytes | EndOfMessage | None:
        decoder = self._chunks
        if decoder is None:  # the end came together with the last data
            self._state = _DONE
            return self._pending_end
        if not self._buffer:
            return None
        data, used, end = decoder.decode(self._buffer)
        self._buffer = self._buffer[used:]
        if end is None:
            return data or None
        self._chunks = None
        if not data:
            self._state = _DONE
            return end
        self._pending_end = end
        return data


class RequestParser(_Parser):
    """Server side. See `events.RequestEngine`."""

    __slots__ = ("_rules",)

    def __init__(self, limits: WireLimits, rules: FieldRules) -> None:
        super().__init__(limits)
        self._rules = rules

    @property
    def in_head(self) -> bool:
        return self._state == _HEAD and bool(self._buffer)

    def restart(self) -> None:
        self._state = _HEAD
        self._scanned = 0

    def rest(self) -> bytes:
        return self._buffer

    def next(self) -> RequestHead | bytes | EndOfMessage | None:
        if self._state != _HEAD:
            return self._body()
        buffer = self._buffer
        if not buffer:
            return None
        # a complete head is nearly always there at once; else its end is looked for in the new bytes only
        if self._scanned and buffer.find(b"\r\n\r\n", max(0, self._scanned - 3)) < 0:
            check_request_head(buffer, self._scanned, self._limits)
            self._scanned = len(buffer)
            return None
        match = self._rules.usual(buffer)
        if match is not None:
            head = usual_request_head(match)
            if head is None:
                match = None
        if match is None:
            plain = True
            match = PLAIN_REQUEST_HEAD(buffer)
            if match is None:
                plain = False
                match = REQUEST_HEAD(buffer)
                if match is None:
                    return self._incomplete(buffer)
            head = None
        end = match.end()
        limits = self._limits
        if end > limits.surely_small:
            check_head_size(buffer, end, limits)
        if end == len(buffer):
            self._buffer = b""
        else:
            self._buffer = buffer[end:]
            buffer = buffer[:end]
        if head is None:
            method, target, minor = match.groups()
            head = request_head(method, target, 1 if minor == b"1" else 0, buffer, self._rules, plain)
        if head.length == NO_BODY:
            self._state = _DONE
        else:
            self._begin_body(head.length)
        return head

    def _incomplete(self, buffer: bytes) -> RequestHead | bytes | EndOfMessage | None:
        """No match: an empty line in front (RFC 9112 section 2.2 asks to ignore one), more to come, or a refusal."""
        if buffer.startswith(b"\r\n") and not self._scanned:
            self._buffer = buffer[2:]
            self._scanned = -1  # once only
            return self.next() if self._buffer else None
        if buffer == b"\r" and not self._scanned:
            return None
        end = buffer.find(b"\r\n\r\n")
        if end >= 0:
            check_request_head(buffer[: end + 4], 0, self._limits)
            raise RequestError(MALFORMED_REQUEST, "header field")
        check_request_head(buffer, 0, self._limits)
        self._scanned = len(buffer)
        return None


class ResponseParser(_Parser):
    """Client side. See `events.ResponseEngine`. `restart(method)` before each request that is sent."""

    __slots__ = ("_method",)

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits)
        self._state = _DONE
        self._method = b""

    def restart(self, method: bytes) -> None:
        self._state = _HEAD
        self._scanned = 0
        self._method = method

    def next(self) -> ResponseHead | bytes | EndOfMessage | None:
        if self._state != _HEAD:
            try:
                return self._body()
            except UpstreamError:
                raise
            except RequestError as exc:
                raise UpstreamError(UPSTREAM_MALFORMED, exc.detail) from exc
        buffer = self._buffer
        if not buffer:
            return None
        limits = self._limits
        if self._scanned and buffer.find(b"\r\n\r\n", max(0, self._scanned - 3)) < 0:
            self._check_incomplete(buffer)
            return None
        usual = USUAL_RESPONSE(buffer)
        if usual is not None:
            head = usual_response_head(usual, self._method)
            if head is not None:
                end = head.size
                if end > limits.surely_small and (end > limits.head_bytes or buffer.count(b"\n", 0, end) > limits.fields + 2):
                    raise UpstreamError(UPSTREAM_MALFORMED, "response head too large")
                self._buffer = buffer[end:]
                if head.length:
                    self._state = _LENGTH
                    self._left = head.length
                else:
                    self._state = _DONE
                return head
        match = RESPONSE_HEAD(buffer)
        if match is None:
            self._check_incomplete(buffer)
            return None
        end = match.end()
        if end == len(buffer):
            self._buffer = b""
        else:
            self._buffer = buffer[end:]
            buffer = buffer[:end]
        if end > limits.head_bytes or buffer.count(b"\n") > limits.fields + 2:
            raise UpstreamError(UPSTREAM_MALFORMED, "response head too large")
        status = int(match[2])
        head = response_head(status, 1 if match[1] == b"1" else 0, buffer, self._method)
        if status < 200 and status != 101:
            self._scanned = 0  # interim: another head follows
        else:
            self._begin_body(head.length)
        return head

    def _check_incomplete(self, buffer: bytes) -> None:
        """No head yet: more to come, or a refusal. Looks at new octets only."""
        if len(buffer) > self._limits.head_bytes or b"\r\n\r\n" in buffer or FORBIDDEN_IN_HEAD(buffer, max(0, self._scanned - 1)):
            raise UpstreamError(UPSTREAM_MALFORMED, "response head")
        if not b"HTTP/1.".startswith(buffer[:7]):
            raise UpstreamError(UPSTREAM_MALFORMED, "not HTTP/1.x")
        self._scanned = len(buffer)

    def rest(self) -> bytes:
        return self._buffer

    def whole_body(self) -> bytes | None:
        """Right after a head: the whole body where it is all here and nothing follows it (most short answers), and the message is over.
        None changes nothing."""
        if self._state == _LENGTH and len(self._buffer) == self._left:
            data, self._buffer = self._buffer, b""
            self._state = _DONE
            return data
        return None

    def eof(self) -> EndOfMessage | None:
        """The upstream closed: the end of an UNTIL_CLOSE body, or None where nothing was open. Raises UpstreamError when cut short."""
        if self._state == _UNTIL_CLOSE:
            self._state = _DONE
            return END
        if self._state == _DONE:
            return None
        raise UpstreamError(UPSTREAM_MALFORMED, "connection closed inside a message")
