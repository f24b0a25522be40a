"""The fast way to the protected values: a C parser validates and measures, this module only adds up lengths.

`msgspec` reads an object as names with their raw values (`dict[str, Raw]`), and an array as raw elements, validating all of it, in
a fifth of the time that `orjson` takes to load and dump the document; it makes Python objects for the members of *this* container
only. Containers in which no selector is alive are never entered, and where selectors look around (`*`, `..`), neither are those in which
none of the last names occurs: walking a megabyte of small objects takes 50 ms, searching it for `"card"` a fraction of one. A name of
plain letters is spelled otherwise only with a `\\u00XX` escape of such a letter, so containers with one are entered too.

Why the spans are exact:

- What `Raw` accepts is valid JSON without lone surrogates; that the whole is UTF-8 and at most MAX_DEPTH deep is checked here.
- Members are walked from the first one: separators by expression, values by the length of their raw text, which must stand there
  octet for octet. Of a name that occurs twice the dict has the last value only. No JSON value is a proper prefix of another one (but
  numbers, which a separator must follow), so a walk never leaves the member boundaries of the document.
- After as many members as the dict has, the container must end. It does not if a name occurs twice.
- An object in which names, values, quotes, colons and commas add up to its length has nothing else in it: no white space, no name with
  escapes (they only make it longer), no name twice. Then its members lie where the lengths say, and nothing has to be looked at.

INVARIANT: the answer is that of `json_scan`, or none ("ask it"). Every doubt, invalid documents included, is none.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter
from typing import Final

from msgspec import DecodeError, Raw
from msgspec.json import Decoder

from meshguard.fields.json_scan import AT_ONCE, MAX_DEPTH, Span
from meshguard.fields.selectors import Matcher, State

__all__ = ["DECLINED", "FOUND", "PENDING", "scanning", "shallow", "try_scan"]

PENDING: Final = 0
FOUND: Final = 1
DECLINED: Final = 2

_read_any = Decoder(Raw).decode
_read_members = Decoder(dict[str, Raw]).decode
_read_elements = Decoder(list[Raw]).decode

_key = re.compile(rb'[ \t\n\r]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\n\r]*+:[ \t\n\r]*+').match
_space = re.compile(rb"[ \t\n\r]*+").match
_next = re.compile(rb"[ \t\n\r]*+([,\]}])").match

_OBJECT, _ARRAY, _COMMA, _END_OBJECT = b"{[,}"
_CONTAINERS, _SPACE = b"{[", b" \t\n\r"

FEW_OPENINGS = 4096
"""Octets up to which it pays to look first if there are brackets enough for a deep document at all."""
MAX_FINDS = 4096
"""Occurrences of last names up to which they spare containers; where there are more, most containers hold one."""
MANY = 4096
"""Members of one object that are added up without a pause: 1 ms."""
MAX_READ = 8
"""How many times the document may be read in all by entering containers in one another; one that is that lopsided is scanned once."""

# Keeps the outline: containers (all of one kind) and quotes.
_OUTLINE = bytes.maketrans(b"[]", b"{}")
_NOT_OUTLINE = bytes(octet for octet in range(256) if octet not in b'{}[]"')
_NOT_OPENING = bytes(octet for octet in range(256) if octet not in b"{[")
_outline_string = re.compile(rb'"[^"]*+"').sub
_HALF = MAX_DEPTH // 2

# `-`, digits, letters and `_`: what a name that is searched for consists of
_spelled_otherwise = re.compile(rb"\\u00(?:2[dD]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aA])").finditer
_EVERYWHERE: list[int] = []
_start = itemgetter(2)


def try_scan(body: bytes, matcher: Matcher) -> list[Span] | None:
    """What `json_scan.scan` returns for this body, or None when that has to be asked."""
    spans: list[Span] = []
    return spans if next(scanning(body, matcher, spans, AT_ONCE)) is FOUND else None


def scanning(body: bytes, matcher: Matcher, spans: list[Span], slice_: int) -> Iterator[int]:
    """Finds the spans into `spans`, and says FOUND or DECLINED at last, PENDING after about `slice_` steps each (a step takes 1 us)."""
    left = slice_
    readable = MAX_READ * len(body)
    try:
        plain = body.isascii()
        if not plain:
            body.decode("utf-8")
        place = 0
        if body[0] not in (_OBJECT, _ARRAY):
            place = _space(body).end()  # type: ignore[union-attr]  # matches the empty string too
            if body[place] not in (_OBJECT, _ARRAY):
                yield DECLINED
                return
        if not shallow(body):
            yield DECLINED
            return
        finds = _EVERYWHERE
        if matcher.tails:
            finds = _finds(body, matcher)
            if not finds:
                _read_any(body)
                yield FOUND
                return
            if len(finds) > MAX_FINDS:
                finds = _EVERYWHERE
        owners = matcher.owners
        entered: list[tuple[int, bytes | Raw, State]] = [(place, body, matcher.root)]
        while entered:
            place, text, state = entered.pop()
            readable -= len(text)
            if readable < 0:
                yield DECLINED
                return
            left -= 1 + (len(text) >> 8)
            if left <= 0:
                left = slice_
                yield PENDING
            if body[place] == _OBJECT:
                members = _read_members(text)
                known, other = state.members
                place += 1
                if not members:
                    continue
                count = len(members)
                if (
                    sum(map(len, members)) + sum(map(len, members.values())) + 4 * count + 1 == len(text)
                    and count <= MANY
                    and (plain or "".join(members).isascii())
                ):
                    for name, raw in members.items():
                        begin = place + len(name) + 3
                        end = begin + len(raw)
                        inner = known.get(name, other)
                        if inner is not None:
                            if inner.accepts:
                                _accept(inner, owners, spans, place, begin, end)
                            if inner.alive and body[begin] in _CONTAINERS and (not finds or _within(finds, begin, end)):
                                entered.append((begin, raw, inner))
                        place = end + 1
                    left -= count >> 1
                    continue
                for name, raw in members.items():
                    key = _key(body, place)
                    if key is None:
                        yield DECLINED
                        return
                    begin = key.end()
                    end = begin + len(raw)
                    if not body.startswith(raw, begin):
                        yield DECLINED
                        return
                    inner = known.get(name, other)
                    if inner is not None:
                        if inner.accepts:
                            # the key's quote comes first after the space before it
                            _accept(inner, owners, spans, body.index(b'"', place), begin, end)
                        if inner.alive and body[begin] in _CONTAINERS and (not finds or _within(finds, begin, end)):
                            entered.append((begin, raw, inner))
                    mark = body[end]
                    place = end + 1
                    if mark != _COMMA and mark != _END_OBJECT:
                        more = _next(body, end)
                        if more is None:
                            yield DECLINED
                            return
                        place = more.end()
                        mark = body[place - 1]
                    left -= 1
                    if left <= 0:
                        left = slice_
                        yield PENDING
                if mark != _END_OBJECT:  # more members than names: some name is there twice
                    yield DECLINED
                    return
            else:
                place += 1
                for index, raw in enumerate(_read_elements(text)):
                    begin = place
                    if body[begin] in _SPACE:
                        begin = _space(body, place).end()  # type: ignore[union-attr]
                    end = begin + len(raw)
                    inner = state.element(index)
                    if inner is not None:
                        if inner.accepts:
                            _accept(inner, owners, spans, begin, begin, end)
                        if inner.alive and body[begin] in _CONTAINERS and (not finds or _within(finds, begin, end)):
                            entered.append((begin, raw, inner))
                    place = end + 1
                    if body[end] != _COMMA:
                        place = _next(body, end).end()  # type: ignore[union-attr]  # a comma or the end must be there
                    left -= 1
                    if left <= 0:
                        left = slice_
                        yield PENDING
    except (DecodeError, UnicodeDecodeError, IndexError, RecursionError):
        yield DECLINED
        return
    if len(spans) > 1:
        spans.sort(key=_start)  # stable: of one value as they were found
    yield FOUND


def shallow(body: bytes) -> bool:
    """True when a *valid* document has at most MAX_DEPTH containers in one another. Strings are left out exactly."""
    if len(body) <= 2 * MAX_DEPTH or (len(body) <= FEW_OPENINGS and len(body.translate(None, _NOT_OPENING)) <= MAX_DEPTH):
        return True
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outline = body.translate(_OUTLINE, _NOT_OUTLINE)
    brackets = outline.translate(None, b'"')
    if 2 * outline.count(b'""') != len(outline) - len(brackets):
        # Somewhere an odd number of quotes stands side by side, so there may be brackets between two of them.
        brackets = _outline_string(b"", outline)
    if len(brackets) <= 2 * MAX_DEPTH:
        return True
    # Depth before each piece of as many brackets as half the limit: where it is at most the other half, the piece cannot go beyond.
    depth = 0
    for place in range(0, len(brackets), _HALF):
        if depth > _HALF:
            break
        depth += 2 * brackets.count(b"{", place, place + _HALF) - _HALF
    else:
        return True
    for _ in range(MAX_DEPTH):
        if not brackets:
            return True
        brackets = brackets.replace(b"{}", b"")  # takes away the innermost containers, one level
    return not brackets


def _within(finds: list[int], begin: int, end: int) -> bool:
    place = bisect_left(finds, begin)
    return place < len(finds) and finds[place] < end


def _finds(body: bytes, matcher: Matcher) -> list[int]:
    """Where one of the last names may stand (also as a value, or inside a string: then its container is walked for nothing)."""
    finds: list[int] = []
    for name in matcher.tails:
        position = body.find(name)
        while position >= 0:
            finds.append(position)
            if len(finds) > MAX_FINDS:
                return finds
            position = body.find(name, position + len(name))
    if b"\\u00" in body:
        for match in _spelled_otherwise(body):
            finds.append(match.start())
            if len(finds) > MAX_FINDS:
                return finds
    finds.sort()
    return finds


def _accept(state: State, owners: tuple[int, ...], spans: list[Span], member: int, begin: int, end: int) -> None:
    if len(state.accepts) == 1:
        spans.append((owners[state.accepts[0]], member, begin, end))
    else:
        spans += [(owner, member, begin, end) for owner in sorted({owners[number] for number in state.accepts})]
