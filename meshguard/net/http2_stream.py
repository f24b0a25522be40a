"""One stream of the HTTP/2 door: the `Downstream` of one exchange.

Theory of operation. Request data goes to the exchange as it comes, and only then is the client's window opened again. While the exchange
holds the request back, data stays here, unacknowledged, so that the client has to stop: a stream holds at most its window. Answers go to
the engine; what the client's windows do not take yet waits there, and above a mark the exchange pauses its upstream. A stream is over when
its exchange is and nothing waits; if the client has not finished its request then, it is told to stop (RST_STREAM with NO_ERROR, RFC 9113
section 8.1).
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from meshguard.model.messages import NO_BODY, RequestHead
from meshguard.model.reasons import Reason
from meshguard.net.dates import date_line
from meshguard.wire.http2.engine import CANCEL, INTERNAL_ERROR, NO_ERROR

if TYPE_CHECKING:
    from meshguard.net.channel import Channel
    from meshguard.net.http2_server import Http2Connection
    from meshguard.net.stream import Stream
    from meshguard.net.tunnel import Tunnel

__all__ = ["Http2Stream", "MuteStream"]

STREAM_MARK = 16384
"""Octets that wait for the client's windows on one stream before its upstream is paused."""


class Http2Stream:
    """See the module. `waits`: octets of the answer that the client's windows do not take yet."""

    __slots__ = (
        "_block",
        "_connection",
        "_held_at",
        "_out",
        "_pending",
        "_pending_end",
        "_status",
        "client_done",
        "head",
        "held_s",
        "id",
        "moved",
        "postponed",
        "request_held",
        "since",
        "stalled",
        "stream",
        "waits",
    )

    def __init__(self, connection: Http2Connection, id: int, head: RequestHead | None) -> None:
        self._connection = connection
        self.id = id
        self.head = head
        self.stream: Stream | None = None
        self.client_done = head is not None and head.length == NO_BODY
        self.request_held = False
        self.postponed = False  # its exchange begins in a later turn
        self.held_s = 0.0
        self.waits = 0
        self.stalled = False  # paused by a full connection with nothing waiting
        self.moved = False  # something came for it in this turn
        self.since = 0.0  # when the exchange was over, for a rest that waits
        self._held_at = 0.0
        self._pending: deque[bytes] | None = None
        self._pending_end: bytes | None = None
        self._out = b""
        self._status = 0  # of a head that waits for what follows it
        self._block = b""

    @property
    def channel(self) -> Channel:
        """The connection's: what holds its writes back holds those of all its streams."""
        return self._connection.channel

    # -- the request ----------------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Data of the request body."""
        if self.request_held or self._pending:
            if self._pending is None:
                self._pending = deque()
            self._pending.append(data)
            return
        exchange = self.stream
        if exchange is not None:
            exchange.request_data(data)
            if not self.moved:
                self.moved = True
                self._connection.moved.append(self)
        self._connection.engine.consumed(self.id, len(data))

    def ended(self, trailers: bytes) -> None:
        """The client's side is over."""
        if self.client_done:
            return
        self.client_done = True
        if self.request_held or self._pending:
            self._pending_end = trailers
        elif self.stream is not None:
            self.stream.request_end(trailers)

    def postpone(self) -> None:
        """The exchange begins later: what comes for it waits here."""
        self.postponed = self.request_held = True
        self._held_at = monotonic()

    def begun(self) -> None:
        """The exchange has begun after a while: what came meanwhile is its own, unless it holds it back."""
        if self.request_held:
            return
        if self._pending or self._pending_end is not None:
            self._deliver()
        elif self.stream is not None:
            self.stream.flush_request()

    def hold_request(self) -> None:
        if not self.request_held:
            self.request_held = True
            self._held_at = monotonic()

    def release_request(self) -> None:
        if not self.request_held:
            return
        self.request_held = False
        self.held_s += monotonic() - self._held_at
        if self._pending or self._pending_end is not None:
            self._deliver()

    def _deliver(self) -> None:
        """Hands over what waited, until the exchange holds it back again."""
        connection = self._connection
        pending = self._pending
        while pending and not self.request_held:
            data = pending.popleft()
            exchange = self.stream
            if exchange is not None:
                exchange.request_data(data)
            connection.engine.consumed(self.id, len(data))
        exchange = self.stream
        if not pending and not self.request_held and self._pending_end is not None:
            trailers, self._pending_end = self._pending_end, None
            if exchange is not None:
                exchange.request_end(trailers)
        elif exchange is not None:
            exchange.flush_request()
        connection.wake()

    def unread(self) -> int:
        """Octets that came and were not handed over: the connection's window gets them back."""
        pending, self._pending, self._pending_end = self._pending, None, None
        if not pending:
            return 0
        octets = sum(map(len, pending))
        pending.clear()  # whoever hands it over at this moment stops
        return octets

    # -- a tunnel (RFC 8441) --------------------------------------------------------------------------------------------

    def ask_for_tunnel(self, head: RequestHead) -> None:
        """An extended CONNECT: for everybody but the handshake a GET without body; what the client sends waits for the answer."""
        head.method = b"GET"
        head.length = NO_BODY
        self.hold_request()

    def open_tunnel(self, block: bytes, tunnel: Tunnel) -> bytes:
        self.stream = tunnel
        self._connection.engine.send_head(self.id, 200, block, False)
        self._connection.wake()
        if self._connection.full:
            tunnel.pause()
        self.release_request()
        return b""

    def send_now(self, data: bytes) -> None:
        self.send_data(data)
        self.flush()

    # -- the answer (Downstream) ----------------------------------------------------------------------------------------

    def send_whole(self, status: int, block: bytes, body: bytes) -> None:
        connection = self._connection
        waits = connection.engine.send_whole(self.id, status, block, body)
        if waits or self.waits:
            self._sent(waits)
        connection.wake()

    def send_interim(self, status: int, block: bytes) -> None:
        self._connection.engine.send_interim(self.id, status, block)
        self._connection.wake()

    def send_continue(self) -> None:
        self.send_interim(100, b"")

    def send_head(self, status: int, block: bytes, length: int, specials: list[tuple[bytes, bytes]]) -> None:
        if length > 0:
            block += b"content-length: %d\r\n" % length
        elif length == NO_BODY:
            described = next((value for name, value in specials if name == b"content-length"), None)
            if described is not None:
                block += b"content-length: %b\r\n" % described
        self._status = status
        self._block = block

    def _head_out(self, end: bool) -> None:
        status, self._status = self._status, 0
        self._connection.engine.send_head(self.id, status, self._block, end)
        self._block = b""

    def send_data(self, data: bytes) -> None:
        self._out = self._out + data if self._out else data
        if len(self._out) > STREAM_MARK:
            self.flush()

    def send_end(self, trailers: bytes) -> None:
        engine = self._connection.engine
        out, self._out = self._out, b""
        if self._status:
            self._head_out(not out and not trailers)
            if not out and not trailers:
                self._connection.wake()
                return
        if trailers:
            if out:
                self._sent(engine.send_data(self.id, out, False))
            engine.send_trailers(self.id, trailers)
        else:
            waits = engine.send_data(self.id, out, True)
            if waits or self.waits:
                self._sent(waits)
        self._connection.wake()

    def flush(self) -> None:
        if self._status:
            self._head_out(False)
        out = self._out
        if out:
            self._out = b""
            waits = self._connection.engine.send_data(self.id, out, False)
            if waits or self.waits or self._connection.full:
                self._sent(waits)
        self._connection.wake()

    def _sent(self, waits: int) -> None:
        connection = self._connection
        connection.waiting += waits - self.waits
        self.waits = waits
        if waits > STREAM_MARK or (connection.full and (waits or connection.blocked)):
            if self.stream is not None:
                self.stream.pause()
            connection.measure()

    def send_refusal(self, reason: Reason, block: bytes, body: bytes) -> None:
        self._out = b""
        self._status = 0
        date = date_line()
        engine = self._connection.engine
        head = self.head
        if not body or (head is not None and head.method == b"HEAD"):
            described = b"content-length: %d\r\n" % len(body) if body else b""
            trailers_only = not body and b"\r\ngrpc-status: " in block
            engine.send_head(self.id, 200 if trailers_only else reason.status, date + block + described, True)
        else:
            waits = engine.send_whole(self.id, reason.status, date + block, body)
            if waits:
                self._sent(waits)
        self._connection.wake()

    def reset(self) -> None:
        self.stream = None
        self._connection.over(self, INTERNAL_ERROR)

    def exchange_over(self, request_complete: bool) -> None:
        self.stream = None
        if self.waits:
            self.since = monotonic()
        else:
            self._connection.over(self, None if self.client_done else NO_ERROR)

    # -- what the connection says ---------------------------------------------------------------------------------------

    def written(self) -> None:
        """All that waited is gone."""
        connection = self._connection
        connection.waiting -= self.waits
        self.waits = 0
        if self.stream is None:
            connection.over(self, None if self.client_done else NO_ERROR)
        elif not connection.blocked:  # also on a full connection: this stream is one that its client reads
            self.stream.resume()

    def gone(self, why: str, kind: str = "client") -> None:
        """The client or we ended the stream before the exchange was over."""
        exchange, self.stream = self.stream, None
        if exchange is not None:
            exchange.client_gone(why, kind)
        elif self.postponed and self.head is not None:
            self._connection.forgo(self, self.head, why, kind)

    def expire(self, now: float, idle_s: float) -> None:
        exchange = self.stream
        if exchange is not None:
            exchange.expire(now)
        elif self.since and now - self.since > idle_s:  # the client does not take the rest of its answer
            self._connection.over(self, CANCEL)


class MuteStream(Http2Stream):
    """A stream that was malformed and is reset already: its exchange is recorded, nobody is answered."""

    __slots__ = ()

    def send_refusal(self, reason: Reason, block: bytes, body: bytes) -> None: ...

    def exchange_over(self, request_complete: bool) -> None:
        self.stream = None
