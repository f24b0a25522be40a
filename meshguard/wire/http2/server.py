"""The server side of an HTTP/2 connection. See `engine.ServerEngine`."""

from __future__ import annotations

from meshguard.model.errors import RequestError
from meshguard.model.messages import CHUNKED, RequestHead
from meshguard.model.reasons import MALFORMED_REQUEST
from meshguard.wire.http2.connection import IN_BLOCK
from meshguard.wire.http2.control import ControlledConnection
from meshguard.wire.http2.engine import PROTOCOL_ERROR, REFUSED_STREAM, Http2Limits, ServerSink
from meshguard.wire.http2.field_book import request_book
from meshguard.wire.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_TABLE_BYTES,
    DEFAULT_WINDOW,
    ENABLE_CONNECT_PROTOCOL,
    END_STREAM,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM,
    NO_RFC7540_PRIORITIES,
    PREFACE,
    STREAM_CLOSED,
    goaway_frame,
    reset_frame,
)
from meshguard.wire.http2.heads import MalformedHead, content_type_of, request_of, trailers_of
from meshguard.wire.http2.hpack_encoder import encode_block, encode_length, encode_status
from meshguard.wire.http2.streams import Stream
from meshguard.wire.semantics import FieldRules

__all__ = ["Http2Server"]

_REMEMBERED_HEADS = 8
_REMEMBERED_BLOCK_BYTES = 256
_REMEMBERED_HEAD_BYTES = 2048


class Http2Server(ControlledConnection):
    """An engine for the sink, with the limits and field rules of a listener.

    Heads are remembered by their encoded block: a client that repeats a request sends the same few octets, all of them indices. That is
    sound as long as the block leaves the HPACK table alone and the table has not changed since; then a block means what it meant.
    """

    __slots__ = ("_book", "_greeting", "_heads", "_refuse_above", "_server_sink")

    def __init__(self, sink: ServerSink, limits: Http2Limits, rules: FieldRules) -> None:
        self._book = request_book(rules)
        super().__init__(sink, limits, self._book)
        self._server_sink = sink
        self._greeting = b""
        self._heads: dict[tuple[bytes, int], tuple[RequestHead, int]] = {}
        self._refuse_above = MAX_STREAM  # the last stream that a GOAWAY of ours has named
        self.peer_streams = 0
        self.peer_extended_connect = False

    def start(self) -> None:
        limits = self._limits
        settings = [
            (MAX_CONCURRENT_STREAMS, limits.streams),
            (MAX_HEADER_LIST_SIZE, limits.head_bytes),
            (NO_RFC7540_PRIORITIES, 1),
        ]
        for key, value, default in (
            (INITIAL_WINDOW_SIZE, limits.stream_window_bytes, DEFAULT_WINDOW),
            (MAX_FRAME_SIZE, limits.frame_bytes, DEFAULT_FRAME_BYTES),
            (HEADER_TABLE_SIZE, limits.table_bytes, DEFAULT_TABLE_BYTES),
            (ENABLE_CONNECT_PROTOCOL, int(limits.extended_connect), 0),
        ):
            if value != default:
                settings.append((key, value))
        self._announce(settings)

    def receive(self, data: bytes, now: float) -> None:
        if len(self._greeting) < len(PREFACE):
            if self._dead:
                return
            missing = len(PREFACE) - len(self._greeting)
            self._greeting += data[:missing]
            if not PREFACE.startswith(self._greeting):
                self._fail(PROTOCOL_ERROR, "not the preface of HTTP/2")
                return
            data = data[missing:]
            if not data:
                return
        super().receive(data, now)

    @property
    def open_block(self) -> int:
        if self._gate == IN_BLOCK:
            return self._block_stream
        first = self._pieces[0] if self._pieces else b""
        return int.from_bytes(first[5:9], "big") & MAX_STREAM if len(first) >= 9 and first[3] == HEADERS else 0

    # -- requests -----------------------------------------------------------------------------------------------------------

    def _on_block(self, stream: int, flags: int, block: bytes, depends_on_itself: bool) -> None:
        end = flags & END_STREAM
        if stream <= self._last or not stream & 1:
            return self._on_block_of_old_stream(stream, end, block, depends_on_itself)
        self._last = stream
        table = self._table
        if len(table) >= self._limits.streams or stream > self._refuse_above or depends_on_itself:
            return self._refuse(stream, block, depends_on_itself)
        known = self._heads.get((block, end))
        if known is not None:
            head, declared = known
            head = _copy(head)
        else:
            entries = self._decode(block)
            if entries is None:
                return None
            try:
                head, declared = request_of(entries, end != 0, self._limits, self._book)
            except RequestError as error:
                self._forget_heads()
                self._open(stream, end)
                error.content_type = content_type_of(entries)
                return self._server_sink.refused(stream, error, True)
            except MalformedHead as exc:
                self._forget_heads()
                return self._malformed(stream, str(exc))
            if self._decoder.changed:
                self._forget_heads()
            elif len(block) <= _REMEMBERED_BLOCK_BYTES and head.size <= _REMEMBERED_HEAD_BYTES:
                if len(self._heads) >= _REMEMBERED_HEADS:
                    self._heads.clear()
                self._heads[block, end] = _copy(head), declared
        state = self._open(stream, end)
        if not end:
            state.left = declared
            self._server_sink.request(stream, head)
            return None
        self._server_sink.request(stream, head)
        if head.length == CHUNKED and table.get(stream) is state and not self._dead:
            self._server_sink.end(stream, b"")  # an extended CONNECT whose client says nothing
        return None

    def _open(self, stream: int, end: int) -> Stream:
        state = self._table[stream] = Stream(stream, self._initial_window, self._stream_room)
        self.streams = len(self._table)
        if end:
            state.ended_there = True
        return state

    def _forget_heads(self) -> None:
        if self._decoder.changed:
            self._decoder.changed = False
            self._heads.clear()

    def _refuse(self, stream: int, block: bytes, depends_on_itself: bool) -> None:
        if self._decode(block) is None:
            return
        self._forget_heads()
        if depends_on_itself:
            self._malformed(stream, "a stream that depends on itself")
        else:
            self._closed.add_reset(stream)
            self._answer(reset_frame(stream, REFUSED_STREAM))
            self._spend_reset()

    def _malformed(self, stream: int, detail: str) -> None:
        self._closed.add_reset(stream)
        self._answer(reset_frame(stream, PROTOCOL_ERROR))
        if not self._dead:
            self._server_sink.refused(stream, RequestError(MALFORMED_REQUEST, detail), False)
        self._spend_reset()

    def _on_block_of_old_stream(self, stream: int, end: int, block: bytes, depends_on_itself: bool) -> None:
        state = self._table.get(stream)
        if state is None:
            if not stream & 1:
                return self._fail(PROTOCOL_ERROR, "a stream that a client may not open")
            if self._closed.was_open(stream):
                return self._fail(STREAM_CLOSED, "HEADERS on a closed stream")
            if not self._closed.was_reset(stream):
                return self._fail(PROTOCOL_ERROR, "a stream below the last one")
        entries = self._decode(block)
        if entries is None:
            return None
        self._forget_heads()
        if state is None:
            self._spend()
            return None  # late, after we have reset the stream
        if state.ended_there:
            return self._stream_error(stream, STREAM_CLOSED, "HEADERS behind the end of a stream")
        if not end or state.left > 0 or depends_on_itself:
            return self._stream_error(stream, PROTOCOL_ERROR, "trailers that do not end the stream, or before the end of the body")
        try:
            trailers = trailers_of(entries, self._limits)
        except MalformedHead as exc:
            return self._stream_error(stream, PROTOCOL_ERROR, str(exc))
        return self._ended_there(state, trailers)

    def _is_idle(self, stream: int) -> bool:
        return stream > self._last or not stream & 1

    def _on_peer_reset(self) -> None:
        self._spend_reset()

    def _on_settings_ack(self) -> None:
        super()._on_settings_ack()
        self._heads.clear()  # the decoder may now want to hear of a smaller table first

    def _last_processed(self) -> int:
        return min(self._last, self._refuse_above)  # what was named once never grows (section 6.8)

    # -- answers ------------------------------------------------------------------------------------------------------------

    def send_interim(self, stream: int, status: int, block: bytes) -> None:
        state = self._table.get(stream)
        if state is not None and not self._dead and not state.answered:
            self._write_fields(state, encode_status(status) + encode_block(block), False)

    def send_head(self, stream: int, status: int, block: bytes, end: bool) -> None:
        state = self._table.get(stream)
        if state is not None and not self._dead and not state.answered:
            state.answered = True
            self._write_fields(state, encode_status(status) + encode_block(block), end)

    def send_whole(self, stream: int, status: int, block: bytes, body: bytes) -> int:
        state = self._table.get(stream)
        if state is None or self._dead or state.answered:
            return 0
        state.answered = True
        size = len(body)
        self._write_fields(state, encode_status(status) + encode_block(block) + encode_length(size), not size)
        return self.send_data(stream, body, True) if size else 0

    def goaway(self, code: int, last_stream: int | None = None) -> None:
        if self._dead:
            return
        if last_stream is None:
            last_stream = self._last
        self._refuse_above = min(self._refuse_above, last_stream)
        self._out.append(goaway_frame(self._refuse_above, code))


def _copy(head: RequestHead) -> RequestHead:
    copy = RequestHead()
    copy.method = head.method
    copy.target = head.target
    copy.scheme = head.scheme
    copy.authority = head.authority
    copy.block = head.block
    copy.length = head.length
    copy.minor = 2
    copy.keep_alive = True
    copy.expect = head.expect
    copy.specials = head.specials.copy()
    copy.size = head.size
    return copy
