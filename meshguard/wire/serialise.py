"""Messages to bytes: always our own framing and our own start line, never the peer's."""

from __future__ import annotations

from http import HTTPStatus

from meshguard.model.messages import CHUNKED

__all__ = ["CHUNKED_LINE", "INTERIM_CONTINUE", "STATUS_LINES", "framing_line", "status_line"]

CHUNKED_LINE = b"transfer-encoding: chunked\r\n"
INTERIM_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

STATUS_LINES: dict[int, bytes] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus
}


def status_line(status: int) -> bytes:
    """The status line with our own reason phrase (RFC 9112 section 4)."""
    line = STATUS_LINES.get(status)
    return b"HTTP/1.1 %d \r\n" % status if line is None else line


def framing_line(length: int) -> bytes:
    """`length` octets or CHUNKED as a field line."""
    return CHUNKED_LINE if length == CHUNKED else b"content-length: %d\r\n" % length
