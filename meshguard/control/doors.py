"""Which door a new connection of a listener gets: HTTP/1.1, HTTP/2, or one that waits until the protocol is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from meshguard.net.choice import Undecided
from meshguard.net.http1_server import Http1Connection

if TYPE_CHECKING:
    from meshguard.net.listener import ServerDoor
    from meshguard.pipeline.journey import Journey

__all__ = ["door_maker"]


def door_maker(journey: Journey, name: str) -> Callable[[], ServerDoor]:
    """The door factory of the listener `name`, for the view that is current when a connection is made."""

    def make(http2: bool) -> ServerDoor:
        view = journey.snapshot.listeners[name]
        if http2 and view.http2 is not None:
            from meshguard.net.http2_server import Http2Connection  # a process whose clients speak HTTP/1.1 does not pay for it

            return Http2Connection(journey, partial(view.http2.new_server, view.http2.limits, view.field_rules), view.limits)
        return Http1Connection(journey, view.new_engine(view.wire_limits, view.field_rules), view.limits)

    def new_door() -> ServerDoor:
        view = journey.snapshot.listeners[name]
        if view.http2 is None:
            return Http1Connection(journey, view.new_engine(view.wire_limits, view.field_rules), view.limits)
        if view.http2.only:
            return make(True)
        return Undecided(journey, journey.connections, make, view.http2.cleartext, view.limits)

    return new_door
