"""What goes to the peer: frames gather until they are taken; DATA within the peer's windows, in turn (RFC 9113 sections 5.2 and 6.9).

DATA beyond a window waits with its stream. When the connection's window opens, each stream that waits sends one frame in turn, so that a
large answer does not hold the small ones up.
"""

from __future__ import annotations

from collections import deque

from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.frames import (
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HEADERS,
    long_block,
    reset_frame,
)
from meshguard.wire.http2.hpack_encoder import NO_TABLE, encode_block
from meshguard.wire.http2.streams import ClosedStreams, Stream

__all__ = ["Sender"]

_EARNED_PER_FRAME = 10
_EARNED_MOST = 10_000
_header = FRAME_HEADER.pack


class Sender:
    """The sending half of an engine. `streams` counts those that are not closed."""

    __slots__ = (
        "_closed",
        "_dead",
        "_earned",
        "_frame_most",
        "_initial_window",
        "_limits",
        "_out",
        "_prefix",
        "_table",
        "_waiting",
        "_window",
        "streams",
    )

    def __init__(self, limits: Http2Limits) -> None:
        self.streams = 0
        self._limits = limits
        self._table: dict[int, Stream] = {}
        self._closed = ClosedStreams(max(256, 2 * limits.streams))
        self._out: list[bytes] = []
        self._dead = False
        self._prefix = NO_TABLE  # begins the next field block
        self._window = DEFAULT_WINDOW  # of the connection
        self._initial_window = DEFAULT_WINDOW  # the peer's setting for streams
        self._frame_most = DEFAULT_FRAME_BYTES  # the peer's setting
        self._waiting: dict[int, Stream] = {}  # streams with something that waits, in turn
        # WINDOW_UPDATE and PING (bandwidth estimation) answer DATA: each frame that we send earns the peer some that are no flood
        self._earned = 0

    # -- what an owner calls ------------------------------------------------------------------------------------------------

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        """Octets that wait on the stream are returned; a stream that is over takes nothing."""
        state = self._table.get(stream)
        if state is None or self._dead or state.ended_here or state.end_waits:
            return 0
        size = len(data)
        if state.waiting is None and (
            not size or (size <= self._window and size <= state.window and size <= self._frame_most)
        ):  # nearly always: everything goes at once
            if size or end:
                self._write_data(state, data, size, end)
            return 0
        if state.waiting is None:
            state.waiting = deque()
            self._waiting[stream] = state
        if size:
            state.waiting.append(data)
            state.waits += size
        state.end_waits = end
        return self._push(state, False)

    def send_trailers(self, stream: int, block: bytes) -> None:
        """Ends the stream; an empty block ends it by an empty DATA frame."""
        state = self._table.get(stream)
        if state is None or self._dead or state.ended_here or state.end_waits:
            return
        if state.waiting is not None:
            state.trailers = block
            state.end_waits = True
        elif block:
            self._write_fields(state, encode_block(block), True)
        else:
            self._write_data(state, b"", 0, True)

    def reset(self, stream: int, code: int) -> None:
        state = self._table.get(stream)
        if state is not None and not self._dead:
            self._forget(state, reset=True)
            self._out.append(reset_frame(stream, code))

    # -- writing ------------------------------------------------------------------------------------------------------------

    def _write_fields(self, state: Stream, block: bytes, end: bool) -> None:
        if self._prefix:
            block, self._prefix = self._prefix + block, b""
        size = len(block)
        if size <= self._frame_most:
            flags = END_HEADERS | END_STREAM if end else END_HEADERS
            self._out.append(_header(size >> 8, size & 0xFF, HEADERS, flags, state.id) + block)
        else:
            self._out.append(long_block(END_STREAM if end else 0, state.id, block, self._frame_most))
        if end:
            self._ended_here(state)

    def _write_data(self, state: Stream, data: bytes, size: int, end: bool) -> None:
        self._out.append(_header(size >> 8, size & 0xFF, DATA, END_STREAM if end else 0, state.id))
        if size:
            self._out.append(data)
            self._window -= size
            state.window -= size
        if self._earned < _EARNED_MOST:
            self._earned += _EARNED_PER_FRAME
        if end:
            self._ended_here(state)

    def _push(self, state: Stream, one: bool) -> int:
        """Sends of what waits on the stream what the windows allow, or `one` frame of it; returns the octets that wait still."""
        waiting = state.waiting
        if waiting is None:
            return 0
        while waiting:
            room = min(self._window, state.window, self._frame_most)
            if room <= 0:
                return state.waits
            piece = waiting[0]
            offset = state.offset
            size = len(piece) - offset
            if size <= room:
                waiting.popleft()
                state.offset = 0
                if offset:
                    piece = piece[offset:]
            else:
                piece = piece[offset : offset + room]
                state.offset = offset + room
                size = room
            state.waits -= size
            last = state.end_waits and not waiting and not state.trailers
            if last:
                self._done_waiting(state)
            self._write_data(state, piece, size, last)
            if last:
                return 0
            if one and waiting:
                return state.waits
        self._done_waiting(state)
        if state.end_waits:
            if state.trailers:
                self._write_fields(state, encode_block(state.trailers), True)
            else:
                self._write_data(state, b"", 0, True)
        return 0

    def _done_waiting(self, state: Stream) -> None:
        state.waiting = None
        self._waiting.pop(state.id, None)

    def _push_all(self) -> None:
        """The connection's window is open: one frame of each stream in turn while it lasts."""
        queue = self._waiting
        moved = True
        while moved and self._window > 0:
            moved = False
            for state in list(queue.values()):
                if self._window <= 0:
                    return
                if state.window > 0 and queue.get(state.id) is state:
                    moved = True
                    if self._push_told(state, True) and queue.get(state.id) is state:
                        del queue[state.id]
                        queue[state.id] = state  # behind the others

    def _push_told(self, state: Stream, one: bool) -> bool:
        """Sends of what waits and tells the owner when all is gone; true: there is more."""
        if self._push(state, one):
            return True
        self._writable(state.id)
        return False

    def _writable(self, stream: int) -> None:
        raise NotImplementedError

    # -- the end of streams -------------------------------------------------------------------------------------------------

    def _ended_here(self, state: Stream) -> None:
        state.ended_here = True
        if state.ended_there:
            self._forget(state)

    def _forget(self, state: Stream, reset: bool = False) -> None:
        """The stream is closed. `reset`: by us."""
        table = self._table
        if table.pop(state.id, None) is None:
            return
        self.streams = len(table)
        if state.waiting is not None:
            self._waiting.pop(state.id, None)
            state.waiting = None
        if reset:
            self._closed.add_reset(state.id)
        else:
            self._closed.add(state.id)
