"""One HTTP/1.1 connection to an upstream endpoint; exchanges use it one after the other.

Reuse is the exception that has to be earned: the response was whole, its framing beyond doubt, the request sent completely, nothing
unasked arrived. Anything else closes it (security.md 1, "Upstream responses").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING

from meshguard.model.errors import IdentityError, UpstreamError
from meshguard.model.messages import NO_BODY, ResponseHead
from meshguard.model.reasons import UPSTREAM_RESET, Reason
from meshguard.net.channel import Channel
from meshguard.net.stream import Answer
from meshguard.net.tunnel_ends import RawEnd
from meshguard.wire.chunked import encode_chunk, encode_last_chunk
from meshguard.wire.events import ResponseEngine

if TYPE_CHECKING:
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.cluster.endpoint import Endpoint
    from meshguard.net.tunnel import Tunnel

__all__ = ["UpstreamConnection"]

log = logging.getLogger(__name__)

_PART_S = 5.0
"""For the last octets of a tunnel to be taken."""


class UpstreamConnection:
    """An `Application` on a channel. `ready` completes when the channel is usable and the peer's identity is checked."""

    protocol = "http/1.1"
    unprocessed = False

    __slots__ = (
        "_body_sent",
        "_chunked",
        "_engine",
        "_exchange",
        "_out",
        "_reusable",
        "_verify",
        "answered",
        "channel",
        "closed",
        "cluster",
        "endpoint",
        "expires",
        "idle_since",
        "ready",
        "reused",
    )

    channel: Channel

    def __init__(
        self,
        cluster: Cluster,
        endpoint: Endpoint,
        engine: ResponseEngine,
        verify: Callable[[Channel], float] | None,
        ready: asyncio.Future[None],
    ) -> None:
        self.cluster = cluster
        self.endpoint = endpoint
        self.ready = ready
        self.closed = False
        self.reused = False
        self.answered = False
        self.idle_since = 0.0
        self.expires: float | None = None  # end of the peer's certificates, epoch seconds
        self._body_sent = False
        self._engine = engine
        self._verify = verify
        self._exchange: Answer | None = None
        self._out = b""
        self._chunked = False
        self._reusable = False

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
        if not self.ready.done():
            self.ready.set_result(None)

    def received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self._unusable()  # bytes that nobody asked for: never reused
            return
        engine = self._engine
        try:
            engine.receive(data)
            while True:
                event = engine.next()
                if event is None:
                    break
                if type(event) is bytes:
                    exchange.response_data(event)
                elif type(event) is ResponseHead:
                    self.answered = True
                    if event.status >= 200:
                        self._reusable = event.keep_alive
                        if event.status >= 500 or self.endpoint.failures:
                            self.cluster.answered(self.endpoint, event.status)
                        body = engine.whole_body()
                        if body is not None:
                            exchange.response_whole(event, body)
                            return
                    exchange.response_head(event)
                    if event.status >= 200 and event.length == NO_BODY and self._exchange is exchange:
                        exchange.response_end(b"")
                else:
                    exchange.response_end(event.trailers)  # type: ignore[union-attr]  # the third kind of event
                if self._exchange is not exchange:
                    return
        except UpstreamError as error:
            exchange.upstream_failed(error.reason, error.detail)
            return
        except Exception as exc:
            # outermost loop of the connection: the exchange is refused or cut, the connection is not used again
            exchange.fail(exc)
            return
        exchange.flush_response()

    def ended(self) -> None:
        """The upstream closed in order: the end of a body without length, or too early."""
        exchange = self._exchange
        if exchange is None:
            self._unusable()
            return
        self._reusable = False
        try:
            end = self._engine.eof()
        except UpstreamError as error:
            exchange.upstream_failed(UPSTREAM_RESET, error.detail)
            return
        if end is not None:
            exchange.response_end(end.trailers)
        else:
            exchange.upstream_failed(UPSTREAM_RESET, "closed before the answer")

    def lost(self, reason: str) -> None:
        was_closed, self.closed = self.closed, True
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason or "closed"))
        exchange = self._exchange
        if exchange is not None:
            exchange.upstream_failed(UPSTREAM_RESET, reason or "closed")
        elif not was_closed:
            self.cluster.lost(self)

    def pause(self) -> None:
        if self._exchange is not None:
            self._exchange.upstream_paused()

    def resume(self) -> None:
        if self._exchange is not None:
            self._exchange.upstream_resumed()

    def _unusable(self) -> None:
        if not self.closed:
            self.closed = True
            self.channel.close()
            self.cluster.lost(self)

    # -- a tunnel -------------------------------------------------------------------------------------------------------

    def open_tunnel(self, tunnel: Tunnel) -> bytes:
        """The answer was a valid 101: from now on what comes goes to the tunnel. Gives what came behind the head."""
        self._exchange = None
        self._reusable = False
        self.channel.hand_over(
            RawEnd(
                self, tunnel.response_data, tunnel.upstream_ended, tunnel.upstream_lost, tunnel.upstream_paused, tunnel.upstream_resumed
            )
        )
        return self._engine.rest()

    def send_now(self, data: bytes) -> None:
        self.channel.write(data)

    def part(self, *, abort: bool) -> None:
        """The tunnel is over. INVARIANT: an upgraded connection never goes back into the pool."""
        self._close(None, abort=abort)
        if not abort:
            asyncio.get_running_loop().call_later(_PART_S, self.channel.abort)  # an upstream that does not read would keep it

    # -- an exchange ----------------------------------------------------------------------------------------------------

    def start(self, exchange: Answer, head: bytes, method: bytes, chunked: bool) -> None:
        """Begins a request: its serialised head is written with what follows, on `flush` at the latest."""
        self._exchange = exchange
        self.answered = False
        self._reusable = False
        self._chunked = chunked
        self._body_sent = False
        self._out = head
        self._engine.restart(method)

    def send_data(self, data: bytes) -> None:
        if self._chunked:
            data = encode_chunk(data)
        out = self._out
        if out:
            self._out = b""
            data = out + data
        self._body_sent = True
        self.channel.write(data)

    def send_end(self, trailers: bytes) -> None:
        if self._chunked:
            self._out += encode_last_chunk(trailers)

    def flush(self) -> None:
        out = self._out
        if out:
            self._out = b""
            self.channel.write(out)

    def replay(self) -> list[bytes] | None:
        """Nothing is kept of a body; without one there is nothing to send again."""
        return None if self._body_sent else []

    def unused(self) -> None:
        """Given back before anything was sent."""
        self.cluster.release(self)

    def pause_reading(self) -> None:
        self.channel.pause_reading()

    def resume_reading(self) -> None:
        self.channel.resume_reading()

    def finish(self, request_complete: bool) -> None:
        """The response is whole. Gives the connection back, or closes it where reuse is in doubt."""
        self._exchange = None
        self.reused = True
        if self.channel.held:  # a slow client must not leave its pause to the next one
            self.channel.resume_reading()
        if (
            self._reusable
            and request_complete
            and not self._engine.buffered
            and not self.closed
            and not self.channel.unread  # an answer that nobody asked for may lie there
            and (not self._body_sent or not self.channel.transport.get_write_buffer_size())
            and (self.expires is None or time() < self.expires)
        ):
            self.cluster.release(self)
        else:
            self._close(None, abort=not request_complete)

    def abandon(self) -> None:
        """The exchange ended before its response (client gone, deadline): nothing of it may reach another one."""
        self._exchange = None
        self._close(None, abort=True)

    def drop(self, reason: Reason) -> None:
        """The upstream broke off, broke the rules or was too slow. A pooled connection that died unanswered is nobody's fault."""
        self._exchange = None
        stale = self.reused and not self.answered and reason is UPSTREAM_RESET
        self._close(None if stale else reason, abort=reason is not UPSTREAM_RESET)

    def close(self) -> None:
        """Closes an idle connection (the cluster's wish)."""
        if not self.closed:
            self.closed = True
            self.channel.close()

    def discard(self) -> None:
        """A connection that never became ready."""
        self.closed = True
        channel = getattr(self, "channel", None)  # unset when the transport was never made
        if channel is not None:
            channel.abort()

    def _close(self, reason: Reason | None, *, abort: bool = False) -> None:
        if not self.closed:
            self.closed = True
            if abort:
                self.channel.abort()
            else:
                self.channel.close()
        self.cluster.discard(self, reason)
