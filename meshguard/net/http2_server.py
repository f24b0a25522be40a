"""The HTTP/2 door: one downstream connection with many streams (RFC 9113).

Theory of operation. The engine calls the sink methods while it reads; what it has to write is taken once per turn of the loop. Each
request is an `Http2Stream` with an exchange of its own. When much waits for the client (its windows are shut, or it does not read), the
connection is *full*: all its upstreams pause and further requests begin later, but for those whose turn it is (`http2_turns`). The end
is in two steps (section 6.8): a GOAWAY that announces it, half a second in which requests on their way are served, then the last one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from meshguard.model.errors import RequestError
from meshguard.model.messages import RequestHead
from meshguard.model.reasons import REQUEST_TIMEOUT
from meshguard.net.channel import HIGH_WATER, NOT_YET, Channel
from meshguard.net.http2_stream import Http2Stream, MuteStream
from meshguard.net.http2_turns import AT_A_LOOK, Turns
from meshguard.net.limits import ConnectionLimits
from meshguard.net.stream import Handler, Stream
from meshguard.wire.events import RequestEngine
from meshguard.wire.http2.engine import CANCEL, ENHANCE_YOUR_CALM, NO_ERROR, ServerEngine, ServerSink

__all__ = ["Http2Connection"]

log = logging.getLogger(__name__)

_GRACE_S = 0.5
"""Between the GOAWAY that announces the end and the last one: a request on its way is served meanwhile."""
_LAST_WORDS_S = 1.0
"""How long a connection that was cut may take to read why."""
_FULL = 8 * HIGH_WATER
"""Octets that wait for one client, on all its streams, before those that it does not read pause and new requests wait."""
_BRIM = 2 * _FULL
"""The same, before nothing at all is let through any more."""
_ANY_STREAM = 2**31 - 1


class Http2Connection:
    """An `Application` on a channel and the `ServerSink` of its engine. See the module."""

    protocol = "h2"

    __slots__ = (
        "_announced",
        "_begun",
        "_block",
        "_blocked_at",
        "_born",
        "_closing",
        "_dirty",
        "_handler",
        "_later",
        "_limits",
        "_reading",
        "_since",
        "_soon",
        "_streams",
        "_turns",
        "_unwanted",
        "blocked",
        "channel",
        "draining",
        "engine",
        "full",
        "moved",
        "peer",
        "waiting",
    )

    channel: Channel
    engine: ServerEngine

    def __init__(self, handler: Handler, new_engine: Callable[[ServerSink], ServerEngine], limits: ConnectionLimits) -> None:
        self.channel = NOT_YET
        self.engine = new_engine(self)
        self.peer: Any = None
        self.draining = False
        self.full = False  # much waits for the client: nothing more is made for it
        self.waiting = 0  # octets of answers that the client's windows do not take
        self.moved: list[Http2Stream] = []  # streams to flush towards their upstreams at the end of this turn
        self._handler = handler
        self._limits = limits
        self._streams: dict[int, Http2Stream] = {}
        self._later: deque[Http2Stream] = deque()  # requests that begin in a later turn
        self._begun = 0
        self._since = self._born = monotonic()  # without a stream; `_born` until the first one is over
        self._announced = 0.0  # when the end was announced
        self._closing = False  # the last GOAWAY is out: the end of the last stream closes
        self._dirty = False  # the engine has something to write
        self._reading = False
        self._unwanted = False
        self._blocked_at = 0.0
        self._block = (0, 0.0)  # a stream whose head has begun and not ended, and when the sweep saw it first
        self._turns: Turns | None = None  # while the connection is full
        self.blocked = False  # the client does not read what was written

    # -- the channel ----------------------------------------------------------------------------------------------------

    def attached(self, channel: Channel) -> None:
        self.channel = channel
        if self._unwanted:
            channel.abort()

    def connected(self, channel: Channel) -> None:
        self._since = self._born = monotonic()
        self._soon = asyncio.get_running_loop().call_soon
        self.peer = self._handler.welcome(self, channel)
        self.engine.start()
        self._write()

    def received(self, data: bytes) -> None:
        self._reading = True
        try:
            self.engine.receive(data, monotonic())
            moved = self.moved
            if moved:
                for stream in moved:
                    stream.moved = False
                    if stream.stream is not None:
                        stream.stream.flush_request()
                moved.clear()
        except Exception:
            # outermost loop of the connection: whatever it was, nothing goes on
            log.exception("exception in a connection")
            self.abandon("internal error")
            return
        finally:
            self._reading = False
        self._write()

    def ended(self) -> None:
        """The client closed its side: what came in full is answered, nothing more comes."""
        self._closing = True
        for stream in list(self._streams.values()):
            if not stream.client_done or stream.waits:  # what waits needs a window that nobody can open any more
                stream.gone("the client closed its side")
                self.over(stream, CANCEL)
        if not self._streams:
            self._close()

    def lost(self, reason: str) -> None:
        self._abandon_streams(reason or "closed", "client")
        self._handler.farewell(self, self.peer, reason)

    def pause(self) -> None:
        self.blocked = True
        self._blocked_at = monotonic()
        self.measure()

    def resume(self) -> None:
        self.blocked = False
        self._write()
        self.measure()

    # -- writing --------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """The engine may have something to write: once per turn."""
        if not self._dirty:
            self._dirty = True
            if not self._reading:
                self._soon(self._write)

    def _write(self) -> None:
        self._dirty = False
        if not self.blocked:  # else it gathers in the engine, which bounds it
            data = self.engine.take()
            if data:
                self.channel.write(data)

    def measure(self) -> None:
        """Is too much waiting for the client? Pauses or resumes all upstreams on a change."""
        self.full = full = self.blocked or self.waiting > _FULL
        turns = self._turns
        if not full:
            if turns is None:
                return
            self._turns = None
        elif turns is None:
            self._turns = Turns(self.waiting > _BRIM)
        elif not turns.rises(self.waiting > _BRIM):
            return
        for stream in list(self._streams.values()):
            exchange = stream.stream
            if exchange is None:
                continue
            if full:
                exchange.pause()  # also what waits for nothing yet: each could bring as much as a read of its upstream
                stream.stalled = not stream.waits
            elif not stream.waits:
                stream.stalled = False
                exchange.resume()
        if not full and self._later:
            self._soon(self._go_on)

    def _let_through(self, turns: Turns, now: float) -> None:
        """A look at a full connection, see `http2_turns`: those whose turn it is go on, or the one that keeps all others waiting ends."""
        streams = list(self._streams.values())
        unread = turns.unread(streams, bool(self._later), now - self._limits.body_idle_s, now)
        if unread is not None:
            unread.gone("the client does not read it, and others wait", "deadline")
            self.over(unread, CANCEL)
        elif not turns.brimful:
            for _ in range(min(len(self._later), AT_A_LOOK)):
                self._begin_next()
            turns.let_through(streams)

    # -- the engine (ServerSink) ----------------------------------------------------------------------------------------

    def request(self, stream: int, head: RequestHead) -> None:
        door = self._streams[stream] = Http2Stream(self, stream, head)
        self._begun += 1
        if self._begun >= self._limits.requests_per_turn or self.full or self._later:
            if not self._later:
                self._soon(self._go_on)
            door.postpone()
            self._later.append(door)
        else:
            self._begin(door, head)
            if not door.client_done and not door.moved:  # the head goes on at the end of this turn, whenever its body comes
                door.moved = True
                self.moved.append(door)

    def _begin(self, door: Http2Stream, head: RequestHead) -> None:
        if self._handler.crowded and not self.draining:
            self._announce()
        if head.method == b"CONNECT":  # an extended one: the engine refuses others
            door.ask_for_tunnel(head)
        self._handler.begin(door, self.peer, head)

    def _go_on(self) -> None:
        """A new turn: begins the requests that had to wait, as many as one turn may have."""
        self._begun = 0
        later = self._later
        while later and not self.full and self._begun < self._limits.requests_per_turn:
            self._begin_next()
        if later and not self.full:
            self._soon(self._go_on)
        self.wake()

    def _begin_next(self) -> None:
        door = self._later.popleft()
        door.postponed = False
        if door.head is not None:
            self._begun += 1
            door.request_held = False
            self._begin(door, door.head)
            door.begun()

    def refused(self, stream: int, error: RequestError, answerable: bool) -> None:
        if answerable:
            door = self._streams[stream] = Http2Stream(self, stream, None)
        else:
            door = MuteStream(self, stream, None)
        self._handler.refuse_head(door, self.peer, error)

    def data(self, stream: int, data: bytes) -> None:
        door = self._streams.get(stream)
        if door is not None:
            door.received(data)
        else:
            self.engine.consumed(stream, len(data))

    def padding(self, stream: int, octets: int) -> None:
        self.engine.consumed(stream, octets)

    def end(self, stream: int, trailers: bytes) -> None:
        door = self._streams.get(stream)
        if door is not None:
            door.ended(trailers)

    def aborted(self, stream: int, code: int, by_peer: bool, detail: str) -> None:
        door = self._streams.get(stream)
        if door is not None:
            door.gone(f"reset by the client ({code:#x})" if by_peer else detail)
            self._forget(door)

    def writable(self, stream: int) -> None:
        door = self._streams.get(stream)
        if door is not None:
            door.written()
            self.measure()

    def goaway(self, last_stream: int, code: int) -> None:
        """The client ends the connection: what runs is answered."""
        self._closing = True
        if not self._streams:
            self._close()

    def failed(self, code: int, detail: str) -> None:
        self._abandon_streams(detail, "client")
        self._close()

    # -- streams --------------------------------------------------------------------------------------------------------

    def over(self, door: Http2Stream, code: int | None) -> None:
        """A stream is over; with a `code` the client is told to stop, or that its answer is not whole."""
        if code is not None and door.id in self._streams:
            self.engine.reset(door.id, code)
            self.wake()
        self._forget(door)

    def _forget(self, door: Http2Stream) -> None:
        streams = self._streams
        if streams.pop(door.id, None) is None:
            return
        if door.postponed:
            self._later.remove(door)
            door.postponed = False
        if door.waits:
            self.waiting -= door.waits
            door.waits = 0
            self.measure()
        unread = door.unread()
        if unread:
            self.engine.consumed(door.id, unread)
            self.wake()
        if not streams:
            self._since = monotonic()
            if self._closing:
                self._close()

    def _abandon_streams(self, why: str, kind: str) -> None:
        streams = list(self._streams.values())
        self._streams.clear()
        self._later.clear()
        self.waiting = 0
        for stream in streams:
            stream.gone(why, kind)

    # -- the end --------------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """One look by the listener's sweep."""
        limits = self._limits
        if self.channel.closed:
            if now - self._since > _LAST_WORDS_S:
                self.channel.abort()
            return
        if self._announced and not self._closing and now - self._announced > _GRACE_S:
            self._closing = True
            self.engine.goaway(NO_ERROR)
            if not self._streams:
                self._close()
                return
            self.wake()
        if self.peer is None:  # still shaking hands
            if now - self._since > limits.handshake_s:
                self.channel.abort()
            return
        if self._turns is not None and not self.blocked:
            self._let_through(self._turns, now)
        if self.blocked and now - self._blocked_at > limits.idle_s:
            self._abandon_streams("the client does not read", "deadline")
            self.channel.abort()
            return
        for stream in list(self._streams.values()):
            stream.expire(now, limits.idle_s)
        block = self.engine.open_block
        if block != self._block[0]:
            self._block = (block, now)
        elif block and now - self._block[1] > limits.head_s:
            self.refused(block, RequestError(REQUEST_TIMEOUT, "head"), False)
            self.engine.goaway(ENHANCE_YOUR_CALM)
            self.failed(ENHANCE_YOUR_CALM, "a head that does not end")
            return
        quiet_s = limits.head_s if self._since == self._born else limits.idle_s  # a first request is waited for as on HTTP/1.1
        if not self._streams and now - self._since > quiet_s and not self._announced:
            self._announce()

    def finish(self) -> None:
        """No further requests, and what does not end by itself is told to (drain, a listener that goes)."""
        self._announce()
        for door in list(self._streams.values()):
            if door.stream is not None:
                door.stream.dismiss("draining", "shutdown")

    def _announce(self) -> None:
        """No further requests: announced first, then meant (also for other settings, a long idle time)."""
        self.draining = True
        if self.channel is NOT_YET:
            self._unwanted = True
        elif not self._announced and not self.channel.closed:
            self._announced = monotonic()
            self.engine.goaway(NO_ERROR, _ANY_STREAM)
            self.wake()

    def wind_down(self) -> None:
        """Somebody else accepts at this address now: the client is told to go there, and loses nothing."""
        self._announce()

    def forgo(self, door: Http2Stream, head: RequestHead, why: str, kind: str) -> None:
        """A request that waited for its turn ended before it came."""
        self._handler.forgo(door, self.peer, head, why, kind)

    @property
    def exchanges(self) -> list[Stream]:
        """What is under way."""
        return [door.stream for door in self._streams.values() if door.stream is not None]

    def recall(self, overstays: Callable[[Stream], bool]) -> bool:
        """Ends the streams that the policy no longer allows. The connection goes on: false."""
        for door in list(self._streams.values()):
            if door.stream is not None and overstays(door.stream):
                if not door.stream.dismiss("policy_denied", "revoked"):
                    door.gone("policy_denied", "revoked")
                    self.over(door, CANCEL)
                elif door.waits:  # its last words are behind what it has not read: not for long
                    door.since -= max(0.0, self._limits.idle_s - _LAST_WORDS_S)
        return False

    def cut(self, why: str) -> None:
        """The caller may no longer be served (`why` is for the record): what is under way is cut, then the connection ends."""
        if self.channel.closed:
            return
        for door in list(self._streams.values()):
            if door.stream is not None:
                door.stream.dismiss(why, "revoked")
        self._abandon_streams(why, "revoked")
        self.engine.goaway(NO_ERROR)
        self._close()

    def abandon(self, why: str) -> None:
        """Ends the connection at once."""
        self._abandon_streams(why, "shutdown")
        if self.channel is NOT_YET:
            self._unwanted = True
        else:
            self.channel.abort()

    def _close(self) -> None:
        """Closes after what was written; a peer that does not read is cut by the sweep."""
        self._since = monotonic()
        self.draining = self._closing = True
        if not self.channel.closed:
            data = self.engine.take()
            if data:
                self.channel.write(data)
            self.channel.close()

    def adopt(self, engine: RequestEngine, limits: ConnectionLimits) -> None:
        """Other settings of the listener: its clients come back under them. (The engine is one of HTTP/1.1.)"""
        self._limits = limits
        self._announce()
