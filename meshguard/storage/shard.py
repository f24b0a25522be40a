"""The writer of one shard: entries are appended by one thread (the event loop), made lasting by another.

    append()   on the loop: one write(2) of a whole record; what it returns from survives the end of the process, not that of the machine
    begin()    on the loop: what is to be made lasting now, as a `Commit`; a full segment gives way to the next one
    Commit.run in a thread: fdatasync, leaf hashes, a signed checkpoint
    end()      on the loop: the commit is over

    running  --(write fails, no room)-->       record taken back, reserve given up, tried once more
    running  --(write or fsync fails)-->       broken: nothing is appended to this segment ever again
    broken   --mend() in a thread-->           everything since the last sync is in a new segment and synced; adopt() on the loop: running

INVARIANT: a record is in the file whole, or `append` has raised and it is not there.
INVARIANT: an fsync that failed is not repeated on its segment (what the kernel dropped would be taken for written).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from struct import Struct

from meshguard.ledger.checkpoints import Checkpoint
from meshguard.ledger.merkle import Tree
from meshguard.ledger.notes import NoteSigner
from meshguard.storage.disk import Disk
from meshguard.storage.recovery import CHECKPOINTS, Recovered
from meshguard.storage.segments import NEXT, Header, listed, segment_name

__all__ = ["FULL", "RESERVE_BYTES", "Commit", "Shard", "ShardBroken"]

RESERVE_BYTES = 16 * 1024 * 1024
"""Kept for the moment when the disk is full (security.md 5)."""
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_HASH_SLICE = 32
"""Leaves that go into the tree together: a tight loop costs half of single calls, and holds the loop for 30 us."""
_LENGTH = Struct(">I").pack


class ShardBroken(OSError):
    """Nothing can be appended until the shard is mended."""


class Shard:
    """See the module. `found` is what `recovery.recover` has returned; `segment_bytes` and
    `segment_s`: size and age from which a new segment begins."""

    def __init__(
        self, directory: Path, found: Recovered, signer: NoteSigner, origin: str, disk: Disk, segment_bytes: int, segment_s: float, now: int
    ) -> None:
        self.directory = directory
        self.origin = origin
        self.broken = False
        self.note = found.note
        self.checkpoint = found.checkpoint
        self._signer = signer
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._segment_s = segment_s
        self._since = now if found.segment is None else found.created
        self._tree = found.tree
        self._leaves: list[bytes] = []  # not in the tree yet
        self._unhashed: list[bytes] = []  # not in the file of hashes yet
        self._unsynced: list[bytes] = []  # records since the last commit began
        self._committing: list[bytes] = []  # records of the commit under way
        self._prepared = -1  # descriptor of the next segment
        self._reserve = str(directory / "reserve")
        self._synced_tree = found.tree.copy()
        if found.segment is None:
            self._first = 0
            self._path = str(directory / segment_name(0))
            self._descriptor = disk.create(self._path)
            header = Header(origin, 0, (), "", now).encode()
            disk.write_all(self._descriptor, header)
            disk.sync(self._descriptor)
            disk.sync_directory(str(directory))
            self._offset = len(header)
        else:
            self._first = found.segment.first
            self._path = str(found.segment.path)
            self._descriptor = disk.append_to(self._path)
            disk.sync(self._descriptor)
            self._offset = found.end
        self._synced_offset, self._synced_first = self._offset, self._first
        self.make_reserve()

    # -- on the loop ----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Entries, written or not yet lasting."""
        return self._tree.size + len(self._leaves)

    @property
    def synced(self) -> int:
        """Entries that survive the machine."""
        return self._synced_tree.size

    @property
    def dirty(self) -> bool:
        """Something is not lasting, or not signed."""
        return self.size > (self.checkpoint.size if self.checkpoint is not None else 0)

    def append(self, entry: bytes) -> None:
        """Writes one entry. Raises OSError; then nothing of it is in the file."""
        if self.broken:
            raise ShardBroken(errno.EIO, "the ledger waits for a new segment")
        leaf_input = b"\0" + entry
        leaf = sha256(leaf_input).digest()
        record = b"%b%b%b" % (_LENGTH(len(entry)), leaf[:8], leaf_input)
        try:
            written = self._disk.write(self._descriptor, record)
        except OSError:
            self._take_back(0)
            raise
        if written != len(record):
            self._take_back(written)
            raise OSError(errno.ENOSPC, "a short write")
        self._offset += written
        self._unsynced.append(record)
        leaves = self._leaves
        leaves.append(leaf)
        if len(leaves) >= _HASH_SLICE:
            self._hash()

    def begin(self, now: int, *, checkpoint: bool) -> Commit:
        """What is to be made lasting. One at a time; `end` follows."""
        self._hash()
        commit = Commit(self._disk, self.directory, self._signer)
        commit.descriptor = self._descriptor
        commit.hashes = self._path[: -len("segment")] + "hashes"
        commit.leaves = self._unhashed
        commit.tree = self._tree.copy()
        commit.offset, commit.first = self._offset, self._first
        commit.records = len(self._unsynced)
        aged = now - self._since >= self._segment_s
        rotate = (aged or self._offset >= self._segment_bytes) and self._prepared >= 0 and not self.broken
        if checkpoint or rotate:
            commit.checkpoint = Checkpoint(self.origin, self._tree.size, self._tree.root(), (f"time {now}",))
        commit.prepare = self._prepared < 0 and (aged or self._offset * 4 >= self._segment_bytes * 3)
        self._committing, self._unsynced, self._unhashed = self._unsynced, [], []
        if rotate:
            self._rotate(commit, now)
        return commit

    def end(self, commit: Commit, error: OSError | None) -> None:
        """The commit is over; `error` makes the shard broken."""
        if commit.prepared >= 0:
            self._prepared = commit.prepared
        if error is not None:
            self.broken = True
            self._unhashed = commit.leaves + self._unhashed
            self._unsynced = self._committing + self._unsynced
            self._committing = []
            return
        self._committing = []
        self._synced_tree = commit.tree
        self._synced_offset, self._synced_first = commit.offset, commit.first
        if commit.next_header is not None:
            self._synced_offset, self._synced_first = len(commit.next_header), commit.tree.size
        if commit.note and commit.checkpoint is not None:
            self.note, self.checkpoint = commit.note, commit.checkpoint

    def release_reserve(self) -> bool:
        """Gives the reserve up; False when there was none."""
        try:
            self._disk.remove(self._reserve)
        except OSError:
            return False
        return True

    def _hash(self) -> None:
        leaves = self._leaves
        if leaves:
            self._tree.extend(leaves)
            self._unhashed += leaves
            self._leaves = []

    def _take_back(self, written: int) -> None:
        """Nothing of a record that failed may stay: the next one would stand behind half of it."""
        try:
            if self._disk.size(self._descriptor) != self._offset:
                self._disk.truncate(self._descriptor, self._offset)
        except OSError:
            self.broken = True

    def _rotate(self, commit: Commit, now: int) -> None:
        """The prepared file becomes the segment that is written to; the commit finishes the old one."""
        tree = self._tree
        header = Header(self.origin, tree.size, tree.frontier, self.note, now).encode()
        path = str(self.directory / segment_name(tree.size))
        try:
            self._disk.write_all(self._prepared, header)
            self._disk.rename(str(self.directory / NEXT), path)
        except OSError:
            self._disk.close(self._prepared)
            self._prepared = -1  # the old one goes on; a fresh file is prepared with the next commit
            return
        commit.closes, commit.opened, commit.next_header = self._descriptor, self._prepared, header
        self._descriptor, self._path, self._prepared = self._prepared, path, -1
        self._first, self._offset, self._since = tree.size, len(header), now

    # -- in the thread --------------------------------------------------------------------------------------------------

    def make_reserve(self) -> bool:
        """False when there is no room for it."""
        try:
            self._disk.reserve(self._reserve, RESERVE_BYTES)
        except OSError:
            return False
        return True

    def mend(self, now: int) -> Callable[[], None]:
        """Writes everything since the last sync to a new segment. Returns what the loop calls to go on with it. Raises OSError.

        Nothing is appended meanwhile: the shard is broken.
        """
        disk, tree = self._disk, self._synced_tree
        name = str(self.directory / NEXT)
        if self._prepared >= 0:
            disk.close(self._prepared)
            self._prepared = -1
        if os.path.exists(name):
            disk.remove(name)
        fresh = disk.create(name)
        try:
            header = Header(self.origin, tree.size, tree.frontier, self.note, now).encode()
            body = b"".join((*self._committing, *self._unsynced))
            disk.write_all(fresh, header + body)
            disk.sync(fresh)
        except OSError:
            disk.close(fresh)
            raise
        path = str(self.directory / segment_name(tree.size))
        disk.rename(name, path)
        self._tidy(tree.size)
        disk.sync_directory(str(self.directory))

        def adopt() -> None:
            try:
                disk.close(self._descriptor)
            except OSError:
                pass  # it is broken: that is why
            self._descriptor, self._path, self._first, self._since = fresh, path, tree.size, now
            self._hash()
            self._committing, self._unsynced = [], []
            self._offset = self._synced_offset = len(header) + len(body)
            self._synced_tree = self._tree.copy()
            self.broken = False

        return adopt

    def _tidy(self, synced: int) -> None:
        """What the new segment holds is taken out of the broken ones, so far as they let it: a reader stops at the first index of the next
        segment anyway."""
        for segment in listed(self.directory):
            try:
                if segment.first > synced:
                    os.unlink(segment.path)
                elif segment.first == self._synced_first < synced:
                    os.truncate(segment.path, self._synced_offset)
                if segment.first >= synced:
                    segment.hashes.unlink(missing_ok=True)
                elif segment.first == self._synced_first:
                    os.truncate(segment.hashes, 32 * (synced - segment.first))
            except OSError:
                continue

    def close(self) -> None:
        """After the last commit."""
        self._disk.close(self._descriptor)
        if self._prepared >= 0:
            self._disk.close(self._prepared)
            self._disk.remove(str(self.directory / NEXT))


class Commit:
    """Work for the thread: see `Shard`."""

    __slots__ = (
        "_directory", "_disk", "_signer", "checkpoint", "closes", "descriptor", "failed", "first", "hashes", "leaves", "next_header",
        "note", "offset", "opened", "prepare", "prepared", "records", "tree",
    )  # fmt: skip

    def __init__(self, disk: Disk, directory: Path, signer: NoteSigner) -> None:
        self._disk = disk
        self._directory = directory
        self._signer = signer
        self.descriptor = self.closes = self.opened = self.prepared = -1
        self.hashes = ""
        self.leaves: list[bytes] = []
        self.offset = self.records = self.first = 0
        self.tree = Tree()
        self.failed: OSError | None = None
        self.checkpoint: Checkpoint | None = None
        self.next_header: bytes | None = None
        self.note = ""
        self.prepare = False

    def run(self) -> None:
        """Raises OSError: the segment is broken."""
        disk = self._disk
        disk.sync(self.descriptor)
        if self.leaves:
            self._append(self.hashes, b"".join(self.leaves), sync=False)
        if self.closes >= 0:
            disk.sync(self.opened)
            disk.sync_directory(str(self._directory))
            disk.close(self.closes)
        if self.checkpoint is not None:
            self.note = self._signer.sign(self.checkpoint.render()).render()
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
