"""The index of rules: a trie of path templates whose leaves are filed by subject.

One index serves all callers, so a new identity costs only its set of subjects, and the hint for a denial finds other callers'
rules at the same place. What is looked at for a request: the templates that fit its path, and there the rules of the caller's own
subjects. A leaf where one subject has many rules (methods, hosts) is narrowed by method and host first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from meshguard.policy.paths import Template
from meshguard.policy.rules import Rule
from meshguard.policy.trie import Node, children, insert, walk

__all__ = ["MAX_CONDITIONAL", "Crowd", "Leaf", "RuleIndex", "covering", "some"]

MAX_CONDITIONAL = 256
"""Rules with conditions for one caller, path template, method and host: each may have to be evaluated for a request."""
_CROWD = 8
"""Rules of one subject at one leaf from which narrowing pays (measured: a rule that does not cover costs 60 ns)."""

_NOTHING: tuple[Rule, ...] = ()


class Crowd:
    """Many rules of one subject at one leaf, by method and host. Each list has plain rules first, then by order."""

    __slots__ = ("_cells",)

    def __init__(self, rules: Sequence[Rule]) -> None:
        cells: dict[str | None, dict[str | None, list[Rule]]] = {}
        for rule in rules:
            for method in rule.methods or (None,):
                row = cells.setdefault(method, {})
                for host in rule.hosts or (None,):
                    row.setdefault(host, []).append(rule)
        self._cells = cells

    def narrow(self, method: str, hosts: Collection[str]) -> list[Rule]:
        """Rules that may cover; the caller still asks each one."""
        found: list[Rule] = []
        for row in (self._cells.get(method), self._cells.get(None)):
            if row is not None:
                for key in (None, *hosts):
                    found += row.get(key, _NOTHING)
        return found

    def narrow_to_verdict(self, method: str, hosts: Collection[str]) -> list[Rule]:
        """As `narrow`, without those that cannot change the verdict: a plain rule without ports settles its list."""
        found: list[Rule] = []
        for row in (self._cells.get(method), self._cells.get(None)):
            if row is not None:
                for key in (None, *hosts):
                    cell = row.get(key)
                    if cell is not None:
                        found += cell[:1] if cell[0].plain and cell[0].ports is None else cell
        return found

    def widest(self) -> int:
        """The most rules with conditions in one cell."""
        return max(sum(not rule.plain for rule in cell) for row in self._cells.values() for cell in row.values())

    def some(self, limit: int) -> list[Rule]:
        """A few of its rules, for hints."""
        found: list[Rule] = []
        for row in self._cells.values():
            for cell in row.values():
                found += cell[:limit]
                if len(found) >= limit:
                    return found[:limit]
        return found


Cell = list[Rule] | Crowd


_NO_CELLS: dict[int, Cell] = {}


class Leaf:
    """Rules filed under one template (`text`): by `subjects` that identity alone makes, and by roles that a token can give (`tokens`).

    `sole` is the leaf in short where it holds one plain rule of one subject for any port and host, as most leaves of large policies do:
    (subject, methods, rule). Then a decision touches three objects here instead of eight, which matters when none is in the CPU's cache."""

    __slots__ = ("sole", "subjects", "text", "tokens")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sole: tuple[int, frozenset[str] | None, Rule] | None = None
        self.subjects: dict[int, Cell] = {}
        self.tokens: dict[int, Cell] | None = None

    def of(self, held: Collection[int]) -> list[Cell]:
        """The cells of these subjects; costs the smaller of the two sides."""
        if self.sole is not None:
            return [[self.sole[2]]] if self.sole[0] in held else []
        subjects = self.subjects
        if len(subjects) <= len(held):
            return [cell for subject, cell in subjects.items() if subject in held]
        return [subjects[subject] for subject in held if subject in subjects]

    def every(self) -> Iterator[tuple[int, Cell]]:
        """Each subject that identity makes, with its cell."""
        if self.sole is not None:
            yield self.sole[0], [self.sole[2]]
        yield from self.subjects.items()

    def freeze(self) -> None:
        """Order every cell, narrow the large ones, shorten the leaf to `sole` where it fits."""
        for cells in (self.subjects, self.tokens or {}):
            for subject, cell in cells.items():
                if isinstance(cell, list) and len(cell) > 1:
                    ordered = sorted(set(cell), key=lambda rule: (not rule.plain, rule.order))
                    cells[subject] = Crowd(ordered) if len(ordered) > _CROWD else ordered
        if self.tokens is None and len(self.subjects) == 1:
            for subject, cell in self.subjects.items():
                if isinstance(cell, list) and len(cell) == 1 and cell[0].plain and cell[0].ports is None and cell[0].hosts is None:
                    self.sole = (subject, cell[0].methods, cell[0])
            if self.sole is not None:
                self.subjects = _NO_CELLS


class RuleIndex:
    """Built once from rules of one effect, then only read."""

    __slots__ = ("leaves", "root")

    def __init__(self) -> None:
        self.root: Node[Leaf] = Node()
        self.leaves: list[Leaf] = []

    def add(self, rule: Rule, template: Template, subjects: Sequence[int], token_subjects: Sequence[int]) -> None:
        """File `rule` under `template` for these subjects."""
        node = insert(self.root, template.segments)
        leaf = node.rest if template.rest else node.end
        if leaf is None:
            leaf = Leaf(template.text)
            self.leaves.append(leaf)
            if template.rest:
                node.rest = leaf
            else:
                node.end = leaf
        for subject in subjects:
            _file(leaf.subjects, subject, rule)
        if token_subjects:
            if leaf.tokens is None:
                leaf.tokens = {}
            for subject in token_subjects:
                _file(leaf.tokens, subject, rule)

    def freeze(self) -> Iterator[Leaf]:
        """Orders every cell and narrows the large ones, leaf by leaf as they are asked for. Nothing may be added afterwards."""
        for leaf in self.leaves:
            leaf.freeze()
            yield leaf

    def parts(self) -> Iterator[object]:
        """Every node and leaf, each before what it holds: for who lets go of a large index piece by piece."""
        todo: list[Node[Leaf]] = [self.root]
        while todo:
            node = todo.pop()
            yield node
            yield from (leaf for leaf in (node.end, node.rest) if leaf is not None)
            todo += children(node)

    def exact(self, path: str) -> list[Leaf]:
        """Leaves whose template fits a canonical path."""
        found: list[Leaf] = []
        if path[:1] == "/":
            walk(self.root, path[1:].split("/"), found)
        elif self.root.rest is not None:
            found.append(self.root.rest)  # the asterisk form of OPTIONS: only rules for every path
        return found

    def folded(self, readings: Sequence[str]) -> list[Leaf]:
        """Leaves whose template (folded when it was filed) fits any of the readings, empty segments and trailing slashes aside."""
        found: list[Leaf] = []
        for reading in readings:
            text = reading.strip("/")
            segments = text.split("/") if text else []
            if "//" in text:
                segments = [segment for segment in segments if segment]
            walk(self.root, segments, found)
        return found


def covering(cell: Cell, method: str, port: int, hosts: Collection[str]) -> list[Rule]:
    """Every rule of a cell that covers the request."""
    rules = cell.narrow(method, hosts) if isinstance(cell, Crowd) else cell
    return [rule for rule in rules if rule.covers(method, port, hosts)]


def some(cell: Cell, limit: int) -> list[Rule]:
    """A few rules of a cell, whatever they cover (for hints)."""
    return cell.some(limit) if isinstance(cell, Crowd) else cell[:limit]


def _file(cells: dict[int, Cell], subject: int, rule: Rule) -> None:
    cell = cells.get(subject)
    if cell is None:
        cells[subject] = [rule]
    elif isinstance(cell, list):
        cell.append(rule)
