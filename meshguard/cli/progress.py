"""A progress bar on a terminal, nothing anywhere else."""

from __future__ import annotations

import time
from typing import TextIO

__all__ = ["Progress"]

WIDTH = 30
_EVERY_S = 0.1


class Progress:
    """`total` octets (0: not known). Drawn at most ten times a second, on `stream` when it is a terminal."""

    def __init__(self, what: str, total: int, stream: TextIO) -> None:
        self._what = what
        self._total = total
        self._stream = stream
        self._shown = stream.isatty()
        self._done = 0
        self._started = self._drawn = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._draw()
            self._stream.write("\n")

    def advance(self, octets: int) -> None:
        """So many octets more are done."""
        self._done += octets
        now = time.monotonic()
        if self._shown and now - self._drawn >= _EVERY_S:
            self._drawn = now
            self._draw()

    def _draw(self) -> None:
        elapsed_s = max(1e-6, time.monotonic() - self._started)
        rate = self._done / elapsed_s
        line = f"\r{self._what}  {self._done / 1e6:,.1f} MB  {rate / 1e6:,.1f} MB/s"
        if self._total:
            share = min(1.0, self._done / self._total)
            full = int(share * WIDTH)
            left_s = (self._total - self._done) / rate if rate else 0.0
            bar = f"[{'#' * full}{'.' * (WIDTH - full)}]"
            line = f"\r{self._what} {bar} {share:4.0%}  {rate / 1e6:,.1f} MB/s  {int(left_s) // 60}:{int(left_s) % 60:02d} left"
        self._stream.write(line + "\x1b[K")
        self._stream.flush()
