"""One stream, and what a connection remembers of streams that are over (RFC 9113 section 5.1).

States and what the peer may send, as the engine holds them. PRIORITY is allowed in every state and changes nothing; no stream is ever
reserved, since nobody may push. C: the error ends the connection, S: it ends the stream.

| state              | held as                         | HEADERS                        | DATA               | WINDOW_UPDATE | RST_STREAM |
|--------------------|---------------------------------|--------------------------------|--------------------|---------------|------------|
| idle               | id above the last one           | opens (server); C PROTOCOL     | C PROTOCOL         | C PROTOCOL    | C PROTOCOL |
| open               | in the table                    | trailers, response             | taken              | taken         | closes     |
| half-closed local  | `ended_here`                    | trailers, response             | taken              | taken         | closes     |
| half-closed remote | `ended_there`                   | S STREAM_CLOSED                | S STREAM_CLOSED    | taken         | closes     |
| closed, we reset   | `ClosedStreams`: ignored        | decoded, ignored               | counted, ignored   | ignored       | ignored    |
| closed otherwise   | not in the table                | C STREAM_CLOSED (C PROTOCOL:   | C STREAM_CLOSED    | ignored       | ignored    |
|                    |                                 | never opened)                  |                    |               |            |
"""

from __future__ import annotations

from collections import deque

from meshguard.wire.http2.heads import UNDECLARED

__all__ = ["ClosedStreams", "Stream"]


class Stream:
    """A stream that is not closed.

    window          octets of DATA that the peer lets us send; may be negative (section 6.9.2)
    room            octets of DATA that we let the peer send
    credit          octets that the owner has consumed and the peer does not know of yet
    left            octets of DATA that content-length still promises, or UNDECLARED
    waiting         pieces that wait for `window`, `offset` octets of the first are sent; `waits` in all, then perhaps `trailers` (a
                    block) and the end
    method          of the request (client side)
    answered        the final head of the response was received (client side)
    silent          the owner was told that nothing follows the head: it is not told of an end
    """

    __slots__ = (
        "answered",
        "credit",
        "end_waits",
        "ended_here",
        "ended_there",
        "id",
        "left",
        "method",
        "offset",
        "room",
        "silent",
        "trailers",
        "waiting",
        "waits",
        "window",
    )

    def __init__(self, id: int, window: int, room: int) -> None:
        self.id = id
        self.window = window
        self.room = room
        self.credit = 0
        self.left = UNDECLARED
        self.ended_here = False
        self.ended_there = False
        self.waiting: deque[bytes] | None = None
        self.waits = 0
        self.offset = 0
        self.end_waits = False
        self.trailers = b""
        self.method = b""
        self.answered = False
        self.silent = False


class ClosedStreams:
    """The streams that were closed last, to tell what is late from what is wrong. A peer may still send on a stream that we have reset,
    until it knows; it may not on one that it has ended itself (section 5.1)."""

    __slots__ = ("_over", "_reset", "_reset_most")

    def __init__(self, remembered: int) -> None:
        self._over: deque[int] = deque(maxlen=remembered)
        self._reset: dict[int, None] = {}  # looked up for every late frame
        self._reset_most = remembered

    def add(self, stream: int) -> None:
        self._over.append(stream)

    def add_reset(self, stream: int) -> None:
        """Reset by us."""
        self._reset[stream] = None
        if len(self._reset) > self._reset_most:
            del self._reset[next(iter(self._reset))]

    def was_reset(self, stream: int) -> bool:
        return stream in self._reset

    def was_open(self, stream: int) -> bool:
        return stream in self._over
