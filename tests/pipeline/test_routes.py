"""Routes: the first that matches wins; operations on fields; which authorities are served."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshguard.pipeline.routes import HeaderOperations, Route, RouteTable, authority_matcher
from meshguard.wire.fields import split_block
from meshguard.wire.grammar import FIELD_BLOCK
from meshguard.wire.target import PathOptions

BLOCK = b"A: 1\r\nb: 2\r\nA: 3\r\nC:\r\n"


@pytest.mark.parametrize(
    ("set_", "append", "remove", "expected"),
    [
        ([], [], [], BLOCK),
        ([], [], [b"a"], b"b: 2\r\nC:\r\n"),
        ([], [], [b"A"], b"b: 2\r\nC:\r\n"),
        ([(b"A", b"9")], [], [], b"b: 2\r\nC:\r\nA: 9\r\n"),
        ([], [(b"A", b"9")], [], BLOCK + b"A: 9\r\n"),
        ([(b"x", b"1")], [(b"x", b"2")], [b"x"], BLOCK + b"x: 1\r\nx: 2\r\n"),
        ([(b"a", b"")], [], [b"c"], b"b: 2\r\na: \r\n"),
    ],
)
def test_operations(set_: Any, append: Any, remove: Any, expected: bytes) -> None:
    assert HeaderOperations(set_, append, remove).apply(BLOCK) == expected


names = st.sampled_from([b"a", b"A", b"x-y", b"X-Y", b"z"])
pairs = st.lists(st.tuples(names, st.sampled_from([b"1", b"", b"a b"])), max_size=4)


@given(pairs, pairs, st.lists(names, max_size=2), pairs)
def test_operations_remove_then_set_then_append(set_: Any, append: Any, remove: list[bytes], fields: Any) -> None:
    out = HeaderOperations(set_, append, remove).apply(b"".join(b"%b: %b\r\n" % pair for pair in fields))
    assert FIELD_BLOCK(out) is not None
    gone = {name.lower() for name in remove} | {name.lower() for name, _ in set_}
    assert split_block(out) == [pair for pair in fields if pair[0].lower() not in gone] + set_ + append


@pytest.mark.parametrize(
    ("patterns", "host", "served"),
    [
        (["a.example"], "a.example", True),
        (["A.Example"], "a.example", True),
        (["a.example"], "b.a.example", False),
        (["*.example"], "a.example", True),
        (["*.example"], "b.a.example", True),
        (["*.example"], "example", False),
        (["*.example"], "aexample", False),
        (["*.example"], ".example", True),
        (["*.example"], "a.example.evil", False),
        (["*"], "anything", True),
        (["*"], "", True),
        ([], "a", False),
        (["a"], "", False),
        (["[::1]"], "[::1]", True),
    ],
)
def test_authorities(patterns: list[str], host: str, served: bool) -> None:
    assert authority_matcher(patterns)(host) is served


def route(name: str, prefix: str = "/", **more: Any) -> Route:
    return Route(name, "cluster", paths=lambda path: prefix if path.startswith(prefix) else None, **more)


def every(route: Route) -> bool:
    return True


def names_of(table: RouteTable, *question: Any) -> list[str]:
    return [found.id for found, _ in table.candidates(*question, every)]


def test_the_first_route_wins() -> None:
    table = RouteTable([route("a", "/a"), route("ab", "/ab"), route("all")], None)
    assert names_of(table, "h", "/ab", "GET", None) == ["a"]
    assert names_of(table, "h", "/x", "GET", None) == ["all"]
    assert table.candidates("h", "/ab", "GET", None, every)[0][1] == "/a"


def test_a_route_that_does_not_take_the_spelling_is_passed_over() -> None:
    table = RouteTable([route("a", "/a"), route("all")], None)
    assert [found.id for found, _ in table.candidates("h", "/a", "GET", None, lambda one: one.id != "a")] == ["all"]


def test_a_route_with_header_conditions_needs_one_behind_it() -> None:
    table = RouteTable([route("beta", headers=[(b"x-beta", b"1")]), route("all"), route("never")], None)
    assert names_of(table, "h", "/", "GET", None) == ["beta", "all"]
    assert names_of(RouteTable([route("beta", headers=[(b"x-beta", b"1")])], None), "h", "/", "GET", None) == ["beta"]


@pytest.mark.parametrize(
    ("conditions", "question", "matches"),
    [
        ({"methods": frozenset({"GET"})}, ("h", "/", "GET", None), True),
        ({"methods": frozenset({"GET"})}, ("h", "/", "get", None), False),
        ({"methods": frozenset({"GET"})}, ("h", "/", "POST", None), False),
        ({"hosts": authority_matcher(["h"])}, ("h", "/", "GET", None), True),
        ({"hosts": authority_matcher(["h"])}, ("i", "/", "GET", None), False),
        ({"principals": lambda principal: principal == "spiffe://d/a"}, ("h", "/", "GET", "spiffe://d/a"), True),
        ({"principals": lambda principal: principal == "spiffe://d/a"}, ("h", "/", "GET", None), False),
    ],
)
def test_conditions(conditions: dict[str, Any], question: tuple[Any, ...], matches: bool) -> None:
    assert bool(RouteTable([route("r", **conditions)], None).candidates(*question, every)) is matches


@pytest.mark.parametrize(
    ("block", "matches"),
    [
        (b"", False),
        (b"X-Beta: 1\r\n", True),
        (b"x-beta:1\t\r\n", True),
        (b"X-Beta: 2\r\nX-Beta: 1\r\n", True),
        (b"X-Beta: 1, 2\r\n", False),
        (b"X-Beta: 10\r\n", False),
        (b"X-Betas: 1\r\n", False),
    ],
)
def test_header_conditions_look_at_every_line(block: bytes, matches: bool) -> None:
    assert route("r", headers=[(b"x-beta", b"1")]).headers_match(block) is matches


def test_routes_with_lenient_paths_are_known() -> None:
    lenient = route("lenient", options=PathOptions(params="keep"))
    assert RouteTable([route("strict"), lenient], None).lenient == (lenient,)
