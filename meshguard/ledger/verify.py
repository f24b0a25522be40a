"""Re-deriving a shard from its entries, and naming what was done to it.

`Verifier` is fed the shard part by part (a segment each): the leaf hashes of the entries as they lie there, and the stored leaf hashes.
At the size of every checkpoint the root must be the signed one. Where it is not, the stored hashes since the last good checkpoint are
tried: if they lead to the signed root they are what was really written, and comparing the two sequences names the first entry that is
wrong and what was done: edited, deleted, inserted, reordered, truncated. If somebody changed the hashes too, the range is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from meshguard.ledger.checkpoints import Checkpoint
from meshguard.ledger.merkle import Tree

__all__ = ["DAMAGED", "Finding", "ShardReport", "Verifier", "compare"]

DAMAGED = b""
"""Stands for the leaf of octets that are no entry."""
_MOST_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong from entry `index` on. `kind`: edited, deleted, inserted, reordered, truncated, forked, unsigned_change,
    damaged_header, bad_checkpoint, missing. `exact`: the entry is just that one; else it is the first of a range that is wrong somewhere.
    """

    kind: str
    index: int
    detail: str
    exact: bool = True

    def text(self) -> str:
        where = f"entry {self.index}" if self.exact else f"from entry {self.index} on"
        return f"{self.kind}: {where}: {self.detail}"


@dataclass(slots=True)
class ShardReport:
    """`size` entries of the shard `origin`, the first `signed` of them under a checkpoint; `expired` have only their hashes left."""

    origin: str
    size: int = 0
    signed: int = 0
    expired: int = 0
    checkpoints: int = 0
    root: bytes = b""
    findings: list[Finding] = field(default_factory=list)

    @property
    def first_bad(self) -> Finding | None:
        return min(self.findings, key=lambda finding: (finding.index, not finding.exact), default=None)


def compare(actual: Sequence[bytes], authentic: Sequence[bytes], first: int) -> Finding | None:
    """The first difference between the leaves that are there and those that were signed, both from index `first` on, and what it is."""
    shared = min(len(actual), len(authentic))
    place = next((number for number in range(shared) if actual[number] != authentic[number]), shared)
    if place == shared:
        if len(actual) < len(authentic):
            return Finding("truncated", first + place, f"{len(authentic) - place} entries that are signed are missing")
        if len(actual) > len(authentic):
            return Finding("inserted", first + place, "this entry was not there when the checkpoint was signed")
        return None
    index = first + place
    if actual[place] == DAMAGED:
        return Finding("edited", index, "its octets are no entry any more")
    rest, signed = Counter(actual[place:]), Counter(authentic[place:])
    known, wanted = actual[place] in signed, authentic[place] in rest
    if known and wanted:
        return Finding("reordered", index, "this entry was signed at another place")
    if known:
        missing = sum((signed - rest).values())
        return Finding("deleted", index, f"{missing} signed {'entry is' if missing == 1 else 'entries are'} missing from here on")
    if wanted:
        added = sum((rest - signed).values())
        return Finding("inserted", index, f"{added} {'entry' if added == 1 else 'entries'} that nobody signed")
    return Finding("edited", index, "its content is not what was signed")


class Verifier:
    """Of one shard. `signed`: its own checkpoints by size; `held`: checkpoints that somebody kept elsewhere, with where from. Signatures
    are verified before. Call `part` for each part in order, then `finish`."""

    def __init__(self, origin: str, signed: Mapping[int, Checkpoint], held: Sequence[tuple[str, Checkpoint]] = ()) -> None:
        self.report = ShardReport(origin, checkpoints=len(signed))
        self._signed = signed
        self._held = list(held)
        self._stops = sorted({*signed, *(checkpoint.size for _, checkpoint in held)})
        self._tree = Tree()
        self._good = Tree()  # at the last size whose root was right
        self._actual: list[bytes] = []  # leaves since then
        self._authentic: list[bytes] = []  # stored hashes since then
        self._broken = False
        self._roots: dict[int, bytes] = {0: self._tree.root()}

    def add(self, finding: Finding) -> None:
        if len(self.report.findings) < _MOST_FINDINGS:
            self.report.findings.append(finding)

    def part(self, first: int, end: int | None, leaves: Sequence[bytes] | None, stored: Sequence[bytes], header: Tree | None) -> None:
        """The entries from `first` to `end` (None: open): `leaves` as they lie there (None: expired), the `stored` hashes, the tree in the
        header."""
        size = self.report.size
        if first != size and not self._broken:
            if leaves is not None and first < size:
                self.add(Finding("inserted", first, f"the segment before this one holds {size - first} entries too many"))
            else:
                before = f"; those from {self._good.size} on cannot be judged without them" if self._good.size < size else ""
                self.add(Finding("deleted", size, f"the entries up to {first} are missing{before}"))
            self._broken = True
        if leaves is not None and not self._broken and (header is None or header.root() != self._tree.root()):
            self.add(Finding("damaged_header", first, "the header of its segment does not fit the entries before it", exact=False))
        if leaves is None:
            self.report.expired += len(stored)
            leaves = stored
        self.report.size = first + len(leaves)
        if self._broken:
            return
        start = 0
        limit = first + max(len(leaves), len(stored))
        for stop in self._stops:
            if stop <= first or stop > limit:
                continue
            self._take(leaves[start : stop - first], stored[start : stop - first])
            start = stop - first
            if not self._judge(stop, stored[start:], leaves[start:]):
                return
        self._take(leaves[start:], stored[start:])

    def finish(self, newest: int) -> ShardReport:
        """`newest`: the largest size that the shard's own checkpoints claim."""
        report = self.report
        report.root = self._tree.root()
        if not self._broken:
            if newest > report.size:
                self._short(newest)
            elif self._actual != self._authentic and self._authentic:
                difference = compare(self._actual[: len(self._authentic)], self._authentic, self._good.size)
                if difference is not None and difference.kind != "truncated":
                    self.add(Finding("unsigned_change", difference.index, f"{difference.kind}, where no checkpoint covers it yet"))
        for source, checkpoint in self._held:
            if checkpoint.size > report.size:
                self.add(Finding("truncated", report.size, f"{source} was signed over {checkpoint.size} entries"))
        return report

    def _take(self, leaves: Sequence[bytes], stored: Sequence[bytes]) -> None:
        self._tree.extend(leaves)
        self._actual += leaves
        self._authentic += stored

    def _judge(self, size: int, more_stored: Sequence[bytes], more: Sequence[bytes]) -> bool:
        """Is the root right at `size`? False: nothing after it can be judged."""
        root = self._tree.root()
        own = self._signed.get(size)
        if own is not None and own.root != root:
            self._name(size, own, more_stored, more)
            self._broken = True
            return False
        for source, checkpoint in self._held:
            if checkpoint.size == size and checkpoint.root != root:
                low = self._good.size
                self.add(Finding("forked", low, f"{source} signs another history of the first {size} entries", exact=False))
        if own is not None:
            self.report.signed = size
            self._good = self._tree.copy()
            self._actual, self._authentic = [], []
        return True

    def _name(self, size: int, own: Checkpoint, more_stored: Sequence[bytes], more: Sequence[bytes]) -> None:
        low = self._good.size
        stored = self._good.copy()
        stored.extend(self._authentic)
        if stored.size == size and stored.root() == own.root:
            # the entries and hashes behind the checkpoint help to tell a shift from a change
            found = compare([*self._actual, *more], [*self._authentic, *more_stored], low)
            if found is not None:
                self.add(found)
                return
        detail = f"the entries up to {size} do not lead to the signed root, and their stored hashes were changed too or are missing"
        self.add(Finding("edited", low, detail, exact=False))

    def _short(self, newest: int) -> None:
        """Signed entries are missing at the end, and so are their hashes: what is left may be whole or not."""
        found = compare(self._actual, self._authentic, self._good.size) if self._authentic else None
        if found is not None and found.kind not in ("truncated", "inserted"):
            self.add(Finding(found.kind, found.index, found.detail))
        self.add(Finding("truncated", self.report.size, f"{newest - self.report.size} entries that are signed are missing"))
