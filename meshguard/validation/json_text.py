"""JSON bodies read so that no other reader can read them in another way, and so that no depth of nesting can hurt a recursive validator.

Refused: duplicate members, NaN and infinities, numbers beyond a double, more than MAX_DEPTH levels, lone surrogates, a byte order mark,
other encodings than UTF-8.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal

from meshguard.validation.violation import Violation

__all__ = ["MAX_DEPTH", "read_document", "read_json"]

MAX_DEPTH = 64
"""Levels of arrays and objects. The validator is recursive native code: what the interpreter's own stack would bear, it need not."""
MAX_DIGITS = 400
"""Of an integer: more than a double can say."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NO_BRACKETS = bytes(octet for octet in range(256) if octet not in b"[]{}")


def read_json(body: bytes) -> object:
    """The value of a document. Raises Violation."""
    return _read(body, _members, _float, _int)


def read_document(body: bytes) -> tuple[object, frozenset[str]]:
    """The value of a document that decides, and every member name in it. Besides, numbers are refused that a double cannot tell from
    others: to one reader they are on this side of a bound, to another one on that. Raises Violation."""
    names: set[str] = set()

    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = _members(pairs)
        names.update(found)
        return found

    return _read(body, members, _faithful, _double), frozenset(names)


def _read(
    body: bytes, members: Callable[[list[tuple[str, object]]], object], number: Callable[[str], float], whole: Callable[[str], int]
) -> object:
    _check_depth(body)
    try:
        text = body.decode("utf-8")
        value: object = json.loads(text, object_pairs_hook=members, parse_constant=_constant, parse_float=number, parse_int=whole)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # escapes can spell lone surrogates
    except UnicodeError:
        raise Violation("body", "no Unicode text") from None
    except (ValueError, RecursionError):
        raise Violation("body", "no unambiguous JSON document") from None
    return value


def _check_depth(body: bytes) -> None:
    """Takes the innermost level off until nothing is left: each pass is one native call, and there are MAX_DEPTH of them at most."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise Violation("body", f"more than {MAX_DEPTH} levels, or brackets that do not match")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _constant(text: str) -> object:
    raise ValueError(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond a double")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    return int(text)


_SHORT = 15
"""Digits of a decimal that always survive a double (IEEE 754: 53 bits)."""


def _faithful(text: str) -> float:
    """A number that its double stands for: what is read back from its shortest spelling is what was written."""
    value = _float(text)
    if (len(text) > _SHORT or "e" in text or "E" in text) and Decimal(text) != Decimal(repr(value)):
        raise ValueError("a number that a double cannot hold")
    return value


def _double(text: str) -> int:
    value = _int(text)
    try:
        float(value)
    except OverflowError:
        raise ValueError("a number beyond a double") from None
    return value
