"""Selectors: places in a JSON document. A subset of JSONPath (RFC 9535) that names members, never tests them.

    $.a.b      $['a b']      $.items[*]      $.items[0]      $.a.*      $..name      $..['a b']

Names compare by Unicode code points after unescaping, as RFC 9535 section 2.3.1.2 says. Field rules (`fields.selectors`) and conditions on
bodies (`policy.bodies`) are written in them.
"""

from __future__ import annotations

import json
import re

__all__ = ["Selector", "SelectorError", "Step", "parse_selector"]

MAX_STEPS = 32
"""Steps of one selector: half of the depth that a document may have."""
MAX_INDEX = 9999

_SHORTHAND = re.compile(r"[A-Za-z_\u0080-\ud7ff\ue000-\U0010ffff][A-Za-z0-9_\u0080-\ud7ff\ue000-\U0010ffff-]*")  # RFC 9535 section 2.5.1.1
_INDEX = re.compile(r"\[\s*(0|[1-9][0-9]{0,3})\s*\]")
_WILD = re.compile(r"\[\s*\*\s*\]")
_QUOTED = re.compile(r"""\[\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*\]""")


class SelectorError(ValueError):
    """A selector is not acceptable; `position` is the 0-based character where reading stopped."""

    def __init__(self, expected: str, text: str, position: int) -> None:
        super().__init__(f"{expected} at character {position + 1} of {text!r}")
        self.position = position


class Step:
    """One step: a member `name`, an element `index`, or neither (any child); `deep` also at any depth below."""

    __slots__ = ("deep", "index", "name")

    def __init__(self, name: str | None = None, index: int | None = None, deep: bool = False) -> None:
        self.name = name
        self.index = index
        self.deep = deep

    def _key(self) -> tuple[str | None, int | None, bool]:
        return (self.name, self.index, self.deep)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def meets(self, other: Step) -> bool:
        """True when one child of a document could be taken by both steps (which are not `deep`)."""
        if self.name is not None and other.name is not None:
            return self.name == other.name
        if self.index is not None and other.index is not None:
            return self.index == other.index
        return not (self.name is not None and other.index is not None) and not (self.index is not None and other.name is not None)


class Selector:
    """A parsed selector: its `text` and its `steps` (at least one)."""

    __slots__ = ("steps", "text")

    def __init__(self, text: str, steps: tuple[Step, ...]) -> None:
        self.text = text
        self.steps = steps

    def may_contain(self, other: Selector) -> bool:
        """True when a value that this selects is certain to contain, or be, one that `other` selects wherever both exist.

        Only what can be known without a document: `..` is left to the scan of each document, which refuses nested selections.
        """
        if len(self.steps) > len(other.steps) or any(step.deep for step in (*self.steps, *other.steps)):
            return self.steps == other.steps
        return all(mine.meets(theirs) for mine, theirs in zip(self.steps, other.steps, strict=False))


def parse_selector(text: str) -> Selector:
    """Parse one selector; raises SelectorError with the position."""
    if not text.startswith("$"):
        raise SelectorError("'$'", text, 0)
    steps: list[Step] = []
    position = 1
    while position < len(text):
        deep = text.startswith("..", position)
        start = position
        if deep:
            position += 2
        elif text[position] == ".":
            position += 1
        elif text[position] != "[":
            raise SelectorError("'.', '..' or '['", text, position)
        if position < len(text) and text[position] == "[":
            if not deep and text[start] == ".":
                raise SelectorError("a name or '*' after '.'", text, position)
            step, position = _bracket(text, position, deep)
        elif text.startswith("*", position):
            step, position = Step(deep=deep), position + 1
        else:
            match = _SHORTHAND.match(text, position)
            if match is None:
                raise SelectorError("a member name (write others as ['name'])", text, position)
            step, position = Step(name=match[0], deep=deep), match.end()
        if deep and step.name is None:
            raise SelectorError("a member name after '..' ('..*' would select everything)", text, start + 2)
        steps.append(step)
        if len(steps) > MAX_STEPS:
            raise SelectorError(f"at most {MAX_STEPS} steps", text, start)
    if not steps:
        raise SelectorError("a step: the whole document cannot be one field", text, 1)
    return Selector(text, tuple(steps))


def _bracket(text: str, position: int, deep: bool) -> tuple[Step, int]:
    match = _INDEX.match(text, position)
    if match is not None:
        return Step(index=int(match[1]), deep=deep), match.end()
    match = _WILD.match(text, position)
    if match is not None:
        return Step(deep=deep), match.end()
    match = _QUOTED.match(text, position)
    if match is not None:
        return Step(name=_unquote(match, text), deep=deep), match.end()
    raise SelectorError(f"['name'], [*] or an index of at most {MAX_INDEX} in brackets", text, position + 1)


def _unquote(match: re.Match[str], text: str) -> str:
    inner = match[2] if match[1] is None else match[1].replace("\\'", "'").replace('"', '\\"')
    try:
        name = json.loads(f'"{inner}"')
        name.encode()
    except ValueError:
        raise SelectorError("a string with JSON escapes", text, match.start() + 1) from None
    if not isinstance(name, str):
        raise SelectorError("a string", text, match.start() + 1)
    return name
