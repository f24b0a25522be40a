"""The exact scanner: validates a whole JSON document and finds the byte spans of selected members.

Strict RFC 8259, in UTF-8 without BOM, and stricter where readers are known to differ (security.md 4): no lone surrogates, at most
`MAX_DEPTH` containers in one another, and no two members with one name (after unescaping) in an object where one of the two is or
holds a selected value: whatever a reader makes of such a pair, it could be the other one. Other duplicates cannot change which
value is protected, and pass untouched. INVARIANT: a document that this module accepts has exactly one reading of its protected values.

It is the specification: `json_fast` may only answer what this answers, or decline. Containers in which no selector is alive are
validated by a few regular expressions per container (possessive, hence linear), not token by token.
"""

from __future__ import annotations

import json
import re

from meshguard.fields.selectors import Matcher, State

__all__ = ["MAX_DEPTH", "JsonError", "Span", "resolve", "scan", "validate"]

MAX_DEPTH = 64
"""Containers in one another (security.md 4): far beyond honest documents, far below any parser's recursion limit."""

Span = tuple[int, int, int, int]
"""(number of the rule, where the member or element begins (its key's quote), where its value begins, where the value ends)."""

_WS = rb"[ \t\n\r]*+"
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+"
_SCALAR = rb"(?:" + _STRING + rb"|" + _NUMBER + rb"|true|false|null)"

_space = re.compile(_WS).match
_scalar = re.compile(_SCALAR).match
_key = re.compile(_WS + rb"(" + _STRING + rb")" + _WS + rb":" + _WS).match
_more = re.compile(_WS + rb"([,\]}])").match
_members = re.compile(rb"(?:" + _WS + _STRING + _WS + rb":" + _WS + _SCALAR + _WS + rb",)*+").match
_member = re.compile(_WS + _STRING + _WS + rb":" + _WS + rb"(?:([\[{])|" + _SCALAR + _WS + rb"\})").match
_elements = re.compile(rb"(?:" + _WS + _SCALAR + _WS + rb",)*+").match
_element = re.compile(_WS + rb"(?:([\[{])|" + _SCALAR + _WS + rb"\])").match
_end_object = re.compile(_WS + rb"\}").match
_end_array = re.compile(_WS + rb"\]").match

_surrogate = re.compile(rb"\\u[dD][89a-fA-F]").search
_escape = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL).finditer

_OBJECT, _ARRAY = 0x7B, 0x5B


class JsonError(ValueError):
    """The document is not acceptable; `position` is the octet where reading stopped. The message never carries content."""

    def __init__(self, expected: str, position: int) -> None:
        super().__init__(f"{expected} at octet {position}")
        self.position = position


def validate(body: bytes) -> None:
    """Check that `body` is one acceptable JSON value; raises JsonError."""
    scan(body, None)


def scan(body: bytes, matcher: Matcher | None) -> list[Span]:
    """Validate `body` and return the spans of the selected values in document order, outer ones first.

    Raises JsonError. Nested and doubly selected values are all there: see `resolve`.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise JsonError("not UTF-8", exc.start) from None
    if _surrogate(body) is not None:
        _check_surrogates(body)
    walk = _Walk(body, matcher)
    start = _space(body).end()  # type: ignore[union-attr]  # matches the empty string too
    end = walk.value(start, matcher.root if matcher is not None else None, 0)
    end = _space(body, end).end()  # type: ignore[union-attr]
    if end != len(body):
        raise JsonError("something after the end of the document", end)
    return walk.spans


def resolve(spans: list[Span]) -> list[Span]:
    """Spans without those inside a value that the same rule selects anyway. Raises JsonError when rules overlap.

    A value that two rules select, or that contains a value of another rule, has no single set of readers: refused.
    """
    kept: list[Span] = []
    end = -1
    for span in spans:
        if span[2] < end:
            if span[0] != kept[-1][0]:
                raise JsonError("a value that two field rules select", span[2])
            continue
        kept.append(span)
        end = span[3]
    return kept


class _Walk:
    """One pass over one document. Recursion is as deep as live containers are nested: at most MAX_DEPTH."""

    __slots__ = ("body", "owners", "spans")

    def __init__(self, body: bytes, matcher: Matcher | None) -> None:
        self.body = body
        self.owners = matcher.owners if matcher is not None else ()
        self.spans: list[Span] = []

    def value(self, position: int, state: State | None, depth: int) -> int:
        """The end of the value at `position`, which lies in `depth` containers."""
        body = self.body
        first = body[position] if position < len(body) else 0
        if first in (_OBJECT, _ARRAY):
            if depth >= MAX_DEPTH:
                raise JsonError(f"more than {MAX_DEPTH} containers in one another", position)
            if state is None or not state.alive:
                return _skip(body, position, depth)
            if first == _OBJECT:
                return self.members(position + 1, state, depth + 1)
            return self.elements(position + 1, state, depth + 1)
        match = _scalar(body, position)
        if match is None:
            raise JsonError("expected a value", position)
        return match.end()

    def members(self, position: int, state: State, depth: int) -> int:
        body = self.body
        empty = _end_object(body, position)
        if empty is not None:
            return empty.end()
        seen: dict[str, bool] = {}  # names on the way to selected values, and whether there was one
        while True:
            match = _key(body, position)
            if match is None:
                raise JsonError("expected a member", position)
            raw = match[1]
            name: str = json.loads(raw) if b"\\" in raw else raw[1:-1].decode()
            following = state.member(name)
            before = len(self.spans)
            position = self.child(match.start(1), match.end(), following, depth)
            if following is not None:
                selects = len(self.spans) > before
                if name in seen and (selects or seen[name]):
                    raise JsonError("a second member of the same name", match.start(1))
                seen[name] = selects or seen.get(name, False)
            more = _more(body, position)
            if more is None or more[1] == b"]":
                raise JsonError("expected ',' or '}'", position)
            position = more.end()
            if more[1] == b"}":
                return position

    def elements(self, position: int, state: State, depth: int) -> int:
        body = self.body
        empty = _end_array(body, position)
        if empty is not None:
            return empty.end()
        index = 0
        while True:
            position = _space(body, position).end()  # type: ignore[union-attr]
            position = self.child(position, position, state.element(index), depth)
            more = _more(body, position)
            if more is None or more[1] == b"}":
                raise JsonError("expected ',' or ']'", position)
            position = more.end()
            if more[1] == b"]":
                return position
            index += 1

    def child(self, begin: int, position: int, state: State | None, depth: int) -> int:
        if state is None or not state.accepts:
            return self.value(position, state, depth)
        place = len(self.spans)
        end = self.value(position, state, depth)
        owners = {self.owners[number] for number in state.accepts}
        self.spans[place:place] = [(owner, begin, position, end) for owner in sorted(owners)]
        return end


def _skip(body: bytes, position: int, depth: int) -> int:
    """The end of the container at `position`, validated. Iterative: `nest` holds the kinds of the open containers."""
    nest = bytearray((body[position],))
    position += 1
    fresh = True
    while True:
        # here a member or an element is due, or, in a fresh container, its end
        is_object = nest[-1] == _OBJECT
        run = (_members if is_object else _elements)(body, position).end()  # type: ignore[union-attr]  # matches the empty string too
        if run != position:
            position = run
            fresh = False
        match = (_member if is_object else _element)(body, position)
        if match is None:
            match = (_end_object if is_object else _end_array)(body, position) if fresh else None
            if match is None:
                raise JsonError("expected a member" if is_object else "expected a value", position)
        elif match[1] is not None:
            if depth + len(nest) >= MAX_DEPTH:
                raise JsonError(f"more than {MAX_DEPTH} containers in one another", match.end() - 1)
            nest.append(body[match.end() - 1])
            position = match.end()
            fresh = True
            continue
        position = match.end()
        nest.pop()
        while nest:
            more = _more(body, position)
            closing = b"}" if nest[-1] == _OBJECT else b"]"
            if more is None or more[1] not in (b",", closing):
                raise JsonError("expected ',' or the end of a container", position)
            position = more.end()
            if more[1] == b",":
                break
            nest.pop()
        else:
            return position
        fresh = False


def _check_surrogates(body: bytes) -> None:
    """Escaped surrogates come in pairs, high then low (RFC 8259 section 8.2). In a valid document a backslash occurs in strings only."""
    high_end = -1
    for match in _escape(body):
        unit = int(match[1], 16) if match[1] is not None else 0
        if 0xDC00 <= unit <= 0xDFFF:
            if high_end != match.start():
                raise JsonError("a lone surrogate", match.start())
            high_end = -1
            continue
        if high_end >= 0:
            raise JsonError("a lone surrogate", high_end - 6)
        if 0xD800 <= unit <= 0xDBFF:
            high_end = match.end()
    if high_end >= 0:
        raise JsonError("a lone surrogate", high_end - 6)
