"""What a route demands of its requests, whichever document says it: a `Contract` gives a `Check` for each (method, path, query)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from meshguard.validation.parameters import Parameter
from meshguard.validation.schemas import Checker
from meshguard.validation.violation import Violation

if TYPE_CHECKING:
    from meshguard.validation.protobuf import MessageChecker

__all__ = ["BodyContract", "Check", "Contract", "SchemaContract", "is_json"]

_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


class BodyContract:
    """A body: whether it must be there, and its schema by media type (None: the type is known, the body is not read)."""

    __slots__ = ("_media", "_required")

    def __init__(self, media: Mapping[str, Checker | None], required: bool) -> None:
        self._media = dict(media)
        self._required = required

    def judge(self, has_body: bool, media_types: Sequence[str]) -> Checker | None:
        """Who judges the body; None: nobody has to. `media_types` is the type of every Content-Type field. Raises Violation."""
        if not has_body:
            if self._required:
                raise Violation("body", "required body")
            return None
        if len(media_types) != 1:
            raise Violation("header/content-type", "one content type")
        media_type = media_types[0]
        for name in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
            if name in self._media:
                checker = self._media[name]
                if checker is not None and not is_json(media_type):
                    break
                return checker
        raise Violation("header/content-type", "a content type of this operation")


class Check:
    """What is left to judge for requests with the same method, path and query. `violation`: these alone break the contract."""

    __slots__ = ("_body", "_headers", "violation")

    def __init__(self, headers: Sequence[Parameter] = (), body: BodyContract | None = None, violation: Violation | None = None) -> None:
        self._headers = tuple(headers)
        self._body = body
        self.violation = violation

    def judge_head(
        self, header: Callable[[str], list[str]], has_body: bool, media_types: Sequence[str]
    ) -> Checker | MessageChecker | None:
        """Judges all but the body; gives who has to judge that. Raises Violation."""
        if self.violation is not None:
            raise Violation(self.violation.place, self.violation.rule)
        for parameter in self._headers:
            parameter.judge(header(parameter.name))
        if self._body is None:
            if has_body:
                raise Violation("body", "no body")
            return None
        return self._body.judge(has_body, media_types)


class Contract(Protocol):
    """`reports`: refused clients are told the place of the violation."""

    reports: bool

    def check(self, method: str, path: str, query: bytes | None) -> Check | None:
        """For a canonical path; None: the contract says nothing about such requests."""


class SchemaContract:
    """One JSON Schema for the bodies of all requests: POST, PUT and PATCH must have one, and whatever has one must have a JSON one."""

    __slots__ = ("_may", "_must", "reports")

    def __init__(self, checker: Checker, reports: bool) -> None:
        self.reports = reports
        media: dict[str, Checker | None] = {"*/*": checker}
        self._must = Check(body=BodyContract(media, True))
        self._may = Check(body=BodyContract(media, False))

    def check(self, method: str, path: str, query: bytes | None) -> Check | None:
        return self._must if method in _WITH_BODY else self._may


def is_json(media_type: str) -> bool:
    """`application/json` and `+json` types (RFC 6839), in lower case."""
    return media_type == "application/json" or media_type.endswith("+json")
