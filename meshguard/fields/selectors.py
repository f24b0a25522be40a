"""The selectors of all field rules of a route as one automaton over the steps of a document, whose states are made when first reached.

How selectors are written: `model.selectors`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from meshguard.model.selectors import Selector, SelectorError, Step, parse_selector

__all__ = ["Matcher", "Selector", "SelectorError", "State", "Step", "parse_selector"]

MAX_TAILS = 8
"""Names that are searched for before a walk: each costs a pass over the body."""

_SIMPLE = re.compile(r"[A-Za-z0-9_-]+")
_NO_NAME = "\ud800"  # no member can have it


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
