"""The exact scanner: validates a whole JSON document and finds the byte spans of selected members.

Strict RFC 8259, in UTF-8 without BOM, and stricter where readers are known to differ (security.md 4): no lone surrogates, at most
`MAX_DEPTH` containers in one another, and no two members with one name (after unescaping) in an object where one of the two is or
holds a selected value: whatever a reader makes of such a pair, it could be the other one. Other duplicates cannot change which
value is protected, and pass untouched. INVARIANT: a document that this module accepts has exactly one reading of its protected values.

It is the specification: `json_fast` may only answer what this answers, or decline. Containers in which no selector is alive are
validated by a few regular expressions per container (possessive, hence linear), not token by token.

A megabyte takes it up to a tenth of a second, so it can be done in slices (`scanning`): whoever serves others in between goes on with
the iterator when they have been served.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator

from meshguard.fields.selectors import Matcher, State

__all__ = ["AT_ONCE", "MAX_DEPTH", "JsonError", "Span", "resolve", "resolving", "scan", "scanning", "validate"]

MAX_DEPTH = 64
"""Containers in one another (security.md 4): far beyond honest documents, far below any parser's recursion limit."""

AT_ONCE = 1 << 62
"""A slice that is never full."""
RUN = 4096
"""Members or elements that one expression takes at most: about 0.2 ms."""

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
_members = re.compile(rb"(?:" + _WS + _STRING + _WS + rb":" + _WS + _SCALAR + _WS + rb",){0,%d}+" % RUN).match
_member = re.compile(_WS + _STRING + _WS + rb":" + _WS + rb"(?:([\[{])|" + _SCALAR + _WS + rb"\})").match
_elements = re.compile(rb"(?:" + _WS + _SCALAR + _WS + rb",){0,%d}+" % RUN).match
_element = re.compile(_WS + rb"(?:([\[{])|" + _SCALAR + _WS + rb"\])").match
_end_object = re.compile(_WS + rb"\}").match
_end_array = re.compile(_WS + rb"\]").match

# Values without escapes, in ASCII: what most protected values are.
_plain = re.compile(rb'"[\x20\x21\x23-\x5b\x5d-\x7f]*+"|' + _NUMBER + rb"|true|false|null").fullmatch

_surrogate = re.compile(rb"\\u[dD][89a-fA-F]").search
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_lone = re.compile(rb"%b(?!%b)|(?<!\\u[dD][89abAB]..)%b" % (_HIGH, _LOW, _LOW), re.DOTALL).search

_OBJECT, _ARRAY = 0x7B, 0x5B


class JsonError(ValueError):
    """The document is not acceptable; `position` is the octet where reading stopped. The message never carries content."""

    def __init__(self, expected: str, position: int) -> None:
        super().__init__(f"{expected} at octet {position}")
        self.position = position


def validate(body: bytes) -> None:
    """Check that `body` is one acceptable JSON value; raises JsonError."""
    if _plain(body) is None:
        scan(body, None)


def scan(body: bytes, matcher: Matcher | None) -> list[Span]:
    """Validate `body` and return the spans of the selected values in document order, outer ones first.

    Raises JsonError. Nested and doubly selected values are all there: see `resolve`.
    """
    spans: list[Span] = []
    for _ in scanning(body, matcher, spans, AT_ONCE):
        pass
    return spans


def scanning(body: bytes, matcher: Matcher | None, spans: list[Span], slice_: int) -> Iterator[None]:
    """`scan` into `spans`, pausing after about `slice_` steps each (a step is a token, or a run of them: 1 us)."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise JsonError("not UTF-8", exc.start) from None
    if _surrogate(body) is not None:
        _check_surrogates(body)
    walk = _Walk(body, matcher, spans, slice_)
    start = _space(body).end()  # type: ignore[union-attr]  # matches the empty string too
    end = yield from walk.value(start, matcher.root if matcher is not None else None, 0)
    end = _space(body, end).end()  # type: ignore[union-attr]
    if end != len(body):
        raise JsonError("something after the end of the document", end)


def resolve(spans: list[Span]) -> list[Span]:
    """Spans without those inside a value that the same rule selects anyway. Raises JsonError when rules overlap.

    A value that two rules select, or that contains a value of another rule, has no single set of readers: refused.
    """
    return next(_resolve(spans, AT_ONCE), None) or []


def resolving(spans: list[Span], slice_: int) -> Generator[None, None, list[Span]]:
    """`resolve`, pausing after about `slice_` steps."""
    for kept in _resolve(spans, 4 * slice_):
        if kept is not None:
            return kept
        yield
    return []


def _resolve(spans: list[Span], at_once: int) -> Iterator[list[Span] | None]:
    """None for each pause, then the spans that are kept."""
    kept: list[Span] = []
    end = -1
    for place in range(0, len(spans), min(at_once, len(spans)) or 1):
        for span in spans[place : place + at_once]:
            if span[2] < end:
                if span[0] != kept[-1][0]:
                    raise JsonError("a value that two field rules select", span[2])
                continue
            kept.append(span)
            end = span[3]
        if place + at_once < len(spans):
            yield None
    yield kept


class _Walk:
    """One pass over one document. Recursion is as deep as live containers are nested: at most MAX_DEPTH."""

    __slots__ = ("body", "left", "owners", "slice", "spans")

    def __init__(self, body: bytes, matcher: Matcher | None, spans: list[Span], slice_: int) -> None:
        self.body = body
        self.owners = matcher.owners if matcher is not None else ()
        self.spans = spans
        self.slice = self.left = slice_

    def value(self, position: int, state: State | None, depth: int) -> Generator[None, None, int]:
        """The end of the value at `position`, which lies in `depth` containers."""
        body = self.body
        first = body[position] if position < len(body) else 0
        if first in (_OBJECT, _ARRAY):
            if depth >= MAX_DEPTH:
                raise JsonError(f"more than {MAX_DEPTH} containers in one another", position)
            if state is None or not state.alive:
                return (yield from self.skip(position, depth))
            if first == _OBJECT:
                return (yield from self.members(position + 1, state, depth + 1))
            return (yield from self.elements(position + 1, state, depth + 1))
        match = _scalar(body, position)
        if match is None:
            raise JsonError("expected a value", position)
        return match.end()

    def members(self, position: int, state: State, depth: int) -> Generator[None, None, int]:
        body, spans = self.body, self.spans
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
            before = len(spans)
            position = match.end()
            scalar = _scalar(body, position)
            position = scalar.end() if scalar is not None else (yield from self.value(position, following, depth))
            if following is not None:
                if following.accepts:
                    self.accept(following, before, match.start(1), match.end(), position)
                selects = len(spans) > before
                if name in seen and (selects or seen[name]):
                    raise JsonError("a second member of the same name", match.start(1))
                seen[name] = selects or seen.get(name, False)
            more = _more(body, position)
            if more is None or more[1] == b"]":
                raise JsonError("expected ',' or '}'", position)
            position = more.end()
            if more[1] == b"}":
                return position
            self.left -= 1
            if self.left <= 0:
                self.left = self.slice
                yield

    def elements(self, position: int, state: State, depth: int) -> Generator[None, None, int]:
        body = self.body
        empty = _end_array(body, position)
        if empty is not None:
            return empty.end()
        index = 0
        while True:
            begin = _space(body, position).end()  # type: ignore[union-attr]
            following = state.element(index)
            before = len(self.spans)
            scalar = _scalar(body, begin)
            position = scalar.end() if scalar is not None else (yield from self.value(begin, following, depth))
            if following is not None and following.accepts:
                self.accept(following, before, begin, begin, position)
            more = _more(body, position)
            if more is None or more[1] == b"}":
                raise JsonError("expected ',' or ']'", position)
            position = more.end()
            if more[1] == b"]":
                return position
            index += 1
            self.left -= 1
            if self.left <= 0:
                self.left = self.slice
                yield

    def accept(self, state: State, place: int, member: int, begin: int, end: int) -> None:
        """The value from `begin` to `end` is selected; what was found inside stands from `place` on."""
        owners = {self.owners[number] for number in state.accepts}
        self.spans[place:place] = [(owner, member, begin, end) for owner in sorted(owners)]

    def skip(self, position: int, depth: int) -> Generator[None, None, int]:
        """The end of the container at `position`, validated. Iterative: `nest` holds the kinds of the open containers."""
        body = self.body
        nest = bytearray((body[position],))
        position += 1
        fresh = True
        while True:
            self.left -= 1
            if self.left <= 0:
                self.left = self.slice
                yield
            # here a member or an element is due, or, in a fresh container, its end
            is_object = nest[-1] == _OBJECT
            run = (_members if is_object else _elements)(body, position).end()  # type: ignore[union-attr]  # matches the empty string too
            if run != position:
                self.left -= (run - position) >> 7
                position = run
                fresh = False
            match = (_member if is_object else _element)(body, position)
            if match is None:
                match = (_end_object if is_object else _end_array)(body, position) if fresh else None
                if match is None:
                    # a longer run than one expression takes goes on; anything else is an error
                    if run != (_members if is_object else _elements)(body, run).end():  # type: ignore[union-attr]
                        continue
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
    # without escaped backslashes each one that is left begins an escape; what takes their place keeps positions
    match = _lone(body.replace(b"\\\\", b"  "))
    if match is not None:
        raise JsonError("a lone surrogate", match.start())
