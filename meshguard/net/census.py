"""How many connections each worker has: numbers in memory that all workers of a port share.

A word is written by one process only, so nothing is locked: a worker says how many connections it has, and reads what the others say. Two
things follow: a limit of connections holds over all workers, and a worker knows which other one has the fewest (`passing`).

Layout, in words of 8 octets: a directory of listeners, then for each *column* (a worker of one generation) its process and when it was
last alive, then for each listener the counts of all columns side by side, then how many connections each worker was sent by each other
and has taken. A generation is the workers of one supervisor; two of them exist while a rolling restart runs, each with its own half.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from hashlib import blake2b
from time import monotonic

__all__ = ["LISTENERS", "WORKERS", "Census", "Row"]

WORKERS = 64
"""Of one generation; with more of them, limits count for each worker by itself."""
LISTENERS = 64
"""Names in the directory, also those of earlier reloads; listeners beyond count for each worker by itself."""
_COLUMNS = 2 * WORKERS
_DIRECTORY = 8
_PIDS = _DIRECTORY + LISTENERS
_BEATS = _PIDS + _COLUMNS
_COUNTS = _BEATS + _COLUMNS
_SENT = _COUNTS + LISTENERS * _COLUMNS
_TAKEN = _SENT + _COLUMNS * WORKERS
_WORDS = _TAKEN + _COLUMNS
_BURIED_S = 0.25
"""Between two looks for workers that have ended without a word."""
STALE_S = 2.0
"""A worker that was not alive for so long is given nothing."""


class Census:
    """`descriptor` is of a file in memory that all have; it stays the caller's. `number` is the worker's, -1 for who only looks after it.
    Raises OSError."""

    def __init__(self, descriptor: int, number: int = -1, generation: int = 0) -> None:
        self._file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)  # an own opening: its lock is this process's
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            if os.fstat(self._file).st_size < _WORDS * 8:
                os.ftruncate(self._file, _WORDS * 8)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        view = memoryview(mmap.mmap(self._file, _WORDS * 8))
        self.words = view.cast("Q")
        self.times = view.cast("d")
        self.first = generation * WORKERS
        self.number = number
        self.column = self.first + number
        self._buried_at = 0.0
        if number >= 0:
            self._clear(self.column)
            self.words[_PIDS + self.column] = os.getpid()

    def row(self, listener: str) -> Row | None:
        """The counts of a listener; None when there is no room for one more."""
        tag = int.from_bytes(blake2b(listener.encode(), digest_size=8).digest(), "little") or 1
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            for index in range(LISTENERS):
                if self.words[_DIRECTORY + index] in (0, tag):
                    self.words[_DIRECTORY + index] = tag
                    return Row(self, index)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return None

    def beat(self, now: float) -> None:
        """This worker is alive and accepts, at `now` (monotonic seconds, the same in all processes); 0.0: no longer."""
        self.times[_BEATS + self.column] = now

    def clear(self, pid: int) -> None:
        """A process has ended: what it had counts no more."""
        for column in range(_COLUMNS):
            if pid and self.words[_PIDS + column] == pid:
                self._clear(column)

    def bury(self, now: float) -> None:
        """Clears what stands for processes that are gone, at most four times a second."""
        if now - self._buried_at < _BURIED_S:
            return
        self._buried_at = now
        for column in range(_COLUMNS):
            pid = self.words[_PIDS + column]
            if pid and not _alive(pid):
                self._clear(column)

    def generation(self) -> int:
        """The half that is free for the workers of a new supervisor."""
        self.bury(monotonic())
        return int(any(self.words[_PIDS : _PIDS + WORKERS]))

    def _clear(self, column: int) -> None:
        self.words[_PIDS + column] = 0
        self.times[_BEATS + column] = 0.0
        for index in range(LISTENERS):
            self.words[_COUNTS + index * _COLUMNS + column] = 0

    # -- connections on their way from one worker to another ----------------------------------------------------------------

    def sent(self, to: int) -> None:
        """This worker has sent a connection to worker `to`."""
        self.words[_SENT + (self.first + to) * WORKERS + self.number] += 1

    def taken(self) -> None:
        """This worker has taken one that it was sent."""
        self.words[_TAKEN + self.column] += 1

    def coming(self, worker: int) -> int:
        """How many are on their way to it."""
        start = _SENT + (self.first + worker) * WORKERS
        return max(0, sum(self.words[start : start + WORKERS]) - self.words[_TAKEN + self.first + worker])


class Row:
    """The counts of one listener."""

    __slots__ = ("_census", "_counts", "_start")

    def __init__(self, census: Census, index: int) -> None:
        self._census = census
        self._start = _COUNTS + index * _COLUMNS
        self._counts = census.words[self._start : self._start + _COLUMNS]

    def set(self, own: int) -> None:
        """This worker has `own` connections."""
        self._counts[self._census.column] = own

    def others(self) -> int:
        """What all others have together, with those of the other generation."""
        return sum(self._counts) - self._counts[self._census.column]

    def bury(self) -> None:
        """See `Census.bury`: before a connection is refused because of the others."""
        self._census.bury(monotonic())

    def lightest(self, workers: int, now: float) -> tuple[int, int]:
        """(the worker with the fewest connections, how many) of the others that are alive; (-1, 0) without one."""
        census = self._census
        best, fewest = -1, 0
        for worker in range(workers):
            if worker == census.number or now - census.times[_BEATS + census.first + worker] > STALE_S:
                continue
            count = self._counts[census.first + worker] + census.coming(worker)
            if best < 0 or count < fewest:
                best, fewest = worker, count
        return best, fewest


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
