"""The client side of an HTTP/2 connection. See `engine.ClientEngine`."""

from __future__ import annotations

from meshguard.model.messages import NO_BODY
from meshguard.wire.http2.control import ControlledConnection
from meshguard.wire.http2.engine import PROTOCOL_ERROR, ClientSink, Http2Limits
from meshguard.wire.http2.field_book import response_book
from meshguard.wire.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_TABLE_BYTES,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_STREAM,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM,
    PREFACE,
    STREAM_CLOSED,
    goaway_frame,
)
from meshguard.wire.http2.heads import UNDECLARED, MalformedHead, response_of, trailers_of
from meshguard.wire.http2.hpack_encoder import encode_request, request_method
from meshguard.wire.http2.streams import Stream

__all__ = ["Http2Client"]

_STREAMS_UNTIL_SETTINGS = 100
"""How many streams are opened before the server has said its limit; RFC 9113 section 6.5.2 recommends that none is lower."""


class Http2Client(ControlledConnection):
    """An engine for the sink. `limits.streams` bounds what the server allows."""

    __slots__ = ("_client_sink", "_going", "_next", "_settled")

    _takes_push = False

    def __init__(self, sink: ClientSink, limits: Http2Limits) -> None:
        super().__init__(sink, limits, response_book())
        self._client_sink = sink
        self._next = 1
        self._going = False
        self._settled = False  # the peer's settings are known
        self.peer_streams = _STREAMS_UNTIL_SETTINGS
        self.peer_extended_connect = False

    @property
    def free(self) -> int:
        if self._going or self._dead or self._next > MAX_STREAM:
            return 0
        return max(0, min(self.peer_streams, self._limits.streams) - len(self._table))

    def start(self) -> None:
        limits = self._limits
        settings = [(ENABLE_PUSH, 0), (MAX_HEADER_LIST_SIZE, limits.head_bytes)]
        for key, value, default in (
            (INITIAL_WINDOW_SIZE, limits.stream_window_bytes, DEFAULT_WINDOW),
            (MAX_FRAME_SIZE, limits.frame_bytes, DEFAULT_FRAME_BYTES),
            (HEADER_TABLE_SIZE, limits.table_bytes, DEFAULT_TABLE_BYTES),
        ):
            if value != default:
                settings.append((key, value))
        self._out.append(PREFACE)
        self._announce(settings)

    def request(self, head: bytes, scheme: bytes, end: bool) -> int:
        """Its stream; the caller has looked at `free`."""
        stream = self._next
        self._next = stream + 2
        if self._dead:
            return stream  # nothing is said behind the end
        state = self._table[stream] = Stream(stream, self._initial_window, self._stream_room)
        self.streams = len(self._table)
        state.method = request_method(head)
        self._write_fields(state, encode_request(head, scheme), end)
        return stream

    def goaway(self, code: int) -> None:
        if not self._dead:
            self._going = True
            self._out.append(goaway_frame(0, code))

    # -- responses ----------------------------------------------------------------------------------------------------------

    def _on_block(self, stream: int, flags: int, block: bytes, depends_on_itself: bool) -> None:
        state = self._table.get(stream)
        if state is None:
            if self._is_idle(stream):
                return self._fail(PROTOCOL_ERROR, "HEADERS on an idle stream")
            if not self._closed.was_reset(stream):
                return self._fail(STREAM_CLOSED, "HEADERS on a closed stream")
        entries = self._decode(block)
        if entries is None:
            return None
        if state is None:
            self._spend()
            return None  # late, after we have reset the stream
        if state.ended_there:
            return self._stream_error(stream, STREAM_CLOSED, "HEADERS behind the end of a stream")
        end = flags & END_STREAM
        if depends_on_itself:
            return self._stream_error(stream, PROTOCOL_ERROR, "a stream that depends on itself")
        try:
            if state.answered:
                if not end or state.left > 0:
                    raise MalformedHead("trailers that do not end the stream, or before the end of the body")
                return self._ended_there(state, trailers_of(entries, self._limits))
            head, declared = response_of(entries, end != 0, state.method, self._limits)
        except MalformedHead as exc:
            return self._stream_error(stream, PROTOCOL_ERROR, str(exc))
        if head.status >= 200:
            state.answered = True
            state.silent = head.length == NO_BODY
            state.left = declared if declared != UNDECLARED or not end else 0
            if end:
                state.ended_there = True
                if state.ended_here:
                    self._forget(state)
        self._client_sink.response(stream, head)
        if end and not self._dead:
            self._client_sink.capacity()
        return None

    def _may_have_data(self, state: Stream) -> bool:
        return state.answered

    def _ended_there(self, state: Stream, trailers: bytes) -> None:
        super()._ended_there(state, trailers)
        if not self._dead:
            self._client_sink.capacity()

    def _is_idle(self, stream: int) -> bool:
        return stream >= self._next or not stream & 1

    def _stream_error(self, stream: int, code: int, detail: str) -> None:
        super()._stream_error(stream, code, detail)
        if not self._dead:
            self._client_sink.capacity()

    def _on_peer_reset(self) -> None:
        # each costs one of our own requests: no flood of the server's making
        if not self._dead:
            self._client_sink.capacity()

    @property
    def extended_connect(self) -> bool | None:
        return self.peer_extended_connect if self._settled else None

    def _on_peer_settings(self) -> None:
        self._settled = True
        self._client_sink.capacity()

    def _on_peer_goaway(self, last: int, code: int) -> None:
        """Streams above `last` are dropped without a further word."""
        self._going = True
        for state in [state for state in self._table.values() if state.id > last]:
            self._forget(state, reset=True)
        self._client_sink.goaway(last, code)
