"""A protobuf message read into values, strictly: what no two readers could take for two things, and nothing else. And, for tests of
policies, a message made of values.

Readers agree on what serialisers write. On other octets they do not, or agree to drop silently, so those are refused: another wire type
than the field's own, a singular field or a map key that comes twice, two members of a oneof, a number beyond its type, a text that is no
UTF-8, what `protobuf_wire` refuses, more than MAX_VALUES values.

Values are those of JSON with the names of the .proto file: int64 are numbers, bytes are base64, an enum is the name of its value (or the
number of one that is not known), repeated fields are lists and maps objects. An absent scalar without presence has its default, as every
reader would have it; other absent fields are absent.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Mapping
from struct import Struct
from struct import error as StructError
from typing import Any

from meshguard.fields.protobuf_schema import (
    BOOL,
    BYTES,
    DOUBLE,
    ENUM,
    FIXED32,
    FIXED64,
    FLOAT,
    GROUP,
    INT32,
    INT64,
    MESSAGE,
    SFIXED32,
    SFIXED64,
    SINT32,
    SINT64,
    STRING,
    UINT32,
    UINT64,
    FieldType,
    MessageType,
)
from meshguard.fields.protobuf_wire import MAX_DEPTH, ProtobufError, read_varint, skip_field, varint

__all__ = ["MAX_VALUES", "List", "Map", "MessageError", "read_message", "write_message"]

MAX_VALUES = 20_000
"""Values of one message: reading them all holds the loop for some 20 ms."""
_VARINT, _I64, _LEN, _START, _END, _I32 = range(6)
_WIRE = {
    **dict.fromkeys((INT64, UINT64, INT32, BOOL, UINT32, ENUM, SINT32, SINT64), _VARINT),
    **dict.fromkeys((DOUBLE, FIXED64, SFIXED64), _I64),
    **dict.fromkeys((FLOAT, FIXED32, SFIXED32), _I32),
    **dict.fromkeys((STRING, BYTES, MESSAGE), _LEN),
    GROUP: _START,
}
_FIXED = {
    DOUBLE: Struct("<d"), FLOAT: Struct("<f"), FIXED64: Struct("<Q"), SFIXED64: Struct("<q"), FIXED32: Struct("<I"), SFIXED32: Struct("<i"),
}  # fmt: skip

List = Callable[[list[object]], list[object]]
Map = Callable[[dict[str, object]], dict[str, object]]


class MessageError(ValueError):
    """A message that is not acceptable: `path` leads to the place (members and indexes, with keys of maps, which are the client's), `rule`
    says what was broken in the words of the descriptor. `too_large`: only its size was wrong."""

    def __init__(self, rule: str, path: tuple[str | int, ...] = (), *, too_large: bool = False) -> None:
        super().__init__(rule)
        self.path = path
        self.rule = rule
        self.too_large = too_large


def read_message(
    message: bytes,
    of: MessageType,
    *,
    unknown: bool = True,
    strict: bool = False,
    repeated: List = list,
    mapped: Map = dict,
) -> dict[str, object]:
    """The values of `message`. Unknown fields are left out (`unknown`) or refused. `strict`: required fields must be there, and closed
    enums have one of their values. `repeated` and `mapped` make what repeated fields and maps become. Raises MessageError."""
    run = _Run(unknown, strict, repeated, mapped)
    try:
        value, _ = run.fields(message, 0, len(message), of, (), 0, 0)
    except ProtobufError as exc:
        raise MessageError(str(exc)) from None
    return value


class _Run:
    __slots__ = ("_left", "_mapped", "_repeated", "_strict", "_unknown")

    def __init__(self, unknown: bool, strict: bool, repeated: List, mapped: Map) -> None:
        self._unknown = unknown
        self._strict = strict
        self._repeated = repeated
        self._mapped = mapped
        self._left = MAX_VALUES

    def fields(
        self, data: bytes, position: int, end: int, of: MessageType, path: tuple[str | int, ...], depth: int, group: int
    ) -> tuple[dict[str, object], int]:
        """The values between `position` and `end`, or in the group of this number up to its end; and where that is."""
        if depth >= MAX_DEPTH:
            raise MessageError(f"more than {MAX_DEPTH} messages in one another", path)
        out: dict[str, Any] = {}
        chosen: dict[str, FieldType] = {}
        ended = not group
        while position < end:
            tag, position = read_varint(data, position)
            number, wire = tag >> 3, tag & 7
            if wire == _END:
                if not group or number != group:
                    raise MessageError("a group that ends as another one", path)
                ended = True
                break
            field = of.fields.get(number)
            self._count(1, path)
            if field is None:
                if number == 0 or number > 0x1FFFFFFF:
                    raise MessageError("a field number that is not possible", path)
                if not self._unknown:
                    raise MessageError(f"a field of {of.name}: it has none with the number {number}", path)
                if wire == _LEN:
                    length, position = read_varint(data, position)
                    position += length
                else:
                    position = skip_field(data, position, number, wire, depth)
                continue
            here = (*path, field.name)
            expected = _WIRE[field.kind]
            if wire != expected and not (wire == _LEN and field.repeated and expected in (_VARINT, _I64, _I32)):
                raise MessageError(f"wire type of {field.full_name}", here)
            if field.repeated:
                position = self._add(data, position, end, field, wire != expected, out, here, depth)
                continue
            if field.name in out:
                raise MessageError(f"{field.full_name} once", here)
            if field.oneof:
                if field.oneof in chosen:
                    raise MessageError(f"one member of {of.name}.{field.oneof}", here)
                chosen[field.oneof] = field
            out[field.name], position = self._one(data, position, end, field, here, depth)
        if position > end or not ended:
            raise MessageError("a field that is cut off", path)
        if self._strict:
            for field in of.required:
                if field.name not in out:
                    raise MessageError(f"required {field.full_name}", (*path, field.name))
        for field in of.defaults:
            out.setdefault(field.name, field.default)
        return out, position

    def _add(
        self,
        data: bytes,
        position: int,
        end: int,
        field: FieldType,
        packed: bool,
        out: dict[str, Any],
        here: tuple[str | int, ...],
        depth: int,
    ) -> int:
        """One occurrence of a repeated field or a map."""
        message = field.message
        if message is not None and message.is_map:
            entry, position = self._one(data, position, end, field, here, depth)
            if not isinstance(entry, dict):
                raise MessageError(f"an entry of {field.full_name}", here)
            key = entry.get("key", _absent(message.fields[1]))
            name = str(key).lower() if isinstance(key, bool) else str(key)
            values = out.setdefault(field.name, self._mapped({}))
            if name in values:
                raise MessageError(f"each key of {field.full_name} once", (*here, name))
            values[name] = entry.get("value", _absent(message.fields[2]))
            return position
        values = out.setdefault(field.name, self._repeated([]))
        if not packed:
            value, position = self._one(data, position, end, field, (*here, len(values)), depth)
            values.append(value)
            return position
        length, position = read_varint(data, position)
        last = position + length
        if last > end:
            raise MessageError("a field that is cut off", here)
        while position < last:
            self._count(1, here)
            value, position = self._one(data, position, last, field, (*here, len(values)), depth)
            values.append(value)
        if position != last:
            raise MessageError("a field that is cut off", here)
        return position

    def _one(
        self, data: bytes, position: int, end: int, field: FieldType, here: tuple[str | int, ...], depth: int
    ) -> tuple[object, int]:
        kind = field.kind
        fixed = _FIXED.get(kind)
        if fixed is not None:
            if position + fixed.size > end:
                raise MessageError("a field that is cut off", here)
            return fixed.unpack_from(data, position)[0], position + fixed.size
        if kind == GROUP and field.message is not None:
            return self.fields(data, position, end, field.message, here, depth + 1, field.number)
        number, position = read_varint(data, position)
        if kind not in (STRING, BYTES, MESSAGE):
            return self._integer(number, field, here), position
        last = position + number
        if last > end:
            raise MessageError("a field that is cut off", here)
        if field.message is not None:
            return self.fields(data, position, last, field.message, here, depth + 1, 0)[0], last
        octets = data[position:last]
        if kind == BYTES:
            return b2a_base64(octets, newline=False).decode(), last
        try:
            return octets.decode("utf-8"), last
        except UnicodeDecodeError:
            raise MessageError(f"UTF-8 in {field.full_name}", here) from None

    def _integer(self, number: int, field: FieldType, here: tuple[str | int, ...]) -> object:
        kind = field.kind
        if kind in (SINT32, SINT64):
            value = (number >> 1) ^ -(number & 1)
        elif kind in (INT32, INT64, ENUM):
            value = number - (1 << 64) if number >> 63 else number
        else:
            value = number
        low, high = _RANGES[kind]
        if not low <= value <= high:
            raise MessageError(f"a number of the type of {field.full_name}", here)
        if kind == BOOL:
            return value == 1
        if field.enum is None:
            return value
        name = field.enum.names.get(value)
        if name is None and self._strict and field.enum.closed:
            raise MessageError(f"a value of the enum of {field.full_name}", here)
        return value if name is None else name

    def _count(self, count: int, path: tuple[str | int, ...]) -> None:
        self._left -= count
        if self._left < 0:
            raise MessageError(f"at most {MAX_VALUES} values", path, too_large=True)


_RANGES: Mapping[int, tuple[int, int]] = {
    **dict.fromkeys((INT32, SINT32, ENUM), (-(1 << 31), (1 << 31) - 1)),
    **dict.fromkeys((INT64, SINT64), (-(1 << 63), (1 << 63) - 1)),
    UINT32: (0, (1 << 32) - 1),
    UINT64: (0, (1 << 64) - 1),
    BOOL: (0, 1),
}


def _absent(field: FieldType) -> object:
    """Key or value of a map's entry that is not written."""
    if field.message is not None:
        return {each.name: each.default for each in field.message.defaults}
    if field.kind in (STRING, BYTES):
        return ""
    if field.enum is not None:
        return field.enum.names.get(0, 0)
    return False if field.kind == BOOL else 0


def write_message(values: Mapping[str, object], of: MessageType) -> bytes:
    """A message with these values, as `read_message` gives them. Raises ValueError, with what was expected, for others."""
    by_name = {field.name: field for field in of.fields.values()}
    out = []
    for name, value in values.items():
        field = by_name.get(name)
        if field is None:
            raise ValueError(of.find(name))
        if field.repeated and isinstance(value, Mapping) and field.message is not None and field.message.is_map:
            out += [_written(field, {"key": _key_of(field.message, key), "value": each}) for key, each in value.items()]
        elif field.repeated:
            out += [_written(field, each) for each in (value if isinstance(value, list) else [value])]
        else:
            out.append(_written(field, value))
    return b"".join(out)


def _written(field: FieldType, value: Any) -> bytes:
    wire = _WIRE[field.kind]
    tag = varint(field.number << 3 | wire)
    try:
        if field.message is not None:
            inner = write_message(value, field.message)
            return tag + inner + varint(field.number << 3 | _END) if wire == _START else tag + varint(len(inner)) + inner
        if field.kind in _FIXED:
            return tag + _FIXED[field.kind].pack(value)
        if field.kind in (STRING, BYTES):
            octets = a2b_base64(value, strict_mode=True) if field.kind == BYTES else value.encode()
            return tag + varint(len(octets)) + octets
        number = value
        if field.enum is not None and isinstance(value, str):
            number = {name: number for number, name in field.enum.names.items()}[value]
        low, high = _RANGES[field.kind]
        if not low <= number <= high:
            raise ValueError
        return tag + varint(number << 1 ^ number >> 63 if field.kind in (SINT32, SINT64) else int(number) & (1 << 64) - 1)
    except (AttributeError, TypeError, ValueError, KeyError, StructError):
        raise ValueError(f"a value of the type of {field.full_name}") from None


def _key_of(entry: MessageType, key: str) -> object:
    kind = entry.fields[1].kind
    return key if kind == STRING else key == "true" if kind == BOOL else int(key)
