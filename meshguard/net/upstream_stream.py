"""One exchange on an HTTP/2 connection to an upstream: what `http1_client.UpstreamConnection` is to HTTP/1.1.

Request data that the upstream's windows do not take waits in the engine; above a mark the exchange is asked to hold its client. While the
exchange holds us, what arrives is still handed over and not acknowledged, so that the upstream stops within its window.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from meshguard.model.errors import RequestError
from meshguard.model.reasons import UPGRADE_NOT_SUPPORTED, UPSTREAM_RESET, UPSTREAM_TIMEOUT, Reason
from meshguard.net.cluster.carrier import Lease
from meshguard.net.stream import Answer
from meshguard.wire.http2.engine import CANCEL
from meshguard.wire.serialise import CHUNKED_LINE

if TYPE_CHECKING:
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.http2_client import Http2Upstream
    from meshguard.net.tunnel import Tunnel

__all__ = ["REPLAY_BYTES", "UpstreamStream"]

_MARK = 16384
"""Octets that wait for the upstream's windows before the client is held."""
REPLAY_BYTES = 16384
"""Of a request body, kept until the answer begins: so much may be sent again when the upstream says that it processed nothing."""
_CHUNKED_END = CHUNKED_LINE + b"\r\n"


class UpstreamStream(Lease):
    """A lease of its carrier. `unprocessed`: the upstream has certainly not acted on the request."""

    protocol = "h2"

    __slots__ = (
        "_asks",
        "_ends",
        "_head",
        "_held",
        "_out",
        "_owed",
        "_paused",
        "_sent",
        "_sent_bytes",
        "_started",
        "_waits",
        "answered",
        "cluster",
        "ended",
        "exchange",
        "id",
        "moved",
        "reused",
        "unprocessed",
    )

    carrier: Http2Upstream

    def __init__(self, carrier: Http2Upstream) -> None:
        self.carrier = carrier
        self.endpoint = carrier.endpoint
        self.cluster: Cluster = carrier.cluster
        self.idle_since = 0.0
        self.reused = carrier.reused
        self.answered = False
        self.unprocessed = True
        self.exchange: Answer | None = None
        self.id = 0
        self.moved = False
        self._started = False
        self._head = b""
        self._asks = False  # it is an extended CONNECT (RFC 8441)
        self.ended = False  # the upstream's side is over
        self._ends = False  # the request is whole: what is flushed ends it
        self._out = b""
        self._waits = 0
        self._paused = False
        self._held = False
        self._owed = 0  # octets received while held
        self._sent: list[bytes] = []
        self._sent_bytes = 0

    @property
    def closed(self) -> bool:
        carrier = self.carrier
        return carrier.closed or (not self._started and carrier.engine.free <= 0)

    # -- the request ----------------------------------------------------------------------------------------------------

    def start(self, exchange: Answer, head: bytes, method: bytes, chunked: bool) -> None:
        """Begins a request: its serialised head goes with what follows, on `flush` at the latest."""
        self.exchange = exchange
        self._asks = method == b"CONNECT"
        self._ends = exchange.request_complete and not self._asks
        self._head = head.removesuffix(_CHUNKED_END) + b"\r\n" if chunked else head

    def send_data(self, data: bytes) -> None:
        if self._sent_bytes <= REPLAY_BYTES:
            self._sent_bytes += len(data)
            self._sent.append(data)
        if self._out:
            self._push(False)
        self._out = data

    def send_end(self, trailers: bytes) -> None:
        if trailers:
            self._push(False)
            if self.id:
                self._sent_bytes = REPLAY_BYTES + 1  # trailers are not kept
                self.carrier.engine.send_trailers(self.id, trailers)
        else:
            self._push(True)
        self.carrier.wake()

    def flush(self) -> None:
        if self._asks and self._head and not self._may_ask():
            return
        if self._head or self._out:
            self._push(self._ends)
            self.carrier.wake()

    def _push(self, end: bool) -> None:
        carrier, out = self.carrier, self._out
        engine = carrier.engine
        if self._head:
            head, self._head = self._head, b""
            self._begin()
            self.unprocessed = False
            self.id = id = engine.request(head, carrier.scheme, end and not out)
            carrier.streams[id] = self
            if end and not out:
                return
        if not self.id or not (out or end):
            return
        self._out = b""
        waits = engine.send_data(self.id, out, end)
        if waits or self._waits or carrier.crowded:
            self._waits = waits
            if (waits > _MARK or carrier.crowded) and not end:
                self.pause()

    def _begin(self) -> None:
        if not self._started:
            self._started = True
            self.carrier.begun()

    # -- a tunnel (RFC 8441) --------------------------------------------------------------------------------------------

    @property
    def asks(self) -> bool:
        """Waits for the answer to an extended CONNECT."""
        return self._asks and not self.answered

    def _may_ask(self) -> bool:
        """Whether the upstream has said that it takes an extended CONNECT; before its settings are here, the request waits for them
        (RFC 8441 section 3)."""
        takes = self.carrier.engine.extended_connect
        if takes is None:
            self.carrier.unsure.append(self)
        elif not takes and self.exchange is not None:
            self.exchange.fail(RequestError(UPGRADE_NOT_SUPPORTED, "the upstream takes no extended CONNECT"))
        return takes is True

    def open_tunnel(self, tunnel: Tunnel) -> bytes:
        self.exchange = tunnel
        return b""

    def send_now(self, data: bytes) -> None:
        self.send_data(data)
        self.flush()

    @property
    def expires(self) -> float | None:
        return self.carrier.expires

    def part(self, *, abort: bool) -> None:
        if not abort and self.id in self.carrier.streams:
            self.send_end(b"")
        self._leave(abort or not self.ended)
        self.cluster.discard(self, None)

    # -- back-pressure --------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """The upstream takes nothing more for now."""
        if not self._paused:
            self._paused = True
            if self.exchange is not None:
                self.exchange.upstream_paused()

    def resume(self) -> None:
        if self._paused and not self._waits and not self.carrier.crowded:
            self._paused = False
            if self.exchange is not None:
                self.exchange.upstream_resumed()

    def written(self) -> None:
        self._waits = 0
        self.resume()

    def pause_reading(self) -> None:
        self._held = True

    def resume_reading(self) -> None:
        if self._held:
            self._held = False
            self._pay()

    def _pay(self) -> None:
        owed, self._owed = self._owed, 0
        if owed:
            self.carrier.engine.consumed(self.id, owed)
            self.carrier.wake()

    def received(self, data: bytes) -> None:
        """Data of the response."""
        exchange = self.exchange
        if exchange is not None:
            if not self.moved:
                self.moved = True
                self.carrier.moved.append(self)
            exchange.response_data(data)
        if self._held:
            self._owed += len(data)
        else:
            self.carrier.engine.consumed(self.id, len(data))

    # -- the end --------------------------------------------------------------------------------------------------------

    def replay(self) -> list[bytes] | None:
        """The body that was sent, where it may be sent again; None where it may not."""
        return self._sent if self.unprocessed and self._sent_bytes <= REPLAY_BYTES else None

    def broken(self, reason: Reason, detail: str) -> None:
        """The stream or the connection is over before its exchange."""
        exchange = self.exchange
        if exchange is not None:
            exchange.upstream_failed(reason, detail)

    def _leave(self, reset: bool) -> None:
        self._begin()
        self.exchange = None
        carrier = self.carrier
        if self.id and carrier.streams.pop(self.id, None) is not None and reset and not carrier.closed:
            carrier.engine.reset(self.id, CANCEL)
            carrier.wake()
        if not carrier.closed:
            self._pay()

    def finish(self, request_complete: bool) -> None:
        """The response is whole."""
        reset = not request_complete or self._asks
        if not self.ended and not reset:
            self.carrier.tails[self.id] = monotonic()
        self._leave(reset)
        self.carrier.reused = True
        self.cluster.release_stream(self)

    def unused(self) -> None:
        """Given back before anything was sent."""
        self._leave(False)
        self.cluster.release_stream(self)

    def abandon(self) -> None:
        """The exchange ended before its response (client gone, deadline)."""
        self._leave(True)
        self.cluster.discard(self, None)

    def drop(self, reason: Reason) -> None:
        """The upstream broke off, broke the rules or was too slow. What it did not process, or a connection that died idle, is nobody's
        fault."""
        self._leave(True)
        if reason is UPSTREAM_TIMEOUT:
            self.carrier.doubt()
        stale = self.unprocessed or (self.carrier.closed and self.reused and not self.answered and reason is UPSTREAM_RESET)
        self.cluster.discard(self, None if stale else reason)
