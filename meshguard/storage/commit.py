"""A commit of a shard: what its thread makes lasting, hashes, puts into the tree and signs (`storage.shard` begins and ends it)."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path

from meshguard.ledger.checkpoints import Checkpoint
from meshguard.ledger.frame import LEAF_AT
from meshguard.ledger.merkle import Tree
from meshguard.ledger.notes import NoteSigner
from meshguard.storage.disk import Disk
from meshguard.storage.recovery import CHECKPOINTS
from meshguard.storage.segments import NEXT

__all__ = ["Commit", "hashed"]

_SLICE = 64
"""Entries that are hashed before the interpreter is offered to the event loop again: 0.1 ms."""


def hashed(records: list[bytes]) -> list[bytes]:
    """The leaf hashes of records."""
    return [sha256(record[LEAF_AT:]).digest() for record in records]


class Commit:
    """`tree` is that of what was lasting before; `run` adds the `records`. `leaves`: owed to the file of hashes from before."""

    __slots__ = (
        "_directory", "_disk", "_hashed", "_now", "_origin", "_signer", "checkpoint", "closes", "descriptor", "failed", "first", "hashes",
        "leaves", "next_header", "note", "offset", "opened", "owed", "prepare", "prepared", "records", "signs", "tree",
    )  # fmt: skip

    def __init__(self, disk: Disk, directory: Path, signer: NoteSigner, origin: str, tree: Tree, now: int) -> None:
        self._disk = disk
        self._directory = directory
        self._signer = signer
        self._origin = origin
        self._now = now
        self._hashed = False
        self.descriptor = self.closes = self.opened = self.prepared = -1
        self.hashes = ""
        self.records: list[bytes] = []
        self.leaves: list[bytes] = []
        self.owed = 0
        self.offset = self.first = 0
        self.tree = tree
        self.failed: OSError | None = None
        self.signs = False
        self.checkpoint: Checkpoint | None = None
        self.next_header: bytes | None = None
        self.note = ""
        self.prepare = False

    def hash(self) -> None:
        """Takes the records into the tree, once."""
        if self._hashed:
            return
        self._hashed = True
        self.owed = len(self.leaves)
        records = self.records
        for start in range(0, len(records), _SLICE):
            leaves = hashed(records[start : start + _SLICE])
            self.tree.extend(leaves)
            self.leaves += leaves
            if len(records) > _SLICE:
                time.sleep(0)  # gives the interpreter away: hashing short texts does not
        if self.signs:
            self.checkpoint = Checkpoint(self._origin, self.tree.size, self.tree.root(), (f"time {self._now}",))

    def run(self) -> None:
        """Raises OSError: the segment is broken."""
        disk = self._disk
        disk.sync(self.descriptor)
        self.hash()
        if self.leaves:
            self._append(self.hashes, b"".join(self.leaves), sync=False)
        if self.closes >= 0:
            disk.sync(self.opened)
            disk.sync_directory(str(self._directory))
            disk.close(self.closes)
        if self.checkpoint is not None:
            self.note = self._signer.sign(self.checkpoint.render(), self._now).render()
            self._append(str(self._directory / CHECKPOINTS), self.note.encode(), sync=True)
        if self.prepare:
            try:
                self.prepared = disk.create(str(self._directory / NEXT))
            except OSError:
                pass  # tried again with the next commit; the present segment grows meanwhile

    def _append(self, path: str, data: bytes, *, sync: bool) -> None:
        descriptor = self._disk.append_to(path)
        try:
            size = self._disk.size(descriptor)
            try:
                self._disk.write_all(descriptor, data)
            except OSError:
                self._disk.truncate(descriptor, size)
                raise
            if sync:
                self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)
