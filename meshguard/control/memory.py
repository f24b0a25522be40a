"""Gives memory back that only the start needed.

Reading documents, validating them and compiling policies touches code of libraries that is not used again for hours; the pages stay
resident until the system is short of memory. Measured on an idle sidecar: 58.8 MiB before, 43 after, 53 after the first requests.
"""

from __future__ import annotations

import sys

__all__ = ["release_start_pages"]

_MADV_DONTNEED = 4
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_THRESHOLD = 1 << 20


def release_start_pages() -> None:
    """Drops resident pages of executable file mappings: they are never written, so what is needed comes back from the page cache.

    Does nothing where it cannot (another system, no /proc). Also fixes glibc's thresholds, whose adaption made the cost of large
    bodies bimodal.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        with open("/proc/self/maps", encoding="ascii", errors="replace") as file:
            mappings = [line.split(maxsplit=5) for line in file]
    except OSError:
        return
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for fields in mappings:
        # INVARIANT: `r-xp` of a file only; private data, even where it is read-only by now, may have been relocated and would be lost
        if len(fields) == 6 and fields[1] == "r-xp" and fields[5].startswith("/"):
            first, last = (int(part, 16) for part in fields[0].split("-"))
            libc.madvise(first, last - first, _MADV_DONTNEED)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _THRESHOLD)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
