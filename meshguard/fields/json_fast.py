"""The fast way to the protected values: a C parser validates and measures, this module only adds up lengths.

`msgspec` reads an object as names with their raw values (`dict[str, Raw]`), and an array as raw elements, validating all of it, in
a fifth of the time that `orjson` takes to load and dump the document; it makes Python objects for the members of *this* container
only. Containers in which no selector is alive are never entered, and where selectors look around (`*`, `..`), neither are those in which
none of the last names occurs: walking a megabyte of small objects takes 100 ms, searching it for `"card"` a fraction of one. A name of
plain letters is spelled otherwise only with a `\\u00XX` escape of such a letter, so containers with one are entered too.

Why the spans are exact:

- What `Raw` accepts is valid JSON without lone surrogates; that the whole is UTF-8 and at most MAX_DEPTH deep is checked here.
- Members are walked from the first one: separators by expression, values by the length of their raw text, which must stand there
  octet for octet. Of a name that occurs twice the dict has the last value only. No JSON value is a proper prefix of another one (but
  numbers, which a separator must follow), so a walk never leaves the member boundaries of the document.
- After as many members as the dict has, the container must end. It does not if a name occurs twice.

INVARIANT: the answer is that of `json_scan`, or None ("ask it"). Every doubt, invalid documents included, is None.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from msgspec import DecodeError, Raw
from msgspec.json import Decoder

from meshguard.fields.json_scan import MAX_DEPTH, Span
from meshguard.fields.selectors import Matcher, State

__all__ = ["shallow", "try_scan"]

_read_any = Decoder(Raw).decode
_read_members = Decoder(dict[str, Raw]).decode
_read_elements = Decoder(list[Raw]).decode

_key = re.compile(rb'[ \t\n\r]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\n\r]*+:[ \t\n\r]*+').match
_space = re.compile(rb"[ \t\n\r]*+").match
_next = re.compile(rb"[ \t\n\r]*+([,\]}])").match

_OBJECT, _ARRAY, _COMMA, _END_ARRAY, _END_OBJECT = b"{[,]}"

FEW_OPENINGS = 8192
"""Octets up to which it pays to look first if there are brackets enough for a deep document at all."""

# Keeps the outline: containers (all of one kind), quotes, backslashes.
_OUTLINE = bytes.maketrans(b"[]", b"{}")
_NOT_OUTLINE = bytes(octet for octet in range(256) if octet not in b'{}[]"')
_NOT_OPENING = bytes(octet for octet in range(256) if octet not in b"{[")
_outline_string = re.compile(rb'"[^"]*+"').sub


_spelled_otherwise = re.compile(rb"\\u00[2-7]").finditer
_EVERYWHERE: list[int] = []


class _Declined(Exception):
    """The fast way cannot answer."""


def try_scan(body: bytes, matcher: Matcher) -> list[Span] | None:
    """What `json_scan.scan` returns for this body, or None when that has to be asked."""
    try:
        if not body.isascii():
            body.decode("utf-8")
        start = 0
        first = body[0]
        if first not in (_OBJECT, _ARRAY):
            start = _space(body).end()  # type: ignore[union-attr]  # matches the empty string too
            first = body[start]
        spans: list[Span] = []
        finds = _EVERYWHERE
        if matcher.tails:
            finds = _finds(body, matcher)
            if not finds:
                _read_any(body)
                return spans if shallow(body) else None
        if first == _OBJECT:
            _members(body, start, _read_members(body), matcher.root, matcher, spans, finds)
        elif first == _ARRAY:
            _elements(body, start, _read_elements(body), matcher.root, matcher, spans, finds)
        else:
            return None
    except (_Declined, DecodeError, UnicodeDecodeError, IndexError, RecursionError):
        return None
    return spans if shallow(body) else None


def shallow(body: bytes) -> bool:
    """True when a *valid* document has at most MAX_DEPTH containers in one another. Strings are left out exactly."""
    if len(body) <= 2 * MAX_DEPTH or (len(body) <= FEW_OPENINGS and len(body.translate(None, _NOT_OPENING)) <= MAX_DEPTH):
        return True
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes side by side open and close nothing: without them every bracket is inside or outside of a string as before.
    outline = body.translate(_OUTLINE, _NOT_OUTLINE).replace(b'""', b"")
    if b'"' in outline:
        outline = _outline_string(b"", outline)
    for _ in range(MAX_DEPTH):
        if not outline:
            return True
        outline = outline.replace(b"{}", b"")  # takes away the innermost containers, one level
    return not outline


def _members(body: bytes, start: int, members: dict[str, Raw], state: State, matcher: Matcher, spans: list[Span], finds: list[int]) -> int:
    """Walk the object at `start`; returns its end. Raises _Declined."""
    position = start + 1
    following = state.member
    for name, raw in members.items():
        key = _key(body, position)
        if key is None:
            raise _Declined
        begin = key.end()
        end = begin + len(raw)
        if not body.startswith(raw, begin):
            raise _Declined
        inner = following(name)
        if inner is not None:
            if inner.accepts:
                # the key's quote comes first after the space before it
                _accept(inner, matcher, spans, body.index(b'"', position), begin, end)
            if inner.alive:
                _enter(body, begin, raw, inner, matcher, spans, finds)
        position = end
        if end < len(body) and body[end] == _COMMA:
            position = end + 1
            closed = False
            continue
        more = _next(body, end)
        if more is None:
            raise _Declined
        position = more.end()
        closed = more[1] == b"}"
        if not closed and more[1] != b",":
            raise _Declined
    if not members:
        position = _space(body, position).end() + 1  # type: ignore[union-attr]
        closed = body[position - 1] == _END_OBJECT
    if not closed:
        raise _Declined  # more members than names: some name is there twice
    return position


def _elements(body: bytes, start: int, elements: list[Raw], state: State, matcher: Matcher, spans: list[Span], finds: list[int]) -> int:
    """Walk the array at `start`; returns its end. Raises _Declined."""
    position = start + 1
    following = state.element
    closed = not elements
    for index, raw in enumerate(elements):
        begin = position
        if body[begin] in b" \t\n\r":
            begin = _space(body, position).end()  # type: ignore[union-attr]
        end = begin + len(raw)
        inner = following(index)
        if inner is not None:
            if inner.accepts:
                _accept(inner, matcher, spans, begin, begin, end)
            if inner.alive:
                _enter(body, begin, raw, inner, matcher, spans, finds)
        if body[end] == _COMMA:
            position = end + 1
            continue
        more = _next(body, end)
        if more is None:
            raise _Declined
        position = more.end()
        closed = more[1] == b"]"
    if not closed:
        raise _Declined
    return position


def _enter(body: bytes, begin: int, raw: Raw, state: State, matcher: Matcher, spans: list[Span], finds: list[int]) -> None:
    first = body[begin]
    if first != _OBJECT and first != _ARRAY:
        return
    if finds:
        place = bisect_left(finds, begin)
        if place == len(finds) or finds[place] >= begin + len(raw):
            return
    if first == _OBJECT:
        _members(body, begin, _read_members(raw), state, matcher, spans, finds)
    else:
        _elements(body, begin, _read_elements(raw), state, matcher, spans, finds)


def _finds(body: bytes, matcher: Matcher) -> list[int]:
    """Where one of the last names may stand (also as a value, or inside a string: then its container is walked for nothing)."""
    finds: list[int] = []
    for name in matcher.tails:
        position = body.find(name)
        while position >= 0:
            finds.append(position)
            position = body.find(name, position + len(name))
    if b"\\" in body:
        finds += [match.start() for match in _spelled_otherwise(body)]
    finds.sort()
    return finds


def _accept(state: State, matcher: Matcher, spans: list[Span], member: int, begin: int, end: int) -> None:
    owners = matcher.owners
    if len(state.accepts) == 1:
        spans.append((owners[state.accepts[0]], member, begin, end))
    else:
        spans += [(owner, member, begin, end) for owner in sorted({owners[number] for number in state.accepts})]
