"""Parameters of an operation: texts from a path, a query or header fields, turned into values by their schema, and judged.

(OpenAPI 3.1, sections 4.8.12 and 4.8.12.2.) Styles: `simple` in paths and header fields, `form` in queries; scalars and arrays; a
`content` of JSON. A text can be a number, a truth value or a string: those that the schema names are tried, and one has to be valid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from meshguard.validation.json_text import read_json
from meshguard.validation.schemas import Checker, SchemaBook, resolve
from meshguard.validation.violation import ContractError, Violation

__all__ = ["Parameter", "compile_parameter"]

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,63})(?:\.[0-9]{1,64})?(?:[eE][+-]?[0-9]{1,3})?")
_WORDS = {"true": True, "false": False, "null": None}
_STYLES = {"path": ("simple", False), "header": ("simple", False), "query": ("form", True)}
_IGNORED_HEADERS = ("accept", "content-type", "authorization")
_DEPTH = 16
MOST_ITEMS = 1000


class Parameter:
    """One parameter. `kind` is what its texts become: scalar, array or json; `types` are the JSON types of a text."""

    __slots__ = ("_checker", "_kind", "_split", "_types", "location", "name", "place", "required")

    def __init__(self, name: str, location: str, required: bool, kind: str, split: bool, types: frozenset[str], checker: Checker) -> None:
        self.name = name
        self.location = location
        self.place = f"{location}/{name}"
        self.required = required
        self._kind = kind
        self._split = split
        self._types = types
        self._checker = checker

    def judge(self, texts: Sequence[str]) -> None:
        """`texts` are the decoded values of every occurrence, in order. Raises Violation."""
        if not texts:
            if self.required:
                raise Violation(self.place, f"required parameter {self.place}")
            return
        if self._kind == "array":
            items = [part.strip(" \t") for text in texts for part in text.split(",")] if self._split else list(texts)
            self._judge_array(items)
            return
        if len(texts) > 1:
            raise Violation(self.place, f"one value for {self.place}")
        if self._kind == "json":
            try:
                value = read_json(texts[0].encode("utf-8"))
            except (Violation, UnicodeError):
                raise Violation(self.place, f"JSON in {self.place}") from None
            self._checker.judge(value, self.place)
            return
        candidates = _candidates(texts[0], self._types)
        if not any(self._checker.allows(value) for value in candidates):
            self._checker.judge(candidates[0], self.place)
            raise Violation(self.place, self.place)

    def _judge_array(self, items: list[str]) -> None:
        if len(items) > MOST_ITEMS:
            raise Violation(self.place, f"at most {MOST_ITEMS} items in {self.place}")
        typed = [_candidates(item, self._types)[0] for item in items]
        if not self._checker.allows(typed):
            if "string" in self._types and self._checker.allows(items):
                return
            self._checker.judge(typed, self.place)
            raise Violation(self.place, self.place)


def _candidates(text: str, types: frozenset[str]) -> list[Any]:
    """What the text can mean, at least one value."""
    found: list[Any] = []
    if types & {"number", "integer"} and _NUMBER.fullmatch(text):
        number = float(text) if re.search(r"[.eE]", text) else int(text)
        if math.isfinite(number):
            found.append(number)
    if text in _WORDS and ("null" if text == "null" else "boolean") in types:
        found.append(_WORDS[text])
    if "string" in types or not found:
        found.append(text)
    return found


def compile_parameter(book: SchemaBook, document: object, at: tuple[str | int, ...]) -> Parameter | None:
    """The parameter at the path `at` of the document; None for those that describe what other sections do. Raises ContractError."""
    at, value = resolve(document, at)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ContractError([(at, "a parameter with a name")])
    name, location = value["name"], value.get("in")
    if location not in _STYLES:
        raise ContractError([((*at, "in"), "path, query or header (parameters in cookies are not validated)")])
    if location == "header":
        name = name.lower()
        if name in _IGNORED_HEADERS:
            return None
    required = value.get("required", False) is True
    if location == "path" and not required:
        raise ContractError([((*at, "required"), "true: a parameter in a path is always there")])
    if "content" in value:
        media = value["content"]
        if not isinstance(media, Mapping) or list(media) != ["application/json"] or "schema" not in media["application/json"]:
            raise ContractError([((*at, "content"), "application/json with a schema, and no other type")])
        return Parameter(name, location, required, "json", False, frozenset(), book.compile((*at, "content", "application/json", "schema")))
    if "schema" not in value:
        raise ContractError([(at, "a parameter with a schema")])
    style, explodes = _STYLES[location]
    if value.get("style", style) != style:
        raise ContractError([((*at, "style"), f"{style}: other styles are not validated in a {location}")])
    explode = value.get("explode", explodes)
    schema = (*at, "schema")
    types = _types(document, schema, _DEPTH)
    if "object" in types:
        raise ContractError([(schema, "the schema of a scalar or an array (or a `content` of application/json)")])
    kind = "array" if "array" in types else "scalar"
    if kind == "array":
        types = _types(document, _items(document, schema), _DEPTH)
        if types & {"array", "object"}:
            raise ContractError([(schema, "an array of scalars")])
    split = location != "query" or explode is not True
    return Parameter(name, location, required, kind, split, types, book.compile(schema))


def _items(document: object, at: tuple[str | int, ...]) -> tuple[str | int, ...]:
    at, schema = resolve(document, at)
    if not isinstance(schema, Mapping) or "items" not in schema:
        raise ContractError([(at, "an array with `items`, so that it is known what its texts are")])
    return (*at, "items")


def _types(document: object, at: tuple[str | int, ...], depth: int) -> frozenset[str]:
    """The JSON types that a schema speaks of; a schema that speaks of none is one of strings."""
    at, schema = resolve(document, at)
    if not depth:
        raise ContractError([(at, "a schema that is less deep")])
    if not isinstance(schema, Mapping):
        return frozenset(("string",))
    said = schema.get("type")
    if isinstance(said, str):
        return frozenset((said,))
    if isinstance(said, list):
        return frozenset(item for item in said if isinstance(item, str))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values:
        return frozenset(_type_of(value) for value in values)
    found: frozenset[str] = frozenset()
    for keyword in ("allOf", "anyOf", "oneOf"):
        parts = schema.get(keyword)
        for index in range(len(parts)) if isinstance(parts, list) else ():
            found |= _types(document, (*at, keyword, index), depth - 1)
    return found or frozenset(("string",))


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "array" if isinstance(value, list) else "object" if isinstance(value, Mapping) else "string"
