"""SPIFFE patterns: syntax, matching byte for byte, and the index against a plain expression."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshguard.policy.principals import PrincipalIndex, parse_principal


@pytest.mark.parametrize(
    ("pattern", "spiffe_id", "matches"),
    [
        ("spiffe://a.example/x", "spiffe://a.example/x", True),
        ("spiffe://a.example/x", "spiffe://a.example/X", False),
        ("spiffe://a.example/x", "spiffe://a.example/x/", False),
        ("spiffe://a.example/x", "spiffe://b.example/x", False),
        ("spiffe://a.example/ns/*/sa/b", "spiffe://a.example/ns/prod/sa/b", True),
        ("spiffe://a.example/ns/*/sa/b", "spiffe://a.example/ns/prod/x/sa/b", False),
        ("spiffe://a.example/support-*", "spiffe://a.example/support-eu", True),
        ("spiffe://a.example/support-*", "spiffe://a.example/support-", False),
        ("spiffe://a.example/support-*", "spiffe://a.example/support-eu/admin", False),
        ("spiffe://a.example/*-job", "spiffe://a.example/a-job", True),
        ("spiffe://a.example/a-*-z", "spiffe://a.example/a--z", False),
        ("spiffe://a.example/a-*-z", "spiffe://a.example/a-b-z", True),
        ("spiffe://a.example/**", "spiffe://a.example/x/y", True),
        ("spiffe://a.example/**", "spiffe://a.example.evil/x", False),
        ("spiffe://a.example/**", "spiffe://a.exampleX/x", False),
        ("spiffe://a.example/ns/**", "spiffe://a.example/ns", True),
        ("spiffe://a.example/ns/**", "spiffe://a.example/nsx", False),
        ("spiffe://a.example/*", "spiffe://a.example/x", True),
        ("spiffe://a.example/*", "spiffe://a.example/x/y", False),
        ("spiffe://a.example/*", "spiffe://a.example/", False),
        ("spiffe://a.example/x", "SPIFFE://a.example/x", False),
        ("spiffe://a.example/x", "spiffe://A.example/x", False),
    ],
)
def test_matching(pattern: str, spiffe_id: str, matches: bool) -> None:
    index = PrincipalIndex([(parse_principal(pattern), 7)])
    assert index.find(spiffe_id) == ({7} if matches else set())


@pytest.mark.parametrize(
    "text",
    [
        "http://a.example/x",
        "a.example/x",
        "spiffe://*/x",
        "spiffe://*.example/x",
        "spiffe://A.example/x",
        "spiffe:///x",
        "spiffe://a.example",
        "spiffe://a.example/",
        "spiffe://a.example//x",
        "spiffe://a.example/../x",
        "spiffe://a.example/./x",
        "spiffe://a.example/x/",
        "spiffe://a.example/a*b*c",
        "spiffe://a.example/**/x",
        "spiffe://a.example/x%20",
        "spiffe://a.example/x?y",
        "spiffe://a.example/x#y",
        "spiffe://user@a.example/x",
        "spiffe://a.example:443/x",
        "spiffe://a.example/\u00e9",
        "spiffe://a.example/" + "x" * 2048,
        "spiffe://a.example/x\n",
    ],
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_principal(text)


_segment = st.sampled_from(["a", "b", "ab", "abc", "a-b", "x"])
_glob = st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "a*c", "*-b"])


@given(
    st.lists(st.tuples(st.lists(_glob, min_size=1, max_size=3), st.booleans()), max_size=8),
    st.lists(_segment, min_size=1, max_size=4),
)
def test_the_index_finds_what_an_expression_finds(patterns: list[tuple[list[str], bool]], segments: list[str]) -> None:
    texts = ["spiffe://td/" + "/".join(parts) + ("/**" if rest else "") for parts, rest in patterns]
    index = PrincipalIndex([(parse_principal(text), number) for number, text in enumerate(texts)])
    spiffe_id = "spiffe://td/" + "/".join(segments)
    expected = set()
    for number, (parts, rest) in enumerate(patterns):
        expression = "spiffe://td/" + "/".join(re.escape(part).replace(r"\*", "[^/]+") for part in parts) + ("(/.*)?" if rest else "")
        if re.fullmatch(expression, spiffe_id):
            expected.add(number)
    assert index.find(spiffe_id) == expected


@given(st.lists(_glob, min_size=1, max_size=3), st.booleans())
def test_a_sample_matches_its_own_pattern(parts: list[str], rest: bool) -> None:
    pattern = parse_principal("spiffe://td/" + "/".join(parts) + ("/**" if rest else ""))
    assert PrincipalIndex([(pattern, 1)]).find(pattern.sample()) == {1}
