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
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.cluster.endpoint import Endpoint
    from meshguard.net.tunnel import Tunnel

__all__ = ["Answer", "Downstream", "Handler", "Stream", "Upstream"]


class Downstream(Protocol):
    """A door's stream: where the answer goes. Writes are corked until `flush` or the end, so that a short answer is one write."""

    stream: Stream | None
    request_held: bool
    """The client's body is held back (back-pressure)."""
    held_s: float
    """For how long it was, in all."""

    @property
    def channel(self) -> Channel:
        """The connection: its writes can be held back until the ledger has the record."""
        ...

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

    def forgo(self, door: Downstream, peer: Any, head: RequestHead, why: str, kind: str) -> None:
        """A request that ended before its journey could begin: recorded."""

    def farewell(self, door: Any, peer: Any | None, reason: str) -> None:
        """The connection ended."""


class Upstream(Protocol):
    """What carries an exchange to its upstream: an HTTP/1.1 connection, or a stream of HTTP/2."""

    cluster: Cluster
    endpoint: Endpoint
    reused: bool
    """It has carried an exchange before: that it broke may be old news."""
    answered: bool
    """The head of a response came."""
    unprocessed: bool
    """The upstream has certainly not acted on the request: it may be sent again, whatever its method."""

    @property
    def protocol(self) -> str: ...

    @property
    def closed(self) -> bool: ...

    def start(self, exchange: Answer, head: bytes, method: bytes, chunked: bool) -> None: ...
    def send_data(self, data: bytes) -> None: ...
    def send_end(self, trailers: bytes) -> None: ...
    def flush(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def replay(self) -> list[bytes] | None:
        """The request body as far as it was sent, where it may be sent again."""

    def finish(self, request_complete: bool) -> None: ...

    def unused(self) -> None:
        """Given back before anything was sent."""

    def abandon(self) -> None: ...
    def drop(self, reason: Reason) -> None: ...

    @property
    def expires(self) -> float | None:
        """End of the peer's certificates, epoch seconds."""

    def open_tunnel(self, tunnel: Tunnel) -> bytes:
        """The answer was an acceptable 101 (on HTTP/2 a 2xx to an extended CONNECT): what comes goes to the tunnel. Gives what has come
        behind the head already."""

    def send_now(self, data: bytes) -> None:
        """Octets of a tunnel."""

    def part(self, *, abort: bool) -> None:
        """The tunnel is over: the connection (or stream) ends, in order or at once, and carries nothing else. Called once."""


class Answer(Protocol):
    """An exchange as an upstream connection sees it."""

    @property
    def request_complete(self) -> bool:
        """All of the request is there, or there is no body."""

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
