"""Numbers and layouts of frames (RFC 9113 sections 4, 6, 7), and the octets of the frames that we write."""

from __future__ import annotations

from struct import Struct

__all__ = [
    "ACK",
    "COMPRESSION_ERROR",
    "CONTINUATION",
    "DATA",
    "DEFAULT_FRAME_BYTES",
    "DEFAULT_TABLE_BYTES",
    "DEFAULT_WINDOW",
    "ENABLE_CONNECT_PROTOCOL",
    "ENABLE_PUSH",
    "END_HEADERS",
    "END_STREAM",
    "FRAME_HEADER",
    "FRAME_SIZE_ERROR",
    "GOAWAY",
    "HEADERS",
    "HEADER_TABLE_SIZE",
    "INITIAL_WINDOW_SIZE",
    "MAX_CONCURRENT_STREAMS",
    "MAX_FRAME_SIZE",
    "MAX_HEADER_LIST_SIZE",
    "MAX_STREAM",
    "MAX_WINDOW",
    "NO_RFC7540_PRIORITIES",
    "PADDED",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PRIORITY_FLAG",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTING",
    "SETTINGS",
    "SETTINGS_ACK",
    "STREAM_CLOSED",
    "WINDOW_UPDATE",
    "frame",
    "goaway_frame",
    "long_block",
    "reset_frame",
    "settings_frame",
    "window_frame",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Length (as 16 and 8 bits), type, flags, stream identifier (its highest bit is reserved and ignored).
FRAME_HEADER = Struct(">HBBBI")
SETTING = Struct(">HI")
_FRAME_AND_NUMBER = Struct(">HBBBII")
_GOAWAY_FRAME = Struct(">HBBBIII")

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

ACK = 0x1
END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

HEADER_TABLE_SIZE = 0x1
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6
ENABLE_CONNECT_PROTOCOL = 0x8  # RFC 8441 section 3
NO_RFC7540_PRIORITIES = 0x9  # RFC 9218 section 2.1

DEFAULT_TABLE_BYTES = 4096
DEFAULT_WINDOW = 65535
DEFAULT_FRAME_BYTES = 16384
MAX_WINDOW = 2**31 - 1
MAX_STREAM = 2**31 - 1

# Those of section 7 that only an engine uses; the others are in `engine`.
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
COMPRESSION_ERROR = 0x9

SETTINGS_ACK = FRAME_HEADER.pack(0, 0, SETTINGS, ACK, 0)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return FRAME_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def long_block(flags: int, stream: int, block: bytes, most: int) -> bytes:
    """HEADERS with `flags` (END_STREAM or 0) and CONTINUATION, of a field block that is longer than the peer's frames may be (`most`)."""
    size = len(block)
    parts = [frame(HEADERS, flags, stream, block[:most])]
    for start in range(most, size, most):
        last = END_HEADERS if start + most >= size else 0
        parts.append(frame(CONTINUATION, last, stream, block[start : start + most]))
    return b"".join(parts)


def settings_frame(values: list[tuple[int, int]]) -> bytes:
    """(identifier, value) pairs."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*pair) for pair in values))


def reset_frame(stream: int, code: int) -> bytes:
    return _FRAME_AND_NUMBER.pack(0, 4, RST_STREAM, 0, stream, code)


def window_frame(stream: int, octets: int) -> bytes:
    return _FRAME_AND_NUMBER.pack(0, 4, WINDOW_UPDATE, 0, stream, octets)


def goaway_frame(last_stream: int, code: int) -> bytes:
    return _GOAWAY_FRAME.pack(0, 8, GOAWAY, 0, 0, last_stream, code)
