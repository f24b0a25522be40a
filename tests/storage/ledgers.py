"""Ledgers to try things on: made by the real writer, with a clock and a disk of the test's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshguard.ledger.entries import decision_entry
from meshguard.ledger.notes import NoteSigner
from meshguard.storage.disk import Disk
from meshguard.storage.ledger import OpenLedger, open_ledger
from meshguard.storage.shard import Shard

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
SIGNER = NoteSigner("shop.example/meshguard/test", KEY)
NOW = 1_800_000_000


class FailingDisk(Disk):
    """`fail(call, code)`: the next and all later uses of an operation fail; `heal()` ends it. `room` limits the octets that fit."""

    def __init__(self) -> None:
        self._failing: dict[str, int] = {}
        self.room: int | None = None
        self.calls: list[str] = []
        self.before: Callable[[str], None] | None = None

    def fail(self, call: str, code: int) -> None:
        self._failing[call] = code

    def heal(self) -> None:
        self._failing.clear()
        self.room = None

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if self.before is not None:
            self.before(call)
        if call in self._failing:
            code = self._failing[call]
            raise OSError(code, os.strerror(code))

    def create(self, path: str) -> int:
        self._called("create")
        return super().create(path)

    def write(self, descriptor: int, data: bytes) -> int:
        self._called("write")
        if self.room is not None:
            fits = data[: self.room]
            if not fits:
                raise OSError(errno.ENOSPC, "full")
            self.room -= len(fits)
            return super().write(descriptor, fits)
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._called("sync")
        super().sync(descriptor)

    def append_to(self, path: str) -> int:
        self._called("append_to")
        return super().append_to(path)

    def rename(self, old: str, new: str) -> None:
        self._called("rename")
        super().rename(old, new)

    def sync_directory(self, path: str) -> None:
        self._called("sync_directory")
        super().sync_directory(path)

    def truncate(self, descriptor: int, size: int) -> None:
        self._called("truncate")
        super().truncate(descriptor, size)

    def reserve(self, path: str, size: int) -> None:
        self._called("reserve")
        if self.room is not None and self.room < size:
            raise OSError(errno.ENOSPC, "full")
        super().reserve(path, 4096)

    def remove(self, path: str) -> None:
        self._called("remove")
        if path.endswith("reserve") and self.room is not None and os.path.exists(path):
            self.room += 4096
        super().remove(path)


def entry(number: int, *, path: str = "/orders") -> bytes:
    """A small decision."""
    return decision_entry(
        b'{"id":"boot-%x","schema":"meshguard.decision/1","what":{"path":"%b/%d"}}' % (number, path.encode(), number), number
    )


def commit(shard: Shard, *, checkpoint: bool = True) -> OSError | None:
    """What the gate does with its thread."""
    work = shard.begin(NOW, checkpoint=checkpoint)
    failed: OSError | None = None
    try:
        work.run()
    except OSError as exc:
        failed = exc
    shard.end(work, failed)
    return failed


def opened(
    directory: Path, disk: Disk | None = None, *, segment_bytes: int = 1 << 20, segment_s: float = 1e9, now: int = NOW
) -> OpenLedger:
    return open_ledger(directory, (0,), SIGNER, (), segment_bytes=segment_bytes, segment_s=segment_s, now=now, disk=disk or FailingDisk())


def closed(ledger: OpenLedger) -> None:
    """As at the end of a process, without a last commit."""
    ledger.shard.close()
    os.close(ledger.lock)


def written(directory: Path, count: int, *, every: int = 10, segment_bytes: int = 4096) -> Path:
    """A closed ledger of `count` entries in several segments, with a checkpoint after each `every`. Returns the shard's directory."""
    ledger = opened(directory, segment_bytes=segment_bytes)
    for number in range(count):
        ledger.shard.append(entry(number))
        if number % every == every - 1:
            assert commit(ledger.shard) is None
    assert commit(ledger.shard) is None
    closed(ledger)
    return directory / "shard-0"
