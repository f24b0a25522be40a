"""Message types of a descriptor set in full: what `protobuf_values` needs to read a message and to tell what is wrong with it.

Parsed once when a document is loaded, with the protobuf runtime imported then; what is kept are plain tables. `protobuf_descriptor` keeps
the less that field rules need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from meshguard.fields.protobuf_descriptor import MAX_BYTES, DescriptorError

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto

__all__ = [
    "BOOL", "BYTES", "DOUBLE", "ENUM", "FIXED32", "FIXED64", "FLOAT", "GROUP", "INT32", "INT64", "MESSAGE", "SFIXED32", "SFIXED64",
    "SINT32", "SINT64", "STRING", "UINT32", "UINT64", "EnumType", "FieldType", "MessageType", "MethodType", "Schema",
]  # fmt: skip

# FieldDescriptorProto.Type
DOUBLE, FLOAT, INT64, UINT64, INT32, FIXED64, FIXED32, BOOL, STRING, GROUP, MESSAGE, BYTES, UINT32, ENUM = range(1, 15)
SFIXED32, SFIXED64, SINT32, SINT64 = range(15, 19)
_REQUIRED, _REPEATED = 2, 3  # FieldDescriptorProto.Label
_EXPLICIT, _IMPLICIT, _LEGACY_REQUIRED = 1, 2, 3  # FeatureSet.FieldPresence
_CLOSED = 2  # FeatureSet.EnumType


class EnumType:
    """`names` by number; of a `closed` one other numbers are no values."""

    __slots__ = ("closed", "names")

    def __init__(self, names: Mapping[int, str], closed: bool) -> None:
        self.names = names
        self.closed = closed


class FieldType:
    """A field: its `kind` is the type of FieldDescriptorProto. `default` is what a reader takes an absent one for where it cannot, or will
    not, tell; None where absence is a state of its own. `oneof` names the oneof that it is in."""

    __slots__ = ("default", "enum", "full_name", "kind", "message", "name", "number", "oneof", "repeated", "required")

    def __init__(self, name: str, full_name: str, number: int, kind: int) -> None:
        self.name = name
        self.full_name = full_name
        self.number = number
        self.kind = kind
        self.repeated = False
        self.required = False
        self.oneof = ""
        self.default: object = None
        self.message: MessageType | None = None
        self.enum: EnumType | None = None


class MessageType:
    """A message type: `fields` by number, those that are `required`, those with a `default`; the entry of a map is one too."""

    __slots__ = ("defaults", "fields", "is_map", "name", "required")

    def __init__(self, name: str, is_map: bool) -> None:
        self.name = name
        self.is_map = is_map
        self.fields: dict[int, FieldType] = {}
        self.required: tuple[FieldType, ...] = ()
        self.defaults: tuple[FieldType, ...] = ()

    def find(self, path: str) -> str:
        """What was expected instead of the dotted path, in words; "" where there is such a field. Of a map, its values."""
        name, _, rest = path.partition(".")
        field = next((field for field in self.fields.values() if field.name == name), None)
        if field is None:
            return f"a field of {self.name}: {', '.join(sorted(field.name for field in self.fields.values())[:12]) or 'it has none'}"
        message = field.message
        if message is not None and message.is_map:
            message = message.fields[2].message
        if rest:
            return message.find(rest) if message is not None else f"a path that ends at {name}, which is no message"
        return ""


class MethodType:
    """A gRPC method: what it takes, and whether a client may send `many`."""

    __slots__ = ("many", "request")

    def __init__(self, request: MessageType, many: bool) -> None:
        self.request = request
        self.many = many


class Schema:
    """The messages and methods of a serialised FileDescriptorSet; `digest` is that of its octets. Raises DescriptorError."""

    __slots__ = ("_enums", "_messages", "digest", "methods")

    def __init__(self, data: bytes) -> None:
        from google.protobuf.descriptor_pb2 import FileDescriptorSet
        from google.protobuf.message import DecodeError

        if not 0 < len(data) <= MAX_BYTES:
            raise DescriptorError(f"a descriptor set of at most {MAX_BYTES >> 20} MiB")
        try:
            files = FileDescriptorSet.FromString(data).file
        except DecodeError:
            raise DescriptorError("a serialised FileDescriptorSet (protoc --include_imports --descriptor_set_out)") from None
        self.digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self._messages: dict[str, MessageType] = {}
        self._enums: dict[str, EnumType] = {}
        self.methods: dict[str, MethodType] = {}
        known = [(file, name, message) for file in files for name, message in _messages(file)]
        for file in files:
            self._add_enums(file, f"{file.package}." if file.package else "", file.enum_type)
        for file, name, message in known:
            self._messages[name] = MessageType(name, message.options.map_entry)
            self._add_enums(file, f"{name}.", message.enum_type)
        for file, name, message in known:
            for field in message.field:
                self._add(file, self._messages[name], field, f"{name}.{field.name}", field.name, message)
            for extension in message.extension:
                self._extend(file, extension, f"{name}.{extension.name}")
        for file in files:
            for extension in file.extension:
                self._extend(file, extension, f"{file.package}.{extension.name}".lstrip("."))
        for each in self._messages.values():
            each.required = tuple(field for field in each.fields.values() if field.required)
            each.defaults = tuple(field for field in each.fields.values() if field.default is not None)
        for file in files:
            self._add_methods(file)
        if not self._messages:
            raise DescriptorError("a descriptor set with messages")

    def message(self, name: str) -> MessageType | None:
        """A message type by its full name."""
        return self._messages.get(name.lstrip("."))

    def _add_methods(self, file: FileDescriptorProto) -> None:
        prefix = f"{file.package}." if file.package else ""
        for service in file.service:
            for method in service.method:
                self.methods[f"/{prefix}{service.name}/{method.name}"] = MethodType(
                    self._message(method.input_type), method.client_streaming
                )

    def _message(self, name: str) -> MessageType:
        found = self._messages.get(name.lstrip("."))
        if found is None:
            raise DescriptorError(f"a set with the message {name.lstrip('.')} too (protoc --include_imports)")
        return found

    def _add_enums(self, file: FileDescriptorProto, prefix: str, enums: Any) -> None:
        for enum in enums:
            self._enums[prefix + enum.name] = _enum(file, enum)

    def _extend(self, file: FileDescriptorProto, extension: FieldDescriptorProto, full_name: str) -> None:
        extended = self._messages.get(extension.extendee.lstrip("."))
        if extended is not None:
            self._add(file, extended, extension, full_name, f"[{full_name}]", None)

    def _add(
        self,
        file: FileDescriptorProto,
        message: MessageType,
        described: FieldDescriptorProto,
        full_name: str,
        name: str,
        owner: DescriptorProto | None,
    ) -> None:
        field = FieldType(name, full_name, described.number, int(described.type))
        field.repeated = described.label == _REPEATED
        presence = _presence(file, described)
        field.required = presence == _LEGACY_REQUIRED
        if owner is not None and described.HasField("oneof_index") and not described.proto3_optional:
            field.oneof = owner.oneof_decl[described.oneof_index].name
        if field.kind in (MESSAGE, GROUP):
            field.message = self._message(described.type_name)
        if field.kind == ENUM:
            field.enum = self._enums.get(described.type_name.lstrip("."))
            if field.enum is None:
                raise DescriptorError(f"a set with the enum {described.type_name.lstrip('.')} too (protoc --include_imports)")
        if not field.repeated and field.message is None and not field.oneof and not field.required:
            if described.HasField("default_value"):
                field.default = _default(field, described.default_value)
            elif presence == _IMPLICIT:
                field.default = _zero(field)
        message.fields[field.number] = field


def _messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    stack = [(f"{file.package}.{each.name}" if file.package else each.name, each) for each in file.message_type]
    while stack:
        name, message = stack.pop()
        yield name, message
        stack += [(f"{name}.{inner.name}", inner) for inner in message.nested_type]


def _presence(file: FileDescriptorProto, field: FieldDescriptorProto) -> int:
    """The presence of a field that is not repeated, by syntax or feature."""
    if field.label == _REQUIRED:
        return _LEGACY_REQUIRED
    if field.HasField("oneof_index") or field.type in (MESSAGE, GROUP):
        return _EXPLICIT
    if file.syntax == "proto3":
        return _EXPLICIT if field.proto3_optional else _IMPLICIT
    if file.syntax == "editions":
        return int(field.options.features.field_presence or file.options.features.field_presence or _EXPLICIT)
    return _EXPLICIT


def _enum(file: FileDescriptorProto, enum: EnumDescriptorProto) -> EnumType:
    names: dict[int, str] = {}
    for value in enum.value:
        names.setdefault(value.number, value.name)  # an alias is another word for the same
    if file.syntax == "editions":
        return EnumType(names, (enum.options.features.enum_type or file.options.features.enum_type) == _CLOSED)
    return EnumType(names, file.syntax != "proto3")


def _zero(field: FieldType) -> object:
    if field.kind in (STRING, BYTES):
        return ""
    if field.enum is not None:
        return field.enum.names.get(0, 0)
    return False if field.kind == BOOL else 0.0 if field.kind in (DOUBLE, FLOAT) else 0


def _default(field: FieldType, text: str) -> object:
    """A declared default, as descriptors write it."""
    if field.kind in (STRING, ENUM):
        return text
    if field.kind == BYTES:
        return None  # C escapes: not worth their reading
    try:
        return text == "true" if field.kind == BOOL else float(text) if field.kind in (DOUBLE, FLOAT) else int(text)
    except ValueError:
        raise DescriptorError(f"a default of {field.full_name} that is a value of its type") from None
