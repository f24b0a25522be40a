"""The client side of an HTTP/2 connection. See `engine.ClientEngine`."""

from __future__ import annotations

from meshguard.model.messages import NO_BODY, ResponseHead
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

_REMEMBERED = 8
_REMEMBERED_BLOCK_BYTES = 256
_REMEMBERED_HEAD_BYTES = 2048


class Http2Client(ControlledConnection):
    """An engine for the sink. `limits.streams` bounds what the server allows.

    Heads and trailers are remembered by their encoded block, as in `server`: most answers of a service begin and end with the same octets.
    """

    __slots__ = ("_client_sink", "_going", "_heads", "_next", "_settled", "_trailers")

    _takes_push = False

    def __init__(self, sink: ClientSink, limits: Http2Limits) -> None:
        super().__init__(sink, limits, response_book())
        self._client_sink = sink
        self._next = 1
        self._going = False
        self._settled = False  # the peer's settings are known
        self._heads: dict[tuple[bytes, int, bytes], tuple[ResponseHead, int]] = {}
        self._trailers: dict[bytes, bytes] = {}
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
        end = flags & END_STREAM
        if state is not None and not state.ended_there and not depends_on_itself:
            if not state.answered:
                known = self._heads.get((block, end, state.method))
                if known is not None:
                    return self._on_head(state, _copy(known[0]), known[1], end)
            elif end and state.left <= 0:
                trailers = self._trailers.get(block)
                if trailers is not None:
                    return self._ended_there(state, trailers)
        entries = self._decode(block)
        if entries is None:
            return None
        changed = self._decoder.changed
        if changed:
            self._forget_blocks()
        if state is None:
            self._spend()
            return None  # late, after we have reset the stream
        if state.ended_there:
            return self._stream_error(stream, STREAM_CLOSED, "HEADERS behind the end of a stream")
        if depends_on_itself:
            return self._stream_error(stream, PROTOCOL_ERROR, "a stream that depends on itself")
        remembers = not changed and len(block) <= _REMEMBERED_BLOCK_BYTES
        try:
            if state.answered:
                if not end or state.left > 0:
                    raise MalformedHead("trailers that do not end the stream, or before the end of the body")
                trailers = trailers_of(entries, self._limits)
                if remembers and len(trailers) <= _REMEMBERED_HEAD_BYTES:
                    if len(self._trailers) >= _REMEMBERED:
                        self._trailers.clear()
                    self._trailers[block] = trailers
                return self._ended_there(state, trailers)
            head, declared = response_of(entries, end != 0, state.method, self._limits)
        except MalformedHead as exc:
            return self._stream_error(stream, PROTOCOL_ERROR, str(exc))
        if remembers and head.size <= _REMEMBERED_HEAD_BYTES:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            self._heads[block, end, state.method] = _copy(head), declared
        return self._on_head(state, head, declared, end)

    def _on_head(self, state: Stream, head: ResponseHead, declared: int, end: int) -> None:
        if head.status >= 200:
            state.answered = True
            state.silent = head.length == NO_BODY
            state.left = declared if declared != UNDECLARED or not end else 0
            if end:
                state.ended_there = True
                if state.ended_here:
                    self._forget(state)
        self._client_sink.response(state.id, head)
        if end and not self._dead:
            self._client_sink.capacity()

    def _forget_blocks(self) -> None:
        self._decoder.changed = False
        self._heads.clear()
        self._trailers.clear()

    def _on_settings_ack(self) -> None:
        super()._on_settings_ack()
        self._forget_blocks()  # the decoder may now want to hear of a smaller table first

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


def _copy(head: ResponseHead) -> ResponseHead:
    copy = ResponseHead()
    copy.status = head.status
    copy.block = head.block
    copy.length = head.length
    copy.minor = 2
    copy.keep_alive = True
    copy.specials = head.specials.copy()
    copy.size = head.size
    return copy
