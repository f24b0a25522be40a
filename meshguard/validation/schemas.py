"""JSON Schemas of one document, compiled by jsonschema-rs: draft 2020-12, formats asserted, references inside the document only.

Regular expressions run on a linear engine (no look-around, no backreferences): a schema that needs another is refused at load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meshguard.validation.json_text import read_json
from meshguard.validation.violation import ContractError, Violation, pointer

if TYPE_CHECKING:
    import jsonschema_rs

__all__ = ["Checker", "SchemaBook", "resolve"]

_BASE = "urn:meshguard:contract"
_MOST_REFERENCES = 32
DIALECTS = ("https://json-schema.org/draft/2020-12/schema", "https://spec.openapis.org/oas/3.1/dialect/base")


class Checker:
    """One compiled schema."""

    __slots__ = ("_failure", "_validator")

    def __init__(self, validator: jsonschema_rs.Draft202012Validator, failure: type[jsonschema_rs.ValidationError]) -> None:
        self._validator = validator
        self._failure = failure

    def allows(self, value: object) -> bool:
        """Whether the value is valid."""
        valid: bool = self._validator.is_valid(value)
        return valid

    def judge(self, value: Any, place: str) -> None:
        """Raises Violation. `place` is where in the request the value stands."""
        try:
            self._validator.validate(value)
        except self._failure as exc:
            rule = (exc.absolute_keyword_location or "").removeprefix(_BASE).lstrip("#") or pointer(exc.schema_path)
            raise Violation(place + pointer(exc.instance_path), f"{exc.kind.name} at {rule}") from None

    def judge_body(self, body: bytes) -> None:
        """The same for a JSON document that is a body."""
        self.judge(read_json(body), "body")


class SchemaBook:
    """The schemas of `document`, by their paths in it. The import costs 15 MB: only configurations with a contract pay it."""

    def __init__(self, document: object) -> None:
        import jsonschema_rs

        self._library = jsonschema_rs
        self._document = document
        self._options = jsonschema_rs.RegexOptions()
        contents: Any = document
        try:
            self._registry = jsonschema_rs.Registry([(_BASE, contents)], draft=jsonschema_rs.Draft202012)
        except (ValueError, jsonschema_rs.ReferencingError) as exc:
            raise ContractError([((), _told(exc))]) from None
        self._checkers: dict[tuple[str | int, ...], Checker] = {}

    def compile(self, path: tuple[str | int, ...]) -> Checker:
        """The schema at `path`. Raises ContractError."""
        checker = self._checkers.get(path)
        if checker is None:
            fragment = "".join("/" + _escaped(part) for part in path)
            try:
                validator = self._library.Draft202012Validator(
                    {"$ref": f"{_BASE}#{fragment}"},
                    registry=self._registry,
                    pattern_options=self._options,
                    validate_formats=True,
                    offline=True,
                )
            except (ValueError, self._library.ReferencingError) as exc:
                raise ContractError([(path, _told(exc))]) from None
            checker = self._checkers[path] = Checker(validator, self._library.ValidationError)
        return checker


def _escaped(part: str | int) -> str:
    """A part of a JSON pointer in a URI fragment (RFC 6901 section 6)."""
    from urllib.parse import quote

    return quote(str(part).replace("~", "~0").replace("/", "~1"), safe="~")


def _told(exc: Exception) -> str:
    """The library's complaint, worded as an expectation, in one line."""
    line = str(getattr(exc, "message", exc)).splitlines()[0] if str(exc) else type(exc).__name__
    return f"a JSON Schema of draft 2020-12 that can be compiled ({line[:200]})"


def resolve(document: object, path: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], Any]:
    """(path, value) of what stands at `path`, behind `$ref`s to places inside the document. Raises ContractError."""
    value = _at(document, path)
    for _ in range(_MOST_REFERENCES):
        if not isinstance(value, Mapping) or "$ref" not in value:
            return path, value
        reference = value["$ref"]
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise ContractError([((*path, "$ref"), "a reference inside this document (#/components/...)")])
        path = _parts(document, reference[1:], (*path, "$ref"))
        value = _at(document, path)
    raise ContractError([((*path, "$ref"), "a reference that ends: this one goes in a circle")])


def _at(document: object, path: Sequence[str | int]) -> Any:
    value: Any = document
    for part in path:
        value = value[part]
    return value


def _parts(document: object, text: str, where: tuple[str | int, ...]) -> tuple[str | int, ...]:
    from urllib.parse import unquote

    value: Any = document
    parts: list[str | int] = []
    for part in text.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and name in value:
            parts.append(name)
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            parts.append(int(name))
            value = value[int(name)]
        else:
            raise ContractError([(where, "a reference to something that exists in this document")])
    return tuple(parts)
