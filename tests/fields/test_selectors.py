"""Selectors: the subset of JSONPath, its errors, and what the automaton accepts."""

from __future__ import annotations

import pytest

from meshguard.fields.selectors import Matcher, SelectorError, Step, parse_selector


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("$.a", [Step("a")]),
        ("$.a.b-c", [Step("a"), Step("b-c")]),
        ("$['a b']", [Step("a b")]),
        ('$["a\\u0062"]', [Step("ab")]),
        ("$['it\\'s \"q\"']", [Step('it\'s "q"')]),
        ("$['\\ud83d\\ude00']", [Step("\U0001f600")]),
        ("$.été", [Step("été")]),
        ("$[0]", [Step(index=0)]),
        ("$[ 12 ].x", [Step(index=12), Step("x")]),
        ("$[*].a", [Step(), Step("a")]),
        ("$.*", [Step()]),
        ("$..ssn", [Step("ssn", deep=True)]),
        ("$.a..['b c']", [Step("a"), Step("b c", deep=True)]),
        ("$['']", [Step("")]),
    ],
)
def test_parses(text: str, steps: list[Step]) -> None:
    assert list(parse_selector(text).steps) == steps


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0), ("a.b", 0), ("$", 1), ("$a", 1), ("$.", 2), ("$.a.", 4), ("$.1a", 2), ("$.a b", 3), ("$[", 2), ("$[-1]", 2),
        ("$[01]", 2), ("$[99999]", 2),
        ("$['a]", 2), ("$['a'", 2), ("$[?(@.a)]", 2), ("$[0:2]", 2), ("$['a','b']", 2), ("$..*", 3), ("$..[*]", 3), ("$..[0]", 3),
        ("$.['a']", 2),
        ("$['\\x']", 2), ("$['\\ud800']", 2), ("$...a", 3), ("$.a ", 3),
    ],
)  # fmt: skip
def test_an_error_names_its_position(text: str, position: int) -> None:
    with pytest.raises(SelectorError) as caught:
        parse_selector(text)
    assert caught.value.position == position
    assert f"character {position + 1}" in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "contains"),
    [
        ("$.a", "$.a.b", True), ("$.a.b", "$.a", False), ("$.a", "$.a", True), ("$.a[*]", "$.a[0].x", True), ("$.*", "$.a", True),
        ("$.a.b", "$.a.c", False), ("$[0]", "$[1]", False), ("$..a", "$..a", True), ("$['a'].b", "$.a.b", True),
    ],
)  # fmt: skip
def test_containment(one: str, other: str, contains: bool) -> None:
    assert parse_selector(one).may_contain(parse_selector(other)) is contains


def test_states_are_bounded_by_the_selectors_not_by_the_names_of_documents() -> None:
    matcher = Matcher([parse_selector("$..card"), parse_selector("$.a[3].b")], [0, 1])
    state = matcher.root
    for number in range(5000):
        following = state.member(f"name{number}")
        assert following is not None
        following = following.element(number)
        assert following is not None
        state = following
    assert len(matcher._states) < 10
