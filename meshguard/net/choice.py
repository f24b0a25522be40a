"""Which protocol a new connection speaks: by ALPN after the handshake, or by its first octets without TLS.

A connection of a listener with several protocols begins as an `Undecided` one; once it is known, the door for it takes its place on the
channel and in the listener's set, and nothing of this is left: no request pays for the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from meshguard.net.channel import NOT_YET, Channel
from meshguard.net.limits import ConnectionLimits
from meshguard.net.stream import Handler, Stream

if TYPE_CHECKING:
    from meshguard.net.listener import ServerDoor
    from meshguard.wire.events import RequestEngine

__all__ = ["Undecided"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113 section 3.4: with it a client begins that knows that we speak HTTP/2."""


class Undecided:
    """A door until the protocol is known. `make(http2)` makes the one that stays; `sniffs`: HTTP/2 is also taken without TLS."""

    protocol = ""

    __slots__ = ("_doors", "_first", "_handler", "_limits", "_make", "_since", "_sniffs", "_unwanted", "channel", "draining", "peer")

    channel: Channel

    def __init__(
        self, handler: Handler, doors: set[ServerDoor], make: Callable[[bool], ServerDoor], sniffs: bool, limits: ConnectionLimits
    ) -> None:
        self.channel = NOT_YET
        self.peer: Any = None
        self.draining = False
        self._handler = handler
        self._doors = doors
        self._make = make
        self._sniffs = sniffs
        self._limits = limits
        self._first = b""
        self._since = monotonic()
        self._unwanted = False

    # -- the channel ----------------------------------------------------------------------------------------------------

    def attached(self, channel: Channel) -> None:
        self.channel = channel
        if self._unwanted:
            channel.abort()

    def connected(self, channel: Channel) -> None:
        tls = channel.tls
        if tls is not None:
            self._decide(tls.selected_alpn_protocol() == "h2")
        elif not self._sniffs:
            self._decide(False)

    def received(self, data: bytes) -> None:
        first = self._first + data
        if not _PREFACE.startswith(first[: len(_PREFACE)]):
            self._decide(False, first)
        elif len(first) >= len(_PREFACE):
            self._decide(True, first)
        else:
            self._first = first

    def _decide(self, http2: bool, first: bytes = b"") -> None:
        channel = self.channel
        door = self._make(http2)
        self._doors.discard(self)
        self._doors.add(door)
        channel.hand_over(door)
        door.attached(channel)
        door.connected(channel)
        if self.draining:
            door.wind_down()
        if first and not channel.closed:
            door.received(first)

    def ended(self) -> None:
        self.channel.close()

    def lost(self, reason: str) -> None:
        self._handler.farewell(self, None, reason)

    def pause(self) -> None: ...
    def resume(self) -> None: ...

    # -- the listener ---------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        limits = self._limits
        if now - self._since > (limits.head_s if self._first else limits.handshake_s):
            self.abandon("handshake timeout")

    def finish(self) -> None:
        self.draining = True
        if self.channel is NOT_YET:
            self._unwanted = True
        else:
            self.channel.close()

    def wind_down(self) -> None:
        """What is decided on later winds down too."""
        self.draining = True

    def abandon(self, why: str) -> None:
        if self.channel is NOT_YET:
            self._unwanted = True
        else:
            self.channel.abort()

    def cut(self, why: str) -> None:
        self.abandon(why)

    @property
    def exchanges(self) -> list[Stream]:
        return []

    def recall(self, overstays: Callable[[Stream], bool]) -> bool:
        return False

    def adopt(self, engine: RequestEngine, limits: ConnectionLimits) -> None:
        self._limits = limits
