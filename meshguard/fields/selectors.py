"""Selectors: which members of a JSON document a rule protects. A subset of JSONPath (RFC 9535) that names members, never tests them.

    $.a.b      $['a b']      $.items[*]      $.items[0]      $.a.*      $..name      $..['a b']

Names compare by Unicode code points after unescaping, as RFC 9535 section 2.3.1.2 says. Selectors of all rules of a route compile
to one `Matcher`: a deterministic automaton over the steps of a document, whose states are made when they are first reached.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

__all__ = ["Matcher", "Selector", "SelectorError", "State", "Step", "parse_selector"]

MAX_STEPS = 32
"""Steps of one selector: half of the depth that a document may have."""
MAX_INDEX = 9999
MAX_TAILS = 8
"""Names that are searched for before a walk: each costs a pass over the body."""

_SHORTHAND = re.compile(r"[A-Za-z_\u0080-\ud7ff\ue000-\U0010ffff][A-Za-z0-9_\u0080-\ud7ff\ue000-\U0010ffff-]*")  # RFC 9535 section 2.5.1.1
_INDEX = re.compile(r"\[\s*(0|[1-9][0-9]{0,3})\s*\]")
_WILD = re.compile(r"\[\s*\*\s*\]")
_SIMPLE = re.compile(r"[A-Za-z0-9_-]+")
_NO_NAME = "\ud800"  # no member can have it
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


class State:
    """Where the selectors stand at one place of a document. `accepts` lists the selectors that select this very value (their numbers)."""

    __slots__ = ("_elements", "_matcher", "_members", "_places", "_table", "accepts", "alive")

    def __init__(self, matcher: Matcher, places: frozenset[tuple[int, int]]) -> None:
        steps = matcher.steps
        self._matcher = matcher
        self._places = places
        self._members: dict[str | None, State | None] = {}
        self._table: tuple[dict[str, State | None], State | None] | None = None
        self._elements: dict[int, State | None] = {}
        self.accepts = tuple(sorted({number for number, place in places if place == len(steps[number])}))
        self.alive = any(place < len(steps[number]) for number, place in places)

    def member(self, name: str) -> State | None:
        """The state inside the member `name`; None when no selector goes there."""
        key = name if name in self._matcher.names else None  # all other names behave alike
        try:
            return self._members[key]
        except KeyError:
            state = self._members[key] = self._follow(name, None)
            return state

    @property
    def members(self) -> tuple[dict[str, State | None], State | None]:
        """`member` as a table: the names that selectors name, and what holds for all others."""
        if self._table is None:
            self._table = {name: self.member(name) for name in self._matcher.names}, self.member(_NO_NAME)
        return self._table

    def element(self, index: int) -> State | None:
        """The state inside the element at `index` (0-based)."""
        key = min(index, self._matcher.beyond)  # all indexes beyond the largest one that is named behave alike
        try:
            return self._elements[key]
        except KeyError:
            state = self._elements[key] = self._follow(None, key)
            return state

    def _follow(self, name: str | None, index: int | None) -> State | None:
        following: set[tuple[int, int]] = set()
        for number, place in self._places:
            steps = self._matcher.steps[number]
            if place == len(steps):
                continue
            step = steps[place]
            if step.deep:
                following.add((number, place))
            if (step.name is None or step.name == name) and (step.index is None or step.index == index):
                following.add((number, place + 1))
        return self._matcher.state(frozenset(following)) if following else None


class Matcher:
    """Several selectors as one automaton. `owners[n]` is the rule that selector n belongs to."""

    __slots__ = ("_states", "beyond", "names", "owners", "root", "selectors", "steps", "tails")

    def __init__(self, selectors: Sequence[Selector], owners: Sequence[int]) -> None:
        self.selectors = tuple(selectors)
        self.owners = tuple(owners)
        self.steps = tuple(selector.steps for selector in selectors)
        self.names = frozenset(step.name for steps in self.steps for step in steps if step.name is not None)
        self.beyond = 1 + max((step.index for steps in self.steps for step in steps if step.index is not None), default=-1)
        # where a search for the last names can spare the walk: the names in quotes; empty where it would not pay or not be exact
        self.tails = _tails(self.steps)
        self._states: dict[frozenset[tuple[int, int]], State] = {}
        self.root = self.state(frozenset((number, 0) for number in range(len(self.steps))))

    def state(self, places: frozenset[tuple[int, int]]) -> State:
        """The one state of these places. Their number is bounded by the selectors, never by documents."""
        found = self._states.get(places)
        if found is None:
            found = self._states[places] = State(self, places)
        return found


def _tails(selectors: Sequence[tuple[Step, ...]]) -> tuple[bytes, ...]:
    """The last names of all selectors, when each has one that is spelled in one way without escapes, and one has to look around."""
    names = {steps[-1].name for steps in selectors}
    wide = any(step.deep or (step.name is None and step.index is None) for steps in selectors for step in steps)
    plain = [name for name in names if name is not None and _SIMPLE.fullmatch(name)]
    return tuple(b'"%b"' % name.encode() for name in plain) if wide and len(plain) == len(names) <= MAX_TAILS else ()
