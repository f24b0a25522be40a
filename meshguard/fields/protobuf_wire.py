"""The protobuf wire format (protobuf.dev, "Encoding"): walks a message and rewrites the values of chosen fields, everything else as it is.

    message  = *(tag value)        tag = varint of number << 3 | wire type
    0 varint, 1 eight octets, 2 length and octets, 3 and 4 the begin and the end of a group, 5 four octets

Readers of protobuf agree on well-formed messages; on others they do not, so those are refused: cut off, a varint of more than ten octets,
field number 0, groups that do not end, deeper than MAX_DEPTH, a string that is not UTF-8, and a protected field in another wire type than
its own (a reader would keep it as an unknown field). The order of fields, unknown fields and the spelling of untouched lengths stay.
"""

from __future__ import annotations

from collections.abc import Callable

from meshguard.fields.protobuf_descriptor import FieldNode

__all__ = ["MAX_DEPTH", "ProtobufError", "read_varint", "rewrite", "skip_field", "varint"]

MAX_DEPTH = 64
_VARINT, _I64, _LEN, _START, _END, _I32 = range(6)

Treat = Callable[[str, bytes, FieldNode, int], "bytes | None"]
"""(kind, octets, node, field number) to the octets that stand in its place; None takes the field out."""


class ProtobufError(ValueError):
    """A message that cannot be read in one way only. The message of the error never carries content."""


def varint(value: int) -> bytes:
    """The shortest spelling."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def rewrite(message: bytes, node: FieldNode, treat: Treat, depth: int = 0) -> bytes:
    """`message` with its protected fields treated; the very object when nothing changed. Raises ProtobufError."""
    if depth >= MAX_DEPTH:
        raise ProtobufError(f"more than {MAX_DEPTH} messages in one another")
    size = len(message)
    position = kept = 0
    pieces: list[bytes] = []
    while position < size:
        begin = position
        tag, position = read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0 or number > 0x1FFFFFFF:
            raise ProtobufError("a field number that is not possible")
        protected = node.protected.get(number)
        inner = node.inner.get(number)
        if kind != _LEN:
            if protected is not None or inner is not None:
                raise ProtobufError("a protected field of another wire type than its own")
            position = skip_field(message, position, number, kind, depth)
            continue
        length, position = read_varint(message, position)
        start, position = position, position + length
        if position > size:
            raise ProtobufError("a field that is cut off")
        if protected is None and inner is None:
            continue
        value = message[start:position]
        if protected is not None:
            treated = treat(protected, value, node, number)
        else:
            treated = rewrite(value, inner, treat, depth + 1) if inner is not None else value
        if treated is value or treated == value:
            continue
        pieces.append(message[kept:begin])
        if treated is not None:
            pieces += [varint(tag), varint(len(treated)), treated]
        kept = position
    if not pieces:
        return message
    pieces.append(message[kept:])
    return b"".join(pieces)


def read_varint(message: bytes, position: int) -> tuple[int, int]:
    """A varint and where it ends."""
    try:
        octet = message[position]
        if octet < 0x80:
            return octet, position + 1
        value = octet & 0x7F
        for shift in range(7, 70, 7):
            position += 1
            octet = message[position]
            value |= (octet & 0x7F) << shift
            if octet < 0x80:
                if value >> 64:
                    raise ProtobufError("a number of more than 64 bits")
                return value, position + 1
    except IndexError:
        raise ProtobufError("a number that is cut off") from None
    raise ProtobufError("a number of more than ten octets")


def skip_field(message: bytes, position: int, number: int, kind: int, depth: int) -> int:
    """Where a field that is not of interest ends."""
    if kind == _VARINT:
        return read_varint(message, position)[1]
    if kind in (_I64, _I32):
        position += 8 if kind == _I64 else 4
    elif kind == _START:
        return _skip_group(message, position, number, depth)
    else:
        raise ProtobufError("a wire type that is not possible")
    if position > len(message):
        raise ProtobufError("a field that is cut off")
    return position


def _skip_group(message: bytes, position: int, number: int, depth: int) -> int:
    open_groups = [number]
    while open_groups:
        if depth + len(open_groups) > MAX_DEPTH:
            raise ProtobufError(f"more than {MAX_DEPTH} messages in one another")
        tag, position = read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0 or number > 0x1FFFFFFF:
            raise ProtobufError("a field number that is not possible")
        if kind == _START:
            open_groups.append(number)
        elif kind == _END:
            if open_groups.pop() != number:
                raise ProtobufError("a group that ends as another one")
        elif kind == _LEN:
            length, position = read_varint(message, position)
            position += length
            if position > len(message):
                raise ProtobufError("a field that is cut off")
        else:
            position = skip_field(message, position, number, kind, depth)
    return position
