"""The reference engine: h11 reads the messages, behind the same interface and after the same grammar and value checks.

It accepts a message only when both the strict grammar and h11 accept it and agree on method, target and framing; where they differ it
refuses. It costs about seven times the default engine and is there to be compared with, and for those who prefer a parser
that many others use. Intended disagreements with bare h11, which is more lenient, are the classes of security.md 1: line folding,
bare line feeds, list-valued Content-Length, Content-Length beside Transfer-Encoding, white space in chunk sizes.
"""

from __future__ import annotations

import h11

from meshguard.model.errors import RequestError
from meshguard.model.messages import CHUNKED, NO_BODY, RequestHead
from meshguard.model.reasons import MALFORMED_CHUNK, MALFORMED_REQUEST
from meshguard.wire.chunked import ChunkDecoder
from meshguard.wire.events import EndOfMessage, WireLimits
from meshguard.wire.fields import NOT_IN_TRAILERS, remove_fields
from meshguard.wire.http1 import RequestParser
from meshguard.wire.semantics import FieldRules

__all__ = ["RequestReader"]


class RequestReader:
    """Server side. See `events.RequestEngine`."""

    __slots__ = ("_body", "_chunks", "_done", "_h11", "_head_parser", "_limits", "_pending", "_rules", "_window")

    def __init__(self, limits: WireLimits, rules: FieldRules) -> None:
        self._limits = limits
        self._rules = rules
        self._head_parser = _HeadReader(limits, rules)
        self._h11: h11.Connection | None = None
        self._chunks: ChunkDecoder | None = None
        self._pending = b""  # received after the head, not yet given to h11
        self._done = False
        self._window = b""  # of a chunked body: what the strict decoder has not used yet

    @property
    def buffered(self) -> int:
        return len(self._pending) if self._h11 is not None or self._done else self._head_parser.buffered

    @property
    def in_head(self) -> bool:
        return self._h11 is None and not self._done and self._head_parser.in_head

    def receive(self, data: bytes) -> None:
        if self._h11 is None and not self._done:
            self._head_parser.receive(data)
        else:
            self._pending += data

    def restart(self) -> None:
        rest, self._pending = self._pending, b""
        self._h11 = None
        self._chunks = None
        self._done = False
        self._window = b""
        self._head_parser = _HeadReader(self._limits, self._rules)
        if rest:
            self._head_parser.receive(rest)

    def rest(self) -> bytes:
        return self._pending if self._done or self._h11 is not None else self._head_parser.rest()

    def next(self) -> RequestHead | bytes | EndOfMessage | None:
        if self._done:
            return None
        if self._h11 is not None:
            return self._next_of_body(self._h11)
        head = self._head_parser.next()
        if type(head) is not RequestHead:
            return None
        raw, self._pending = self._head_parser.take()
        self._h11 = connection = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes + 4096)
        try:
            connection.receive_data(raw)
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            raise RequestError(MALFORMED_REQUEST, str(exc)) from exc
        if type(event) is not h11.Request:
            raise RequestError(MALFORMED_REQUEST, "the engines disagree on where the head ends")
        target = b"" if head.scheme and head.target == b"*" else head.target  # OPTIONS of an authority
        if event.method != head.method or not event.target.endswith(target.removeprefix(b"/")):
            raise RequestError(MALFORMED_REQUEST, "the engines disagree on the request line")
        self._check_framing(event, head)
        if head.length == NO_BODY:
            self._done = True
            self._h11 = None
        elif head.length == CHUNKED:
            self._chunks = ChunkDecoder(self._limits)
        return head

    def _check_framing(self, event: h11.Request, head: RequestHead) -> None:
        names = dict(event.headers)
        length = names.get(b"content-length")
        if b"transfer-encoding" in names:
            agreed = head.length == CHUNKED
        else:
            agreed = head.length == (int(length) if length is not None else NO_BODY)
        if not agreed:
            raise RequestError(MALFORMED_REQUEST, "the engines disagree on the framing")

    def _next_of_body(self, connection: h11.Connection) -> bytes | EndOfMessage | None:
        if self._pending:
            data, self._pending = self._pending, b""
            if self._chunks is not None:
                # the strict decoder reads along: what it refuses is refused, also where h11 is lenient
                self._read_along(self._chunks, data)
            connection.receive_data(data)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            raise RequestError(MALFORMED_CHUNK, str(exc)) from exc
        if type(event) is h11.Data:
            return bytes(event.data)
        if type(event) is h11.EndOfMessage:
            self._done = True
            self._h11 = None
            # what followed this message on the wire is given back to the next one
            self._pending = connection.trailing_data[0] + self._pending
            return EndOfMessage(remove_fields(b"".join(b"%b: %b\r\n" % pair for pair in event.headers), NOT_IN_TRAILERS))
        return None

    def _read_along(self, decoder: ChunkDecoder, data: bytes) -> None:
        position = 0
        window = self._window + data
        while position < len(window):
            _, used, end = decoder.decode(window[position:])
            position += used
            if end is not None or not used:
                break
        self._window = window[position:]


class _HeadReader(RequestParser):
    """The default engine for one head, which keeps the raw octets."""

    __slots__ = ("_raw",)

    def __init__(self, limits: WireLimits, rules: FieldRules) -> None:
        super().__init__(limits, rules)
        self._raw = b""

    def receive(self, data: bytes) -> None:
        super().receive(data)
        self._raw += data

    def take(self) -> tuple[bytes, bytes]:
        """(the octets of the head, what came after it)."""
        rest = self._buffer
        head = self._raw[: len(self._raw) - len(rest)] if rest else self._raw
        return head.removeprefix(b"\r\n"), rest
