"""The HTTP/1.1 door: one downstream connection, its requests strictly one after the other.

Theory of operation. IDLE -> (head parsed) BUSY -> (exchange over) IDLE ... -> LINGERING -> closed. While BUSY, body events go to the
exchange and pipelined bytes wait in the engine, bounded by pausing the channel. A refused request whose body is short is DRAINING:
its body is read and thrown away so that the connection can go on. After any doubt about framing, or with much body left, the
connection lingers: our side is closed and what still arrives is discarded unread, so that the answer is not lost to a TCP reset.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from meshguard.model.errors import RequestError
from meshguard.model.messages import NO_BODY, RequestHead
from meshguard.model.reasons import MALFORMED_REQUEST, REQUEST_TIMEOUT
from meshguard.net.channel import HIGH_WATER, NOT_YET, Channel
from meshguard.net.http1_answers import Http1Answers
from meshguard.net.limits import ConnectionLimits
from meshguard.net.stream import Handler, Stream
from meshguard.net.tunnel_ends import RawEnd
from meshguard.wire.events import EndOfMessage, RequestEngine

if TYPE_CHECKING:
    from meshguard.net.tunnel import Tunnel

__all__ = ["Http1Connection"]

log = logging.getLogger(__name__)

_LINGER_S = 2.0


class Http1Connection(Http1Answers):
    """An `Application` on a channel and the `Downstream` of its exchanges. See the module."""

    protocol = "http/1.1"

    __slots__ = (
        "_client_done",
        "_discarded",
        "_draining",
        "_engine",
        "_handler",
        "_head_since",
        "_held_at",
        "_lingering",
        "_next_engine",
        "_pumping",
        "_since",
        "_turn",
        "_unwanted",
        "_whole",
        "_writing_paused",
        "draining",
        "held_s",
        "peer",
        "request_held",
        "stream",
    )

    def __init__(self, handler: Handler, engine: RequestEngine, limits: ConnectionLimits) -> None:
        self.channel = NOT_YET
        self._unwanted = False
        self._next_engine: RequestEngine | None = None
        self._held_at = 0.0
        self.held_s = 0.0  # of the present request: how long its body was held back
        self._handler = handler
        self._engine = engine
        self._limits = limits
        self._since = monotonic()
        self._head_since = 0.0
        self._out = b""
        self._head: RequestHead | None = None
        self._chunked = False
        self._close_after = False
        self._draining = False
        self._drains = False
        self._lingering = False
        self._pumping = False
        self._discarded = 0
        self._turn = 0
        self._writing_paused = False
        self._whole = True  # the request under way came in full
        self._client_done = False  # the client has closed its side
        self.peer: Any = None
        self.stream: Stream | None = None
        self.request_held = False
        self.draining = False  # set by the listener: no further request on this connection

    # -- the channel ----------------------------------------------------------------------------------------------------

    def attached(self, channel: Channel) -> None:
        self.channel = channel
        if self._unwanted:
            channel.abort()

    def connected(self, channel: Channel) -> None:
        self._since = monotonic()
        self.peer = self._handler.welcome(self, channel)

    def received(self, data: bytes) -> None:
        if self._lingering:
            self._discarded += len(data)
            if self._discarded > self._limits.refused_body_bytes:
                self.channel.abort()
            return
        engine = self._engine
        engine.receive(data)
        if not self._pumping:
            self._pump()
            if engine.buffered > HIGH_WATER and not self.request_held and (self.stream is not None or self._writing_paused):
                self.hold_request()

    def ended(self) -> None:
        """The client closed its side: what came in full is answered, nothing more comes."""
        if self.stream is None or self._engine.in_head:
            self._close()
        elif not self._lingering:
            self._client_done = True
            if not self._whole and not self.request_held:
                self._broken(RequestError(MALFORMED_REQUEST, "the client closed its side inside the body"))
            elif not self._engine.buffered:
                self._close_after = True

    def lost(self, reason: str) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.client_gone(reason or "closed")
        self._handler.farewell(self, self.peer, reason)

    def pause(self) -> None:
        self._writing_paused = True
        if self.stream is not None:
            self.stream.pause()

    def resume(self) -> None:
        self._writing_paused = False
        if self.stream is not None:
            self.stream.resume()
        elif not self._lingering:
            self.release_request()
            self._resume_pump()

    # -- reading --------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Takes events from the engine until it has none, or the exchange has to move first."""
        self._pumping = True
        engine = self._engine
        heads = 0
        moved = False  # body events went to the exchange
        try:
            while not self._lingering:
                if self.request_held or (self._writing_paused and self.stream is None):
                    break  # a client that does not read its answers gets no further ones made
                event = engine.next()
                if event is None:
                    if self.stream is None and not self._head_since and engine.in_head:
                        self._head_since = monotonic()
                    break
                if type(event) is RequestHead:
                    self._begin(event)
                    heads += 1
                    if heads >= self._limits.requests_per_turn and self.stream is None and engine.buffered:
                        asyncio.get_running_loop().call_soon(self._resume_pump)
                        break
                    if event.length == NO_BODY and self.stream is not None:
                        break
                    moved = True
                elif self._draining:
                    self._drain(event)
                elif self.stream is not None:
                    moved = True
                    if type(event) is bytes:
                        self.stream.request_data(event)
                    elif type(event) is EndOfMessage:
                        self._whole = True
                        self.stream.request_end(event.trailers)
        except RequestError as error:
            self._broken(error)
        except Exception as exc:
            # outermost loop of the connection: whatever it was, nothing goes on and the client gets a 5xx or a cut
            self._unforeseen(exc)
        finally:
            self._pumping = False
        if moved and self.stream is not None:
            self.stream.flush_request()

    def _resume_pump(self) -> None:
        if not self._pumping and not self.channel.closed and not self._lingering:
            self._pump()

    def _begin(self, head: RequestHead) -> None:
        self._head = head
        self._head_since = 0.0
        self.held_s = 0.0
        self._chunked = False
        self._whole = head.length == NO_BODY
        if not head.keep_alive or self.draining or self._handler.crowded:
            self._close_after = True
        self._handler.begin(self, self.peer, head)

    def _broken(self, error: RequestError) -> None:
        """The engine refused what came: in a head it is a request of its own, in a body it is the end of the exchange."""
        self._close_after = True
        stream = self.stream
        if stream is not None:
            stream.fail(error)
        elif self._draining:
            self._linger()
        else:
            self._head = None
            self._handler.refuse_head(self, self.peer, error)

    def _unforeseen(self, exc: Exception) -> None:
        self._close_after = True
        if self.stream is not None:
            self.stream.fail(exc)
        else:
            log.error("exception in a connection", exc_info=exc)
            self.channel.abort()

    def _drain(self, event: object) -> None:
        if type(event) is bytes:
            self._discarded += len(event)
            if self._discarded > self._limits.refused_body_bytes:
                self._linger()
        else:
            self._draining = False
            self._next()

    def _next(self) -> None:
        """Ready for the next request."""
        self._engine.restart()
        if self._next_engine is not None:
            self._change_engine()
        self._since = monotonic()
        if self.request_held:
            self.release_request()
        if self._engine.buffered:
            if not self._pumping:
                self._turn = (self._turn + 1) % self._limits.requests_per_turn
                if self._turn:
                    self._pump()
                else:
                    asyncio.get_running_loop().call_soon(self._resume_pump)
        elif self._client_done:
            self._close()

    # -- writing (Downstream): what an answer looks like is in `http1_answers` ----------------------------------------------

    def open_tunnel(self, block: bytes, tunnel: Tunnel) -> bytes:
        self.send_switch(block)
        self.stream = tunnel
        self.channel.hand_over(RawEnd(self, tunnel.request_data, tunnel.client_ended, self.lost, self.pause, self.resume))
        if self._client_done:
            asyncio.get_running_loop().call_soon(tunnel.client_ended)
        if self._writing_paused:
            tunnel.pause()
        if self.request_held:
            self.release_request()
        return self._engine.rest()

    def reset(self) -> None:
        self._out = b""
        self.stream = None
        self.channel.abort()

    def hold_request(self) -> None:
        if not self.request_held:
            self.request_held = True
            self._held_at = monotonic()
            self.channel.pause_reading()

    def release_request(self) -> None:
        if self.request_held:
            self.request_held = False
            self.held_s += monotonic() - self._held_at
            self.channel.resume_reading()
            if not self._pumping:
                self._pump()

    def exchange_over(self, request_complete: bool) -> None:
        self.stream = None
        if self._close_after:
            if request_complete and not self._engine.buffered:
                self._close()
            else:
                self._linger()
        elif request_complete:
            self._drains = False
            self._next()
        elif not self._drains:  # answered before the request was over: what still comes is not worth the connection
            self._linger()
        else:
            self._drains = False
            self._draining = True
            self._since = monotonic()
            self._discarded = 0
            if self.request_held:
                self.release_request()
            elif not self._pumping:
                self._pump()

    # -- the end --------------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        self._lingering = True
        self._draining = False
        self._discarded = 0
        self._since = monotonic()
        self.channel.hand_over(self)  # also after a tunnel
        self.channel.end_writing()
        if self.request_held:
            self.request_held = False
            self.channel.resume_reading()

    def expire(self, now: float) -> None:
        """One look by the listener's sweep."""
        stream = self.stream
        limits = self._limits
        if self.channel.closed:
            if now - self._since > limits.idle_s:  # the peer does not take the rest of its answer
                self.channel.abort()
        elif stream is not None:
            stream.expire(now)
        elif self.peer is None:
            if now - self._since > limits.handshake_s:
                self.abandon("handshake timeout")
        elif self._lingering:
            if now - self._since > _LINGER_S:
                self.channel.abort()
        elif self._head_since:
            if now - self._head_since > limits.head_s:
                self._broken(RequestError(REQUEST_TIMEOUT, "head"))
        elif self._draining:
            if now - self._since > (limits.body_total_s or limits.idle_s):
                self.channel.abort()
        elif now - self._since > limits.idle_s:
            self._close()

    def wind_down(self) -> None:
        """The answer to the next request is the last one: another process takes over the address."""
        self.draining = True

    def finish(self) -> None:
        """No further request: closes now when idle, else after the answer under way (drain, expiry of the identity)."""
        self.draining = True
        self._close_after = True
        if self.channel is NOT_YET:
            self._unwanted = True
        elif self.stream is not None:
            self.stream.dismiss("draining", "shutdown")
        elif not self._lingering and not self._head_since:
            self._close()

    @property
    def exchanges(self) -> list[Stream]:
        """What is under way: one or none."""
        return [self.stream] if self.stream is not None else []

    def recall(self, overstays: Callable[[Stream], bool]) -> bool:
        """Ends the exchange under way, and the connection with it, when the policy no longer allows it."""
        if self.stream is None or not overstays(self.stream):
            return False
        self.cut("policy_denied")
        return True

    def cut(self, why: str) -> None:
        """The caller may no longer be served (`why` is for the record): what is under way is cut, then the connection ends."""
        self._close_after = True
        stream = self.stream
        if stream is not None:
            if not stream.dismiss(why, "revoked"):
                self.stream = None
                stream.client_gone(why, "revoked")
                self.channel.abort()
        elif not self._lingering:
            self._close()

    def abandon(self, why: str) -> None:
        """Ends the connection at once, also before the handshake is complete."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.client_gone(why, "shutdown")
        if self.channel is NOT_YET:
            self._unwanted = True
        else:
            self.channel.abort()

    def _close(self) -> None:
        self._since = monotonic()
        self.channel.close()

    def adopt(self, engine: RequestEngine, limits: ConnectionLimits) -> None:
        """Other settings of the listener: from the next request on."""
        self._limits = limits
        self._next_engine = engine
        if self.stream is None and not self._draining and not self._engine.in_head:
            self._change_engine()

    def _change_engine(self) -> None:
        engine, self._next_engine = self._next_engine, None
        if engine is not None:
            rest = self._engine.rest()
            self._engine = engine
            if rest:
                engine.receive(rest)
