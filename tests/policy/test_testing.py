"""Tests in documents: who the caller is made to be, what passes, what is covered; and explanations in words."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.model.errors import RequestError
from meshguard.model.reasons import AMBIGUOUS_TARGET
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.explain import explain
from meshguard.policy.question import Question
from meshguard.policy.testing import TestResult, TestRun, run_tests
from tests.policy.build import BILLING, caller, document, policy

NOW = 1_900_000_000.0
ROLES = {
    "billing": {"principals": [BILLING]},
    "support": {"principals": ["spiffe://shop.example/ns/*/support-*"], "jwt": {"groups": ["support"]}},
    "user": {"jwt": {"iss": ["https://id.example"], "a.b": [1], "https://x.example/c": ["c"]}},
    "admin": {"principals": ["spiffe://shop.example/admin/**"], "jwt": {"groups": ["admin"]}, "match": "all"},
}


def canonicalise(target: str) -> tuple[str, tuple[str, ...]]:
    path = target.partition("?")[0]
    if "//" in path:
        raise RequestError(AMBIGUOUS_TARGET, "two slashes")
    return path, (path.casefold(),)


def run(rules: list[dict[str, Any]], tests: list[dict[str, Any]]) -> TestRun:
    values = document(rules=[{"id": f"r{number}", **rule} for number, rule in enumerate(rules)], roles=ROLES, tests=tests)
    return run_tests(compile_policy([values]), [values], ["a.yaml"], canonicalise, NOW)


def single(rules: list[dict[str, Any]], **test: Any) -> TestResult:
    (result,) = run(rules, [test]).results
    return result


@pytest.mark.parametrize("role", list(ROLES))
def test_the_caller_of_a_test_holds_the_role(role: str) -> None:
    result = single([{"allow": role}], **{"as": role, "call": "GET /", "expect": "allow", "rule": "r0"})
    assert result.passed, result.detail


def test_other_callers() -> None:
    rules = [{"allow": "authenticated", "paths": ["/a"]}, {"allow": [BILLING], "paths": ["/b"]}]
    for who, path, expected in (
        ("anyone", "/a", "deny"),
        ("authenticated", "/a", "allow"),
        ("authenticated", "/b", "deny"),
        (BILLING, "/b", "allow"),
        ("billing", "/b", "allow"),
    ):
        assert single(rules, **{"as": who, "call": f"GET {path}", "expect": expected}).passed


def test_what_a_request_carries() -> None:
    rules = [
        {"allow": "anyone", "paths": ["/h"], "headers": {"x-a": "1"}},
        {"allow": "anyone", "paths": ["/c"], "claims": {"tier": "gold"}},
        {"allow": "anyone", "paths": ["/p"], "ports": [9000], "hosts": ["shop.example"]},
        {"allow": "anyone", "paths": ["/t"], "times": [{"before": "2030-01-01"}]},
        {"allow": ["support"], "paths": ["/s"], "claims": {"tier": "gold"}},
    ]
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("/h", {"headers": {"X-A": "1"}}, "allow"),
        ("/h", {"headers": {"X-A": ["1", "2"]}}, "deny"),
        ("/c", {"claims": {"tier": "gold"}}, "allow"),
        ("/c", {"claims": {}}, "deny"),
        ("/p", {"port": 9000, "host": "shop.example"}, "allow"),
        ("/p", {"port": 9000}, "deny"),
        ("/t", {"time": "2029-12-31"}, "allow"),
        ("/t", {}, "deny"),
    ]
    for path, carried, expected in cases:
        assert single(rules, **{"as": "anyone", "call": f"GET {path}", "with": carried, "expect": expected}).passed, (path, carried)
    assert single(rules, **{"as": "support", "call": "GET /s", "with": {"claims": {"tier": "gold"}}, "expect": "allow"}).passed


def test_failures_say_what_happened_instead() -> None:
    rules = [{"allow": ["billing"], "methods": ["GET"], "paths": ["/orders/{id}"]}, {"deny": "anyone", "paths": ["/admin/**"]}]
    result = single(rules, **{"as": "billing", "call": "POST /orders/7", "expect": "allow"})
    assert not result.passed
    assert (result.verdict, result.rule, result.reason) == ("deny", "", "no_rule")
    assert "r0 failed by method" in result.detail
    result = single(rules, **{"as": "billing", "call": "GET /admin", "expect": "deny", "rule": "r0"})
    assert (result.passed, result.rule) == (False, "r1")
    result = single(rules, **{"as": "billing", "call": "GET /orders//7?x=1", "expect": "deny"})
    assert (result.passed, result.reason) == (True, "ambiguous_target")
    result = single(rules, **{"as": "billing", "call": "GET /orders//7", "expect": "allow"})
    assert (result.passed, result.detail) == (False, "two slashes")


def test_coverage() -> None:
    rules = [
        {"allow": "anyone", "paths": ["/a"]},
        {"deny": "anyone", "paths": ["/b"]},
        {"deny": "anyone", "paths": ["/a"], "shadow": True},
        {"allow": "user"},
    ]
    outcome = run(rules, [{"as": "anyone", "call": "GET /a", "expect": "allow"}, {"as": "anyone", "call": "GET /a", "expect": "deny"}])
    assert outcome.covered == ("r0", "r2")
    assert outcome.uncovered == ("r1", "r3")
    assert outcome.failed == 1
    assert outcome.results[0].shadow == (("r2", "would_deny"),)


def question(method: str = "GET", path: str = "/orders/7", **values: Any) -> Question:
    return Question(method, path, (path.casefold(),), **{"host": "h", "port": 1, "now": NOW, **values})


def test_an_explanation_of_a_denial_names_the_conditions_that_failed() -> None:
    compiled = policy(
        {"id": "far", "allow": "user", "paths": ["/x"], "methods": ["PUT"], "ports": [2], "hosts": ["i"]},
        {"id": "near", "allow": "billing", "paths": ["/orders/{id}"], "headers": {"x-a": "1"}},
        roles=ROLES,
    )
    explanation = explain(compiled, caller(BILLING), question(headers={"x-a": ["s3cret"]}))
    assert [account.rule_id for account in explanation.nearest] == ["near", "far"]
    assert [condition for condition, _ in explanation.nearest[0].failed] == ["header"]
    assert [condition for condition, _ in explanation.nearest[1].failed] == ["principal", "path", "method", "port", "host"]
    text = explanation.text()
    assert text.splitlines()[0] == "DENIED: no rule allows this request (no_rule)"
    assert "x-a is '1'" in text
    assert "s3cret" not in text
    assert "a token may give user" in text


def test_an_explanation_of_other_verdicts() -> None:
    compiled = policy(
        {"id": "yes", "allow": "anyone"},
        {"id": "no", "deny": "billing", "paths": ["/orders/**"]},
        {"id": "later", "deny": "anyone", "paths": ["/b"], "shadow": True},
        roles=ROLES,
    )
    denied = explain(compiled, caller(BILLING), question())
    assert denied.text().splitlines() == [
        "DENIED by rule no",
        "  call    GET /orders/7",
        f"  caller  {BILLING}",
        "  roles   billing",
        "  allow rule yes matches",
        "  deny rule no matches",
    ]
    allowed = explain(compiled, None, question(path="/b"))
    assert allowed.text().splitlines()[0] == "ALLOWED by rule yes"
    assert "shadow rule later: would deny" in allowed.text()
    assert allowed.structured()["shadow"] == [{"rule": "later", "effect": "would_deny"}]
    assert denied.structured()["reason"] == "policy_denied"
