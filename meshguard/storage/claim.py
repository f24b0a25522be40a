"""Whose a ledger is: one supervisor (or single process) at a time, and those that it started or that take over from it.

The lock is of an open file description: every process that got the descriptor holds it, so it lasts until the last of them has ended, and a
rolling restart hands it on. Each shard has a lock of its own besides (`storage.ledger`), for its one writer.
"""

from __future__ import annotations

from pathlib import Path

from meshguard.model.errors import MeshguardError
from meshguard.storage.disk import Disk

__all__ = ["LedgerBusy", "claim", "claim_shared"]


class LedgerBusy(MeshguardError):
    """Another process writes to this ledger."""


def claim(directory: Path) -> int:
    """Takes the ledger; the descriptor that holds it. Raises LedgerBusy, OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "lock"
    try:
        return Disk().lock(str(path))
    except BlockingIOError as exc:
        holder = path.read_text().strip() or "?"
        raise LedgerBusy(f"{directory}: process {holder} has this ledger; a second one needs a directory of its own") from exc


def claim_shared(directory: str, shared: dict[str, int]) -> None:
    """Puts the claim on `directory` ("": no ledger) among the descriptors that are `shared` with workers and a successor, unless it was
    handed over with them. Raises LedgerBusy, OSError."""
    if directory and "ledger" not in shared:
        shared["ledger"] = claim(Path(directory))
