"""The messages of a descriptor set as the bodies that rules read (`policy.bodies.Messages`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from meshguard.fields.protobuf_descriptor import DescriptorError
from meshguard.fields.protobuf_schema import MessageType, Schema
from meshguard.fields.protobuf_values import List, Map, read_message, write_message

__all__ = ["BodyMessages"]


class BodyMessages:
    """Messages of gRPC methods, or the one that `named` names for every body. `repeated` and `mapped` make what repeated fields and maps
    become. Raises DescriptorError, worded as an expectation, for a name that is not there."""

    __slots__ = ("_mapped", "_methods", "_named", "_repeated", "digest")

    def __init__(self, schema: Schema, named: str | None, repeated: List, mapped: Map) -> None:
        self._named: MessageType | None = None
        if named is not None:
            self._named = schema.message(named)
            if self._named is None:
                raise DescriptorError(f"a set with the message {named}")
        self._methods = {} if named is not None else schema.methods
        if named is None and not self._methods:
            raise DescriptorError("a set with the service whose methods are called, or `request`: the name of a message")
        self._repeated = repeated
        self._mapped = mapped
        self.digest = f"{schema.digest}#{named or ''}"

    def read(self, path: str, message: bytes) -> object:
        """Raises ValueError; LookupError where the path is no method of the set, or one whose client may send many messages: what comes
        after the first could not be judged before the first is let through."""
        value = read_message(message, self._of(path), repeated=self._repeated, mapped=self._mapped)
        if _has_nan(value):
            raise ValueError("not a number")
        return value

    def write(self, path: str, values: Mapping[str, object]) -> bytes:
        """The message of a tested request. Raises ValueError, LookupError."""
        return write_message(values, self._of(path))

    def _of(self, path: str) -> MessageType:
        if self._named is not None:
            return self._named
        method = self._methods[path]
        if method.many:
            raise LookupError("a stream")
        return method.request

    def problem(self, field: str) -> str:
        """What was expected instead of the field, in words; "" where a message that may come has it."""
        types = [method.request for method in self._methods.values()] if self._named is None else [self._named]
        found = [of.find(field) for of in types]
        return "" if "" in found else found[0]


def _has_nan(value: object) -> bool:
    """Of a comparison with it nothing can be said."""
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, float):
            if math.isnan(each):
                return True
        elif isinstance(each, dict):
            stack += each.values()
        elif isinstance(each, list):
            stack += each
    return False
