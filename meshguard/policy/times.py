"""Windows of time: days, clock times in a zone, and instants. Time zones are looked up when a document is read; judging is pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["DAYS", "Clock", "Moment", "Window", "find_timezone", "parse_clock", "parse_moment", "parse_timezone"]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])\Z|(24):(00)\Z")
_DAY_MINUTES = 24 * 60


class Clock(int):
    """Minutes since midnight, 0 to 1440."""

    def __str__(self) -> str:
        return f"{self // 60:02d}:{self % 60:02d}"


class Moment:
    """An instant, or a date that starts in the zone of its window. `text` is canonical."""

    __slots__ = ("_value", "text")

    def __init__(self, value: datetime | date) -> None:
        self._value = value
        self.text = value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value.isoformat()

    def seconds(self, timezone: str = "UTC") -> float:
        """Epoch seconds; `timezone` is asked only for a date."""
        value = self._value
        if isinstance(value, datetime):
            return value.timestamp()
        return datetime(value.year, value.month, value.day, tzinfo=find_timezone(timezone)).timestamp()


def parse_clock(value: object) -> Clock:
    """`"18:00"`. YAML 1.1 reads an unquoted 18:00 as the sexagesimal number 1080, which is just the minutes: taken too."""
    if isinstance(value, str) and (match := _CLOCK.match(value)):
        return Clock(int(match[1] or match[3]) * 60 + int(match[2] or match[4]))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _DAY_MINUTES:
        return Clock(value)
    raise ValueError('a time of day from "00:00" to "24:00"')


def parse_moment(value: object) -> Moment:
    """An ISO 8601 date, or a date and time with its offset (RFC 3339); YAML's own timestamps are taken too."""
    if isinstance(value, Moment):
        return value
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value) if len(value) == 10 else datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            return Moment(value)
        raise ValueError("a date and time with its offset, such as 2030-01-31T18:00:00Z")
    if isinstance(value, date):
        return Moment(value)
    raise ValueError("a date such as 2030-01-31 or a date and time such as 2030-01-31T18:00:00Z")


@lru_cache(maxsize=64)
def find_timezone(name: str) -> ZoneInfo:
    """The zone of this IANA name; raises ValueError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("the IANA name of a time zone that this system knows, such as Europe/Berlin") from None


def parse_timezone(name: str) -> str:
    """`name`, if the system knows the zone; raises ValueError."""
    find_timezone(name)
    return name


class Window:
    """One window, ready to judge. Cost: one conversion to local time; nothing is looked up."""

    __slots__ = ("_after", "_before", "_closes", "_days", "_opens", "_zone", "text")

    def __init__(
        self,
        days: Sequence[str] | None,
        opens: Clock | None,
        closes: Clock | None,
        timezone: str,
        after: Moment | None,
        before: Moment | None,
    ) -> None:
        self._days = None if days is None else frozenset(map(DAYS.index, days))
        self._opens = opens
        self._closes = closes
        self._zone = find_timezone(timezone)
        self._after = None if after is None else after.seconds(timezone)
        self._before = None if before is None else before.seconds(timezone)
        parts = [",".join(days)] if days is not None else []
        if opens is not None:
            parts.append(f"{opens} to {closes}")
        if parts:
            parts.append(timezone)
        parts += [f"after {after.text}"] if after is not None else []
        parts += [f"before {before.text}"] if before is not None else []
        self.text = " ".join(parts)

    def holds(self, now: float) -> bool:
        """Whether `now` (epoch seconds) lies in the window."""
        if self._after is not None and now < self._after:
            return False
        if self._before is not None and now >= self._before:
            return False
        if self._days is None and self._opens is None:
            return True
        local = datetime.fromtimestamp(now, self._zone)
        if self._opens is not None and self._closes is not None:
            minutes = local.hour * 60 + local.minute
            if self._opens < self._closes:
                if not self._opens <= minutes < self._closes:
                    return False
            elif minutes < self._closes:
                local -= timedelta(days=1)  # the window opened on the day before
            elif minutes < self._opens:
                return False
        return self._days is None or local.weekday() in self._days
