"""The few operations on files that the ledger needs, in one place: so that tests can let each of them fail as a disk does."""

from __future__ import annotations

import fcntl
import os

__all__ = ["Disk"]


class Disk:
    """Calls of the operating system. Every method raises OSError."""

    def create(self, path: str) -> int:
        """A new file for appending, mode 0640. Raises FileExistsError."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)

    def append_to(self, path: str) -> int:
        """An existing or new file for appending."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def write(self, descriptor: int, data: bytes) -> int:
        """One write(2): may be short."""
        return os.write(descriptor, data)

    def write_all(self, descriptor: int, data: bytes) -> None:
        """Writes until all is written."""
        position = self.write(descriptor, data)
        while position < len(data):
            position += self.write(descriptor, data[position:])

    def sync(self, descriptor: int) -> None:
        """fdatasync(2): data, and the size that is needed to read it."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def size(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        """Makes created, renamed and removed names last."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def reserve(self, path: str, size: int) -> None:
        """A file that holds `size` octets of real blocks."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if os.fstat(descriptor).st_size < size:
                os.posix_fallocate(descriptor, 0, size)
        except OSError:
            os.unlink(path)  # half a reserve is none
            raise
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> int:
        """An exclusive lock that ends with the process; the file holds its id. Raises BlockingIOError when somebody else has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        return descriptor

    def replace(self, path: str, data: bytes) -> None:
        """The file with new content, whole or not at all."""
        fresh = f"{path}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            self.write_all(descriptor, data)
        finally:
            os.close(descriptor)
        os.rename(fresh, path)
