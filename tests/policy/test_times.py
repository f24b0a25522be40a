"""Windows of time: nights, days, zones with summer time, instants."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from meshguard.policy.documents import WindowDocument
from meshguard.policy.times import Window, parse_clock, parse_moment


def holds(now: str, **values: Any) -> bool:
    entry = WindowDocument.model_validate(values)
    window = Window(entry.days, entry.opens, entry.closes, entry.timezone, entry.after, entry.before)
    return window.holds(datetime.fromisoformat(now).timestamp())


@pytest.mark.parametrize(
    ("now", "values", "expected"),
    [
        # 2030-01-07 is a Monday
        ("2030-01-07T07:59:59Z", {"from": "08:00", "to": "18:00"}, False),
        ("2030-01-07T08:00:00Z", {"from": "08:00", "to": "18:00"}, True),
        ("2030-01-07T17:59:59Z", {"from": "08:00", "to": "18:00"}, True),
        ("2030-01-07T18:00:00Z", {"from": "08:00", "to": "18:00"}, False),
        ("2030-01-07T23:59:59Z", {"from": "08:00", "to": "24:00"}, True),
        ("2030-01-07T12:00:00Z", {"days": ["mon"]}, True),
        ("2030-01-08T12:00:00Z", {"days": ["mon"]}, False),
        # over midnight the day is that of the opening
        ("2030-01-07T23:00:00Z", {"days": ["mon"], "from": "22:00", "to": "06:00"}, True),
        ("2030-01-08T05:59:00Z", {"days": ["mon"], "from": "22:00", "to": "06:00"}, True),
        ("2030-01-08T06:00:00Z", {"days": ["mon"], "from": "22:00", "to": "06:00"}, False),
        ("2030-01-07T05:00:00Z", {"days": ["mon"], "from": "22:00", "to": "06:00"}, False),
        ("2030-01-08T23:00:00Z", {"days": ["mon"], "from": "22:00", "to": "06:00"}, False),
        # Berlin is UTC+1 in winter, UTC+2 in summer
        ("2030-01-07T07:00:00Z", {"from": "08:00", "to": "09:00", "timezone": "Europe/Berlin"}, True),
        ("2030-07-01T07:00:00Z", {"from": "08:00", "to": "09:00", "timezone": "Europe/Berlin"}, False),
        ("2030-07-01T06:00:00Z", {"from": "08:00", "to": "09:00", "timezone": "Europe/Berlin"}, True),
        ("2030-01-06T23:30:00Z", {"days": ["mon"], "timezone": "Europe/Berlin"}, True),
        ("2029-12-31T23:59:59Z", {"after": "2030-01-01"}, False),
        ("2030-01-01T00:00:00Z", {"after": "2030-01-01"}, True),
        ("2029-12-31T23:00:00Z", {"after": "2030-01-01", "timezone": "Europe/Berlin"}, True),
        ("2030-01-01T00:00:00Z", {"before": "2030-01-01T00:00:00Z"}, False),
        ("2030-01-01T00:00:00Z", {"before": "2030-01-01T00:00:00-01:00"}, True),
        ("2030-01-07T12:00:00Z", {"days": ["mon"], "after": "2030-02-01"}, False),
    ],
)
def test_a_window_holds(now: str, values: dict[str, Any], expected: bool) -> None:
    assert holds(now, **values) is expected


def test_values_that_yaml_already_converted() -> None:
    assert parse_clock(1080) == parse_clock("18:00") == 1080
    assert parse_moment(date(2030, 1, 31)).seconds() == parse_moment("2030-01-31").seconds()
    instant = datetime(2030, 1, 31, 18, tzinfo=UTC)
    assert parse_moment(instant).seconds() == parse_moment("2030-01-31T18:00:00Z").seconds() == instant.timestamp()


@pytest.mark.parametrize("value", ["24:01", "8:00", "08:60", "08:00 ", "", None, True, 1441, -1, 8.5])
def test_what_is_no_time_of_day(value: object) -> None:
    with pytest.raises(ValueError, match="a time of day"):
        parse_clock(value)


@pytest.mark.parametrize("value", ["2030-13-01", "2030-01-31T18:00:00", "tomorrow", 5, None, datetime(2030, 1, 1)])
def test_what_is_no_moment(value: object) -> None:
    with pytest.raises(ValueError, match="a date"):
        parse_moment(value)
