"""How often something may happen: `burst` at once, `per_s` in the long run."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    __slots__ = ("_burst", "_left", "_per_s", "_then")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = float(burst)
        self._left = float(burst)
        self._per_s = per_s
        self._then = 0.0

    def spend(self, now: float) -> bool:
        """One event at `now` (monotonic seconds); false: one too many."""
        elapsed = now - self._then
        if elapsed > 0:
            self._then = now
            self._left = min(self._burst, self._left + elapsed * self._per_s)
        if self._left < 1:
            return False
        self._left -= 1
        return True
