"""Turns at writing for processes that write lines to one file or pipe, so that no two lines are ever mixed.

One `write` to a pipe is atomic up to 4096 octets only (PIPE_BUF), and a write to a file can end early. So a process takes a lock for
each batch. It is a lock of the kernel (flock) on a file in memory: who dies holding it leaves it free. One octet of the file says that a
line may be half written; the next holder then ends that line before its own.
"""

from __future__ import annotations

import fcntl
import os

__all__ = ["WriteLock", "new_lock_file"]


def new_lock_file(name: str) -> int:
    """A descriptor for all processes that are to share the lock. Raises OSError."""
    return os.memfd_create(f"meshguard-{name}", os.MFD_CLOEXEC)


class WriteLock:
    """This process's turn. `descriptor` is of the shared file and stays the caller's; the lock belongs to an own opening of it, because
    what is inherited would be the same lock in every process."""

    def __init__(self, descriptor: int) -> None:
        self._fd = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)

    def acquire(self) -> bool:
        """Waits for the turn. True when the line before may be half written."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        broken = os.pread(self._fd, 1, 0) == b"\1"
        os.pwrite(self._fd, b"\1", 0)
        return broken

    def release(self, *, whole: bool) -> None:
        """Ends the turn; `whole` says that the last line is complete."""
        if whole:
            os.pwrite(self._fd, b"\0", 0)
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Gives the lock up."""
        os.close(self._fd)
