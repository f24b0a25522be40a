"""The memory of rate limits: for each key, the time at which its bucket would be full again. Bounded, and shared by all workers.

Each limit has a *region* of sets of `WAYS` slots; a key belongs to one set, by a hash under a secret that no caller knows. A slot holds a
fingerprint of the key (64 bits of the same hash) and its *theoretical arrival time* (TAT): now + debt, on the monotonic clock, which all
processes of a machine share. A TAT in the past says nothing, so an empty slot and a key that is not remembered are the same.

The table never forgets in anybody's favour. A key that finds no slot takes the one with the smallest TAT of its set *and inherits it*.
INVARIANT: what is remembered of a key is never less than what it owes. (A key that was pushed out had the smallest TAT of its set then; the
smallest TAT of a set only grows; so whatever it inherits on its return is at least what it owed.) Whoever floods the table with keys makes
newcomers wait, never resets a limit, neither its own nor another's.

A limit outlives reloads and hand-overs by its name. Layout: header, mutexes, regions; everything beyond what is used stays unmapped.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from hashlib import blake2b
from time import monotonic

from meshguard.pipeline.shared_mutexes import STRIDE, Mutexes

__all__ = ["KEYS", "REGIONS", "WAYS", "Handle", "LimitTable", "Region", "new_table_file"]

WAYS = 8
KEYS = 16384
"""Slots of one limit: 256 KiB."""
REGIONS = 128
"""At most 64 limits are configured; the rest is for those of before a reload, whose memory stays until it is needed."""
_SETS = KEYS // WAYS
_STRIPES = 64
_HEADER = 4096
_REGION_BYTES = KEYS * 16
_START = _HEADER + _STRIPES * STRIDE
_SIZE = _START + REGIONS * _REGION_BYTES
_MAGIC = 0x6D67_6C69_6D69_7431  # the first word of a table that is complete
_DIRECTORY = 8  # in words of 8 octets: (name hash, last use) pairs


def new_table_file() -> int:
    """An empty table for all processes that are to share it. Raises OSError."""
    return os.memfd_create("meshguard-limits", os.MFD_CLOEXEC)


class LimitTable:
    """`descriptor` is of a table file; whoever opens it first lays it out. `shared` says that other processes use it at this time:
    then slots are locked."""

    def __init__(self, descriptor: int, *, shared: bool) -> None:
        self._file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)  # an own opening: its lock is this process's
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            fresh = os.fstat(self._file).st_size < _SIZE
            if fresh:
                os.ftruncate(self._file, _SIZE)
            self._memory = mmap.mmap(self._file, _SIZE)
            view = memoryview(self._memory)
            self._words = view.cast("Q")
            self._times = view.cast("d")
            self.mutexes = Mutexes(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + _HEADER)
            if self._words[0] != _MAGIC:
                self.mutexes.make(_STRIPES)
                self._memory[8:40] = os.urandom(32)
                self._words[0] = _MAGIC
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._secret = bytes(self._memory[8:40])
        self._shared = shared
        self._regions: dict[str, Region] = {}

    def share(self) -> None:
        """From now on another process uses the table too."""
        self._shared = True
        for region in self._regions.values():
            region.shared = True

    def region(self, name: str) -> Region:
        """The region of the limit `name`: the one it had, or one that nobody has used for the longest time. Raises OSError."""
        tag = int.from_bytes(blake2b(name.encode(), key=self._secret, digest_size=8).digest(), "little") or 1
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            entries = range(_DIRECTORY, _DIRECTORY + 2 * REGIONS, 2)
            entry = next((entry for entry in entries if self._words[entry] == tag), None)
            if entry is None:
                entry = min(entries, key=lambda at: self._times[at + 1] if self._words[at] else 0.0)
                start = _START + (entry - _DIRECTORY) // 2 * _REGION_BYTES
                if self._words[entry]:
                    self._memory[start : start + _REGION_BYTES] = bytes(_REGION_BYTES)
                self._words[entry] = tag
            self._times[entry + 1] = monotonic()
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        start = (_START + (entry - _DIRECTORY) // 2 * _REGION_BYTES) // 8
        known = self._regions.get(name)
        if known is None or known.entry != entry:
            tags, times = self._words[start : start + KEYS], self._times[start + KEYS : start + 2 * KEYS]
            known = self._regions[name] = Region(entry, self.mutexes, tags, times, self._secret, self._shared)
        return known


class Handle:
    """A key: its fingerprint, the slot where it was last seen, the address of the mutex of its set."""

    __slots__ = ("mutex", "slot", "tag")

    def __init__(self, tag: int, slot: int, mutex: int) -> None:
        self.tag = tag
        self.slot = slot
        self.mutex = mutex


class Region:
    """The slots of one limit. `crowded` counts newcomers that had to inherit a debt: more keys are alive than are remembered."""

    __slots__ = ("_mutexes", "_secret", "_tags", "_times", "_try_lock", "_unlock", "crowded", "entry", "shared")

    def __init__(self, entry: int, mutexes: Mutexes, tags: memoryview[int], times: memoryview[float], secret: bytes, shared: bool) -> None:
        self.entry = entry
        self.shared = shared
        self._mutexes = mutexes
        self._try_lock = mutexes.try_lock
        self._unlock = mutexes.unlock
        self._tags = tags
        self._times = times
        self._secret = secret
        self.crowded = 0

    def handle(self, key: bytes) -> Handle:
        """Where a key is: to be kept by the caller, since the hash costs a microsecond."""
        tag = int.from_bytes(blake2b(key, key=self._secret, digest_size=8).digest(), "little") or 1
        index = tag % _SETS
        return Handle(tag, index * WAYS, self._mutexes.address(index % _STRIPES))

    def take(self, handle: Handle, now: float, interval: float, capacity: float) -> float:
        """Generic cell rate algorithm (ITU-T I.371, virtual scheduling): one request of `interval` seconds against a bucket of
        `capacity` seconds. The room that is left, in seconds; or, where there is none, minus the seconds until there is, and then
        nothing is taken."""
        mutex = 0
        if self.shared:
            mutex = handle.mutex
            code = self._try_lock(mutex)
            if code:
                mutex = self._mutexes.lock_slowly(mutex, code)
                if not mutex:
                    return self._peek(handle, now, interval, capacity)
        try:
            slot = handle.slot
            if self._tags[slot] != handle.tag:
                slot = handle.slot = self._place(handle.tag, slot - slot % WAYS, now)
            debt = self._times[slot] - now
            if debt < 0.0:
                debt = 0.0
            elif debt > capacity:  # of a time when the limit was a wider one
                debt = capacity
            room = capacity - debt - interval
            if room >= 0.0:
                self._times[slot] = now + debt + interval
            return room
        finally:
            if mutex:
                self._unlock(mutex)

    def give_back(self, handle: Handle, interval: float) -> None:
        """The request is not served after all."""
        mutex = 0
        if self.shared:
            mutex = handle.mutex
            code = self._try_lock(mutex)
            if code:
                mutex = self._mutexes.lock_slowly(mutex, code)
                if not mutex:
                    return
        try:
            if self._tags[handle.slot] == handle.tag:
                self._times[handle.slot] -= interval
        finally:
            if mutex:
                self._unlock(mutex)

    def charge(self, handle: Handle, now: float, amount: float, most: float) -> None:
        """Another place has let requests of `amount` seconds through: they are owed here, up to `most` seconds, beyond the bucket."""
        mutex = 0
        if self.shared:
            mutex = handle.mutex
            code = self._try_lock(mutex)
            if code:
                mutex = self._mutexes.lock_slowly(mutex, code)
                if not mutex:
                    return
        try:
            slot = handle.slot
            if self._tags[slot] != handle.tag:
                slot = handle.slot = self._place(handle.tag, slot - slot % WAYS, now)
            debt = max(self._times[slot] - now, 0.0)
            self._times[slot] = now + max(debt, min(debt + amount, most))
        finally:
            if mutex:
                self._unlock(mutex)

    def _peek(self, handle: Handle, now: float, interval: float, capacity: float) -> float:
        """The answer without the lock, whose holder is stopped: by what is recorded, and nothing is written. So at most one request goes
        uncounted for each time that a lock could not be had (`Mutexes.timeouts`)."""
        first = handle.slot - handle.slot % WAYS
        for slot in range(first, first + WAYS):
            if self._tags[slot] == handle.tag:
                return capacity - min(max(self._times[slot] - now, 0.0), capacity) - interval
        return capacity - interval

    def _place(self, tag: int, first: int, now: float) -> int:
        """The slot of a key that is not where it was: another of its set, or the one with the smallest TAT, whose TAT it inherits."""
        tags, times = self._tags, self._times
        smallest = first
        for slot in range(first, first + WAYS):
            if tags[slot] == tag:
                return slot
            if times[slot] < times[smallest]:
                smallest = slot
        if times[smallest] > now:
            self.crowded += 1
        tags[smallest] = tag
        return smallest
