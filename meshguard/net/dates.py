"""The Date field of an answer that is our own (RFC 9110 section 5.6.7), worked out once a second."""

from __future__ import annotations

import time

__all__ = ["date_line"]

_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_last = (-1, b"")


def date_line(now: float | None = None) -> bytes:
    """`date: Sun, 06 Nov 1994 08:49:37 GMT` CRLF, for `now` in epoch seconds (None: the present)."""
    global _last
    second = int(time.time() if now is None else now)
    if _last[0] != second:
        year, month, day, hour, minute, sec, weekday = time.gmtime(second)[:7]
        line = b"date: %b, %02d %b %d %02d:%02d:%02d GMT\r\n" % (_DAYS[weekday], day, _MONTHS[month - 1], year, hour, minute, sec)
        _last = (second, line)
    return _last[1]
