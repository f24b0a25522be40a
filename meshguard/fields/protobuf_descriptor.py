"""Descriptor sets: which fields a protobuf message has, and which message a gRPC method takes and gives.

Parsed once when a policy is loaded, with the protobuf runtime imported then; what is kept are plain tables of numbers and kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto

__all__ = ["DescriptorError", "DescriptorSet", "FieldNode", "Message", "Method"]

MAX_BYTES = 16 << 20
_TYPE_GROUP, _TYPE_MESSAGE, _TYPE_STRING, _TYPE_BYTES = 10, 11, 9, 12  # FieldDescriptorProto.Type
_METHOD = re.compile(r"/([A-Za-z_][A-Za-z0-9_.]*)/([A-Za-z_][A-Za-z0-9_]*)/?")


class DescriptorError(ValueError):
    """A file is no usable descriptor set; the message says what was expected."""


class FieldNode:
    """Fields of one message that lead to protected ones: by number, `kind` (`string`, `bytes`) of a protected field, or the node of the
    message inside."""

    __slots__ = ("inner", "protected")

    def __init__(self, protected: Mapping[int, str], inner: Mapping[int, FieldNode]) -> None:
        self.protected = dict(protected)
        self.inner = dict(inner)

    @staticmethod
    def empty() -> FieldNode:
        return FieldNode({}, {})

    def merged(self, other: FieldNode) -> FieldNode:
        """Both together."""
        inner = dict(self.inner)
        for number, node in other.inner.items():
            inner[number] = inner[number].merged(node) if number in inner else node
        return FieldNode({**self.protected, **other.protected}, inner)


class Message:
    """A message type: `fields` by name are (number, type, name of the message inside)."""

    __slots__ = ("_all", "fields", "is_map", "name")

    def __init__(self, name: str, fields: Mapping[str, tuple[int, int, str]], is_map: bool, everything: Mapping[str, Message]) -> None:
        self.name = name
        self.fields = fields
        self.is_map = is_map
        self._all = everything

    def find(self, path: str) -> FieldNode | str:
        """The node that leads to the field at a dotted path; of a map, its values. What was expected, in words, when there is none."""
        return self._find(path.split("."))

    def _find(self, steps: list[str]) -> FieldNode | str:
        found = self.fields.get(steps[0])
        if found is None:
            return f"a field of {self.name}: {', '.join(sorted(self.fields)[:12]) or 'it has none'}"
        number, kind, name = found
        if kind == _TYPE_GROUP:
            return f"a path without groups, which {steps[0]} is"
        if kind == _TYPE_MESSAGE:
            message = self._all.get(name)
            if message is None:
                return f"a set with the message {name} too (protoc --include_imports)"
            rest = ["value", *steps[1:]] if message.is_map else steps[1:]
            if not rest:
                return f"a string or bytes field: {steps[0]} is a message, name a field of it"
            inner = message._find(rest)
            return inner if isinstance(inner, str) else FieldNode({}, {number: inner})
        if len(steps) > 1:
            return f"a path that ends at {steps[0]}, which is no message"
        if kind not in (_TYPE_STRING, _TYPE_BYTES):
            return f"a string or bytes field: ciphertext has no place in {steps[0]}"
        return FieldNode({number: "string" if kind == _TYPE_STRING else "bytes"}, {})


class Method:
    """A gRPC method: its `request` and `response` messages."""

    __slots__ = ("request", "response")

    def __init__(self, request: Message, response: Message) -> None:
        self.request = request
        self.response = response


class DescriptorSet:
    """The messages and methods of a serialised FileDescriptorSet. Raises DescriptorError."""

    __slots__ = ("_messages", "_methods")

    def __init__(self, data: bytes) -> None:
        from google.protobuf.descriptor_pb2 import FileDescriptorSet
        from google.protobuf.message import DecodeError

        if not 0 < len(data) <= MAX_BYTES:
            raise DescriptorError(f"a descriptor set of at most {MAX_BYTES >> 20} MiB")
        try:
            files = FileDescriptorSet.FromString(data).file
        except DecodeError:
            raise DescriptorError("a serialised FileDescriptorSet (protoc --include_imports --descriptor_set_out)") from None
        self._messages: dict[str, Message] = {}
        self._methods: dict[str, tuple[str, str]] = {}
        for file in files:
            prefix = f"{file.package}." if file.package else ""
            for message in file.message_type:
                self._add(message, prefix)
            for service in file.service:
                for method in service.method:
                    path = f"/{prefix}{service.name}/{method.name}"
                    self._methods[path.casefold()] = (method.input_type.lstrip("."), method.output_type.lstrip("."))
        if not self._messages:
            raise DescriptorError("a descriptor set with messages")

    def _add(self, message: DescriptorProto, prefix: str) -> None:
        name = prefix + message.name
        fields = {field.name: (field.number, int(field.type), field.type_name.lstrip(".")) for field in message.field}
        options: Any = message.options
        self._messages[name] = Message(name, fields, bool(options.map_entry), self._messages)
        for inner in message.nested_type:
            self._add(inner, f"{name}.")

    def message(self, name: str) -> Message | None:
        """A message type by its full name."""
        return self._messages.get(name.lstrip("."))

    def method(self, path: str) -> Method | None:
        """A method by the path of its calls, `/package.Service/Method`."""
        if not _METHOD.fullmatch(path):
            return None
        names = self._methods.get(path.rstrip("/").casefold())
        request, response = (self.message(name) for name in names) if names is not None else (None, None)
        return Method(request, response) if request is not None and response is not None else None
