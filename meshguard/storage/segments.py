"""Segments: the files of a shard, their names, their headers, and reading them.

    <directory>/shard-0/00000000000000000000.segment   first index in the name; two header lines, then records (`ledger.frame`)
                        00000000000000000000.hashes    32 octets for each entry: its leaf hash. Derived, kept when entries expire
                        checkpoints                    signed notes, one behind the other
                        lock

The header's second line is JSON: origin, first index, the tree's frontier at that index, the checkpoint before it, the time and a
checksum. With the frontier no start has to read more than what follows the last checkpoint.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from meshguard.ledger.entries import canonical
from meshguard.ledger.merkle import Tree
from meshguard.model.errors import MeshguardError

__all__ = ["MAGIC", "NEXT", "Header", "LedgerDamaged", "Segment", "listed", "mapped", "segment_name", "shard_directories"]

MAGIC = b"meshguard segment 2\n"
NEXT = "next"
_SUFFIX = ".segment"
_MAX_HEADER = 1 << 17


class LedgerDamaged(MeshguardError):
    """The ledger on disk is not what was written: nothing starts on it."""


@dataclass(frozen=True, slots=True)
class Header:
    """Of the shard `origin`: its entries from index `first` on. `frontier` of the tree of the first `first` entries, `note` the last
    checkpoint before them, `created` in epoch seconds."""

    origin: str
    first: int
    frontier: tuple[bytes, ...]
    note: str
    created: int

    def encode(self) -> bytes:
        told = {
            "created": self.created,
            "first": self.first,
            "frontier": [node.hex() for node in self.frontier],
            "note": self.note,
            "origin": self.origin,
        }
        return MAGIC + canonical({**told, "check": _check(told)}) + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> tuple[Header, int]:
        """The header at the start of `data`, and where the records begin. Raises ValueError."""
        if not data.startswith(MAGIC):
            raise ValueError("no segment begins here")
        end = data.find(b"\n", len(MAGIC))
        if end < 0:
            raise ValueError("the header is cut off")
        told = orjson.loads(data[len(MAGIC) : end])
        try:
            check = told.pop("check")
            if check != _check(told):
                raise ValueError("the header's checksum does not fit")
            frontier = tuple(bytes.fromhex(node) for node in told["frontier"])
            made = cls(str(told["origin"]), int(told["first"]), frontier, str(told["note"]), int(told["created"]))
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError("the header lacks a part") from exc
        Tree(made.first, made.frontier)
        return made, end + 1

    def tree(self) -> Tree:
        return Tree(self.first, self.frontier)


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of a shard: `path`, the index of its `first` entry."""

    path: Path
    first: int

    @property
    def hashes(self) -> Path:
        return self.path.with_suffix(".hashes")


def _check(told: dict[str, Any]) -> str:
    return sha256(canonical(told)).hexdigest()[:16]


def segment_name(first: int) -> str:
    return f"{first:020d}{_SUFFIX}"


def listed(directory: Path) -> list[Segment]:
    """The segments of a shard, in order."""
    found = []
    for name in os.listdir(directory):
        stem, dot, suffix = name.partition(".")
        if dot + suffix == _SUFFIX and len(stem) == 20 and stem.isascii() and stem.isdigit():
            found.append(Segment(directory / name, int(stem)))
    return sorted(found, key=lambda segment: segment.first)


def shard_directories(directory: Path) -> Iterator[tuple[int, Path]]:
    """(number, directory) of the shards of a ledger, in order."""
    numbers = []
    for name in os.listdir(directory):
        number = name.removeprefix("shard-")
        if number != name and number.isascii() and number.isdigit() and (directory / name).is_dir():
            numbers.append(int(number))
    for value in sorted(numbers):
        yield value, directory / f"shard-{value}"


class mapped:  # used as `with mapped(path) as data`
    """The content of a file, mapped: `bytes`-like with `find`. Empty files give b""."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None

    def __enter__(self) -> mmap.mmap | bytes:
        with open(self._path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return self._map

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map.close()
