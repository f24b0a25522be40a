"""The ledger as a process uses it: its directory, lock and shard, opened or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshguard.ledger.notes import NoteSigner, NoteVerifier
from meshguard.storage.claim import LedgerBusy
from meshguard.storage.disk import Disk
from meshguard.storage.recovery import recover
from meshguard.storage.shard import Shard

__all__ = ["OpenLedger", "open_ledger", "shard_origin"]


@dataclass(slots=True)
class OpenLedger:
    """A shard that this process writes to. `repaired`: what was found and mended at the start."""

    number: int
    directory: Path
    shard: Shard
    lock: int
    repaired: list[dict[str, object]] = field(default_factory=list)


def shard_origin(name: str, number: int) -> str:
    """The origin line of a shard's checkpoints."""
    return f"{name}/shard-{number}"


def open_ledger(
    directory: Path,
    shards: Sequence[int],
    signer: NoteSigner,
    trusted: Sequence[NoteVerifier],
    *,
    segment_bytes: int,
    segment_s: float = float("inf"),
    now: int,
    disk: Disk | None = None,
) -> OpenLedger:
    """Opens the first shard of `shards` that nobody writes to (one number; two while an old process hands over to a new one).

    Raises LedgerBusy, LedgerDamaged, OSError.
    """
    disk = disk or Disk()
    directory.mkdir(parents=True, exist_ok=True)
    for number in shards:
        place = directory / f"shard-{number}"
        place.mkdir(mode=0o750, exist_ok=True)
        try:
            lock = disk.lock(str(place / "lock"))
        except BlockingIOError:
            continue
        try:
            origin = shard_origin(signer.verifier.name, number)
            found = recover(place, origin, (signer.verifier, *trusted))
            shard = Shard(place, found, signer, origin, disk, segment_bytes, segment_s, now)
        except BaseException:
            disk.close(lock)
            raise
        return OpenLedger(number, directory, shard, lock, found.repaired)
    holder = directory / f"shard-{shards[0]}" / "lock"
    raise LedgerBusy(f"{holder.parent}: process {holder.read_text().strip() or '?'} writes to it; each process needs its own shard")
