"""One HTTP/2 connection to an upstream endpoint; many exchanges use it at a time (RFC 9113).

Theory of operation. The cluster lends leases (`UpstreamStream`) as long as the peer's limit has room; each is one stream. What the
streams write gathers in the engine and goes out once per turn of the loop. A stream that ends badly is reset and leaves the others
alone; the connection ends with a GOAWAY, an error, or when the peer no longer answers a PING. Requests that it says it did not process
(REFUSED_STREAM, above the last stream of a GOAWAY) may be sent again, whatever their method.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING

from meshguard.model.errors import IdentityError
from meshguard.model.messages import NO_BODY, ResponseHead
from meshguard.model.reasons import UPSTREAM_MALFORMED, UPSTREAM_RESET
from meshguard.net.channel import NOT_YET, Channel
from meshguard.net.cluster.carrier import Carrier
from meshguard.net.upstream_stream import UpstreamStream
from meshguard.wire.http2.engine import NO_ERROR, REFUSED_STREAM, ClientEngine, ClientSink

if TYPE_CHECKING:
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.cluster.endpoint import Endpoint

__all__ = ["Http2Upstream"]

log = logging.getLogger(__name__)

_PING = b"meshgrd!"
_TAIL_S = 1.0
"""For the end of a stream behind the head of an answer without a body."""


class Http2Upstream(Carrier):
    """An `Application` on a channel, the `ClientSink` of its engine, and a carrier of the cluster's pool."""

    __slots__ = (
        "_dirty",
        "_heard",
        "_pinged",
        "_reading",
        "_soon",
        "_unstarted",
        "_verify",
        "_writing_paused",
        "channel",
        "cluster",
        "engine",
        "expires",
        "moved",
        "ready",
        "reused",
        "scheme",
        "streams",
        "tails",
        "unsure",
    )

    channel: Channel

    def __init__(
        self,
        cluster: Cluster,
        endpoint: Endpoint,
        new_engine: Callable[[ClientSink], ClientEngine],
        verify: Callable[[Channel], float] | None,
        ready: asyncio.Future[None],
        scheme: bytes,
    ) -> None:
        super().__init__(endpoint)
        self.cluster = cluster
        self.channel = NOT_YET
        self.engine = new_engine(self)
        self.ready = ready
        self.scheme = scheme
        self.expires: float | None = None  # end of the peer's certificates, epoch seconds
        self.reused = False  # it has carried a whole exchange
        self.streams: dict[int, UpstreamStream] = {}
        self.moved: list[UpstreamStream] = []  # streams to flush towards their clients at the end of this turn
        self.unsure: list[UpstreamStream] = []  # extended CONNECTs that wait for the peer's settings
        self.tails: dict[int, float] = {}  # streams whose answer has no body, and when it came: their end may still be on its way
        self._verify = verify
        self._soon = asyncio.get_running_loop().call_soon
        self._dirty = False
        self._reading = False
        self._writing_paused = False
        self._unstarted = 0  # leases that have not begun their stream
        self._heard = monotonic()
        self._pinged = 0.0

    # -- the channel ----------------------------------------------------------------------------------------------------

    def attached(self, channel: Channel) -> None:
        self.channel = channel

    def connected(self, channel: Channel) -> None:
        if self._verify is not None:
            try:
                self.expires = self._verify(channel)
            except IdentityError as exc:
                self.closed = True
                channel.abort()
                if not self.ready.done():
                    self.ready.set_exception(exc)
                return
        self.engine.start()
        self._write()  # ready with the first octets that come: they are its SETTINGS, and say how many streams it takes

    def received(self, data: bytes) -> None:
        self._heard = now = monotonic()
        self._reading = True
        try:
            self.engine.receive(data, now)
            moved = self.moved
            if moved:
                for stream in moved:
                    stream.moved = False
                    if stream.exchange is not None:
                        stream.exchange.flush_response()
                moved.clear()
        except Exception as exc:
            # outermost loop of the connection: what runs on it is refused or cut, and it is not used again
            log.exception("exception in an upstream connection")
            self._fail_all(type(exc).__name__)
        finally:
            self._reading = False
        if not self.closed:
            self._write()
            if not self.ready.done():
                self.ready.set_result(None)

    def ended(self) -> None:
        self._fail_all("closed by the upstream")

    def lost(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason or "closed"))
        self._fail_all(reason or "closed")

    def pause(self) -> None:
        self._writing_paused = True
        for stream in list(self.streams.values()):
            stream.pause()

    def resume(self) -> None:
        self._writing_paused = False
        self._write()
        for stream in list(self.streams.values()):
            stream.resume()

    # -- writing --------------------------------------------------------------------------------------------------------

    @property
    def crowded(self) -> bool:
        """The upstream does not read what is written to it."""
        return self._writing_paused

    def wake(self) -> None:
        """The engine has something to write: once per turn."""
        if not self._dirty:
            self._dirty = True
            if not self._reading:
                self._soon(self._write)

    def _write(self) -> None:
        self._dirty = False
        if not self._writing_paused and not self.closed:
            data = self.engine.take()
            if data:
                self.channel.write(data)

    # -- the pool (Carrier) ---------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        if self.closed or self.retired or (self.expires is not None and time() >= self.expires):
            return 0
        return self.engine.free - self._unstarted

    def lease(self) -> UpstreamStream:
        self.lent += 1
        self._unstarted += 1
        return UpstreamStream(self)

    def begun(self) -> None:
        """A lease has begun its stream, or will not."""
        self._unstarted -= 1

    def look(self, now: float) -> None:
        """Asks a connection that was silent for long whether it lives; one that does not answer in time ends."""
        timeouts = self.cluster.settings.timeouts
        silent_s = monotonic() - self._heard
        if self.tails:
            self._cut_tails()
        if self._pinged:
            if self._heard >= self._pinged:
                self._pinged = 0.0
            elif monotonic() - self._pinged > timeouts.connect_s:
                self._fail_all("no answer to a PING")
        elif not self.lent and silent_s > timeouts.ping_s:
            self.doubt()

    def _cut_tails(self) -> None:
        """An upstream that does not end its bodiless answers would use up its streams. (What has ended is not there to be reset.)"""
        late = monotonic() - _TAIL_S
        free = self.engine.free
        for stream in [stream for stream, since in self.tails.items() if since < late]:
            del self.tails[stream]
            self.engine.reset(stream, NO_ERROR)
        if self.engine.free > free:
            self.wake()
            self.cluster.roomier(self)

    def doubt(self) -> None:
        """Asks now."""
        if not self._pinged and not self.closed:
            self._pinged = monotonic()
            self.engine.ping(_PING)
            self.wake()

    def close(self) -> None:
        """Ends it in order; what still runs is cut."""
        if self.closed:
            return
        self.engine.goaway(NO_ERROR)
        self._write()
        self.closed = True
        if self.channel is not NOT_YET:
            self.channel.close()
        if self.streams:
            self._tell_all("closed")

    def discard(self) -> None:
        """A connection that never became ready."""
        self.closed = True
        if self.channel is not NOT_YET:
            self.channel.abort()

    def _fail_all(self, detail: str) -> None:
        """The connection is over: nothing more can come."""
        if self.closed:
            return
        self.closed = True
        data = self.engine.take()
        if data and not self._writing_paused and not self.channel.closed:
            self.channel.write(data)
        self.channel.close()
        self._tell_all(detail)
        self.cluster.lost_carrier(self)

    def _tell_all(self, detail: str) -> None:
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.broken(UPSTREAM_RESET, detail)

    # -- the engine (ClientSink) ----------------------------------------------------------------------------------------

    def response(self, stream: int, head: ResponseHead) -> None:
        call = self.streams.get(stream)
        if call is None or call.exchange is None:
            return
        exchange = call.exchange
        if head.status >= 200:
            if call.asks and head.status < 300 and head.length != NO_BODY:
                head.status = 101  # what it means in HTTP/1.1 (RFC 8441 section 4)
            call.answered = True
            if head.status >= 500 or self.endpoint.failures:
                self.cluster.answered(self.endpoint, head.status)
        exchange.response_head(head)
        if call.exchange is not exchange:
            return
        if head.status >= 200 and head.length == NO_BODY:
            exchange.response_end(b"")
        elif not call.moved:
            call.moved = True
            self.moved.append(call)

    def data(self, stream: int, data: bytes) -> None:
        call = self.streams.get(stream)
        if call is not None:
            call.received(data)
        else:
            self.engine.consumed(stream, len(data))

    def padding(self, stream: int, octets: int) -> None:
        self.engine.consumed(stream, octets)

    def end(self, stream: int, trailers: bytes) -> None:
        call = self.streams.get(stream)
        if call is not None and call.exchange is not None:
            call.ended = True
            call.exchange.response_end(trailers)

    def aborted(self, stream: int, code: int, by_peer: bool, detail: str) -> None:
        call = self.streams.pop(stream, None)
        if call is None:
            return
        if not by_peer:
            call.broken(UPSTREAM_MALFORMED, detail)
            return
        call.unprocessed = code == REFUSED_STREAM
        call.broken(UPSTREAM_RESET, f"stream reset ({code:#x})")

    def writable(self, stream: int) -> None:
        call = self.streams.get(stream)
        if call is not None:
            call.written()

    def capacity(self) -> None:
        if self.unsure and self.engine.extended_connect is not None:
            unsure, self.unsure = self.unsure, []
            for call in unsure:
                if call.exchange is not None:
                    call.flush()
        if not self.retired:
            self.cluster.roomier(self)

    def goaway(self, last_stream: int, code: int) -> None:
        unprocessed = [stream for stream in self.streams if stream > last_stream]
        self.cluster.withdraw(self)
        for stream in unprocessed:
            call = self.streams.pop(stream, None)
            if call is not None:
                call.unprocessed = True
                call.broken(UPSTREAM_RESET, f"not processed before GOAWAY ({code:#x})")

    def failed(self, code: int, detail: str) -> None:
        self.cluster.withdraw(self)
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.broken(UPSTREAM_MALFORMED, detail)
        self._fail_all(detail)
