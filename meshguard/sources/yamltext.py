"""YAML and JSON text to plain values, and the place of any of them.

Values are built straight from the parser's events, one pass, no node graph: a policy of 100 000 rules (11 MB) takes 2.6 s and
its own size, where composing nodes took 19 s and 0.9 GB. Positions are therefore not kept: `locate` walks the text a second
time, only when there is an error to report, and only down the paths that are asked for.

The scalars are those of the YAML 1.2 core schema, not of 1.1: `on`, `no` and `12:30` are text, and a number with a leading
zero or an exponent but no dot (a digest: `12e4567`) stays text, so nothing that looks like a name, a time or an id becomes
something else. Keys are always text. Refused:
duplicate keys, merge keys (`<<`), tags other than `!!str`, several documents in one file, nesting deeper than MAX_DEPTH, and
aliases that together would stand for more than MAX_ALIASED values ("billion laughs").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml
from yaml._yaml import CParser
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from meshguard.model.errors import Problem

__all__ = ["Malformed", "Place", "locate", "parse_json", "parse_yaml"]

MAX_DEPTH = 64
MAX_ALIASED = 20_000
"""Values that all aliases of a document may stand for; a hand-written document stays far below."""
MAX_NODES = 8_000_000
"""Values in one document: 100 000 rules have 1.1 million."""

_WORDS: dict[str, object] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NUMERIC_START = frozenset("0123456789+-.")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})\Z")
_FLOAT = re.compile(r"(?:[-+]?[0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18})(?:[eE][-+][0-9]{1,3})?\Z")

_Path = tuple[str | int, ...]


class Malformed(Exception):
    """The text is no acceptable document: (line, column, path, expected, value) for each reason."""

    def __init__(self, reasons: list[tuple[int, int, str, str, str]]) -> None:
        super().__init__(reasons[0][3])
        self.reasons = reasons

    def problems(self, file: str) -> list[Problem]:
        """The reasons as `Problem`s of `file`."""
        return [
            Problem(file, path, expected, line=line, column=column, value=value) for line, column, path, expected, value in self.reasons
        ]


class Place:
    """Where a value stands: 1-based `line` and `column`; `text` as written when it is a scalar, else None."""

    __slots__ = ("column", "line", "text")

    def __init__(self, line: int, column: int, text: str | None = None) -> None:
        self.line = line
        self.column = column
        self.text = text


def plain_scalar(text: str) -> object:
    """The value of a plain (unquoted) scalar under the core schema, as narrowed above."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in _NUMERIC_START:
        if _INTEGER.match(text):
            return int(text)
        if _FLOAT.match(text):
            return float(text)
    return text


def _no_breath() -> None:
    pass


def parse_yaml(text: str, substitute: Callable[[str], str] | None = None, breathe: Callable[[], None] = _no_breath) -> object:
    """The one document in `text` as dicts, lists, str, int, float, bool and None. `substitute` is called for scalar values that
    hold a `$` and its result stays text, `breathe` after each mapping. Raises Malformed with every duplicate key, or the first error of
    syntax or structure."""
    builder = _Builder(text, substitute, breathe)
    try:
        value = builder.document()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        why = ", ".join(part for part in (exc.context, exc.problem) if part)
        raise Malformed([*builder.duplicates, (line, column, "", f"valid YAML ({why})", "")]) from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise Malformed([(line, 0, "", "printable characters", "a control character")]) from exc
    if builder.duplicates:
        raise Malformed(builder.duplicates)
    return value


class _Builder:
    def __init__(self, text: str, substitute: Callable[[str], str] | None, breathe: Callable[[], None]) -> None:
        self._breathe = breathe
        self._parser = CParser(text)
        self._substitute = substitute
        self._anchors: dict[str, tuple[object, int]] = {}
        self._aliased = 0
        self._nodes = 0
        self.duplicates: list[tuple[int, int, str, str, str]] = []

    def document(self) -> object:
        get = self._parser.get_event
        get()  # stream start
        if get().__class__ is StreamEndEvent:
            raise Malformed([(1, 1, "", "a document", "an empty file")])
        first = get()
        value = self._node(first, 0)
        while (event := get()).__class__ is not StreamEndEvent:
            if event.__class__ is not DocumentEndEvent:
                raise _malformed(event, "one document in a file", "another one")
        return value

    def _node(self, event: Any, depth: int) -> object:
        kind = event.__class__
        if kind is ScalarEvent:
            value = self._scalar(event)
            if event.anchor:
                self._anchors[event.anchor] = (value, 1)
            return value
        if kind is AliasEvent:
            return self._alias(event)
        if depth >= MAX_DEPTH:
            raise _malformed(event, f"nesting of at most {MAX_DEPTH} levels")
        if event.tag is not None and event.tag != "!":
            raise _malformed(event, "no tag", event.tag)
        before = self._nodes + self._aliased
        value = self._mapping(depth + 1) if kind is MappingStartEvent else self._sequence(depth + 1)
        if event.anchor:  # registered when complete: an anchor cannot hold itself
            self._anchors[event.anchor] = (value, self._nodes + self._aliased - before + 1)
        if self._nodes > MAX_NODES:
            raise _malformed(event, f"at most {MAX_NODES} values")
        return value

    def _mapping(self, depth: int) -> dict[str, object]:
        get, node, scalar = self._parser.get_event, self._node, self._scalar
        out: dict[str, object] = {}
        while (event := get()).__class__ is not MappingEndEvent:
            if event.__class__ is not ScalarEvent:
                raise _malformed(event, "a key that is text", "a list, mapping or alias")
            key = event.value
            if key == "<<" and event.implicit[0]:
                raise _malformed(event, "no merge key: write the keys out", "<<")
            if key in out:
                self.duplicates.extend(_malformed(event, "every key once", "the key a second time", key).reasons)
                if len(self.duplicates) > 100:
                    raise Malformed(self.duplicates)
            event = get()
            out[key] = scalar(event) if event.__class__ is ScalarEvent and event.anchor is None else node(event, depth)
        self._nodes += len(out) + 1
        self._breathe()
        return out

    def _sequence(self, depth: int) -> list[object]:
        get, node, scalar = self._parser.get_event, self._node, self._scalar
        out: list[object] = []
        while (event := get()).__class__ is not SequenceEndEvent:
            out.append(scalar(event) if event.__class__ is ScalarEvent and event.anchor is None else node(event, depth))
        self._nodes += len(out) + 1
        return out

    def _scalar(self, event: Any) -> object:
        text: str = event.value
        if "$" in text and self._substitute is not None:
            try:
                replaced = self._substitute(text)
            except ValueError as exc:
                raise _malformed(event, str(exc), _shown(text)) from exc
            if replaced != text:
                return replaced
        if event.implicit[0]:
            if text and text[0] not in _NUMERIC_START and text not in _WORDS:  # nearly all of them: one call less
                return text
            return plain_scalar(text)
        if event.tag is not None and event.tag not in ("!", "tag:yaml.org,2002:str"):
            raise _malformed(event, "no tag but !!str", event.tag)
        return text

    def _alias(self, event: Any) -> object:
        if event.anchor not in self._anchors:
            raise _malformed(event, "the name of an anchor that is complete before it", f"*{event.anchor}")
        value, weight = self._anchors[event.anchor]
        self._aliased += weight
        if self._aliased > MAX_ALIASED:
            raise _malformed(event, f"aliases that stand for at most {MAX_ALIASED} values in all", f"*{event.anchor}")
        return value


def _malformed(event: Any, expected: str, value: str = "", path: str = "") -> Malformed:
    mark = event.start_mark
    return Malformed([(mark.line + 1, mark.column + 1, path, expected, value)])


def _shown(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def parse_json(text: str, substitute: Callable[[str], str] | None = None, breathe: Callable[[], None] = _no_breath) -> object:
    """As `parse_yaml`, for a JSON file: duplicate members, NaN and infinities are refused."""
    duplicates: list[tuple[int, int, str, str, str]] = []

    def pairs(members: list[tuple[str, object]]) -> dict[str, object]:
        breathe()
        out = dict(members)
        if len(out) != len(members):
            seen: set[str] = set()
            for name, _ in members:
                if name in seen:
                    duplicates.append((0, 0, name, "every key once", "the key a second time"))
                seen.add(name)
        return out

    def constant(name: str) -> object:
        raise Malformed([(0, 0, "", "a number", name)])

    if not text.strip():
        raise Malformed([(1, 1, "", "a document", "an empty file")])
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as exc:
        raise Malformed([(exc.lineno, exc.colno, "", f"valid JSON ({exc.msg})", "")]) from exc
    except RecursionError as exc:
        raise Malformed([(0, 0, "", f"nesting of at most {MAX_DEPTH} levels", "")]) from exc
    if duplicates:
        raise Malformed(duplicates)
    return _checked(value, substitute, breathe, 0)


def _checked(value: object, substitute: Callable[[str], str] | None, breathe: Callable[[], None], depth: int) -> object:
    if depth > MAX_DEPTH:
        raise Malformed([(0, 0, "", f"nesting of at most {MAX_DEPTH} levels", "")])
    if isinstance(value, str):
        if substitute is None or "$" not in value:
            return value
        try:
            return substitute(value)
        except ValueError as exc:
            raise Malformed([(0, 0, "", str(exc), _shown(value))]) from exc
    if isinstance(value, dict):
        breathe()
        return {key: _checked(item, substitute, breathe, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_checked(item, substitute, breathe, depth + 1) for item in value]
    return value


def locate(text: str, paths: Iterable[_Path]) -> dict[_Path, Place]:
    """The place of each path of a document that `parse_yaml` or `parse_json` accepted (JSON being YAML, but for rare escapes).
    A path that does not exist gets the place of its deepest existing ancestor. Keys' places are those of the key, except that a
    scalar value on the same line keeps its own; the empty result means that the text could not be walked."""
    tree: dict[str | int, Any] = {}
    for path in paths:
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[_END] = path
    found: dict[_Path, Place] = {}
    try:
        parser = CParser(text)
        parser.get_event()
        parser.get_event()
        _Walk(parser, found).node(parser.get_event(), tree, None)
    except yaml.YAMLError:
        return {}
    return found


_END = -1  # marks "a wanted path ends here" in the tree of wanted paths; no index of a list is negative


class _Walk:
    def __init__(self, parser: Any, found: dict[_Path, Place]) -> None:
        self._get = parser.get_event
        self._found = found

    def node(self, event: Any, tree: dict[str | int, Any] | None, key: Any) -> None:
        kind = event.__class__
        if tree is not None:
            mark = event.start_mark
            text = event.value if kind is ScalarEvent else None
            if key is not None and (text is None or not text):
                mark = key.start_mark
            self._settle(tree, Place(mark.line + 1, mark.column + 1, text))
        if kind is MappingStartEvent:
            while (event := self._get()).__class__ is not MappingEndEvent:
                value = self._get()
                self.node(value, tree.get(event.value) if tree else None, event)
        elif kind is SequenceStartEvent:
            index = 0
            while (event := self._get()).__class__ is not SequenceEndEvent:
                self.node(event, tree.get(index) if tree else None, None)
                index += 1

    def _settle(self, tree: dict[str | int, Any], place: Place) -> None:
        if (path := tree.get(_END)) is not None:
            self._found[path] = place
        inherited = Place(place.line, place.column)
        for part, branch in tree.items():
            if part != _END:
                self._settle(branch, inherited)
