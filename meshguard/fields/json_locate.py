"""Finds the protected values of a body: the fast way where it can prove its answer, else the exact one.

Both can pause (`locating`), for bodies that would keep others waiting.
"""

from __future__ import annotations

from collections.abc import Generator

from meshguard.fields import json_fast, json_scan
from meshguard.fields.json_fast import FOUND, PENDING, try_scan
from meshguard.fields.json_scan import Span, resolve, scan
from meshguard.fields.selectors import Matcher

__all__ = ["locate", "locate_all", "locating"]


def locate(body: bytes, matcher: Matcher) -> list[Span]:
    """Validate `body` and return the disjoint spans of the selected values, in order. Raises JsonError."""
    spans = try_scan(body, matcher)
    if spans is None:
        spans = scan(body, matcher)
    return resolve(spans) if len(spans) > 1 else spans


def locate_all(body: bytes, matcher: Matcher, owners: int = 0) -> list[Span]:
    """Validate `body` and return every span in document order, nested ones too. With `owners`, those of owners below it must be
    disjoint. Raises JsonError."""
    spans = try_scan(body, matcher)
    if spans is None:
        spans = scan(body, matcher)
    if owners:
        resolve([span for span in spans if span[0] < owners])
    return spans


def locating(body: bytes, matcher: Matcher, slice_: int) -> Generator[None, None, list[Span]]:
    """`locate_all` without its check, pausing after about `slice_` steps of 1 us each."""
    spans: list[Span] = []
    for state in json_fast.scanning(body, matcher, spans, slice_):
        if state is FOUND:
            return spans
        if state is PENDING:
            yield
    spans = []
    yield from json_scan.scanning(body, matcher, spans, slice_)
    return spans
