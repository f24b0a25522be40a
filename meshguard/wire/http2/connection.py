"""One HTTP/2 connection without I/O: frames in, calls out (RFC 9113). What a server and a client have in common.

Theory of operation. `receive` walks over the frames that are complete; the nine octets of a header are judged before anything of the
frame is kept. A *gate* is set where only certain frames may come: the first must be SETTINGS, and between a HEADERS frame and its end only
its CONTINUATION may come. Field blocks are always decoded, also those of streams that are refused or over: the HPACK table is the
connection's. What costs the peer nothing and us something spends a token: control frames and empty frames from one bucket; streams that
the peer resets or makes us reset from another (CVE-2023-44487, CVE-2025-8671). An empty bucket ends the connection with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from meshguard.wire.http2.engine import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    PROTOCOL_ERROR,
    ClientSink,
    Http2Limits,
    ServerSink,
)
from meshguard.wire.http2.field_book import Book, Entry
from meshguard.wire.http2.frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_TABLE_BYTES,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    FRAME_SIZE_ERROR,
    HEADERS,
    MAX_STREAM,
    PADDED,
    PRIORITY_FLAG,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    goaway_frame,
    reset_frame,
    settings_frame,
    window_frame,
)
from meshguard.wire.http2.hpack_decoder import HpackDecoder, HpackError
from meshguard.wire.http2.sending import Sender
from meshguard.wire.http2.streams import Stream
from meshguard.wire.http2.token_bucket import TokenBucket

__all__ = ["IN_BLOCK", "Connection"]

_unpack = FRAME_HEADER.unpack_from
_NO_GATE, _FIRST_FRAME, IN_BLOCK = range(3)


class Connection(Sender):
    """See the module. Subclasses say what a complete field block means."""

    __slots__ = (
        "_answers",
        "_block",
        "_block_flags",
        "_block_frames",
        "_block_itself",
        "_block_size",
        "_block_stream",
        "_controls",
        "_credit",
        "_decoder",
        "_frame_limit",
        "_gate",
        "_gathered",
        "_last",
        "_needed",
        "_now",
        "_pieces",
        "_pings",
        "_resets",
        "_room",
        "_sink",
        "_stream_room",
        "_unacknowledged",
    )

    def __init__(self, sink: ServerSink | ClientSink, limits: Http2Limits, book: Book) -> None:
        super().__init__(limits)
        self._sink: ServerSink | ClientSink = sink
        self._now = 0.0
        self._pieces: list[bytes] = []  # an incomplete frame, `_gathered` of the `_needed` octets
        self._gathered = 0
        self._needed = 0
        self._gate = _FIRST_FRAME
        self._frame_limit = max(limits.frame_bytes, DEFAULT_FRAME_BYTES)
        self._last = 0  # the highest stream that the peer has opened
        self._block: list[bytes] = []
        self._block_size = 0
        self._block_frames = 0
        self._block_stream = 0
        self._block_flags = 0
        self._block_itself = False
        self._controls = TokenBucket(limits.control_burst, limits.control_per_s)
        self._resets = TokenBucket(limits.reset_burst, limits.reset_per_s)
        self._answers = 0  # octets of answers that the peer makes us queue, since the last `take`
        self._pings = 0  # ours that are not answered
        # Until the peer acknowledges our settings it may hold to the defaults: the more generous of both is allowed.
        self._unacknowledged = 0
        self._decoder = HpackDecoder(book, max(limits.table_bytes, DEFAULT_TABLE_BYTES))
        self._stream_room = max(limits.stream_window_bytes, DEFAULT_WINDOW)
        self._room = DEFAULT_WINDOW  # octets of DATA that the peer may send on the connection
        self._credit = 0  # octets consumed that the peer does not know of

    # -- what an owner calls ------------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        self._answers = 0
        out = self._out
        if not out:
            return b""
        data = b"".join(out)
        out.clear()
        return data

    def consumed(self, stream: int, octets: int) -> None:
        if self._dead or octets <= 0:
            return
        self._give_back(octets)
        state = self._table.get(stream)
        if state is not None and not state.ended_there:
            credit = state.credit = state.credit + octets
            if credit * 2 >= self._limits.stream_window_bytes:
                state.credit = 0
                state.room += credit
                self._out.append(window_frame(stream, credit))

    def ping(self, payload: bytes) -> None:
        """`payload` has 8 octets."""
        if not self._dead:
            self._pings += 1
            self._out.append(FRAME_HEADER.pack(0, 8, 6, 0, 0) + payload)

    def receive(self, data: bytes, now: float) -> None:
        if self._dead:
            return
        self._now = now
        if self._pieces:
            self._pieces.append(data)
            self._gathered += len(data)
            if self._gathered < self._needed:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        position = 0
        size = len(data)
        while size - position >= 9:
            high, low, kind, flags, stream = _unpack(data, position)
            length = high << 8 | low
            if length > self._frame_limit:
                self._fail(FRAME_SIZE_ERROR, f"a frame of {length} octets")
                return
            start = position + 9
            stop = start + length
            if stop > size:
                self._keep(data, position, stop)
                return
            position = stop
            stream &= MAX_STREAM
            if self._gate and not self._passes(kind, flags, stream):
                return
            if kind == HEADERS:
                self._on_headers(data, start, stop, flags, stream)
            elif kind == DATA:
                self._on_data(data, start, stop, flags, stream)
            elif kind == WINDOW_UPDATE:
                self._on_window_update(data, start, stop, flags, stream)
            else:
                self._on_other(kind, data[start:stop], flags, stream)
            if self._dead:
                return
        if position < size:
            self._keep(data, position, position + 9)

    def _keep(self, data: bytes, position: int, stop: int) -> None:
        """The rest of the octets waits until the frame, or its header, is here up to `stop`."""
        self._pieces.append(data[position:] if position else data)
        self._gathered = len(data) - position
        self._needed = stop - position

    def _passes(self, kind: int, flags: int, stream: int) -> bool:
        if self._gate == _FIRST_FRAME:
            if kind == SETTINGS and not flags & ACK:
                self._gate = _NO_GATE
                return True
            self._fail(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        elif kind == CONTINUATION and stream == self._block_stream:
            return True
        else:
            self._fail(PROTOCOL_ERROR, "a frame inside a field block")
        return False

    # -- DATA ---------------------------------------------------------------------------------------------------------------

    def _on_data(self, data: bytes, start: int, stop: int, flags: int, stream: int) -> None:
        size = stop - start
        end = flags & END_STREAM
        padding = 0
        if flags & PADDED:
            if not size:
                return self._fail(FRAME_SIZE_ERROR, "no pad length")
            padding = data[start] + 1
            if padding > size:
                return self._fail(PROTOCOL_ERROR, "padding longer than its frame")
            stop -= padding - 1
            start += 1
        if size > self._room:
            return self._fail(FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        self._room -= size
        content = size - padding
        if not content and not end and not self._spend():
            return None
        state = self._table.get(stream)
        if state is None:
            return self._data_of_no_stream(stream, size)
        detail = ""
        code = PROTOCOL_ERROR
        left = state.left
        if state.ended_there:
            code, detail = STREAM_CLOSED, "DATA behind the end of a stream"
        elif size > state.room:
            code, detail = FLOW_CONTROL_ERROR, "more DATA than the stream's window"
        elif left >= 0:
            left = state.left = left - content
            if left < 0 or (end and left):
                detail = "DATA and content-length disagree"
        if not detail and not self._may_have_data(state):
            detail = "DATA before a head"
        if detail:
            self._give_back(size)
            return self._stream_error(stream, code, detail)
        state.room -= size
        sink = self._sink
        if padding:
            sink.padding(stream, padding)
        if content:
            sink.data(stream, data[start:stop])
        if end and self._table.get(stream) is state and not self._dead:
            self._ended_there(state, b"")
        return None

    def _data_of_no_stream(self, stream: int, size: int) -> None:
        if self._is_idle(stream):
            return self._fail(PROTOCOL_ERROR, "DATA on an idle stream")
        if not self._closed.was_reset(stream):
            return self._fail(STREAM_CLOSED, "DATA on a closed stream")
        return self._give_back(size)

    def _may_have_data(self, state: Stream) -> bool:
        return True

    def _ended_there(self, state: Stream, trailers: bytes) -> None:
        state.ended_there = True
        if state.ended_here:
            self._forget(state)
        if not state.silent:
            self._sink.end(state.id, trailers)

    def _give_back(self, octets: int) -> None:
        """Room of the connection for what was consumed or dropped; half a window at a time."""
        credit = self._credit = self._credit + octets
        if credit * 2 >= self._limits.connection_window_bytes:
            self._credit = 0
            self._room += credit
            self._out.append(window_frame(0, credit))

    # -- field blocks -------------------------------------------------------------------------------------------------------

    def _on_headers(self, data: bytes, start: int, stop: int, flags: int, stream: int) -> None:
        if not stream:
            return self._fail(PROTOCOL_ERROR, "HEADERS on stream 0")
        depends_on_itself = False
        if flags & (PADDED | PRIORITY_FLAG):
            padding = 0
            if flags & PADDED:
                if start == stop:
                    return self._fail(FRAME_SIZE_ERROR, "no pad length")
                padding = data[start]
                start += 1
            if flags & PRIORITY_FLAG:
                if stop - start < 5:
                    return self._fail(FRAME_SIZE_ERROR, "no priority")
                depends_on_itself = int.from_bytes(data[start : start + 4], "big") & MAX_STREAM == stream
                start += 5
            stop -= padding
            if stop < start:
                return self._fail(PROTOCOL_ERROR, "padding longer than its frame")
        block = data[start:stop]
        if flags & END_HEADERS:
            return self._on_block(stream, flags, block, depends_on_itself)
        if not block and not self._spend():
            return None
        self._gate = IN_BLOCK
        self._block.append(block)
        self._block_size = len(block)
        self._block_frames = 0
        self._block_stream = stream
        self._block_flags = flags
        self._block_itself = depends_on_itself
        return None

    def _on_continuation(self, payload: bytes, flags: int) -> None:
        if self._gate != IN_BLOCK:
            return self._fail(PROTOCOL_ERROR, "CONTINUATION outside a field block")
        self._block_frames += 1
        self._block_size += len(payload)
        limits = self._limits
        if self._block_frames > limits.continuation_frames or self._block_size > 2 * limits.head_bytes + DEFAULT_FRAME_BYTES:
            return self._fail(ENHANCE_YOUR_CALM, "a field block that does not end")
        if not payload and not self._spend():
            return None
        self._block.append(payload)
        if flags & END_HEADERS:
            self._gate = _NO_GATE
            block = b"".join(self._block)
            self._block.clear()
            return self._on_block(self._block_stream, self._block_flags, block, self._block_itself)
        return None

    def _on_block(self, stream: int, flags: int, block: bytes, depends_on_itself: bool) -> None:
        """A complete field block of a HEADERS frame with `flags`."""
        raise NotImplementedError

    def _decode(self, block: bytes) -> list[Entry] | None:
        """The fields, or None after the connection has failed."""
        try:
            return self._decoder.decode(block)
        except HpackError as exc:
            self._fail(COMPRESSION_ERROR, str(exc))
            return None

    # -- the rest is in `control` -------------------------------------------------------------------------------------------

    def _on_window_update(self, data: bytes, start: int, stop: int, flags: int, stream: int) -> None:
        raise NotImplementedError

    def _on_other(self, kind: int, payload: bytes, flags: int, stream: int) -> None:
        raise NotImplementedError

    def _is_idle(self, stream: int) -> bool:
        """Nobody has opened it yet; 0 counts as idle."""
        raise NotImplementedError

    # -- errors -------------------------------------------------------------------------------------------------------------

    def _spend(self) -> bool:
        """A frame that is only work; false after the connection has failed."""
        if self._controls.spend(self._now):
            return True
        self._fail(ENHANCE_YOUR_CALM, "too many control frames")
        return False

    def _answer(self, octets: bytes) -> None:
        """Queues what the peer has made us say; a peer that does not read it cannot make it grow."""
        self._answers += len(octets)
        if self._answers > self._limits.queue_bytes:
            self._fail(ENHANCE_YOUR_CALM, "answers are not read")
        else:
            self._out.append(octets)

    def _spend_reset(self) -> None:
        if not self._dead and not self._resets.spend(self._now):
            self._fail(ENHANCE_YOUR_CALM, "too many resets")

    def _stream_error(self, stream: int, code: int, detail: str) -> None:
        """The peer broke a rule on a stream: RST_STREAM, which costs the peer what a reset of its own does."""
        state = self._table.get(stream)
        if state is not None:
            self._forget(state, reset=True)
        else:
            self._closed.add_reset(stream)
        self._answer(reset_frame(stream, code))
        if state is not None and not self._dead:
            self._sink.aborted(stream, code, False, detail)
        self._spend_reset()

    def _fail(self, code: int, detail: str) -> None:
        """The connection is over: GOAWAY, and nothing more is read."""
        if self._dead:
            return
        self._dead = True
        self._pieces.clear()
        self._block.clear()
        self._out.append(goaway_frame(self._last_processed(), code))
        self._sink.failed(code, detail)

    def _last_processed(self) -> int:
        """The last stream of the peer that a GOAWAY may name."""
        return self._last

    def _writable(self, stream: int) -> None:
        if not self._dead:
            self._sink.writable(stream)

    def _announce(self, settings: list[tuple[int, int]]) -> None:
        """Our SETTINGS, and the window of the connection."""
        self._unacknowledged += 1
        self._out.append(settings_frame(settings))
        surplus = self._limits.connection_window_bytes - DEFAULT_WINDOW
        if surplus > 0:
            self._room += surplus
            self._out.append(window_frame(0, surplus))
