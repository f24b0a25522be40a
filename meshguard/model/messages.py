"""Message heads as the wire layer hands them over, whichever protocol and engine they came through.

The currency of header fields is the *field block*: validated bytes, `name: value` CRLF for each field, in order, without the
fields of `wire.fields` that meshguard consumes itself (framing, hop-by-hop, spoofable). HTTP/1.1 forwards it nearly verbatim,
HTTP/2 encodes it line by line. Plain slotted classes: one is made per message (a frozen dataclass costs 590 ns, this 100).
"""

from __future__ import annotations

__all__ = ["CHUNKED", "NO_BODY", "UNTIL_CLOSE", "RequestHead", "ResponseHead"]

NO_BODY = 0
"""`length` of a message without a body (a request without framing, a HEAD/204/304 response)."""
CHUNKED = -1
"""`length` of a body whose end the framing tells (chunked; HTTP/2 without content-length)."""
UNTIL_CLOSE = -2
"""`length` of a response body that ends with its connection."""


class RequestHead:
    """A validated request head.

    method      bytes, a token, case as sent
    target      bytes, as sent, validated characters only (the canonical form is the pipeline's)
    scheme      bytes of the absolute form, or empty
    authority   bytes: Host (or the absolute form's authority, :authority), lower case, as sent otherwise
    block       bytes: the field block (see above); it ends with CRLF or is empty
    length      body length in octets >= 0, or CHUNKED
    minor       0 or 1 for HTTP/1.x, 2 for HTTP/2
    keep_alive  the client lets the connection go on after this exchange
    expect      an `Expect: 100-continue` is waiting for its answer
    specials    list of (lower-case name, value) in order: every field that was cut from the block for meshguard's own use
                (traceparent, tracestate, x-forwarded-*, forwarded, x-forwarded-client-cert, te, upgrade, ...); of Connection
                only the option that an upgrade needs, as (connection, upgrade)
    size        octets of the head on the wire
    """

    __slots__ = ("authority", "block", "expect", "keep_alive", "length", "method", "minor", "scheme", "size", "specials", "target")

    method: bytes
    target: bytes
    scheme: bytes
    authority: bytes
    block: bytes
    length: int
    minor: int
    keep_alive: bool
    expect: bool
    specials: list[tuple[bytes, bytes]]
    size: int


class ResponseHead:
    """A validated response head; `length` may also be UNTIL_CLOSE. 1xx heads are interim: another head follows."""

    __slots__ = ("block", "keep_alive", "length", "minor", "size", "specials", "status")

    status: int
    block: bytes
    length: int
    minor: int
    keep_alive: bool
    specials: list[tuple[bytes, bytes]]
    size: int
