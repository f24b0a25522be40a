"""Opening a shard: what lies there is read from the last checkpoint on, a torn tail is cut, anything else that is wrong refuses.

What may be cut is only what no checkpoint covers: an incomplete record at the very end, with no whole record behind it. Everything else
(an entry changed, missing entries below the last checkpoint, a checkpoint that no trusted key signed) raises LedgerDamaged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshguard.ledger.checkpoints import Checkpoint
from meshguard.ledger.frame import Damage, leaves_in, resumes_at
from meshguard.ledger.merkle import Tree
from meshguard.ledger.notes import NoteError, NoteVerifier, notes_in, open_note
from meshguard.storage.segments import NEXT, Header, LedgerDamaged, Segment, listed, mapped

__all__ = ["CHECKPOINTS", "Recovered", "last_checkpoint", "recover"]

CHECKPOINTS = "checkpoints"


@dataclass(slots=True)
class Recovered:
    """A shard as it was found: the newest `segment` (None: there is none) with `end` octets, its `tree`, the last checkpoint as `note`,
    what was `repaired` in words."""

    segment: Segment | None
    end: int
    tree: Tree
    note: str
    checkpoint: Checkpoint | None
    created: int = 0
    repaired: list[dict[str, object]] = field(default_factory=list)


def last_checkpoint(directory: Path, origin: str, verifiers: Sequence[NoteVerifier]) -> tuple[str, Checkpoint | None]:
    """The newest checkpoint of a shard, verified. Raises LedgerDamaged."""
    path = directory / CHECKPOINTS
    if not path.exists():
        return "", None
    with open(path, "rb") as file:  # only the end: there is one checkpoint a second
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 65536))
        text = file.read().decode("utf-8", "replace")
    if size > 65536:
        text = text[text.find(f"\n{origin}\n") + 1 :]
    notes = list(notes_in(text))
    if not notes:
        return "", None
    last = notes[-1]
    try:
        checkpoint = Checkpoint.parse(open_note(last, verifiers).text)
    except NoteError as exc:
        raise LedgerDamaged(f"{path}: the last checkpoint is not to be trusted: {exc}") from exc
    if checkpoint.origin != origin:
        raise LedgerDamaged(f"{path}: the last checkpoint is of {checkpoint.origin}, not of {origin}")
    return last, checkpoint


def recover(directory: Path, origin: str, verifiers: Sequence[NoteVerifier]) -> Recovered:
    """Reads a shard and repairs its tail. The caller holds the lock. Raises LedgerDamaged, OSError."""
    repaired: list[dict[str, object]] = []
    leftover = directory / NEXT
    if leftover.exists():
        leftover.unlink()
    note, checkpoint = last_checkpoint(directory, origin, verifiers)
    signed = checkpoint.size if checkpoint is not None else 0
    segments = listed(directory)
    while segments and segments[-1].first >= signed and _is_void(segments[-1]):
        void = segments.pop()  # made, and lost its content with the power: nothing in it was promised
        void.path.unlink()
        repaired.append({"what": "a segment without header and entries was removed", "segment": void.path.name})
    if not segments:
        if signed:
            raise LedgerDamaged(f"{directory}: no segment is left, but {signed} entries are signed")
        return Recovered(None, 0, Tree(), note, checkpoint, 0, repaired)
    start = max((index for index, segment in enumerate(segments) if segment.first <= signed), default=None)
    if start is None:
        raise LedgerDamaged(f"{directory}: the entries from {signed} on are missing")
    tree: Tree | None = None
    end = 0
    for position in range(start, len(segments)):
        segment = segments[position]
        last = position == len(segments) - 1
        limit = None if last else segments[position + 1].first
        tree, end = _read(segment, origin, tree, checkpoint, limit, repaired if last else None)
    if tree is None or tree.size < signed:
        size = 0 if tree is None else tree.size
        raise LedgerDamaged(f"{directory}: truncated: {size} entries are there, but {signed} are signed")
    if checkpoint is None and segments[-1].first:
        raise LedgerDamaged(f"{directory / CHECKPOINTS}: missing, and there is more than one segment")
    return Recovered(segments[-1], end, tree, note, checkpoint, _created(segments[-1]), repaired)


def _is_void(segment: Segment) -> bool:
    """Neither a header nor a whole record is in it."""
    with mapped(segment.path) as data:
        try:
            Header.parse(data[: 1 << 17])
        except ValueError:
            return resumes_at(data, 0) is None
    return False


def _read(
    segment: Segment,
    origin: str,
    before: Tree | None,
    checkpoint: Checkpoint | None,
    limit: int | None,
    repaired: list[dict[str, object]] | None,
) -> tuple[Tree, int]:
    """The tree after this segment, and where its records end. `limit`: index of the next segment. `repaired`: of the newest one, whose
    tail may be cut."""
    path = segment.path
    signed = checkpoint.size if checkpoint is not None else 0
    leaves: list[bytes] = []
    damage: Damage | None = None
    again: int | None = None
    with mapped(path) as data:
        size = len(data)
        try:
            header, begin = Header.parse(data[: 1 << 17])
            end = begin
        except ValueError as exc:
            raise LedgerDamaged(f"{path}: {exc}") from exc
        if header.origin != origin or header.first != segment.first:
            raise LedgerDamaged(f"{path}: the header is of {header.origin}, entry {header.first}")
        try:
            end = leaves_in(data, begin, leaves, -1 if limit is None else limit - segment.first)
        except Damage as exc:
            damage = exc
            end = exc.offset
            again = resumes_at(data, exc.offset)
    index = segment.first + len(leaves)
    if damage is not None:
        if repaired is None or index < signed or again is not None:
            raise LedgerDamaged(f"{path}: entry {index} at octet {damage.offset} is damaged: {damage.what}")
        os.truncate(path, end)
        repaired.append({"what": "a torn tail was cut", "segment": path.name, "index": index, "octets": size - end})
    elif limit is not None and index != limit:
        raise LedgerDamaged(f"{path}: ends at entry {index}, the next segment begins at {limit}")
    tree = header.tree()
    if before is not None and (before.size != tree.size or before.root() != tree.root()):
        raise LedgerDamaged(f"{path}: does not continue the segment before it")
    if checkpoint is not None and segment.first <= signed <= index:
        upto = signed - segment.first
        tree.extend(leaves[:upto])
        if tree.root() != checkpoint.root:
            raise LedgerDamaged(f"{path}: the entries up to {signed} do not lead to the signed root (see `meshguard audit verify`)")
        tree.extend(leaves[upto:])
    else:
        tree.extend(leaves)
    _rebuild_hashes(segment, b"".join(leaves))
    return tree, end


def _created(segment: Segment) -> int:
    with open(segment.path, "rb") as file:
        return Header.parse(file.read(1 << 17))[0].created


def _rebuild_hashes(segment: Segment, leaves: bytes) -> None:
    """They are derived: what a crash left out is written again."""
    path = segment.hashes
    if not path.exists() or path.read_bytes() != leaves:
        fresh = path.with_suffix(".hashes.new")
        fresh.write_bytes(leaves)
        fresh.replace(path)
