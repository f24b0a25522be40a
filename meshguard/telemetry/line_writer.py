"""Writes lines to a file or stdout from a thread of its own: the caller never waits and never sees an error.

    write()  ->  bounded queue  ->  thread: open, write, retry        full queue: the batch is counted as lost and a *gap* takes
                                                                      its place in the order, so the reader sees where and how many
INVARIANT: a line reaches the file whole and once, or it is counted as lost. (A file that is replaced in the middle of a
failing write may keep the torn head of a line; the whole line is then written to the new file.)
"""

from __future__ import annotations

import errno
import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.write_lock import WriteLock

__all__ = ["MAX_QUEUE_BYTES", "LineWriter"]

MAX_QUEUE_BYTES = 32 * 1024 * 1024
"""Octets in the queue, whatever the number of lines: it bounds memory when lines are long."""
_WRITE_BYTES = 1024 * 1024  # octets of one write: few large ones, because each return of the thread contends for the interpreter lock
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0
_CHECK_S = 1.0  # how often a file's name is looked at, to notice that it was renamed or removed
_STDOUT = 1
_NEWLINE = 0x0A


class _Batch:
    __slots__ = ("count", "lines")

    def __init__(self, lines: bytes, count: int) -> None:
        self.lines = lines
        self.count = count


class _Gap:
    __slots__ = ("count", "since")

    def __init__(self, count: int, since: float) -> None:
        self.count = count
        self.since = since


class LineWriter:
    """A sink for finished lines. `target` is "-" (stdout), a path (opened for appending, mode 0640) or an open descriptor.

    `capacity` bounds the queued lines. `gap(count, since)` makes the line that stands for `count` lost ones (`since`: epoch seconds of
    the first); None writes none. `name` starts the names of the metrics.
    """

    def __init__(
        self,
        target: str | int,
        registry: Registry,
        *,
        name: str,
        capacity: int = 65536,
        gap: Callable[[int, float], bytes] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if capacity < 1:
            raise ValueError("the capacity must be at least one line")
        self._path = target if isinstance(target, str) and target != "-" else ""
        self._fd = -1 if self._path else (target if isinstance(target, int) else _STDOUT)
        self._capacity = capacity
        self._gap = gap
        self._wall = wall
        self._name = name
        # Re-entrant: the collector of garbage can run inside `write`, and a destroyed task logs, perhaps to this writer.
        self._lock = threading.RLock()
        self._ready = threading.Condition(self._lock)
        self._queue: deque[_Batch | _Gap] = deque()
        self._queued = 0  # lines in the queue and in the thread's hands
        self._queued_bytes = 0
        self._closing = False
        self._abandoned = threading.Event()
        self._reopen = False
        self._thread: threading.Thread | None = None
        self._turn: WriteLock | None = None
        self._checked = 0.0
        self._written = registry.counter(f"{name}.written", "Lines written", "{line}").labels()
        self._lost = registry.counter(f"{name}.lost", "Lines lost: the queue was full or the end came", "{line}").labels()
        self._errors = registry.counter(f"{name}.errors", "Failed writes, by error; they are tried again", "{error}", ("error.type",))
        self._depth = registry.gauge(f"{name}.queued", "Lines that wait to be written", "{line}").labels()

    @property
    def lost(self) -> int:
        """Lines that were lost so far."""
        return int(self._lost.value)

    def write(self, lines: bytes, count: int) -> None:
        """Queue `count` whole lines. Takes 2 us; never blocks, never raises."""
        with self._lock:
            # an empty queue takes any batch: otherwise one larger than the capacity could never be written
            full = self._queued and (self._queued + count > self._capacity or self._queued_bytes + len(lines) > MAX_QUEUE_BYTES)
            if full or self._closing:
                self._lose(count)
            else:
                self._queue.append(_Batch(lines, count))
                self._queued += count
                self._queued_bytes += len(lines)
                self._depth.value = self._queued
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._ready.notify()

    def reopen(self) -> None:
        """Open the path anew before the next write (after a rotation). A renamed file is noticed within a second without this."""
        with self._lock:
            self._reopen = True
            self._ready.notify()

    def share(self, descriptor: int) -> None:
        """From now on take turns with the other processes that share this lock file (`write_lock`): their lines and ours do not mix."""
        self._turn = WriteLock(descriptor)

    def close(self, deadline_s: float) -> int:
        """Write what is queued, for at most `deadline_s`, and stop. Returns how many lines were lost in all. A second call does nothing."""
        with self._lock:
            self._closing = True
            thread = self._thread
            self._ready.notify()
        if thread is not None:
            thread.join(deadline_s)
            self._abandoned.set()  # wakes a thread that waits to try again; one stuck in the kernel ends with the process
            with self._lock:
                self._lost.value += self._queued
                self._queued = self._queued_bytes = 0
                self._depth.value = 0
                self._queue.clear()
                self._thread = None
        return self.lost

    def _lose(self, count: int) -> None:
        self._lost.value += count
        if self._gap is not None:
            tail = self._queue[-1] if self._queue else None
            if isinstance(tail, _Gap):  # no two gaps in a row: the queue stays bounded
                tail.count += count
            else:
                self._queue.append(_Gap(count, self._wall()))

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._closing and not self._reopen:
                    self._ready.wait()
                if not self._queue and self._closing:
                    break
                parts: list[bytes] = []
                count = size = 0
                while self._queue and size < _WRITE_BYTES:
                    item = self._queue.popleft()
                    if isinstance(item, _Batch):
                        parts.append(item.lines)
                        count += item.count
                        size += len(item.lines)
                    elif self._gap is not None:
                        parts.append(self._gap(item.count, item.since))
            if not self._put(b"".join(parts)):
                break
            with self._lock:
                if self._abandoned.is_set():  # `close` has counted these lines as lost already
                    break
                self._queued -= count
                self._queued_bytes -= size
                self._depth.value = self._queued
                self._written.value += count
        if self._path and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, data: bytes) -> bool:
        """Write all of `data`, however long it takes; False when `close` gave up on it."""
        view = memoryview(data)
        position = 0
        delay = _FIRST_DELAY_S
        while not self._abandoned.is_set():
            turn = self._turn
            broken = turn is not None and turn.acquire()
            try:
                if self._stale():
                    self._open()
                    broken = False
                    position = data.rfind(b"\n", 0, position) + 1  # a line begun in the old file is written whole to the new one
                if broken and self._write_some(memoryview(b"\n")):  # who had the turn before, perhaps this process, left half a line
                    broken = False
                    position = data.rfind(b"\n", 0, position) + 1
                while position < len(data) and not self._abandoned.is_set():
                    position += self._write_some(view[position:])
                    delay = _FIRST_DELAY_S
                if position == len(data):
                    return True
            except OSError as exc:  # disk full, reader gone, no permission: all of them can pass
                self._errors.labels(errno.errorcode.get(exc.errno or 0, "unknown")).value += 1
            finally:
                if turn is not None:
                    turn.release(whole=not broken and (not position or data[position - 1] == _NEWLINE))
            self._abandoned.wait(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _LONGEST_DELAY_S)
        return False

    def _write_some(self, view: memoryview) -> int:
        """One write, as soon as it is possible; 0 when `close` gave up."""
        while not self._abandoned.is_set():
            try:
                return os.write(self._fd, view)
            except BlockingIOError:  # an inherited stdout that is set to non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(200)
        return 0

    def _stale(self) -> bool:
        """Whether the path has to be opened: first, when asked to, or when its name no longer means the open file."""
        if not self._path:
            self._reopen = False
            return False
        now = time.monotonic()
        if self._fd >= 0 and not self._reopen:
            if now < self._checked + _CHECK_S:
                return False
            self._checked = now
            try:
                return not os.path.samestat(os.stat(self._path), os.fstat(self._fd))
            except FileNotFoundError:
                return True
        return True

    def _open(self) -> None:
        self._reopen = False
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError:
            self._reopen = True
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._checked = time.monotonic()
