"""An open WebSocket between a door and an upstream connection: frames pass verbatim, validated in both directions (`wire.websocket`).

Theory of operation. For the door it is the stream, for the upstream connection the answer (`net.stream`); HTTP/1.1 connections hand
their channel's octets straight to it (`tunnel_ends`), HTTP/2 streams their DATA. Each direction has a scanner. How it ends:

    OPEN     --a Close passes--> CLOSING (the other side has `close_s` to answer) --its Close passes--> over
    OPEN     --a frame that is not valid--> FAILING: the other side gets a Close and may still finish what it was sending; then the
                                            offender gets its code (1002, 1007, 1009)                    --> over
    OPEN     --`dismiss`--> both get a Close: at once when the caller may no longer be served (1008), between messages when we go (1001)
    OPEN     --a connection ends without a Close--> the other ends without one, too: what was abnormal stays so
    over: the exchange is on record, the door goes on by its own rules, the upstream has until the deadline to close; it is never pooled

INVARIANT: a Close of ours goes out only where the octets before it end with a whole frame; elsewhere that side is cut.
"""

from __future__ import annotations

import asyncio
from os import urandom
from time import monotonic, time
from typing import Final, Protocol

from meshguard.model.errors import RequestError
from meshguard.model.messages import ResponseHead
from meshguard.model.reasons import UPSTREAM_RESET, Reason
from meshguard.net.limits import WebSocketLimits
from meshguard.net.stream import Downstream, Upstream
from meshguard.wire.websocket import GOING_AWAY, INTERNAL_ERROR, NO_STATUS, NORMAL, PING, POLICY, FrameScanner, close_frame, control_frame

__all__ = ["Tunnel", "TunnelOwner"]

_PATIENCE_S: Final = 1.0
"""How long the other side may finish what it is sending before an offender gets its Close."""
_CUT_S: Final = 0.5
"""From the Close to a caller who may no longer be served to the end of its connection."""
_PING_BODY: Final = b"meshguard"


class TunnelOwner(Protocol):
    """The exchange that the tunnel belongs to."""

    def tunnel_over(self, tunnel: Tunnel, aborted: str, detail: str) -> None:
        """Nothing passes any more: it is put on record. `aborted` as in `model.record`."""


class Tunnel:
    """See the module. `close_code` and `closed_by` (`client`, `upstream`, `meshguard`) tell how it ended: 0 and "" without a Close."""

    __slots__ = (
        "_client_full",
        "_close_s",
        "_door",
        "_end",
        "_failing",
        "_from_client",
        "_from_upstream",
        "_heard",
        "_leaving",
        "_limits",
        "_over",
        "_parted",
        "_pinged",
        "_timer",
        "_to_client",
        "_to_upstream",
        "_told_client",
        "_told_upstream",
        "_upstream",
        "_upstream_full",
        "close_code",
        "closed_by",
        "owner",
        "request_bytes",
        "response_bytes",
    )

    def __init__(
        self, owner: TunnelOwner, door: Downstream, upstream: Upstream, limits: WebSocketLimits, *, compression: bool, end: float
    ) -> None:
        """`end`: monotonic seconds at which it is over in any case (the route's deadline), or infinity."""
        frame, message = limits.frame_bytes, limits.message_bytes
        self._from_client = FrameScanner(masked=True, compression=compression, frame_limit=frame, message_limit=message)
        self._from_upstream = FrameScanner(masked=False, compression=compression, frame_limit=frame, message_limit=message)
        self.owner = owner
        self._door = door
        self._upstream = upstream
        self._to_client = door.send_now
        self._to_upstream = upstream.send_now
        self._limits = limits
        self._end = end
        now = monotonic()
        self._heard = [(0, now), (0, now)]  # (octets, when they had last changed) of the client and of the upstream
        self._pinged = [False, False]
        self._client_full = False  # what waits to be written to it is above the high-water mark
        self._upstream_full = False
        self._told_client = False  # it was sent a Close
        self._told_upstream = False
        self._failing = False
        self._leaving: tuple[int, str, str] | None = None  # (code, who, why)
        self._over = False
        self._parted = False
        self._timer: asyncio.TimerHandle | None = None
        self.close_code = 0
        self.closed_by = ""
        self.request_bytes = 0
        self.response_bytes = 0

    # -- from the client (net.stream.Stream) ------------------------------------------------------------------------------

    def request_data(self, data: bytes) -> None:
        scanner = self._from_client
        if scanner.stopped:
            return  # after its last word nothing counts (RFC 6455 section 5.5.1)
        if scanner.rest:  # its turn comes; the client is held meanwhile
            scanner.rest += data
            return
        out = scanner.feed(data)
        if out:
            self.request_bytes += len(out)
            self._to_upstream(out)
        if scanner.stopped or scanner.rest or self._leaving is not None:
            self._look(scanner)

    def request_end(self, trailers: bytes) -> None:
        """The client's side ended in order."""
        if not self._over and not self._from_client.stopped:
            self._finish("client", "closed without a Close")

    def client_ended(self) -> None:
        self.request_end(b"")

    def flush_request(self) -> None:
        """Everything is sent at once."""

    def client_gone(self, why: str, kind: str = "client") -> None:
        if not self._over:
            answered = self._from_client.stopped and self._from_upstream.stopped
            self._finish("" if answered else kind, why, door_gone=True)

    def pause(self) -> None:
        self._client_full = True
        self._upstream.pause_reading()

    def resume(self) -> None:
        self._client_full = False
        if not self._from_upstream.rest and not self._parted:
            self._upstream.resume_reading()

    def fail(self, exc: Exception) -> None:
        if not self._over:
            detail = exc.detail if isinstance(exc, RequestError) else type(exc).__name__
            self._part(INTERNAL_ERROR, "client", detail)

    def dismiss(self, why: str, kind: str) -> bool:
        """The connection has to end; true: the tunnel ends it by its own words. `kind`: `revoked` at once, `shutdown` in order."""
        if self._over:
            return False
        if kind == "shutdown":
            self._leave(GOING_AWAY, kind, why)
        else:
            self._part(POLICY, kind, why)
            asyncio.get_running_loop().call_later(_CUT_S, self._cut)
        return True

    def _cut(self) -> None:
        self._door.reset()
        self._let_upstream_go(abort=True)

    # -- from the upstream (net.stream.Answer) ----------------------------------------------------------------------------

    def response_data(self, data: bytes) -> None:
        scanner = self._from_upstream
        if scanner.stopped:
            return
        if scanner.rest:
            scanner.rest += data
            return
        out = scanner.feed(data)
        if out:
            self.response_bytes += len(out)
            self._to_client(out)
        if scanner.stopped or scanner.rest or self._leaving is not None:
            self._look(scanner)

    def response_end(self, trailers: bytes) -> None:
        """The upstream's side ended in order."""
        if self._over:
            self._let_upstream_go(abort=False)
        elif self._failing:
            self._conclude()
        elif self._from_upstream.stopped:
            self._finish("", "")
        else:
            self._finish("upstream", "closed without a Close")

    def upstream_failed(self, reason: Reason, detail: str) -> None:
        if self._over:
            self._let_upstream_go(abort=True)
        elif self._failing:
            self._conclude()
        else:
            self._finish("upstream", detail, cut=not self._from_upstream.stopped)

    def upstream_ended(self) -> None:
        self.response_end(b"")

    def upstream_lost(self, detail: str) -> None:
        if detail:
            self.upstream_failed(UPSTREAM_RESET, detail)
        else:
            self.response_end(b"")

    def upstream_paused(self) -> None:
        self._upstream_full = True
        if not self._over:
            self._door.hold_request()

    def upstream_resumed(self) -> None:
        self._upstream_full = False
        if not self._from_client.rest and not self._over:
            self._door.release_request()

    @property
    def request_complete(self) -> bool:
        return self._from_client.stopped

    def response_whole(self, head: ResponseHead, body: bytes) -> None:
        self.response_head(head)

    def response_head(self, head: ResponseHead) -> None:
        """After the one that opened the tunnel there is no further head."""
        if not self._over:
            self._part(INTERNAL_ERROR, "upstream", "a second response head")

    def flush_response(self) -> None:
        """Everything is sent at once."""

    # -- what asks for a look ---------------------------------------------------------------------------------------------

    def _look(self, scanner: FrameScanner) -> None:
        if self._over:
            return
        if scanner.rest:
            if scanner is self._from_client:
                self._door.hold_request()
                asyncio.get_running_loop().call_soon(self._catch_up, scanner)
            else:
                self._upstream.pause_reading()
                asyncio.get_running_loop().call_soon(self._catch_up, scanner)
        elif scanner.stopped:
            self._stopped(scanner)
        elif self._leaving is not None and not self._failing and self._quiet():
            self._part(*self._leaving)

    def _quiet(self) -> bool:
        return self._from_client.between_messages and self._from_upstream.between_messages

    def _catch_up(self, scanner: FrameScanner) -> None:
        """Many small frames came in one read: the next few, after everybody else had a turn."""
        data, scanner.rest = scanner.rest, b""
        if self._over or not data:
            return
        if scanner is self._from_client:
            self.request_data(data)
            if not scanner.rest and not self._upstream_full and not self._over:
                self._door.release_request()
        else:
            self.response_data(data)
            if not scanner.rest and not self._client_full and not self._parted:
                self._upstream.resume_reading()

    def _stopped(self, scanner: FrameScanner) -> None:
        """A Close came, or something that is not valid."""
        by_client = scanner is self._from_client
        other = self._from_upstream if by_client else self._from_client
        if scanner.violation is not None:
            self._offended(scanner, other, "client" if by_client else "upstream")
            return
        if self._failing:  # it was told that this is the end, and has finished
            self._conclude()
            return
        if not self.closed_by:
            self.close_code, self.closed_by = scanner.close_code, "client" if by_client else "upstream"
        if by_client:
            self._told_upstream = True
            self.request_bytes += len(scanner.close_frame)
            self._to_upstream(scanner.close_frame)
        else:
            self._told_client = True
            self.response_bytes += len(scanner.close_frame)
            self._to_client(scanner.close_frame)
        if other.stopped:
            self._finish("", "")
        else:
            self._within(self._limits.close_s)

    def _offended(self, scanner: FrameScanner, other: FrameScanner, who: str) -> None:
        if scanner.violation is None:
            return
        code, what = scanner.violation
        if self._failing:  # both sides
            self._conclude()
            return
        self._failing = True
        if not self.closed_by:
            self.close_code, self.closed_by = code, "meshguard"
        self._leaving = (code, who, f"{who}: {what}")
        if other.stopped:  # it has said its last word, and waits for an answer to it
            answer = other.close_code if other.close_code != NO_STATUS else NORMAL
            self._say_close(answer, to_client=who == "upstream")
            self._conclude()
        elif scanner.at_boundary:
            self._say_close(GOING_AWAY if who == "client" else INTERNAL_ERROR, to_client=who == "upstream")
            self._within(min(_PATIENCE_S, self._limits.close_s))
        else:
            self._conclude()

    def _conclude(self) -> None:
        """The offender learns its code; both sides end."""
        if self._leaving is None:
            return
        code, who, detail = self._leaving
        self._say_close(code, to_client=who == "client")
        self._finish(who, detail, cut=not self._told_client, cut_upstream=not self._told_upstream)

    def _leave(self, code: int, who: str, why: str) -> None:
        """Both get a Close when no message is under way, at the latest after `close_s`."""
        if self._leaving is None:
            self._leaving = (code, who, why)
            if self._quiet():
                self._part(code, who, why)
            else:
                self._within(self._limits.close_s)

    def _part(self, code: int, who: str, why: str) -> None:
        """Both get a Close now, where that is possible, and end."""
        if not self.closed_by:
            self.close_code, self.closed_by = code, "meshguard"
        self._say_close(code, to_client=True)
        self._say_close(code, to_client=False)
        self._finish(who, why, cut=not self._told_client, cut_upstream=not self._told_upstream)

    def _say_close(self, code: int, *, to_client: bool) -> None:
        """A Close of ours, unless that side has had one or is in the middle of a frame."""
        if to_client:
            if not self._told_client and self._from_upstream.at_boundary:
                self._told_client = True
                self._to_client(close_frame(code))
        elif not self._told_upstream and self._from_client.at_boundary:
            self._told_upstream = True
            self._to_upstream(close_frame(code, key=urandom(4)))

    # -- time -------------------------------------------------------------------------------------------------------------

    def _within(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._over:
            self._let_upstream_go(abort=True)
        elif self._failing:
            self._conclude()
        elif self._leaving is not None:
            self._part(*self._leaving)
        else:
            self._finish("deadline", "a Close was not answered", cut_upstream=True)

    def expire(self, now: float) -> None:
        """One look by the listener's sweep: silence, pings, the route's deadline, the end of the upstream's certificate."""
        if self._over or self._leaving is not None:
            return
        if now > self._end:
            self._leave(GOING_AWAY, "deadline", "total time")
            return
        expires = self._upstream.expires
        if expires is not None and time() >= expires:
            self._part(GOING_AWAY, "upstream", "the upstream's certificate has expired")
            return
        limits = self._limits
        silent = []
        for side, octets in enumerate((self.request_bytes, self.response_bytes)):
            before, since = self._heard[side]
            if octets != before:
                self._heard[side] = (octets, now)
                self._pinged[side] = False
                since = now
            silent.append(now - since)
        # a side that is pinged has to answer itself; else it is enough that one of them speaks
        if (max(silent) if limits.ping_s else min(silent)) > limits.idle_s:
            self._leave(GOING_AWAY, "deadline", "idle")
        elif limits.ping_s and not self._from_client.stopped and not self._from_upstream.stopped:
            if silent[0] > limits.ping_s and not self._pinged[0] and self._from_upstream.at_boundary:
                self._pinged[0] = True
                self._to_client(control_frame(PING, _PING_BODY))
            if silent[1] > limits.ping_s and not self._pinged[1] and self._from_client.at_boundary:
                self._pinged[1] = True
                self._to_upstream(control_frame(PING, _PING_BODY, urandom(4)))

    # -- the end ----------------------------------------------------------------------------------------------------------

    def _finish(self, aborted: str, detail: str, *, cut: bool = False, cut_upstream: bool = False, door_gone: bool = False) -> None:
        """Over: on record, the client's side ends (`cut`: so that it can tell), the upstream is closed or waited for."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._leaving = None
        self._from_client.stopped = self._from_upstream.stopped = True
        door = self._door
        if door_gone:
            self.owner.tunnel_over(self, aborted, detail)
        elif cut:
            self.owner.tunnel_over(self, aborted, detail)
            door.reset()
        else:
            door.send_end(b"")
            self.owner.tunnel_over(self, aborted, detail)
            door.exchange_over(False)
        if cut_upstream or (door_gone and aborted):
            self._let_upstream_go(abort=True)
        elif self._told_upstream:
            self._upstream.resume_reading()  # its end has to be seen
            self._within(self._limits.close_s)  # the server closes first (RFC 6455 section 7.1.1): no TIME_WAIT here
        else:
            self._let_upstream_go(abort=False)

    def _let_upstream_go(self, *, abort: bool) -> None:
        if not self._parted:
            self._parted = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._upstream.part(abort=abort)
