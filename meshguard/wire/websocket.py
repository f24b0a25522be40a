"""WebSocket frames as they pass (RFC 6455 section 5): a scanner of one direction that validates and forwards verbatim.

Theory of operation. Only frame headers are looked at; payload passes by, except that uncompressed text is checked to be UTF-8 (section
8.1). What has to be seen whole before anything of it may go on (a header, a control frame: at most 139 octets) is held back, so that the
other side is always either at the boundary of a frame or inside the payload of a valid one:

    HEADER --data frame--> PAYLOAD --its end--> HEADER           HEADER --control frame, whole--> HEADER
    HEADER --Close, whole--> STOPPED (close_frame is set)        anything wrong --> STOPPED (violation is set)

INVARIANT: the pieces that `feed` gives out are the octets that came, in order, up to where it stopped; however they were cut.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Callable

__all__ = [
    "BAD_GATEWAY",
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "INVALID_DATA",
    "NORMAL",
    "NO_STATUS",
    "POLICY",
    "PROTOCOL_ERROR",
    "TOO_BIG",
    "FrameScanner",
    "close_frame",
    "control_frame",
    "unmask",
]

# Status codes (RFC 6455 section 7.4.1; 1012 to 1014 from the IANA registry).
NORMAL = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
NO_STATUS = 1005  # never on the wire: a Close without a code
INVALID_DATA = 1007
POLICY = 1008
TOO_BIG = 1009
INTERNAL_ERROR = 1011
BAD_GATEWAY = 1014
_CODES = frozenset((*range(1000, 1004), *range(1007, 1015)))

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA

_BUDGET = 512
"""Frames of one `feed`, at most: 64 KiB of empty frames would otherwise hold the loop for 10 ms."""
_SHORT = 96
"""Octets up to which one XOR of long integers unmasks faster than a translation of each of the four strides."""

# What the first octet says (FIN, RSV1 to RSV3, opcode), by whether a fragmented message is under way and RSV1 means compressed
# (RFC 7692 section 6); 0 is not allowed.
_FINAL, _CONTROL, _TEXT, _FIRST, _DATA = 1, 2, 4, 8, 16


def _kinds(*, continuing: bool, compression: bool) -> bytes:
    table = bytearray(256)
    for opcode in (CLOSE, PING, PONG):
        table[0x80 | opcode] = _FINAL | _CONTROL
    for final in (0, 1):
        if continuing:
            table[final << 7] = _DATA | final
        else:
            table[final << 7 | TEXT] = _DATA | _FIRST | _TEXT | final
            table[final << 7 | BINARY] = _DATA | _FIRST | final
            if compression:
                for opcode in (TEXT, BINARY):  # compressed text cannot be judged without inflating it
                    table[final << 7 | 0x40 | opcode] = _DATA | _FIRST | final
    return bytes(table)


_KINDS = {
    (continuing, compression): _kinds(continuing=continuing, compression=compression)
    for continuing in (False, True)
    for compression in (False, True)
}

_TRANSLATIONS: list[bytes] = []
"""One table for each value of a key's octet, made with the first long masked text (64 KiB in all)."""


def unmask(payload: bytes, key: bytes) -> bytes:
    """The payload of a masked frame, or masks it (RFC 6455 section 5.3). `key` is four octets, in step with the first of `payload`."""
    count = len(payload)
    if count <= _SHORT:
        stream = (key * (count // 4 + 1))[:count]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(stream, "little")).to_bytes(count, "little")
    if not _TRANSLATIONS:
        _TRANSLATIONS.extend(bytes(octet ^ value for octet in range(256)) for value in range(256))
    clear = bytearray(count)
    for index in range(4):
        clear[index::4] = payload[index::4].translate(_TRANSLATIONS[key[index]])
    return bytes(clear)


def control_frame(opcode: int, payload: bytes, key: bytes = b"") -> bytes:
    """A control frame with at most 125 octets; `key` masks it (what a client sends has to be masked, section 5.1)."""
    if key:
        return b"%c%c%b%b" % (0x80 | opcode, 0x80 | len(payload), key, unmask(payload, key))
    return b"%c%c%b" % (0x80 | opcode, len(payload), payload)


def close_frame(code: int, reason: bytes = b"", key: bytes = b"") -> bytes:
    """A Close frame; `reason` is UTF-8, at most 123 octets."""
    return control_frame(CLOSE, code.to_bytes(2, "big") + reason, key)


class FrameScanner:
    """One direction of one connection.

    `masked`       frames must be masked (from the client), else must not be
    `compression`  permessage-deflate was negotiated
    `frame_limit`, `message_limit`  octets of payload (compressed ones as they are on the wire); 0: no limit

    stopped        nothing of what comes is given out any more, because of
    close_frame    the Close that came, whole, and not given out; `close_code` its code (NO_STATUS without one)
    violation      (close code for the offender, what was wrong)
    rest           octets that were not looked at because the budget of one call was used up: feed them next
    """

    __slots__ = (
        "_anew",
        "_check",
        "_compression",
        "_continuing",
        "_frame_limit",
        "_held",
        "_key",
        "_left",
        "_mask",
        "_message",
        "_message_limit",
        "_now",
        "_tail",
        "_text",
        "close_code",
        "close_frame",
        "rest",
        "stopped",
        "violation",
    )

    def __init__(self, *, masked: bool, compression: bool = False, frame_limit: int = 0, message_limit: int = 0) -> None:
        self._mask = 0x80 if masked else 0
        self._compression = compression
        self._frame_limit = frame_limit or 1 << 63
        self._message_limit = message_limit or 1 << 63
        self._anew = _KINDS[False, compression]
        self._continuing = _KINDS[True, compression]
        self._now = self._anew  # which first octets are allowed now
        self._held = b""  # the beginning of a header or control frame
        self._left = 0  # octets of payload still to come
        self._message = 0  # octets of the message under way, its present frame included
        self._text = False  # the message is text, to be checked
        self._check = False  # a text whose last frame is under way
        self._key = b""  # of the frame under way, in step with the next octet
        self._tail = b""  # the beginning of a character
        self.stopped = False
        self.close_frame = b""
        self.close_code = 0
        self.violation: tuple[int, str] | None = None
        self.rest = b""

    @property
    def at_boundary(self) -> bool:
        """What was given out ends with a frame: a control frame may follow."""
        return not self._left

    @property
    def between_messages(self) -> bool:
        """No message is under way."""
        return not self._left and self._now is self._anew

    def feed(self, data: bytes) -> bytes:
        """The octets that may go on (often `data` itself). Never raises; see `stopped`."""
        if self.stopped:
            return b""
        if self._held:
            data = self._held + data
            self._held = b""
        size = len(data)
        position = 0
        left = self._left
        budget = _BUDGET
        mask = self._mask
        overhead = 6 if mask else 2
        start = -1  # of the frame under way, where nothing of it was given out before
        while position < size:
            if left:
                end = position + left
                if self._text and not self._pass_text(data[position:end], last=self._check and end <= size):
                    if start >= 0:
                        position, left = start, 0
                    return self._stop(data, position, left, INVALID_DATA, "text is not UTF-8")
                if end > size:
                    self._left = end - size
                    return data
                left = 0
                position = end
                continue
            if size - position < 2:
                break
            kind = self._now[data[position]]
            second = data[position + 1]
            if not kind or second & 0x80 != mask:
                return self._stop(data, position, 0, PROTOCOL_ERROR, self._wrong(data[position], second))
            if not budget:
                self.rest = data[position:]
                self._left = 0
                return data[:position]
            budget -= 1
            length = second & 0x7F
            begin = position + overhead  # of the payload
            if kind & _CONTROL:
                if length > 125:
                    return self._stop(data, position, 0, PROTOCOL_ERROR, "control frame too long")
                if begin + length > size:
                    break
                if data[position] & 0xF == CLOSE:
                    return self._closed(data, position, begin, length)
                position = begin + length
                continue
            if length > 125:
                begin += 2 if length == 126 else 8
                if begin > size:
                    break
                width = 2 if length == 126 else 8
                shortest = 126 if length == 126 else 65536
                length = int.from_bytes(data[position + 2 : position + 2 + width], "big")
                if length < shortest or length >> 63:
                    return self._stop(data, position, 0, PROTOCOL_ERROR, "length not in its shortest form")
            elif begin > size:
                break
            if length > self._frame_limit:
                return self._stop(data, position, 0, TOO_BIG, f"frame of {length} octets")
            if kind & _FIRST:
                self._message = length
                self._text = kind & _TEXT != 0
            else:
                self._message += length
            if self._message > self._message_limit:
                return self._stop(data, position, 0, TOO_BIG, f"message of {self._message} octets or more")
            if kind & _FINAL:
                self._now = self._anew
                self._check = self._text
            else:
                self._now = self._continuing
                self._check = False
            if self._text:
                self._key = data[begin - 4 : begin] if mask else b""
                if not length and self._check and self._tail:
                    return self._stop(data, position, 0, INVALID_DATA, "text is not UTF-8")
            start = position
            position = begin
            left = length
        self._left = left
        if position < size:
            self._held = data[position:]
            return data[:position]
        return data

    def _pass_text(self, piece: bytes, *, last: bool) -> bool:
        """`piece` goes on with a text; `last`: its end ends the message."""
        key = self._key
        if key:
            clear = piece.isascii() if key == b"\0\0\0\0" else _is_ascii_masked(piece, key) if len(piece) > _SHORT else False
            turn = len(piece) & 3
            if turn:
                self._key = key[turn:] + key[:turn]
            if clear and not self._tail:
                return True
            piece = unmask(piece, key)
        tail = self._tail
        if not tail and piece.isascii():
            return True
        if tail:
            piece = tail + piece
        try:
            _, used = utf_8_decode(piece, "strict", last)
        except UnicodeDecodeError:
            return False
        self._tail = piece[used:]
        return True

    def _closed(self, data: bytes, position: int, begin: int, length: int) -> bytes:
        payload = data[begin : begin + length]
        if self._mask:
            payload = unmask(payload, data[begin - 4 : begin])
        code = NO_STATUS
        if length:
            code = int.from_bytes(payload[:2], "big")
            if length == 1 or not (code in _CODES or 3000 <= code <= 4999):
                return self._stop(data, position, 0, PROTOCOL_ERROR, "close code")
            try:
                payload[2:].decode("utf-8")
            except UnicodeDecodeError:
                return self._stop(data, position, 0, INVALID_DATA, "close reason is not UTF-8")
        self.close_code = code
        self.close_frame = data[position : begin + length]
        self.stopped = True
        self._left = 0
        return data[:position]

    def _stop(self, data: bytes, position: int, left: int, code: int, detail: str) -> bytes:
        self.stopped = True
        self.violation = (code, detail)
        self._left = left
        return data[:position]

    def _wrong(self, first: int, second: int) -> str:
        opcode = first & 0xF
        if second & 0x80 != self._mask:
            return "frame is not masked" if self._mask else "frame is masked"
        if first & 0x70 and not (self._compression and first & 0x70 == 0x40 and opcode in (TEXT, BINARY)):
            return "reserved bits"
        if opcode not in (0, TEXT, BINARY, CLOSE, PING, PONG):
            return f"opcode {opcode}"
        if opcode >= CLOSE:
            return "fragmented control frame"
        return "continuation of nothing" if not opcode else "new message inside a fragmented one"


_FLIP = bytes(octet ^ 0x80 for octet in range(256))
_IS_ASCII: Callable[[bytes], bool] = bytes.isascii


def _is_ascii_masked(piece: bytes, key: bytes) -> bool:
    """Whether `piece` is ASCII behind its mask: only the highest bits matter."""
    high = [octet & 0x80 for octet in key]
    if not any(high):
        return piece.isascii()
    for index in range(4):
        stride = piece[index::4]
        if high[index]:
            stride = stride.translate(_FLIP)
        if not stride.isascii():
            return False
    return True
