"""gRPC calls against the services of a descriptor set: the method must be there, and each message one of the type that it takes.

How messages are read is not known here: a `Judge` does it (`control.contracts` makes it of `fields.protobuf_values`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from meshguard.validation.contract import Check
from meshguard.validation.violation import UnknownOperation, Violation

__all__ = ["Judge", "MessageChecker", "ProtobufContract"]

Judge = Callable[[bytes], None]
"""Raises Violation for a message that is not acceptable."""
FRAMED = ("application/grpc", "application/grpc+proto")
BARE = ("application/protobuf", "application/x-protobuf")


class MessageChecker:
    """Judges the messages of one call. `many`: the client may send more than one. `framed`: they are those of gRPC. `limit`: octets of a
    message, 0 where none is set."""

    __slots__ = ("framed", "judge", "limit", "many")

    def __init__(self, judge: Judge, many: bool, framed: bool, limit: int) -> None:
        self.judge = judge
        self.many = many
        self.framed = framed
        self.limit = limit


class _CallCheck(Check):
    """The call of one method."""

    __slots__ = ("_bare", "_framed")

    def __init__(self, judge: Judge, many: bool, limit: int) -> None:
        super().__init__()
        self._framed = MessageChecker(judge, many, True, limit)
        self._bare = None if many else MessageChecker(judge, False, False, limit)

    def judge_head(self, header: Callable[[str], list[str]], has_body: bool, media_types: Sequence[str]) -> MessageChecker:
        """Raises Violation."""
        if not has_body:
            raise Violation("body", "required body")
        if len(media_types) != 1:
            raise Violation("header/content-type", "one content type")
        if media_types[0] in FRAMED:
            return self._framed
        if media_types[0] in BARE and self._bare is not None:
            return self._bare
        raise Violation("header/content-type", "a content type of this operation")


class ProtobufContract:
    """`methods` by path: who judges a message, and whether there may be many. `deny`: other methods are refused."""

    __slots__ = ("_checks", "_deny", "reports")

    def __init__(self, methods: Mapping[str, tuple[Judge, bool]], *, deny: bool, reports: bool, limit: int = 0) -> None:
        self._checks = {path: _CallCheck(judge, many, limit) for path, (judge, many) in methods.items()}
        self._deny = deny
        self.reports = reports

    def check(self, method: str, path: str, query: bytes | None) -> Check | None:
        """See `validation.contract.Contract`."""
        found = self._checks.get(path)
        if found is not None and method == "POST":
            return found
        return _NOT_KNOWN if self._deny else None


class _UnknownCheck(Check):
    __slots__ = ()

    def judge_head(self, header: Callable[[str], list[str]], has_body: bool, media_types: Sequence[str]) -> MessageChecker | None:
        raise UnknownOperation("path", "no such operation")


_NOT_KNOWN = _UnknownCheck()
