"""Whose turn it is on a connection that is full: much waits for its client, but on some of its streams the client may well read.

When much waits, everything pauses. Then, at each look, some of the streams that have nothing waiting are let through, in turn. A stream
that its client reads goes on; what one brings that is not read waits, and is counted. Above a second mark (*brimful*) everything pauses
again, within the turn of the loop that has crossed it, so what a connection holds is bounded by that mark and one read of an upstream.
While it is brimful and others have to wait, the stream of which nothing was read for the longest time, and for long enough, is
ended: room comes back, and the next ones have their turn. So nobody waits for ever, whatever the others do, and a look costs one walk over
the streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshguard.net.http2_stream import Http2Stream

__all__ = ["AT_A_LOOK", "Turns"]

AT_A_LOOK = 8
"""Paused streams, and new requests, that are let through at once."""


class Turns:
    """Of one connection, from the moment that it is full. `brimful`: nobody is let through."""

    __slots__ = ("_last", "_unread", "brimful")

    def __init__(self, brimful: bool) -> None:
        self.brimful = brimful
        self._last = 0  # the stream that was let through last
        self._unread: dict[int, tuple[int, float]] = {}  # stream: octets that wait, since when they are as many

    def rises(self, brimful: bool) -> bool:
        """It is brimful now and was not before."""
        before, self.brimful = self.brimful, brimful
        return brimful and not before

    def let_through(self, streams: Sequence[Http2Stream]) -> None:
        """Those whose turn it is, of the streams in the order of their numbers."""
        paused = [stream for stream in streams if stream.stalled and stream.stream is not None and not stream.waits]
        chosen = [stream for stream in paused if stream.id > self._last][:AT_A_LOOK]
        if len(chosen) < AT_A_LOOK:
            chosen += [stream for stream in paused if stream.id <= self._last][: AT_A_LOOK - len(chosen)]
        if chosen:
            self._last = chosen[-1].id
        for stream in chosen:
            if stream.stream is not None and not self.brimful:
                stream.stalled = False
                stream.stream.resume()

    def unread(self, streams: Sequence[Http2Stream], others: bool, since: float, now: float) -> Http2Stream | None:
        """The stream that has to end so that others can go on (`others`: new requests wait): the one of which nothing was read for the
        longest time, where that is longer than `since`."""
        before = self._unread
        self._unread = found = {}
        slowest = None
        for stream in streams:
            if stream.waits:
                octets, at = before.get(stream.id, (0, now))
                found[stream.id] = entry = (stream.waits, at if octets == stream.waits else now)
                if entry[1] < since:
                    slowest, since = stream, entry[1]
        return slowest if self.brimful and (others or any(stream.stalled for stream in streams)) else None
