"""A protobuf message as a body: its protected string and bytes fields treated.

Inside an envelope a string is a JSON string and a bytes field a JSON string of its base64, as in the JSON mapping of protobuf: a value that
was sealed in a message opens in a JSON document of the same field too. What stands in the field is the text of the envelope.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence

from meshguard.fields.deterministic import looks_deterministic
from meshguard.fields.envelope import NotOpenedError, looks_sealed
from meshguard.fields.protobuf_descriptor import FieldNode
from meshguard.fields.protobuf_wire import ProtobufError, rewrite
from meshguard.fields.tokens import looks_like_token
from meshguard.fields.treatment import Work

__all__ = ["ProtobufRules", "looks_protected"]


class ProtobufRules:
    """The protected fields of one message type. `nodes` are (number of the rule, its fields)."""

    __slots__ = ("_owners", "_root")

    def __init__(self, nodes: Sequence[tuple[int, FieldNode]]) -> None:
        self._owners: dict[tuple[int, int], int] = {}
        self._root = FieldNode.empty()
        for number, node in nodes:
            self._root = self._merge(self._root, node, number)

    def _merge(self, into: FieldNode, node: FieldNode, number: int) -> FieldNode:
        """Nodes of their own for this set of rules: the owner of a field is found by node and field number."""
        inner = {
            **into.inner,
            **{key: self._merge(into.inner.get(key, FieldNode.empty()), child, number) for key, child in node.inner.items()},
        }
        merged = FieldNode({**into.protected, **node.protected}, inner)
        for key in into.protected:
            self._owners[id(merged), key] = self._owners.pop((id(into), key))
        for key in node.protected:
            self._owners[id(merged), key] = number
        return merged

    def treat(self, message: bytes, work: Work) -> bytes:
        """The message for its recipient. Raises ProtobufError and what `Work.treat` raises."""

        def one(kind: str, value: bytes, node: FieldNode, number: int) -> bytes | None:
            return self._value(kind, value, self._owners[id(node), number], work)

        return rewrite(message, self._root, one)

    def _value(self, kind: str, value: bytes, owner: int, work: Work) -> bytes | None:
        if kind == "bytes" and not looks_protected(value):
            text = b2a_base64(value, newline=False).decode()
        else:
            try:
                text = value.decode("utf-8")
            except UnicodeDecodeError:
                raise ProtobufError("a string that is not UTF-8") from None
        treated = work.text(owner, text)
        if treated is None:
            return None
        if treated[0] == text:
            return value
        return _octets(treated[0]) if kind == "bytes" and work.act == "open" else treated[0].encode()


def looks_protected(value: bytes) -> bool:
    """True for what can be an envelope or a token: everything else in a bytes field is data, even where it is text."""
    raw = b'"%b"' % value
    return looks_sealed(raw) or looks_deterministic(raw) or looks_like_token(raw)


def _octets(text: str) -> bytes:
    """What an opened value is in a bytes field."""
    try:
        return a2b_base64(text, strict_mode=True)
    except (Base64Error, ValueError):
        octets = text.encode()
        if looks_protected(octets):  # data that only looked like a token was sealed as the text that it is
            return octets
        raise NotOpenedError from None
