"""The interface that every HTTP/2 engine has: ours and the reference engine on the `h2` library.

An engine is one connection without I/O. `receive(data, now)` takes octets and calls the *sink*, synchronously and in order; whatever it or
a sending method wants to write gathers in the engine until `take()`. The owner of the engine calls `take()` once per turn, so that many
frames become one write. Sinks may call sending methods from their callbacks; a sending method never calls the sink.

Flow control. Received DATA is given out at once and counts against our windows until `consumed(stream, octets)`; an owner that holds a body
back does not call it, and the peer has to stop (bounded by the windows). To be sent, data beyond the peer's windows waits in the engine:
`send_data` returns the octets that wait on that stream, the owner pauses the source above its high-water mark, and `writable(stream)` is
called when what waited has gone out.

Errors. A stream error is answered by RST_STREAM by the engine itself, then `aborted` is called. A connection error queues GOAWAY, then
`failed` is called once; the owner writes what `take()` gives and closes. After `failed` an engine ignores everything.
"""

from __future__ import annotations

from typing import Protocol

from meshguard.model.errors import RequestError
from meshguard.model.messages import RequestHead, ResponseHead

__all__ = [
    "CANCEL",
    "ENHANCE_YOUR_CALM",
    "FLOW_CONTROL_ERROR",
    "INTERNAL_ERROR",
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "REFUSED_STREAM",
    "ClientEngine",
    "ClientSink",
    "Http2Limits",
    "ServerEngine",
    "ServerSink",
]

# RFC 9113 section 7: those that others than the engine use
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
REFUSED_STREAM = 0x7
CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB


class Http2Limits:
    """Limits of one connection (security.md 2 and 6): octets, counts, and events a second. `queue_bytes` bounds what waits for a peer
    that does not read control answers (PING, SETTINGS acknowledgements): above it the connection fails with ENHANCE_YOUR_CALM."""

    __slots__ = (
        "connection_window_bytes",
        "continuation_frames",
        "control_burst",
        "control_per_s",
        "extended_connect",
        "fields",
        "frame_bytes",
        "head_bytes",
        "queue_bytes",
        "request_line_bytes",
        "reset_burst",
        "reset_per_s",
        "stream_window_bytes",
        "streams",
        "table_bytes",
    )

    def __init__(
        self,
        *,
        streams: int = 100,
        stream_window_bytes: int = 65536,
        connection_window_bytes: int = 1 << 20,
        head_bytes: int = 32768,
        fields: int = 100,
        request_line_bytes: int = 8192,
        frame_bytes: int = 16384,
        table_bytes: int = 4096,
        continuation_frames: int = 8,
        reset_burst: int = 100,
        reset_per_s: float = 33.0,
        control_burst: int = 200,
        control_per_s: float = 50.0,
        queue_bytes: int = 65536,
        extended_connect: bool = False,
    ) -> None:
        self.streams = streams
        self.stream_window_bytes = stream_window_bytes
        self.connection_window_bytes = connection_window_bytes
        self.head_bytes = head_bytes
        self.fields = fields
        self.request_line_bytes = request_line_bytes
        self.frame_bytes = frame_bytes
        self.table_bytes = table_bytes
        self.continuation_frames = continuation_frames
        self.reset_burst = reset_burst
        self.reset_per_s = reset_per_s
        self.control_burst = control_burst
        self.control_per_s = control_per_s
        self.queue_bytes = queue_bytes
        self.extended_connect = extended_connect


class ServerSink(Protocol):
    """What a server engine tells its owner."""

    def request(self, stream: int, head: RequestHead) -> None:
        """A request begins. `head.minor` is 2; `head.length` is NO_BODY when nothing follows, the content-length, or CHUNKED. An extended
        CONNECT (RFC 8441) has its `:protocol` in `head.specials` as (b":protocol", value) and length CHUNKED."""

    def refused(self, stream: int, error: RequestError, answerable: bool) -> None:
        """A head that broke a rule. `answerable`: a limit or a house rule (431, 414, 400 for an ambiguous spelling ...): the owner answers
        on the stream. Otherwise the request was malformed (RFC 9113 section 8.1.1), the stream is reset already, and the owner only
        records it."""

    def data(self, stream: int, data: bytes) -> None: ...

    def padding(self, stream: int, octets: int) -> None:
        """Octets of padding that count against the windows: the owner gives them back with the data (`consumed`)."""

    def end(self, stream: int, trailers: bytes) -> None:
        """The peer's side of the stream is over; `trailers` is a validated field block, mostly empty."""

    def aborted(self, stream: int, code: int, by_peer: bool, detail: str) -> None:
        """The stream was reset, by the peer or by the engine for an error in it; it no longer exists."""

    def writable(self, stream: int) -> None: ...

    def goaway(self, last_stream: int, code: int) -> None: ...

    def failed(self, code: int, detail: str) -> None: ...


class ServerEngine(Protocol):
    """The server side. `receive` needs monotonic seconds for its token buckets."""

    streams: int
    """Requests that are not over on both sides."""

    @property
    def open_block(self) -> int:
        """The stream whose field block has begun and not ended; 0: none. The owner bounds the time of a head by it."""
        ...

    def start(self) -> None:
        """Queues our SETTINGS (and the connection window)."""

    def receive(self, data: bytes, now: float) -> None: ...

    def take(self) -> bytes: ...

    def send_interim(self, stream: int, status: int, block: bytes) -> None: ...

    def send_head(self, stream: int, status: int, block: bytes, end: bool) -> None:
        """`block` is a field block as for HTTP/1.1 (any case of names); the engine lower-cases and drops connection-specific fields."""

    def send_whole(self, stream: int, status: int, block: bytes, body: bytes) -> int:
        """A complete answer with `content-length`; octets that wait are returned."""

    def send_data(self, stream: int, data: bytes, end: bool) -> int: ...

    def send_trailers(self, stream: int, block: bytes) -> None:
        """Ends the stream; an empty block ends it by an empty DATA frame."""

    def reset(self, stream: int, code: int) -> None: ...

    def consumed(self, stream: int, octets: int) -> None: ...

    def goaway(self, code: int, last_stream: int | None = None) -> None:
        """`last_stream` None: the last one that was processed; 2**31-1: an announcement (graceful shutdown, RFC 9113 section 6.8)."""


class ClientSink(Protocol):
    """What a client engine tells its owner."""

    def response(self, stream: int, head: ResponseHead) -> None:
        """Interim heads (1xx) too. `head.length`: NO_BODY when nothing follows, else the content-length or CHUNKED."""

    def data(self, stream: int, data: bytes) -> None: ...
    def padding(self, stream: int, octets: int) -> None: ...
    def end(self, stream: int, trailers: bytes) -> None: ...
    def aborted(self, stream: int, code: int, by_peer: bool, detail: str) -> None: ...
    def writable(self, stream: int) -> None: ...

    def capacity(self) -> None:
        """The peer's stream limit or the end of a stream has changed how many requests may be sent."""

    def goaway(self, last_stream: int, code: int) -> None:
        """Streams above `last_stream` were not processed and may be sent elsewhere; no new ones here."""

    def failed(self, code: int, detail: str) -> None: ...


class ClientEngine(Protocol):
    """The client side."""

    streams: int

    @property
    def free(self) -> int:
        """Requests that may be sent now: the peer's limit less those under way; 0 after GOAWAY or when stream ids have run out."""
        ...

    @property
    def extended_connect(self) -> bool | None:
        """The peer takes extended CONNECT (RFC 8441 section 3); None before its settings are known (then `capacity` is called)."""
        ...

    def start(self) -> None: ...
    def receive(self, data: bytes, now: float) -> None: ...
    def take(self) -> bytes: ...

    def request(self, head: bytes, scheme: bytes, end: bool) -> int:
        """Sends a request whose head is serialised as for HTTP/1.1 (it was written by us, so it is beyond doubt): request line, host,
        fields, empty line; gives its stream. Encoded line by line, with a cache. An `upgrade`-less extended CONNECT has `:protocol` as a
        line."""
        ...

    def send_data(self, stream: int, data: bytes, end: bool) -> int: ...
    def send_trailers(self, stream: int, block: bytes) -> None: ...
    def reset(self, stream: int, code: int) -> None: ...
    def consumed(self, stream: int, octets: int) -> None: ...
    def goaway(self, code: int) -> None: ...
    def ping(self, payload: bytes) -> None: ...
