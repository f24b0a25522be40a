"""What an engine says of a byte stream, and the interface that every HTTP/1.1 engine has.

`next()` gives, in this order for each message: one head, any number of `bytes` (body data, never empty), one `EndOfMessage`. For
a message with `length == NO_BODY` the head is the whole message. None means that more bytes are needed or that the message is
over and `restart()` has not been called: messages are strictly serial, what follows stays in the buffer.
"""

from __future__ import annotations

from typing import Protocol

from meshguard.model.messages import RequestHead, ResponseHead

__all__ = ["END", "EndOfMessage", "RequestEngine", "ResponseEngine", "WireLimits"]


class EndOfMessage:
    """The end of a body; `trailers` is a validated field block, empty for most messages."""

    __slots__ = ("trailers",)

    def __init__(self, trailers: bytes = b"") -> None:
        self.trailers = trailers


END = EndOfMessage()


class WireLimits:
    """Limits of one message head and its framing, in octets and counts (security.md 6). `surely_small` follows from them."""

    __slots__ = ("chunk_extension_bytes", "chunk_line_bytes", "fields", "head_bytes", "request_line_bytes", "surely_small")

    def __init__(
        self,
        head_bytes: int = 32768,
        fields: int = 100,
        request_line_bytes: int = 8192,
        chunk_line_bytes: int = 4096,
        chunk_extension_bytes: int = 65536,
    ) -> None:
        self.head_bytes = head_bytes
        self.fields = fields
        self.request_line_bytes = min(request_line_bytes, head_bytes - 2)  # the line is a part of the head
        # a chunk line is a size and an extension; extensions over a body are bounded too (CVE-2023-39326)
        self.chunk_line_bytes = chunk_line_bytes
        self.chunk_extension_bytes = chunk_extension_bytes
        # A head of so few octets is below every limit, so that nobody needs to count: the shortest start line and the empty line have 16
        # octets, a field line has 4 or more.
        self.surely_small = min(self.request_line_bytes, 16 + 4 * fields)


class RequestEngine(Protocol):
    """The server side of an HTTP/1.1 connection. Errors are RequestError with the reason to answer."""

    @property
    def buffered(self) -> int:
        """Octets received and not yet given out."""
        ...

    def receive(self, data: bytes) -> None: ...

    def next(self) -> RequestHead | bytes | EndOfMessage | None: ...

    def restart(self) -> None: ...

    def rest(self) -> bytes:
        """What was received and not given out, for another engine to go on with between two messages."""
        ...

    @property
    def in_head(self) -> bool:
        """A head has begun and is not complete."""
        ...


class ResponseEngine(Protocol):
    """The client side. Errors are UpstreamError."""

    @property
    def buffered(self) -> int:
        """Octets received and not yet given out."""
        ...

    def receive(self, data: bytes) -> None: ...

    def next(self) -> ResponseHead | bytes | EndOfMessage | None: ...

    def restart(self, method: bytes) -> None: ...

    def whole_body(self) -> bytes | None: ...

    def rest(self) -> bytes:
        """What was received and not given out: behind a 101 it is no longer HTTP."""
        ...

    def eof(self) -> EndOfMessage | None: ...
