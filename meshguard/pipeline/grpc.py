"""gRPC over HTTP/2: what makes a request one, its deadline, and the answer that a gRPC client understands.

(The protocol document of gRPC, "gRPC over HTTP2".) A refusal is an HTTP 200 of trailers only: any other status is mapped by
clients to UNAVAILABLE or UNKNOWN, and some of those are retried.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from time import monotonic

from meshguard.model.errors import RequestError
from meshguard.model.messages import RequestHead
from meshguard.model.reasons import GRPC_TIMEOUT_MALFORMED, UPSTREAM_TIMEOUT, Reason
from meshguard.wire.fields import field_values, remove_fields

__all__ = ["is_grpc", "names_grpc", "refusal_block", "refusal_trailers", "with_deadline"]

_TIMEOUT_FIELD = b"grpc-timeout"
# Not `application/grpc-web`: that one is made for HTTP/1.1 and carries its trailers in the body.
_CONTENT_TYPE = re.compile(rb"(?:\A|\n)content-type:[ \t]*application/grpc(?:[+;][^\r\n]*)?[ \t]*\r", re.IGNORECASE).search
_USUAL_TYPE = b"\ncontent-type: application/grpc\r\n"
# At most eight digits and one unit.
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_TIMEOUT_LINE = re.compile(rb"grpc-timeout: ([0-9]{1,8})([HMSmun])\r\n").match
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}


def is_grpc(head: RequestHead) -> bool:
    """A gRPC call: over HTTP/2, with one of its content types."""
    block = head.block
    return head.minor == 2 and b"application/grpc" in block and (_USUAL_TYPE in block or _CONTENT_TYPE(block) is not None)


def names_grpc(content_type: bytes) -> bool:
    """The value of a `content-type` is one of gRPC's."""
    return content_type.startswith(b"application/grpc") and _CONTENT_TYPE(b"\ncontent-type: %b\r" % content_type) is not None


def with_deadline(block: bytes, started: float) -> tuple[float, bytes]:
    """(end of the call that its client wishes, in monotonic seconds, and the block with what is left until then); 0.0 and the same block
    without one. Raises RequestError(GRPC_TIMEOUT_MALFORMED), and RequestError(UPSTREAM_TIMEOUT) when nothing is left."""
    place = block.find(_TIMEOUT_FIELD)
    if place < 0:
        return 0.0, block
    match = _TIMEOUT_LINE(block, place)
    if match is not None and (not place or block[place - 1] == 0x0A) and block.find(_TIMEOUT_FIELD, match.end()) < 0:
        rest = block[:place] + block[match.end() :]
    else:
        values = field_values(block, _TIMEOUT_FIELD)
        if not values:
            return 0.0, block
        match = _TIMEOUT(values[0])
        if len(values) > 1 or match is None:
            raise RequestError(GRPC_TIMEOUT_MALFORMED)
        rest = remove_fields(block, (_TIMEOUT_FIELD,))
    deadline = started + int(match[1]) * _UNIT_S[match[2]]
    left_us = round((deadline - monotonic()) * 1e6)
    if left_us <= 0:
        raise RequestError(UPSTREAM_TIMEOUT, "grpc-timeout")
    if left_us < 1_000_000:
        return deadline, b"%bgrpc-timeout: %du\r\n" % (rest, left_us)
    # a thousandth of what is left at most is lost, and calls that came with the same timeout go on with the same few
    return deadline, b"%bgrpc-timeout: %dm\r\n" % (rest, min(left_us // 1000, 10**8 - 1))


def refusal_block(reason: Reason, decision_id: str, place: str = "") -> bytes:
    """The only head of a refused call: trailers at the same time. The `place` of a violation is told as `google.rpc.BadRequest`."""
    block = b"content-type: application/grpc\r\n" + refusal_trailers(reason, decision_id)
    return block + _details(reason, _text(reason, decision_id), place) if place else block


def refusal_trailers(reason: Reason, decision_id: str) -> bytes:
    """What ends a call that is refused after its answer has begun."""
    return b"grpc-status: %d\r\ngrpc-message: %b\r\n" % (reason.grpc, _percent_encoded(_text(reason, decision_id)))


def _text(reason: Reason, decision_id: str) -> str:
    return f"{reason.title} ({reason.code}, decision {decision_id})"


def _details(reason: Reason, text: str, place: str) -> bytes:
    """`grpc-status-details-bin`: a google.rpc.Status (code 1, message 2, details 3) with a BadRequest of one field violation."""
    from meshguard.fields.protobuf_wire import varint  # few clients are told places

    def field(number: int, octets: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(octets)) + octets

    violation = field(1, place.encode()) + field(2, reason.title.encode())
    packed = field(1, b"type.googleapis.com/google.rpc.BadRequest") + field(2, field(1, violation))
    status = b"\x08%c" % reason.grpc + field(2, text.encode()) + field(3, packed)
    return b"grpc-status-details-bin: %b\r\n" % b2a_base64(status, newline=False).rstrip(b"=")


def _percent_encoded(text: str) -> bytes:
    return b"".join(b"%c" % octet if octet in _PLAIN else b"%%%02X" % octet for octet in text.encode("utf-8"))
