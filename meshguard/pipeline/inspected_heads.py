"""What inspection reads in the heads of messages and takes out of them."""

from __future__ import annotations

import re

from meshguard.wire.fields import field_values, remover

__all__ = ["message_coding", "representation_lines", "without_old_body", "without_parts"]

# A changed body makes these untrue (RFC 9110 section 8.8.3, RFC 9530).
_OF_THE_OLD_BODY = (
    *(b"etag", b"last-modified", b"accept-ranges", b"cache-control"),
    *(b"content-md5", b"digest", b"content-digest", b"repr-digest"),
)
without_old_body = remover(_OF_THE_OLD_BODY)
# A part of a document cannot be judged, and a coded one only after decoding: ask the upstream for the whole, as it is.
without_parts = remover(
    (b"range", b"if-range", b"accept-encoding", b"if-none-match", b"if-modified-since", b"grpc-accept-encoding")
)
representation_lines = re.compile(rb"\n(?i:content-(type|encoding)):[ \t]*+([^\r\n]*+)").findall
"""(`type` or `encoding`, value) of each Content-Type and Content-Encoding line of a block, with a line feed before its first line."""


def message_coding(block: bytes) -> str:
    """gRPC's coding of messages; more than one line of it is none that is known."""
    values = field_values(block, b"grpc-encoding")
    return ",".join(value.decode("latin-1").lower() for value in values)
