"""Durations as people write them: `45s`, `30m`, `12h`, `90d`, `2w`, `1.5h`."""

from __future__ import annotations

import re

__all__ = ["UNITS", "seconds_of"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhdw])\Z")


def seconds_of(text: str) -> float:
    """Seconds. Raises ValueError for what is no number with one of the units."""
    match = _DURATION.match(text)
    if match is None:
        raise ValueError("a duration such as 90d, 12h, 30m or 45s")
    return float(match[1]) * UNITS[match[2]]
