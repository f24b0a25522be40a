"""Verifying the ledger on disk: every shard is derived anew from its entries and held against its checkpoints and those kept elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshguard.ledger.checkpoints import Checkpoint
from meshguard.ledger.notes import NoteError, NoteVerifier, open_note
from meshguard.ledger.verify import Finding, ShardReport, Verifier
from meshguard.storage.segments import shard_directories
from meshguard.storage.shard_reader import ShardReader

__all__ = ["AuditReport", "verify_ledger"]


@dataclass(slots=True)
class AuditReport:
    """One report for each shard, by number, and what is wrong with checkpoints that belong to none (`strays`)."""

    shards: dict[int, ShardReport] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.strays and not any(report.findings for report in self.shards.values())

    @property
    def entries(self) -> int:
        return sum(report.size for report in self.shards.values())


def verify_ledger(
    directory: Path,
    verifiers: Sequence[NoteVerifier],
    held: Sequence[tuple[str, str]] = (),
    progress: Callable[[int, int], None] | None = None,
    *,
    every: bool = False,
) -> AuditReport:
    """`held`: (where from, text) of checkpoints kept elsewhere. `progress(shard, entries)` is called after each part. `every`: a checkpoint
    counts when all `verifiers` have signed it. Raises OSError."""
    report = AuditReport()
    kept: dict[str, list[tuple[str, Checkpoint]]] = {}
    for source, text in held:
        try:
            checkpoint = Checkpoint.parse(open_note(text, verifiers, every=every).text)
        except NoteError as exc:
            report.strays.append(f"{source}: {exc}")
            continue
        kept.setdefault(checkpoint.origin, []).append((source, checkpoint))
    for number, place in shard_directories(directory):
        report.shards[number] = _verify_shard(ShardReader(number, place), verifiers, kept, progress, every)
    origins = {shard.origin for shard in report.shards.values()}
    for origin, checkpoints in kept.items():
        if origin not in origins:
            report.strays += [f"{source}: is of {origin}, which is not here" for source, _ in checkpoints]
    return report


def _verify_shard(
    reader: ShardReader,
    verifiers: Sequence[NoteVerifier],
    kept: dict[str, list[tuple[str, Checkpoint]]],
    progress: Callable[[int, int], None] | None,
    every: bool,
) -> ShardReport:
    signed: dict[int, Checkpoint] = {}
    wrong: list[Finding] = []
    newest = 0
    origin = ""
    for text in reader.notes():
        try:
            checkpoint = Checkpoint.parse(open_note(text, verifiers, every=every).text)
        except NoteError as exc:
            wrong.append(Finding("bad_checkpoint", newest, f"a checkpoint after size {newest}: {exc}", exact=False))
            continue
        origin = origin or checkpoint.origin
        other = signed.get(checkpoint.size)
        if checkpoint.origin != origin:
            wrong.append(Finding("bad_checkpoint", newest, f"a checkpoint is of {checkpoint.origin}", exact=False))
        elif checkpoint.size < newest:
            wrong.append(Finding("forked", checkpoint.size, f"the size goes back from {newest} to {checkpoint.size}", exact=False))
        elif other is not None and other.root != checkpoint.root:
            wrong.append(Finding("forked", checkpoint.size, "two signed checkpoints of one size have different roots", exact=False))
        else:
            signed[checkpoint.size] = checkpoint
            newest = max(newest, checkpoint.size)
    if not origin:
        origin = next((name for name in kept if name.endswith(f"/shard-{reader.number}")), f"shard-{reader.number}")
    verifier = Verifier(origin, signed, kept.get(origin, ()))
    for finding in wrong:
        verifier.add(finding)
    parts = reader.parts()
    for part in parts:
        leaves, header = (None, None) if part.path is None else reader.leaves(part)
        stored = reader.stored(part)
        if part.end is not None:
            stored = stored[: part.end - part.first]  # a segment that broke may have kept the hashes of what moved on
            if leaves is not None and len(leaves) > part.end - part.first and leaves[: len(stored)] == stored:
                leaves = leaves[: part.end - part.first]
        if leaves is None and part.end is not None and len(stored) < part.end - part.first:
            verifier.add(Finding("missing", part.first + len(stored), "the hashes of expired entries are not there"))
        verifier.part(part.first, part.end, leaves, stored, header)
        if progress is not None:
            progress(reader.number, verifier.report.size)
    if not newest and verifier.report.size and len(parts) > 1:
        verifier.add(Finding("bad_checkpoint", 0, "no checkpoint is there, though segments were completed", exact=False))
    return verifier.finish(newest)
