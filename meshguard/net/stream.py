"""What the parts of a connection see of each other, whichever protocol they speak.

A door (downstream connection or stream) hands heads to the `Handler` and gets a `Stream`; the stream writes its answer to the door
through `Downstream`; an upstream connection reports to it through `Answer`. HTTP/2 streams have the same methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from meshguard.model.errors import RequestError
from meshguard.model.messages import RequestHead, ResponseHead
from meshguard.model.reasons import Reason
from meshguard.net.channel import Channel

if TYPE_CHECKING:
    from meshguard.net.tunnel import Tunnel

__all__ = ["Answer", "Downstream", "Handler", "Stream"]


class Downstream(Protocol):
    """A door's stream: where the answer goes. Writes are corked until `flush` or the end, so that a short answer is one write."""

    stream: Stream | None
    channel: Channel
    """The connection: its writes can be held back until the ledger has the record."""
    request_held: bool
    """The client's body is held back (back-pressure)."""
    held_s: float
    """For how long it was, in all."""

    def send_whole(self, status: int, block: bytes, body: bytes) -> None:
        """A complete answer with a body, in one write."""

    def send_interim(self, status: int, block: bytes) -> None: ...

    def send_continue(self) -> None:
        """The answer to `Expect: 100-continue`."""

    def send_head(self, status: int, block: bytes, length: int, specials: list[tuple[bytes, bytes]]) -> None:
        """The response head; `length` is octets, CHUNKED or UNTIL_CLOSE (then the door frames the body itself)."""

    def send_data(self, data: bytes) -> None: ...

    def send_end(self, trailers: bytes) -> None: ...

    def send_refusal(self, reason: Reason, block: bytes, body: bytes) -> None:
        """A whole answer of meshguard's own (a gRPC stream maps it to its status)."""

    def flush(self) -> None: ...

    def open_tunnel(self, block: bytes, tunnel: Tunnel) -> bytes:
        """The answer to an accepted upgrade, with the fields of `block`; from now on `stream` is the tunnel, and what the client sends goes
        to it as it comes. Gives what has come already."""

    def send_now(self, data: bytes) -> None:
        """Octets of a tunnel."""

    def reset(self) -> None:
        """Cuts the answer so that the client can tell it is not whole."""

    def hold_request(self) -> None: ...

    def release_request(self) -> None: ...

    def exchange_over(self, request_complete: bool) -> None:
        """The exchange is recorded and forgotten; the next one may begin."""


class Stream(Protocol):
    """An exchange as a door sees it."""

    def request_data(self, data: bytes) -> None: ...
    def request_end(self, trailers: bytes) -> None: ...
    def flush_request(self) -> None: ...
    def client_gone(self, why: str, kind: str = "client") -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def fail(self, exc: Exception) -> None: ...
    def expire(self, now: float) -> None: ...

    def dismiss(self, why: str, kind: str) -> bool:
        """The connection has to end (`kind`: `revoked`, `shutdown`). False changes nothing; true: the stream says so in its own protocol
        and ends by itself."""


class Handler(Protocol):
    """Where a door takes what it reads: the journey. `peer` is the handler's own value for the connection."""

    crowded: bool
    """Too many connections: none is kept alive."""

    def welcome(self, door: Any, channel: Channel) -> Any:
        """A connection is established (handshake done): the peer."""

    def begin(self, door: Downstream, peer: Any, head: RequestHead) -> None:
        """Starts the journey of one request; sets `door.stream` until it is over."""

    def refuse_head(self, door: Downstream, peer: Any, error: RequestError) -> None:
        """A request that could not even be parsed: answered and recorded."""

    def farewell(self, door: Any, peer: Any | None, reason: str) -> None:
        """The connection ended."""


class Answer(Protocol):
    """An exchange as an upstream connection sees it."""

    def response_whole(self, head: ResponseHead, body: bytes) -> None:
        """Head, data and end in one: what most answers are."""

    def response_head(self, head: ResponseHead) -> None: ...
    def response_data(self, data: bytes) -> None: ...
    def response_end(self, trailers: bytes) -> None: ...
    def flush_response(self) -> None: ...
    def upstream_failed(self, reason: Reason, detail: str) -> None: ...
    def upstream_paused(self) -> None: ...
    def upstream_resumed(self) -> None: ...
    def fail(self, exc: Exception) -> None: ...
