"""The chunked coding (RFC 9112 section 7.1), decoded strictly.

Theory of operation: SIZE -> DATA -> CRLF -> SIZE ... -> TRAILERS -> done. Sizes are 1 to 15 hexadecimal digits, so they fit any
reader; extensions are bounded and never forwarded (CVE-2023-39326); line ends are exactly CRLF.
"""

from __future__ import annotations

import re

from meshguard.model.errors import RequestError
from meshguard.model.reasons import MALFORMED_CHUNK, MALFORMED_TRAILERS
from meshguard.wire.events import EndOfMessage, WireLimits
from meshguard.wire.fields import NOT_IN_TRAILERS, count_fields, remove_fields
from meshguard.wire.grammar import CHUNK_LINE, FIELD_BLOCK, FORBIDDEN_IN_HEAD

__all__ = ["LAST_CHUNK", "ChunkDecoder", "encode_chunk", "encode_last_chunk"]

_SIZE, _DATA, _CRLF, _TRAILERS = range(4)
LAST_CHUNK = b"0\r\n\r\n"
_TRAILER_BYTES = 8192
_SIZE_OCTETS = 16
"""A chunk line with more octets than this is in its extension: 15 digits and the semicolon."""
_REST_OF_EXTENSION = re.compile(rb"[\t \x21-\x7e\x80-\xff]*+\r?+\Z").match


class ChunkDecoder:
    """Feed it the buffer; it takes what it can use. Raises RequestError(MALFORMED_CHUNK | MALFORMED_TRAILERS)."""

    __slots__ = ("_checked", "_extensions", "_left", "_limits", "_state")

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self._state = _SIZE
        self._left = 0
        self._extensions = 0
        self._checked = 0  # octets of an unfinished line or trailer section that need no second look

    def decode(self, buffer: bytes) -> tuple[bytes, int, EndOfMessage | None]:
        """(body data, octets used, end or None)."""
        position, size = 0, len(buffer)
        parts: list[bytes] = []
        while True:
            state = self._state
            if state == _DATA:
                if position == size:
                    break
                piece = buffer[position : position + self._left]
                parts.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._state = _CRLF
            elif state == _CRLF:
                ending = buffer[position : position + 2]
                if ending != b"\r\n":
                    if ending in (b"", b"\r"):
                        break
                    raise RequestError(MALFORMED_CHUNK, "data longer than the chunk size")
                position += 2
                self._state = _SIZE
            elif state == _SIZE:
                checked = self._checked
                match = None if checked and buffer.find(b"\n", checked) < 0 else CHUNK_LINE(buffer, position)
                if match is None:
                    self._check_partial_line(buffer, position)
                    break
                self._checked = 0
                extension = match.end() - match.end(1) - 2
                if extension:
                    self._extensions += extension
                    if extension > self._limits.chunk_line_bytes or self._extensions > self._limits.chunk_extension_bytes:
                        raise RequestError(MALFORMED_CHUNK, "chunk extensions too long")
                position = match.end()
                self._left = int(match[1], 16)
                self._state = _DATA if self._left else _TRAILERS
            else:
                end, position = self._trailers(buffer, position)
                return b"".join(parts), position, end
        return b"".join(parts), position, None

    def _check_partial_line(self, buffer: bytes, position: int) -> None:
        """An incomplete chunk line may wait for more; one that can never match is refused at once."""
        longest = self._limits.chunk_line_bytes + 16
        checked = self._checked
        if checked > _SIZE_OCTETS:  # inside the extension
            good = _REST_OF_EXTENSION(buffer, position + checked - 1) is not None
        else:
            line = buffer[position : position + longest + 1]
            good = not line or CHUNK_LINE(_completed(line)) is not None
        if not good or len(buffer) - position > longest:
            raise RequestError(MALFORMED_CHUNK, "chunk size line")
        self._checked = len(buffer) - position

    def _trailers(self, buffer: bytes, position: int) -> tuple[EndOfMessage | None, int]:
        if buffer.startswith(b"\r\n", position):
            return EndOfMessage(), position + 2
        checked = self._checked
        end = buffer.find(b"\r\n\r\n", position + max(0, checked - 3))
        if end < 0:
            size = len(buffer) - position
            # one octet more than a block may have: the first of the empty line
            if size > _TRAILER_BYTES + 1 or FORBIDDEN_IN_HEAD(buffer, position + max(0, checked - 1)) is not None:
                raise RequestError(MALFORMED_TRAILERS)
            self._checked = size
            return None, position
        block = buffer[position : end + 2]
        if len(block) > _TRAILER_BYTES or count_fields(block) > self._limits.fields or FIELD_BLOCK(block) is None:
            raise RequestError(MALFORMED_TRAILERS)
        return EndOfMessage(remove_fields(block, NOT_IN_TRAILERS)), end + 4


def _completed(line: bytes) -> bytes:
    """`line` as it would end if what is missing were the shortest correct rest."""
    line = line.removesuffix(b"\r")
    return (line + b"x" if line.endswith(b";") else line) + b"\r\n"


def encode_chunk(data: bytes) -> bytes:
    """One chunk; `data` is not empty (an empty chunk would end the body)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_last_chunk(trailers: bytes = b"") -> bytes:
    """The last chunk with its trailer section (a validated field block)."""
    return b"0\r\n%b\r\n" % trailers
