"""Which paths a field rule covers: the template syntax of policy rules, matched on every reading of a path.

A field rule is protection, so it behaves like a deny rule: it ignores case and a trailing slash, and it holds when *any*
spelling that an upstream could take for the path fits (`readings`, made by `wire.target`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["PathTemplate", "parse_path"]

_LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$&'()+,=:@-]|%[0-9A-Fa-f]{2})*\Z")
_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_.-]*\}")
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")


class PathTemplate:
    """A compiled template: its `text` and what it fits."""

    __slots__ = ("_expression", "text")

    def __init__(self, text: str, expression: re.Pattern[str]) -> None:
        self.text = text
        self._expression = expression

    def fits(self, path: str, readings: Iterable[str] = ()) -> bool:
        """True when the canonical `path` or any of the case-folded `readings` is covered."""
        fullmatch = self._expression.fullmatch
        return fullmatch(path.casefold()) is not None or any(fullmatch(reading) is not None for reading in readings)


def parse_path(text: str) -> PathTemplate:
    """Parse `/orders/{id}`, `/v1/*/items`, `/admin/**`; raises ValueError with what was expected, in words."""
    if not text.startswith("/"):
        raise ValueError("an absolute path that starts with '/'")
    if len(text) > 2048:
        raise ValueError("a path of at most 2048 characters")
    if "//" in text:
        raise ValueError("a path without '//': slashes are merged before rules are asked")
    parts = text[1:].split("/")
    rest = parts[-1] == "**"
    if rest:
        parts.pop()
    elif parts[-1] == "":
        parts.pop()  # a trailing slash is no difference for a field rule
    expression = "".join("/" + _segment(part) for part in parts) + ("(?:/.*)?" if rest else "/?")
    return PathTemplate(text, re.compile(expression, re.DOTALL))


def _segment(part: str) -> str:
    if part == "*":
        return "[^/]+"
    if "*" in part:
        raise ValueError("'*' only as a whole segment and '**' only at the end (use {name} for a part of a segment)")
    found = list(_PARAMETER.finditer(part))
    if len(found) > 1:
        raise ValueError("at most one {parameter} in a segment")
    if not found:
        return _literal(part)
    return _literal(part[: found[0].start()]) + "[^/]+" + _literal(part[found[0].end() :])


def _literal(part: str) -> str:
    if part in (".", ".."):
        raise ValueError("a path without '.' and '..' segments")
    if not part.isascii():
        part = "".join(char if char.isascii() else "".join(f"%{octet:02X}" for octet in char.encode()) for char in part)
    if not _LITERAL.match(part):
        raise ValueError("characters that a canonical path can hold, {name} or '*'")
    folded = re.escape(part.casefold())
    decoded = _ENCODED.sub(lambda match: bytes([int(match[1], 16)]), part.encode()).decode("utf-8", "replace").casefold()
    return folded if decoded == part.casefold() else f"(?:{folded}|{re.escape(decoded)})"
