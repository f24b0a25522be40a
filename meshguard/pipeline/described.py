"""What a head says of its body, and what of a head is not true any more, or may not be asked, where a body is read here."""

from __future__ import annotations

import re

from meshguard.wire.fields import field_values, remover

__all__ = ["described", "message_coding", "without_old_body", "without_parts"]

# A changed body makes these untrue (RFC 9110 section 8.8.3, RFC 9530).
without_old_body = remover(
    (b"etag", b"last-modified", b"accept-ranges", b"cache-control", b"content-md5", b"digest", b"content-digest", b"repr-digest")
)
# A part of a document cannot be judged, and a coded one only after decoding: ask the upstream for the whole, as it is.
without_parts = remover((b"range", b"if-range", b"accept-encoding", b"if-none-match", b"if-modified-since", b"grpc-accept-encoding"))

_lines = re.compile(rb"\n(?i:content-(type|encoding)):[ \t]*+([^\r\n]*+)").findall


def message_coding(block: bytes) -> str:
    """gRPC's coding of messages; more than one line of it is none that is known."""
    if b"grpc-encoding" not in block.lower():  # nearly always: a look at each line costs ten times as much
        return ""
    values = field_values(block, b"grpc-encoding")
    return ",".join(value.decode("latin-1").lower() for value in values)


def described(block: bytes) -> list[tuple[bytes, bytes]]:
    """(`type` or `encoding` in any case, value) of each Content-Type and Content-Encoding line, for `Transform.check_lines`."""
    found: list[tuple[bytes, bytes]] = _lines(b"\n" + block)
    return found
