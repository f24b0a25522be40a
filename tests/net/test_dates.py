"""The Date field against the standard library's."""

from __future__ import annotations

from email.utils import formatdate

from hypothesis import given
from hypothesis import strategies as st

from meshguard.net.dates import date_line


@given(st.integers(min_value=0, max_value=2**35))
def test_it_is_an_imf_fixdate(second: int) -> None:
    assert date_line(second + 0.75) == f"date: {formatdate(second, usegmt=True)}\r\n".encode()
