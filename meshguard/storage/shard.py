"""The writer of one shard: entries are appended by one thread (the event loop), made lasting by another.

    append()   on the loop: one write(2) of a whole record; what it returns from survives the end of the process, not that of the machine
    begin()    on the loop: what is to be made lasting now, as a `Commit` (`storage.commit`); a full segment gives way to the next one
    Commit.run in a thread: fdatasync, leaf hashes, the tree, a signed checkpoint
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
from pathlib import Path
from struct import Struct
from zlib import crc32

from meshguard.ledger.notes import NoteSigner
from meshguard.storage.commit import Commit, hashed
from meshguard.storage.disk import Disk
from meshguard.storage.recovery import Recovered
from meshguard.storage.segments import NEXT, Header, listed, segment_name

__all__ = ["FULL", "RESERVE_BYTES", "Shard", "ShardBroken"]

RESERVE_BYTES = 16 * 1024 * 1024
"""Kept for the moment when the disk is full (security.md 5)."""
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_HEAD = Struct(">IIB").pack


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
        self._write = disk.write
        self._segment_bytes = segment_bytes
        self._segment_s = segment_s
        self._since = now if found.segment is None else found.created
        self._tree = found.tree  # of what is lasting
        self._unhashed: list[bytes] = []  # leaves that are in the tree and not in the file of hashes yet
        self._unsynced: list[bytes] = []  # records since the last commit began
        self._committing: list[bytes] = []  # records of the commit under way
        self._prepared = -1  # descriptor of the next segment
        self._reserve = str(directory / "reserve")
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
        return self._tree.size + len(self._committing) + len(self._unsynced)

    @property
    def synced(self) -> int:
        """Entries that survive the machine."""
        return self._tree.size

    @property
    def dirty(self) -> bool:
        """Something is not lasting, or not signed."""
        return self.size > (self.checkpoint.size if self.checkpoint is not None else 0)

    def append(self, entry: bytes) -> None:
        """Writes one entry. Raises OSError; then nothing of it is in the file."""
        if self.broken:
            raise ShardBroken(errno.EIO, "the ledger waits for a new segment")
        record = _HEAD(len(entry), crc32(entry), 0) + entry
        try:
            written = self._write(self._descriptor, record)
        except OSError:
            self._take_back()
            raise
        if written != len(record):
            self._take_back()
            raise OSError(errno.ENOSPC, "a short write")
        self._offset += written
        self._unsynced.append(record)

    def begin(self, now: int, *, checkpoint: bool) -> Commit:
        """What is to be made lasting. One at a time; `end` follows."""
        commit = Commit(self._disk, self.directory, self._signer, self.origin, self._tree.copy(), now)
        commit.descriptor = self._descriptor
        commit.hashes = self._path[: -len("segment")] + "hashes"
        commit.leaves = self._unhashed
        commit.records = self._committing = self._unsynced
        commit.offset, commit.first = self._offset, self._first
        aged = now - self._since >= self._segment_s
        rotate = (aged or self._offset >= self._segment_bytes) and self._prepared >= 0 and not self.broken
        commit.signs = checkpoint or rotate
        commit.prepare = self._prepared < 0 and (aged or self._offset * 4 >= self._segment_bytes * 3)
        self._unsynced, self._unhashed = [], []
        if rotate:
            commit.hash()  # here, on the loop, once a segment: its successor's header needs the tree
            self._rotate(commit, now)
        return commit

    def end(self, commit: Commit, error: OSError | None) -> None:
        """The commit is over; `error` makes the shard broken."""
        if commit.prepared >= 0:
            self._prepared = commit.prepared
        if error is not None:
            self.broken = True
            self._unhashed = commit.leaves[: commit.owed]
            self._unsynced = self._committing + self._unsynced
            self._committing = []
            return
        self._committing = []
        self._tree = commit.tree
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

    def _take_back(self) -> None:
        """Nothing of a record that failed may stay: the next one would stand behind half of it."""
        try:
            if self._disk.size(self._descriptor) != self._offset:
                self._disk.truncate(self._descriptor, self._offset)
        except OSError:
            self.broken = True

    def _rotate(self, commit: Commit, now: int) -> None:
        """The prepared file becomes the segment that is written to; the commit finishes the old one."""
        tree = commit.tree
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
        disk, tree = self._disk, self._tree
        name = str(self.directory / NEXT)
        if self._prepared >= 0:
            disk.close(self._prepared)
            self._prepared = -1
        if os.path.exists(name):
            disk.remove(name)
        fresh = disk.create(name)
        try:
            header = Header(self.origin, tree.size, tree.frontier, self.note, now).encode()
            records = [*self._committing, *self._unsynced]
            body = b"".join(records)
            disk.write_all(fresh, header + body)
            disk.sync(fresh)
        except OSError:
            disk.close(fresh)
            raise
        path = str(self.directory / segment_name(tree.size))
        disk.rename(name, path)
        self._complete_hashes(tree.size)
        self._tidy(tree.size)
        disk.sync_directory(str(self.directory))
        grown, leaves = tree.copy(), hashed(records)
        grown.extend(leaves)

        def adopt() -> None:
            try:
                disk.close(self._descriptor)
            except OSError:
                pass  # it is broken: that is why
            self._descriptor, self._path, self._first, self._since = fresh, path, tree.size, now
            self._committing, self._unsynced, self._unhashed = [], [], leaves
            self._offset = self._synced_offset = len(header) + len(body)
            self._synced_first = tree.size
            self._tree = grown
            self.broken = False

        return adopt

    def _complete_hashes(self, synced: int) -> None:
        """What was lasting in the broken segment has its hashes in full, if the disk lets it: they may still have been owed."""
        path = self.directory / segment_name(self._synced_first).replace(".segment", ".hashes")
        owed = b"".join(self._unhashed)
        try:
            missing = 32 * (synced - self._synced_first) - (path.stat().st_size if path.exists() else 0)
            if 0 < missing <= len(owed):
                with open(path, "ab") as file:
                    file.write(owed[-missing:])
        except OSError:
            pass  # they are derived; `verify` makes them anew

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
