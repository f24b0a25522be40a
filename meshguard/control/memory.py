"""Gives memory back that only the start needed.

Reading documents, validating them and compiling policies touches code of libraries that is not used again for hours; the pages stay
resident until the system is short of memory. Measured on an idle sidecar: 58.8 MiB before, 43 after, 53 after the first requests.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

__all__ = ["release_start_pages"]

_MADV_DONTNEED = 4
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_THRESHOLD = 1 << 20


def release_start_pages() -> None:
    """Drops resident pages of code and constants of file mappings: they equal their files, so what is needed comes back from the page
    cache.

    Does nothing where it cannot (another system, no /proc). Also fixes glibc's thresholds, whose adaption made the cost of large
    bodies bimodal.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
            mappings = _droppable(file)
    except OSError:
        return
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for first, last in mappings:
        libc.madvise(first, last - first, _MADV_DONTNEED)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _THRESHOLD)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _droppable(smaps: Iterable[str]) -> list[tuple[int, int]]:
    """Address ranges of private mappings of a file that nobody may write and of which no page differs from the file.

    INVARIANT: no anonymous page: data that is read-only by now may have been relocated by the loader, and would be lost."""
    found: list[tuple[int, int]] = []
    candidate: tuple[int, int] | None = None
    for line in smaps:
        fields = line.split(maxsplit=5)
        if "-" in fields[0]:
            candidate = None
            if len(fields) == 6 and fields[1] in ("r-xp", "r--p") and fields[5].startswith("/"):
                first, last = fields[0].split("-")
                candidate = int(first, 16), int(last, 16)
        elif fields[0] == "Anonymous:" and candidate is not None and fields[1] == "0":
            found.append(candidate)
    return found
