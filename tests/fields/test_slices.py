"""Treatment in slices gives what treatment at once gives, whatever the slices are, and no slice is long."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.fields import json_scan
from meshguard.fields.json_locate import locate_all, locating
from meshguard.fields.json_scan import JsonError, Span, resolve, resolving
from meshguard.fields.json_splice import splice, splicing
from meshguard.fields.selectors import Matcher, parse_selector
from meshguard.fields.transforms import NOBODY_KNOWN, Transform
from meshguard.model.errors import RequestError
from tests.fields.documents_of import documents, selectors
from tests.fields.parts import RULE, Counter, apply, reader, transform


def whole(steps: Generator[None, None, Any]) -> tuple[Any, int]:
    """What it returns, and how often it paused."""
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value, pauses
        pauses += 1


def matcher_of(*texts: str) -> Matcher:
    return Matcher([parse_selector(text) for text in texts], range(len(texts)))


@settings(max_examples=150, deadline=None)
@given(documents, selectors, st.integers(1, 12))
def test_slices_find_what_one_pass_finds(body: bytes, texts: list[str], slice_: int) -> None:
    matcher = matcher_of(*texts)
    try:
        expected = locate_all(body, matcher)
    except JsonError as error:
        with pytest.raises(JsonError, match=str(error).replace("(", ".").replace(")", ".")):
            whole(locating(body, matcher, slice_))
        return
    assert whole(locating(body, matcher, slice_))[0] == expected
    exact: list[Span] = []
    for _ in json_scan.scanning(body, matcher, exact, slice_):
        pass
    assert exact == expected
    try:
        kept = resolve(expected)
    except JsonError:
        with pytest.raises(JsonError):
            whole(resolving(expected, slice_))
        return
    assert whole(resolving(expected, slice_))[0] == kept
    for values in ([b"x"] * len(kept), [None] * len(kept)):
        if kept:
            assert whole(splicing(body, kept, values, slice_))[0] == splice(body, kept, values)


def in_slices(found: Transform, body: bytes, *roles: str, slice_: int = 50) -> tuple[bytes, int]:
    result, pauses = whole(found.applying(body, reader(*roles), Counter(), NOBODY_KNOWN, "", 1 << 20, slice_))
    return result.body, pauses


RULES: list[dict[str, Any]] = [
    {**RULE, "select": "$.orders[*].card"},
    {**RULE, "select": "$..card"},
    {**RULE, "select": "$..card", "others": "remove"},
    {**RULE, "select": "$.orders[*].card", "record": "$.orders[*].id"},
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("escape", [False, True])
def test_a_large_document_is_treated_in_slices(rule: dict[str, Any], escape: bool) -> None:
    name = "c\\u0061rd" if escape else "card"
    orders = [{"id": number, "customer": {"name": "caf\u00e9"}, "note": 'a "quote"', name: str(number) * 4} for number in range(400)]
    body = json.dumps({"orders": orders, "total": 1.0}).replace("\\\\", "\\").encode()
    found = transform(rule)
    sealed, pauses = in_slices(found, body)
    assert pauses > 50
    assert sealed == apply(found, body)
    if rule.get("others") != "remove":
        assert in_slices(found, sealed, "billing")[0] == body


def lines_in(step: Generator[None, None, Any]) -> int:
    """The lines of Python that one slice runs: a measure of its length that no neighbour on the machine disturbs."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        next(step, None)
    finally:
        sys.settrace(before)
    return count


HEAVY = {
    "many members": b"{" + b",".join(b'"m%d":1' % number for number in range(8000)) + b',"card":"1"}',
    "many elements": b'{"card":"1","list":[' + b",".join([b"1"] * 5000) + b"]}",
    "many hits": b"[" + b",".join([b'{"card":"1"}'] * 4000) + b"]",
    "many containers": b"[" + b",".join([b'{"x":{"y":[]}}'] * 4000) + b',{"card":"1"}]',
    "hits and escapes": b"[" + b",".join([b'{"c\\u0061rd":"1","n":"\\u00e9\\n"}'] * 3000) + b"]",
    "a name twice at the end": b"[" + b",".join([b'{"card":"1"}'] * 4000) + b',{"card":"1","card":"2"}]',
    "broken at the end": b"[" + b",".join([b'{"card":"1"}'] * 4000) + b",{",
    "lone surrogate at the end": b"[" + b",".join([b'"\\ud83d\\ude00"'] * 4000) + b',{"card":"\\ud83d"}]',
}


@pytest.mark.parametrize("kind", HEAVY)
def test_no_slice_is_long(kind: str) -> None:
    body = HEAVY[kind]
    job = transform({**RULE, "select": ["$..card", "$.list[*]"]}).applying(body, reader(), Counter(), NOBODY_KNOWN, "", 1 << 20, 100)
    longest = slices = 0
    refused = False
    try:
        while job.gi_frame is not None:
            longest = max(longest, lines_in(job))
            slices += 1
    except RequestError:
        refused = True
    assert refused is (kind in ("a name twice at the end", "broken at the end", "lone surrogate at the end"))
    assert slices > 5 or refused
    assert longest < 12_000, "a slice does much more than its share"
