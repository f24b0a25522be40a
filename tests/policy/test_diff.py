"""Differences between policies: what flips is found, what does not is not, and everything found is true."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.cli.diff import readings_of
from meshguard.policy.diff import PolicyDiff, diff
from meshguard.policy.question import Question, ask, principal_of
from meshguard.policy.reach import observed_edges, reach
from tests.policy.build import BILLING, OTHER, SUPPORT, outcome, policy

ROLES = {"billing": {"principals": [BILLING]}, "support": {"principals": ["spiffe://shop.example/ns/prod/sa/support-*"]}}
READ = {"id": "read", "allow": ["billing"], "methods": ["GET"], "paths": ["/orders/{id}"]}


def compared(old: list[dict[str, Any]], new: list[dict[str, Any]], roles: Any = None, new_roles: Any = None) -> PolicyDiff:
    before, after = policy(*old, roles=roles or ROLES), policy(*new, roles=new_roles or roles or ROLES)
    result = diff(before, after, readings_of)
    assert result.complete
    for flip in result.flips:  # each example is true: the engine itself says so
        question = Question(flip.method, flip.path, readings_of(flip.path), host=flip.host, port=flip.port, now=0.0)
        principal = principal_of(flip.caller) if flip.caller else None
        verdicts = [outcome(ask(each, principal, question))[0] == "allow" for each in (before, after)]
        if "conditions" not in flip.before + flip.after:
            assert verdicts == [flip.before.startswith("allow"), flip.after.startswith("allow")]
    return result


def kinds(result: PolicyDiff) -> set[str]:
    return {flip.kind for flip in result.flips}


def test_equal_meaning_is_no_difference() -> None:
    renamed = [{**READ, "id": "other-name"}]
    assert compared([READ], [READ]).flips == ()
    assert compared([READ], renamed).flips == ()
    assert not compared([READ], renamed).loosened
    split = [{**READ, "id": "a", "paths": ["/orders/{x}"]}]
    assert compared([READ], split).flips == ()


@pytest.mark.parametrize(
    ("change", "kind", "call"),
    [
        ({"methods": ["GET", "DELETE"]}, "loosened", "DELETE /orders/x"),
        ({"methods": None}, "loosened", "POST /orders/x"),
        ({"paths": ["/orders/**"]}, "loosened", "GET /orders/x/x"),
        ({"paths": ["/orders/7"]}, "tightened", "GET /orders/x"),
        ({"allow": ["billing", "support"]}, "loosened", "GET /orders/x"),
        ({"allow": "anyone"}, "loosened", "GET /orders/x"),
        ({"allow": ["support"]}, "tightened", "GET /orders/x"),
        ({"ports": [8443]}, "tightened", "GET /orders/x"),
        ({"hosts": ["shop.example"]}, "tightened", "GET /orders/x"),
        ({"headers": {"x-a": "1"}}, "tightened", "GET /orders/x"),
        ({"when": "request.port == 1"}, "tightened", "GET /orders/x"),
        ({"shadow": True}, "tightened", "GET /orders/x"),
    ],
)
def test_a_changed_rule(change: dict[str, Any], kind: str, call: str) -> None:
    changed = {key: value for key, value in {**READ, **change}.items() if value is not None}
    result = compared([READ], [changed])
    assert (kind, call) in {(flip.kind, flip.call) for flip in result.flips}
    assert ("changed", "read") in result.rules
    back = compared([changed], [READ])
    assert {"loosened": "tightened", "tightened": "loosened"}[kind] in kinds(back)


def test_a_role_that_grows_loosens_the_rules_that_name_it() -> None:
    grown = {**ROLES, "billing": {"principals": [BILLING, OTHER]}}
    result = compared([READ], [READ], ROLES, grown)
    assert {(flip.kind, flip.caller) for flip in result.flips} == {("loosened", OTHER)}
    assert result.loosened


def test_a_deny_rule_that_goes_loosens_where_something_is_allowed() -> None:
    deny = {"id": "no-admin", "deny": "anyone", "paths": ["/orders/admin/**"]}
    broad = {**READ, "paths": ["/orders/**"]}
    result = compared([broad, deny], [broad])
    assert {flip.call for flip in result.flips if flip.caller == BILLING} >= {"GET /orders/admin", "GET /orders/admin/x"}
    assert kinds(result) == {"loosened"}
    assert compared([READ, {**deny, "paths": ["/nothing/**"]}], [READ]).flips == ()


def test_conditions_that_change_may_loosen() -> None:
    strict, loose = ({**READ, "headers": {"x-tenant": value}} for value in ("a", ["a", "b"]))
    result = compared([strict], [loose])
    assert kinds(result) == {"changed"}
    assert result.loosened
    role = {**ROLES, "user": {"jwt": {"groups": ["ops"]}}}
    wider = {**ROLES, "user": {"jwt": {"groups": ["ops", "dev"]}}}
    assert kinds(compared([{**READ, "allow": ["user"]}], [{**READ, "allow": ["user"]}], role, wider)) == {"changed"}


SEGMENT = st.sampled_from(["a", "b", "{x}", "v{x}", "{x}.js"])
PARTS = st.lists(SEGMENT, min_size=1, max_size=3)
PATH = st.builds(lambda parts, rest: "/" + "/".join(parts) + ("/**" if rest else ""), PARTS, st.booleans())


def _unique_names(path: str) -> str:
    parts = path.split("/")
    return "/".join(part.replace("{x}", f"{{x{index}}}") for index, part in enumerate(parts))


RULE = st.fixed_dictionaries(
    {"paths": st.lists(PATH.map(_unique_names), min_size=1, max_size=2, unique=True)},
    optional={"methods": st.sampled_from([["GET"], ["POST"], ["GET", "POST"]]), "ports": st.just([8443])},
).flatmap(lambda rule: st.sampled_from(["allow", "deny"]).flatmap(lambda effect: CALLERS.map(lambda callers: {**rule, effect: callers})))
CALLERS = st.sampled_from([["billing"], ["support"], "anyone", "authenticated", [SUPPORT], ["billing", OTHER]])


@settings(max_examples=60, deadline=None)
@given(st.lists(RULE, min_size=1, max_size=4), RULE, st.integers(0, 3))
def test_no_flip_of_a_sampled_request_is_missed(rules: list[dict[str, Any]], other: dict[str, Any], place: int) -> None:
    """An oracle by brute force: if any of many requests flips, the difference is not empty and says so in the same direction."""
    changed = [*rules[:place], other, *rules[place + 1 :]]
    before, after = policy(*rules, roles=ROLES), policy(*changed, roles=ROLES)
    result = diff(before, after, readings_of)
    wanted = set()
    for path in ("/a", "/b", "/a/b", "/va/b", "/q.js", "/a/q.js", "/a/b/v1", "/b/q/q", "/vq"):
        for principal in (None, BILLING, SUPPORT, OTHER):
            for method in ("GET", "POST", "PUT"):
                for port in (443, 8443):
                    question = Question(method, path, readings_of(path), host="localhost", port=port, now=0.0)
                    who = principal_of(principal) if principal else None
                    sides = [outcome(ask(each, who, question))[0] == "allow" for each in (before, after)]
                    if sides[0] != sides[1]:
                        wanted.add("loosened" if sides[1] else "tightened")
    assert wanted <= kinds(result)


def test_reach_and_what_was_used() -> None:
    compiled = policy(
        READ,
        {"id": "files", "allow": ["support"], "paths": ["/files/**"], "hosts": ["*.shop.example"]},
        {"id": "no", "deny": ["support"], "paths": ["/files/**"], "methods": ["DELETE"]},
        {"id": "when", "allow": "authenticated", "paths": ["/x"], "headers": {"x-a": "1"}},
        {"id": "gone", "allow": "anyone", "paths": ["/gone"]},
        {"id": "never", "deny": "anyone", "paths": ["/gone"]},
        roles=ROLES,
    )
    edges = reach(compiled, readings_of)
    assert {(edge.caller, edge.method, edge.path, edge.host, edge.certain) for edge in edges} == {
        (BILLING, "GET", "/orders/{id}", "*", True),
        ("spiffe://shop.example/ns/prod/sa/support-*", "*", "/files/**", "*.shop.example", True),
        ("authenticated", "*", "/x", "*", False),
    }
    calls = [
        (BILLING, "GET", "/orders/1", "h"),
        (BILLING, "HEAD", "/orders/2", "h"),
        (OTHER, "GET", "/orders/1", "h"),
        (SUPPORT, "PUT", "/files/a/b", "eu.shop.example"),
        (SUPPORT, "PUT", "/files/a/b", "else.where"),
    ]
    seen = {edge.path: edge.seen for edge in observed_edges(edges, calls)}
    assert seen == {"/orders/{id}": 2, "/files/**": 1, "/x": 0}
