"""Complete segments: compressed, shipped, deleted when their time is over. Their hashes stay, so the tree can still be derived.

Only what a checkpoint covers is touched. A segment is deleted after its deletion is on record and lasting (`Doomed`: the caller puts the
event on record, waits for its sync, and calls `delete`). Every step can be interrupted anywhere and is taken up by the next run.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshguard.ledger.merkle import range_root
from meshguard.storage.disk import Disk
from meshguard.storage.packed import pack
from meshguard.storage.segments import Header
from meshguard.storage.shard_reader import Part, ShardReader

__all__ = ["Doomed", "Retention", "compress", "delete", "doomed", "ship"]

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Retention:
    """`days` and `total_bytes`: None keeps everything. `ship`: where complete segments are copied, None nowhere; with it nothing that was
    not shipped is deleted."""

    compress: bool = True
    days: float | None = None
    total_bytes: int | None = None
    ship: Path | None = None


@dataclass(frozen=True, slots=True)
class Doomed:
    """A segment whose time is over; `event` is what to put on record before `delete`."""

    part: Part
    event: dict[str, Any]


def _complete(reader: ShardReader, signed: int) -> Iterator[Part]:
    for part in reader.parts():
        if part.path is not None and part.end is not None and part.end <= signed:
            yield part


def compress(reader: ShardReader, signed: int) -> int:
    """Compresses every complete segment that is not. Returns how many were. Raises OSError."""
    count = 0
    disk = Disk()
    for part in _complete(reader, signed):
        if part.path is None or part.compressed:
            continue
        packed = part.path.with_name(part.path.name + ".gz")
        fresh = packed.with_name(packed.name + ".new")
        with open(part.path, "rb") as source, open(fresh, "wb") as target:
            pack(source, target)
            target.flush()
            os.fsync(target.fileno())
        with gzip.open(fresh, "rb") as check, open(part.path, "rb") as source:
            while True:  # what cannot be read back is not worth the original
                one, two = check.read(1 << 20), source.read(1 << 20)
                if one != two:
                    raise OSError(f"{fresh}: does not hold what was compressed")
                if not one:
                    break
        os.rename(fresh, packed)
        disk.sync_directory(str(reader.directory))
        part.path.unlink()
        count += 1
    return count


def ship(reader: ShardReader, signed: int, target: Path, name: str) -> int:
    """Copies complete segments, their hashes and the checkpoints to `target/name/shard-N`. What is there whole is not copied again.

    Returns how many segments were. Raises OSError.
    """
    place = _shipped(reader, target, name)
    place.mkdir(parents=True, exist_ok=True)
    count = 0
    for part in _complete(reader, signed):
        if part.path is None:
            continue
        plain, packed = place / f"{part.first:020d}.segment", place / f"{part.first:020d}.segment.gz"
        if not plain.exists() and not packed.exists():
            _copy(part.hashes, place / part.hashes.name)
            _copy(part.path, place / part.path.name)
            count += 1
    if count:
        _copy(reader.directory / "checkpoints", place / "checkpoints")
    return count


def doomed(reader: ShardReader, signed: int, retention: Retention, now: float, name: str) -> list[Doomed]:
    """Segments whose time is over, the oldest first."""
    parts = list(_complete(reader, signed))
    sizes = {part.first: part.path.stat().st_size for part in parts if part.path is not None}
    total = sum(sizes.values())
    found = []
    for part in parts:
        ended = _ended(reader, part)
        old = retention.days is not None and now - ended > retention.days * _DAY_S
        large = retention.total_bytes is not None and total > retention.total_bytes
        if not old and not large:
            break  # the newer ones are younger; what is kept has no holes
        if retention.ship is not None:
            place = _shipped(reader, retention.ship, name)
            if not (place / f"{part.first:020d}.segment").exists() and not (place / f"{part.first:020d}.segment.gz").exists():
                break
        leaves = reader.stored(part)[: (part.end or 0) - part.first]
        if len(leaves) != (part.end or 0) - part.first:
            break  # without its hashes the tree could not be derived any more
        total -= sizes[part.first]
        why = "age" if old else "size"
        event = {"end": part.end, "first": part.first, "reason": why, "root": range_root(leaves).hex(), "until": int(ended)}
        found.append(Doomed(part, event))
    return found


def delete(reader: ShardReader, part: Part) -> None:
    """The entries go, their hashes stay. Raises OSError."""
    if part.path is not None:
        part.path.unlink(missing_ok=True)
        Disk().sync_directory(str(reader.directory))


def _ended(reader: ShardReader, part: Part) -> float:
    """When the segment after this one began (epoch seconds)."""
    for other in reader.parts():
        if other.first == part.end and other.path is not None:
            with gzip.open(other.path, "rb") if other.compressed else open(other.path, "rb") as file:  # a with statement
                return float(Header.parse(file.read(1 << 17))[0].created)
    return float("inf")


def _shipped(reader: ShardReader, target: Path, name: str) -> Path:
    return target / name.replace("/", "_") / f"shard-{reader.number}"


def _copy(source: Path, target: Path) -> None:
    fresh = target.with_name(target.name + ".new")
    with open(source, "rb") as file, open(fresh, "wb") as out:
        shutil.copyfileobj(file, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
    os.rename(fresh, target)
    Disk().sync_directory(str(target.parent))
