"""Where the octets of an HTTP/1.1 connection go after a 101."""

from __future__ import annotations

from collections.abc import Callable

from meshguard.net.channel import Application

__all__ = ["RawEnd"]


class RawEnd:
    """The application of an HTTP/1.1 channel whose octets go straight to a tunnel."""

    __slots__ = ("attached", "connected", "ended", "lost", "pause", "received", "resume")

    def __init__(
        self,
        application: Application,
        received: Callable[[bytes], None],
        ended: Callable[[], None],
        lost: Callable[[str], None],
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self.attached = application.attached
        self.connected = application.connected
        self.received = received
        self.ended = ended
        self.lost = lost
        self.pause = pause
        self.resume = resume
