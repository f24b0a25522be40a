"""Path templates: what they accept, what they refuse, what they match."""

from __future__ import annotations

import pytest

from meshguard.policy.paths import MAX_SEGMENTS, folded, parse_template
from tests.policy.build import BILLING, decide, outcome, policy


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("/", "/"),
        ("/orders", "/orders"),
        ("/orders/", "/orders/"),
        ("/orders/{id}", "/orders/{id}"),
        ("/v{major}/{file}.json", "/v{major}/{file}.json"),
        ("/orders/{id}:cancel", "/orders/{id}:cancel"),
        ("/**", "/**"),
        ("/admin/**", "/admin/**"),
        ("/*/items", "/*/items"),
        ("/a%c3%a9", "/a%C3%A9"),
        ("/stra\u00dfe", "/stra%C3%9Fe"),
        ("/a%25b~", None),  # '%25' before a hex digit and another character is fine; see below
    ],
)
def test_templates_are_normalised(text: str, normal: str | None) -> None:
    assert parse_template(text).text == (normal or text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("orders", "starts with '/'"),
        ("", "starts with '/'"),
        ("/a//b", "'//'"),
        ("/a/../b", "'..'"),
        ("/a/./b", "'.'"),
        ("/a?x=1", "query"),
        ("/a#f", "fragment"),
        ("/a;v=1", "parameters"),
        ("/a\\b", "backslash"),
        ("/%61", "'a' instead of %61"),
        ("/%7euser", "'~' instead of %7E"),
        ("/a%2fb", "%2F"),
        ("/a%5Cb", "%5C"),
        ("/a%00", "%00"),
        ("/a%2541", "encoded twice"),
        ("/a%4", "canonical path can hold"),
        ("/a b", "canonical path can hold"),
        ("/a*", "whole segment"),
        ("/**/b", "only at the end"),
        ("/a/***", "only at the end"),
        ("/{id", "'}' after"),
        ("/id}", "'{' before"),
        ("/{a}{b}", "at most one"),
        ("/{a}/{a}", "twice"),
        ("/{}", "parameter name"),
        ("/{a/b}", "'}' after"),
        ("/" + "a" * 3000, "at most 2048"),
        ("/" + "a/" * MAX_SEGMENTS, "at most 64"),
        ("/\ud800", "Unicode"),
    ],
)
def test_what_no_request_can_carry_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_template(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("template", "path", "matches"),
    [
        ("/", "/", True),
        ("/", "/a", False),
        ("/orders", "/orders", True),
        ("/orders", "/orders/", False),
        ("/orders/", "/orders/", True),
        ("/orders/", "/orders", False),
        ("/orders", "/Orders", False),
        ("/orders/{id}", "/orders/7", True),
        ("/orders/{id}", "/orders/", False),
        ("/orders/{id}", "/orders/7/", False),
        ("/orders/{id}", "/orders/7/items", False),
        ("/orders/*", "/orders/7", True),
        ("/*", "/", False),
        ("/v{n}/x", "/v1/x", True),
        ("/v{n}/x", "/v/x", False),
        ("/v{n}/x", "/w1/x", False),
        ("/{f}.json", "/a.json", True),
        ("/{f}.json", "/.json", False),
        ("/{f}.json", "/a.JSON", False),
        ("/a{x}a", "/aa", False),
        ("/a{x}a", "/aba", True),
        ("/admin/**", "/admin", True),
        ("/admin/**", "/admin/", True),
        ("/admin/**", "/admin/a/b/c", True),
        ("/admin/**", "/administrator", False),
        ("/**", "/", True),
        ("/**", "/a/b", True),
        ("/{a}/**", "/x", True),
        ("/{a}/**", "/", False),
    ],
)
def test_an_allow_rule_matches(template: str, path: str, matches: bool) -> None:
    compiled = policy({"allow": [BILLING], "paths": [template]})
    assert (outcome(decide(compiled, BILLING, f"GET {path}"))[0] == "allow") is matches


@pytest.mark.parametrize(
    ("template", "readings", "matches"),
    [
        ("/admin", ("/admin/",), True),
        ("/admin/", ("/admin",), True),
        ("/Admin/**", ("/admin",), True),
        ("/admin/**", ("/x", "/admin/users"), True),
        ("/admin/**", ("/x//admin",), False),
        ("/x/admin", ("/x//admin",), True),
        ("/", ("/",), True),
        ("/a%20b", ("/a b",), True),
        ("/a%20b", ("/a%20b",), True),
        ("/stra%C3%9Fe", ("/strasse",), True),
        ("/admin/{x}", ("/admin/",), False),
        ("/{f}.PHP", ("/index.php",), True),
    ],
)
def test_a_deny_rule_matches_readings(template: str, readings: tuple[str, ...], matches: bool) -> None:
    compiled = policy({"allow": "anyone"}, {"deny": "anyone", "paths": [template]})
    assert (outcome(decide(compiled, None, "GET /canonical", readings=readings))[0] == "policy_denied") is matches


def test_folding_keeps_one_template_for_plain_text_and_two_for_escapes() -> None:
    assert [variant.text for variant in folded(parse_template("/A/{Id}/"))] == ["/a/{Id}"]
    assert [variant.text for variant in folded(parse_template("/A%20B"))] == ["/a%20b", "/a b"]


def test_every_branch_of_the_trie_is_followed() -> None:
    """Literal, affixed and parameter branches that fit the same segment must all be seen, whichever leads to a match."""
    compiled = policy(
        {"allow": [BILLING], "paths": ["/a/b/one"]},
        {"allow": [BILLING], "paths": ["/{x}/b/two"]},
        {"allow": [BILLING], "paths": ["/a{x}/b/three", "/{x}a/b/four", "/*/*/five"]},
        {"allow": [BILLING], "paths": ["/aa/**"]},
    )
    for path, rule in {
        "/a/b/one": "r0",
        "/a/b/two": "r1",
        "/aa/b/two": "r1",
        "/ax/b/three": "r2",
        "/xa/b/four": "r2",
        "/aa/b/nine": "r3",
    }.items():
        assert outcome(decide(compiled, BILLING, f"GET {path}")) == ("allow", rule)
    assert outcome(decide(compiled, BILLING, "GET /a/b/three"))[0] == "no_rule"
