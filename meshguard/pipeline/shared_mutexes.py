"""Locks between processes that survive the death of a holder: robust POSIX mutexes in shared memory.

A holder that is killed leaves the mutex to the next one, who is told (EOWNERDEAD) and goes on: what it protects here is one number,
written in one piece, so there is nothing to repair. A holder that is stopped is waited for `PATIENCE_S` at most.
"""

from __future__ import annotations

import ctypes
import errno
from time import monotonic

__all__ = ["PATIENCE_S", "STRIDE", "Mutexes"]

PATIENCE_S = 0.002
"""A section takes a microsecond; who needs longer is stopped or has lost its core."""
STRIDE = 64
"""Octets from one mutex to the next: a cache line, and more than a pthread_mutex_t has (40 on x86-64, 48 on AArch64)."""
_SHARED = 1  # PTHREAD_PROCESS_SHARED
_ROBUST = 1  # PTHREAD_MUTEX_ROBUST
_CLOCK_MONOTONIC = 1


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class Mutexes:
    """Mutexes from `address` on. `make` is called once, by the process that makes the memory, before another one uses it.

    A call by PyDLL keeps the interpreter lock: the wait is bounded, and giving the lock up would cost more than the mutex.
    """

    __slots__ = ("_address", "_clock_lock", "_consistent", "_library", "timeouts", "try_lock", "unlock")

    def __init__(self, address: int) -> None:
        library = ctypes.PyDLL(None)
        self._library = library
        self._address = address
        for name in ("trylock", "unlock", "consistent"):
            function = getattr(library, f"pthread_mutex_{name}")
            function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_int
        self.try_lock = library.pthread_mutex_trylock
        self._consistent = library.pthread_mutex_consistent
        self.unlock = library.pthread_mutex_unlock
        self._clock_lock = library.pthread_mutex_clocklock  # glibc 2.30, musl 1.2.4
        self._clock_lock.argtypes, self._clock_lock.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec)), ctypes.c_int
        self.timeouts = 0

    def make(self, count: int) -> None:
        """Initialises the first `count`. Raises OSError."""
        attributes = ctypes.create_string_buffer(64)
        library = self._library
        library.pthread_mutexattr_init(attributes)
        for result in (library.pthread_mutexattr_setpshared(attributes, _SHARED), library.pthread_mutexattr_setrobust(attributes, _ROBUST)):
            if result:
                raise OSError(result, "robust mutexes are not available")
        for index in range(count):
            result = library.pthread_mutex_init(ctypes.c_void_p(self._address + index * STRIDE), attributes)
            if result:
                raise OSError(result, "a mutex cannot be made")

    def address(self, index: int) -> int:
        """Of a mutex, for `try_lock`, `lock_slowly` and `unlock`."""
        return self._address + index * STRIDE

    def lock_slowly(self, address: int, code: int) -> int:
        """After `try_lock` gave a `code` that is not 0: the address to unlock; 0 when the mutex could not be had in time, and then the
        caller goes on without it."""
        if code == errno.EBUSY:
            until = monotonic() + PATIENCE_S
            seconds = int(until)
            code = self._clock_lock(address, _CLOCK_MONOTONIC, _Timespec(seconds, int((until - seconds) * 1e9)))
        if code == errno.EOWNERDEAD:
            self._consistent(address)
            code = 0
        if code:
            self.timeouts += 1
            return 0
        return address
