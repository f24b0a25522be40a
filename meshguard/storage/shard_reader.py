"""Reading a shard that somebody may be writing to: its parts, its entries, its leaf hashes, its checkpoints.

A part is a segment (`.segment`), a compressed one (`.segment.gz`) or, where the entries have expired, only its `.hashes`.
"""

from __future__ import annotations

import gzip
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshguard.ledger.frame import HEADER, Damage, leaves_in, records, resumes_at
from meshguard.ledger.merkle import Tree
from meshguard.ledger.notes import notes_in
from meshguard.ledger.proofs import consistency_proof
from meshguard.ledger.verify import DAMAGED
from meshguard.storage.recovery import CHECKPOINTS
from meshguard.storage.segments import Header, mapped

__all__ = ["Part", "ShardReader"]

_HASH = 32


@dataclass(frozen=True, slots=True)
class Part:
    """From entry `first` on, up to `end` (None: the newest, still growing). `path` None: expired."""

    first: int
    end: int | None
    path: Path | None
    hashes: Path

    @property
    def compressed(self) -> bool:
        return self.path is not None and self.path.suffix == ".gz"


class ShardReader:
    """Of the directory of one shard."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number = number
        self.directory = directory

    def parts(self) -> list[Part]:
        """In order, as they are now."""
        names: dict[int, set[str]] = {}
        for name in os.listdir(self.directory):
            stem, _, suffix = name.partition(".")
            if len(stem) == 20 and stem.isascii() and stem.isdigit() and suffix in ("segment", "segment.gz", "hashes"):
                names.setdefault(int(stem), set()).add(suffix)
        starts = sorted(names)
        made = []
        for position, first in enumerate(starts):
            suffix = "segment" if "segment" in names[first] else "segment.gz" if "segment.gz" in names[first] else ""
            end = starts[position + 1] if position + 1 < len(starts) else None
            path = self.directory / f"{first:020d}.{suffix}" if suffix else None
            made.append(Part(first, end, path, self.directory / f"{first:020d}.hashes"))
        return made

    @contextmanager
    def octets(self, part: Part) -> Iterator[bytes | mmap.mmap]:
        """The content of a part that has not expired, decompressed."""
        if part.path is None:
            raise FileNotFoundError(part.hashes)
        if part.compressed:
            with gzip.open(part.path, "rb") as file:
                yield file.read()
        else:
            with mapped(part.path) as data:
                yield data

    def leaves(self, part: Part) -> tuple[list[bytes], Tree | None]:
        """Leaf hashes made from the entries as they lie there, DAMAGED for what is none, and the tree of the header (None: unreadable)."""
        found: list[bytes] = []
        with self.octets(part) as data:
            try:
                header, offset = Header.parse(data[: 1 << 17])
                tree: Tree | None = header.tree()
            except ValueError:
                tree = None
                again = resumes_at(data, 0)
                if again is None:
                    return found, tree
                offset = again
            add = found.append
            while True:
                try:
                    leaves_in(data, offset, found)
                    break
                except Damage as damage:
                    again = resumes_at(data, damage.offset)
                    if again is None:
                        if not (damage.short and part.end is None):  # a growing file may end inside a record
                            add(DAMAGED)
                        break
                    add(DAMAGED)
                    offset = again
        return found, tree

    def stored(self, part: Part) -> list[bytes]:
        """Its stored leaf hashes, as many as there are."""
        try:
            data = part.hashes.read_bytes()
        except FileNotFoundError:
            return []
        return [data[place : place + _HASH] for place in range(0, len(data) - len(data) % _HASH, _HASH)]

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """(index, entry) from `start` on, of what is there and whole; expired parts are skipped. Raises Damage in the middle."""
        for part in self.parts():
            if part.path is None or (part.end is not None and part.end <= start):
                continue
            if stop is not None and part.first >= stop:
                return
            with self.octets(part) as data:
                try:
                    _, offset = Header.parse(data[: 1 << 17])
                except ValueError as exc:
                    if part.end is None:
                        return  # just made
                    raise Damage(0, str(exc)) from exc
                index = part.first
                try:
                    for begin, end in records(data, offset):
                        if (stop is not None and index >= stop) or (part.end is not None and index >= part.end):
                            break
                        if index >= start:
                            yield index, data[begin + HEADER : end]
                        index += 1
                except Damage as damage:
                    if not (damage.short and part.end is None):
                        raise

    def notes(self) -> list[str]:
        """All its checkpoints, as they lie there."""
        try:
            text = (self.directory / CHECKPOINTS).read_text("utf-8", "replace")
        except FileNotFoundError:
            return []
        return list(notes_in(text))

    def note_at(self, size: int) -> str:
        """Its checkpoint over just `size` entries (each rotation signs one), "" where there is none."""
        try:
            with mapped(self.directory / CHECKPOINTS) as data:
                place = data.find(b"\n%d\n" % size)
                if place < 0:
                    return ""
                text = bytes(data[max(0, place - 4096) : place + 65536]).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        place = text.find(f"\n{size}\n")
        return next(iter(notes_in(text[text.rfind("\n", 0, place) + 1 :])), "")

    def tree_at(self, size: int) -> Tree:
        """The tree of the first `size` entries, from the frontier in a segment's header and the hashes behind it. Raises ValueError where
        some are missing, OSError."""
        parts = [part for part in self.parts() if part.first < size]
        known = max((place for place, part in enumerate(parts) if part.path is not None), default=None)
        tree = Tree()
        if known is not None:
            with self.octets(parts[known]) as data:
                tree = Header.parse(data[: 1 << 17])[0].tree()
            parts = parts[known:]
        for part in parts:
            leaves = self.stored(part)[: (size if part.end is None else min(size, part.end)) - part.first]
            tree.extend(leaves)
        if tree.size != size:
            raise ValueError(f"hashes of the first {size} entries are missing")
        return tree

    def consistency(self, old: Tree, size: int) -> list[bytes]:
        """PROOF that the tree of `size` entries continues `old`: its left nodes are in the frontier of `old`, so only hashes from there
        on are read. Raises ValueError, OSError."""
        known: dict[tuple[int, int], bytes] = {}
        low = 0
        for node, bit in zip(old.frontier, (bit for bit in range(62, -1, -1) if old.size >> bit & 1), strict=True):
            known[low, low + (1 << bit)] = node
            low += 1 << bit

        def root_of(low: int, high: int) -> bytes:
            return known.get((low, high)) or self.range_root(low, high)

        return consistency_proof(old.size, size, root_of)

    def range_root(self, low: int, high: int) -> bytes:
        """MTH of the stored leaf hashes of [low, high). Raises ValueError where some are missing."""
        tree = Tree()
        for part in self.parts():
            if part.first >= high or (part.end is not None and part.end <= low):
                continue
            with open(part.hashes, "rb") as file:
                begin = max(low, part.first)
                file.seek((begin - part.first) * _HASH)
                limit = min(high, part.end) if part.end is not None else high
                data = file.read((limit - begin) * _HASH)
            tree.extend(data[place : place + _HASH] for place in range(0, len(data), _HASH))
        if tree.size != high - low:
            raise ValueError(f"hashes of entries {low} to {high} are missing")
        return tree.root()
