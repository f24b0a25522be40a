"""gRPC messages in a body ("gRPC over HTTP2", Length-Prefixed-Message): one octet of flags, four of length, the message.

Messages are treated one by one as they pass. A compressed one is decompressed within the limits of `codings`, and compressed again where it
changed. A flag that is not 0 or 1, a compressed message without a known `grpc-encoding`, and an end in the middle are refused.
"""

from __future__ import annotations

from meshguard.fields.codings import CodingError, decode_body, encode_body
from meshguard.fields.protobuf_body import ProtobufRules
from meshguard.fields.protobuf_wire import ProtobufError
from meshguard.fields.streams import RecordTooLongError
from meshguard.fields.treatment import Work

__all__ = ["FrameCutter", "unframe"]

_PREFIX = 5


class FrameCutter:
    """A `Cutter` of gRPC messages."""

    __slots__ = ("_coding", "_limit", "_rest", "_rules", "_work")

    def __init__(self, rules: ProtobufRules, work: Work, limit: int, coding: str) -> None:
        self._rules = rules
        self._work = work
        self._limit = limit
        self._coding = "" if coding == "identity" else coding
        self._rest = bytearray()

    @property
    def held(self) -> int:
        return len(self._rest)

    def feed(self, data: bytes) -> bytes:
        self._rest += data
        rest = self._rest
        out = []
        position = 0
        while len(rest) - position >= _PREFIX:
            flag = rest[position]
            length = int.from_bytes(rest[position + 1 : position + _PREFIX], "big")
            if flag > 1:
                raise ProtobufError("a gRPC message with a flag that is not known")
            if length > self._limit:
                raise RecordTooLongError(self._limit)
            end = position + _PREFIX + length
            if end > len(rest):
                break
            out.append(self._message(flag, bytes(rest[position + _PREFIX : end])))
            position = end
        if position:
            del rest[:position]
        return b"".join(out)

    def finish(self) -> bytes:
        if self._rest:
            raise ProtobufError("a gRPC message that is cut off")
        return b""

    def _message(self, flag: int, message: bytes) -> bytes:
        if flag and not self._coding:
            raise CodingError("a compressed message without grpc-encoding")
        plain = decode_body(self._coding, message, self._limit) if flag else message
        treated = self._rules.treat(plain, self._work)
        if treated is not plain:
            message = encode_body(self._coding, treated) if flag else treated
        return bytes((flag,)) + len(message).to_bytes(4, "big") + message


def unframe(body: bytes, coding: str, limit: int) -> list[bytes]:
    """The messages of a whole body, `coding` (that of `grpc-encoding`) taken off. Raises ProtobufError, CodingError, RecordTooLongError."""
    messages: list[bytes] = []
    position = 0
    while position < len(body):
        flag, length = body[position], int.from_bytes(body[position + 1 : position + _PREFIX], "big")
        start, position = position + _PREFIX, position + _PREFIX + length
        if flag > 1:
            raise ProtobufError("a gRPC message with a flag that is not known")
        if position > len(body):
            raise ProtobufError("a gRPC message that is cut off")
        message = body[start:position]
        if flag:
            if coding in ("", "identity"):
                raise CodingError("a compressed message without grpc-encoding")
            message = decode_body(coding, message, limit)
        if len(message) > limit:
            raise RecordTooLongError(limit)
        messages.append(message)
    return messages
