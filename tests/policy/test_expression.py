"""Conditions in CEL: what they see, that an error never helps the caller, that work is bounded, that mistakes are told at load."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.model.errors import DocumentError
from tests.policy.build import BILLING, OTHER, decide, outcome, policy

NOON_BERLIN = 1_900_000_000.0 - 1_900_000_000 % 86400 + 11 * 3600


@pytest.mark.parametrize(
    ("expression", "given", "met"),
    [
        ('request.method == "GET" && request.path.startsWith("/orders/")', {}, True),
        ('request.path == "/orders/8"', {}, False),
        (f'identity.spiffe_id == "{BILLING}" && identity.path.endsWith("billing")', {}, True),
        ('identity.trust_domain == "shop.example"', {}, True),
        ("request.port == 8443 && request.host in ['localhost', 'x']", {}, True),
        ("'x-tenant' in request.headers && request.headers['x-tenant'].all(v, v == 'a')", {"headers": {"x-tenant": ["a", "a"]}}, True),
        ("'x-tenant' in request.headers && request.headers['x-tenant'].all(v, v == 'a')", {"headers": {"x-tenant": ["a", "b"]}}, False),
        ("request.headers['absent'][0] == 'a'", {}, False),
        ("claims.level >= 3 && 'ops' in claims.groups", {"claims": {"level": 4, "groups": ["ops"]}}, True),
        ("claims.level >= 3", {"claims": {"level": "4"}}, False),
        ("claims.level >= 3", {"claims": {}}, False),
        ("has(claims.act) && claims.act.sub == 'agent'", {"claims": {"act": {"sub": "agent"}}}, True),
        ('now.getHours("Europe/Berlin") == 12', {"now": NOON_BERLIN}, True),
        ("now < timestamp('2020-01-01T00:00:00Z')", {}, False),
        ("request.path.matches('^/orders/[0-9]+$')", {}, True),
        ("claims.l.all(x, claims.l.all(y, claims.l.all(z, true)))", {"claims": {"l": list(range(300))}}, False),
        ("claims.s.matches('^(a+)+$')", {"claims": {"s": "a" * 20000 + "b"}}, False),
    ],
)
def test_what_it_decides(expression: str, given: dict[str, Any], met: bool) -> None:
    compiled = policy({"allow": "anyone", "when": expression})
    assert outcome(decide(compiled, BILLING, "GET /orders/7", **given))[0] == ("allow" if met else _refused(expression, given))


def _refused(expression: str, given: dict[str, Any]) -> str:
    return "token_required" if "claims" in expression and given.get("claims") is None else "no_rule"


@pytest.mark.parametrize("given", [{}, {"claims": {}}, {"claims": {"level": "high"}}])
def test_an_error_counts_against_the_request_in_both_directions(given: dict[str, Any]) -> None:
    allow = policy({"allow": "anyone", "when": "claims.level < 3"})
    assert outcome(decide(allow, OTHER, "GET /x", **given))[0] != "allow"
    deny = policy({"id": "yes", "allow": "anyone"}, {"id": "no", "deny": "anyone", "when": "claims.level < 3"})
    assert outcome(decide(deny, OTHER, "GET /x", **given)) == ("policy_denied", "no")
    assert outcome(decide(deny, OTHER, "GET /x", claims={"level": 5})) == ("allow", "yes")


def test_without_identity_the_variables_are_empty() -> None:
    compiled = policy({"allow": "anyone", "when": "identity.spiffe_id == '' && identity.trust_domain == ''"})
    assert outcome(decide(compiled, None, "GET /x"))[0] == "allow"
    assert outcome(decide(compiled, OTHER, "GET /x"))[0] == "no_rule"


def test_a_token_is_asked_for_where_only_it_is_missing() -> None:
    compiled = policy({"allow": "anyone", "when": "claims.level > 1"})
    assert outcome(decide(compiled, OTHER, "GET /x"))[0] == "token_required"


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("request.method == 1", "no matching overload"),
        ("request.verb == 'GET'", "undeclared reference"),
        ("1 +", "line 1"),
        ("'text'", "true or false"),
        ("claims.admin", "true or false"),
        ("request.path.matches('(')", ""),
    ],
)
def test_mistakes_are_told_with_their_place(expression: str, told: str) -> None:
    if not told:  # a bad pattern shows when it is used: then it is an error, and an error never allows
        assert outcome(decide(policy({"allow": "anyone", "when": expression}), OTHER, "GET /x"))[0] == "no_rule"
        return
    with pytest.raises(DocumentError, match=told) as failed:
        policy({"allow": "anyone"}, {"deny": "anyone", "when": expression})
    assert failed.value.problems[0].path == "rules[1].when"


def test_the_expression_is_part_of_the_digest() -> None:
    one, other = (policy({"allow": "anyone", "when": f"request.port == {port}"}).digest for port in (1, 2))
    assert one != other
    assert one != policy({"allow": "anyone"}).digest


def test_a_shadow_rule_with_an_expression_only_reports() -> None:
    compiled = policy({"id": "yes", "allow": "anyone"}, {"id": "no", "deny": "anyone", "shadow": True, "when": "request.port == 8443"})
    verdict = decide(compiled, OTHER, "GET /x")
    assert outcome(verdict) == ("allow", "yes")
    assert [(entry.rule_id, entry.effect) for entry in verdict.shadow] == [("no", "would_deny")]
