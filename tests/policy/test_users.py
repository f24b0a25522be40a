"""End users as callers: a subject counts only together with its issuer."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from meshguard.model.verdicts import Denial, Permit
from meshguard.policy.compile import compile
from meshguard.policy.documents import PolicyDocument
from meshguard.policy.question import Question, ask, principal_of
from meshguard.policy.testing import run_tests

LOGIN, OTHER = "https://login.shop.example", "https://other.example"
ALICE = f"jwt:{LOGIN}#alice"


def policy(*rules: dict[str, Any], roles: dict[str, Any] | None = None, tests: list[dict[str, Any]] | None = None) -> PolicyDocument:
    return PolicyDocument.model_validate({"roles": roles or {}, "rules": list(rules), "tests": tests or []})


def verdict(document: PolicyDocument, claims: dict[str, Any] | None, path: str = "/x", spiffe_id: str | None = None) -> Permit | Denial:
    question = Question("GET", path, (path,), host="h", port=443, now=0.0, claims=claims)
    return ask(compile([document]), principal_of(spiffe_id) if spiffe_id else None, question)


def allowed(document: PolicyDocument, claims: dict[str, Any] | None, **more: Any) -> bool:
    return isinstance(verdict(document, claims, **more), Permit)


def test_a_rule_names_an_end_user() -> None:
    document = policy({"id": "r", "allow": [ALICE]})
    assert allowed(document, {"iss": LOGIN, "sub": "alice"})
    assert not allowed(document, {"iss": OTHER, "sub": "alice"})
    assert not allowed(document, {"iss": LOGIN, "sub": "bob"})
    assert not allowed(document, {"iss": LOGIN})
    assert not allowed(document, {"sub": "alice", ".user": [ALICE]})
    denial = verdict(document, None)
    assert isinstance(denial, Denial)
    assert denial.reason.code == "token_required"
    # a workload with that name is no end user, and a policy that knows only users lets no workload in
    assert not allowed(document, None, spiffe_id="spiffe://login.shop.example/alice")


def test_a_rule_names_every_user_of_an_issuer() -> None:
    document = policy({"id": "r", "allow": [f"jwt:{LOGIN}#*"]}, {"id": "no-mallory", "deny": [f"jwt:{LOGIN}#mallory"]})
    assert allowed(document, {"iss": LOGIN, "sub": "alice"})
    assert allowed(document, {"iss": LOGIN})
    assert not allowed(document, {"iss": LOGIN, "sub": "mallory"})
    assert not allowed(document, {"iss": OTHER, "sub": "alice"})


def test_an_issuer_cannot_speak_for_another_by_a_number_sign() -> None:
    document = policy({"id": "r", "allow": ["jwt:https://a#b#c"]})  # issuer https://a, subject b#c
    assert allowed(document, {"iss": "https://a", "sub": "b#c"})
    assert not allowed(document, {"iss": "https://a#b", "sub": "c"})


def test_users_of_a_role_and_its_claims_are_both_asked() -> None:
    roles = {"staff": {"users": [ALICE, f"jwt:{OTHER}#*"], "jwt": {"groups": ["staff"]}}}
    document = policy({"id": "r", "allow": ["staff"]}, roles=roles)
    assert allowed(document, {"iss": LOGIN, "sub": "alice", "groups": ["staff"]})
    assert allowed(document, {"iss": OTHER, "sub": "zoe", "groups": ["staff"]})
    assert not allowed(document, {"iss": LOGIN, "sub": "alice", "groups": []})
    assert not allowed(document, {"iss": LOGIN, "sub": "bob", "groups": ["staff"]})


def test_a_workload_and_its_user_together() -> None:
    edge = "spiffe://shop.example/ns/prod/sa/edge"
    roles = {"alice-at-the-edge": {"users": [ALICE], "principals": [edge], "match": "all"}}
    document = policy({"id": "r", "allow": ["alice-at-the-edge"]}, roles=roles)
    claims = {"iss": LOGIN, "sub": "alice"}
    assert allowed(document, claims, spiffe_id=edge)
    assert not allowed(document, claims)
    assert not allowed(document, None, spiffe_id=edge)
    assert not allowed(document, claims, spiffe_id=edge + "2")


def test_users_are_part_of_the_digest() -> None:
    def digest(users: list[str]) -> str:
        return compile([policy({"id": "r", "allow": ["u"]}, roles={"u": {"users": users}})]).digest

    assert digest([ALICE]) != digest([f"jwt:{LOGIN}#bob"])
    assert digest([ALICE, f"jwt:{LOGIN}#bob"]) == digest([f"jwt:{LOGIN}#bob", ALICE])


def test_policy_tests_speak_for_users() -> None:
    tests = [
        {"as": ALICE, "call": "GET /x", "expect": "allow", "rule": "r"},
        {"as": f"jwt:{OTHER}#alice", "call": "GET /x", "expect": "deny"},
        {"as": "u", "call": "GET /y", "expect": "allow", "rule": "s"},
    ]
    document = policy(
        {"id": "r", "allow": [ALICE], "paths": ["/x"]},
        {"id": "s", "allow": ["u"], "paths": ["/y"]},
        roles={"u": {"users": [f"jwt:{LOGIN}#*"]}},
        tests=tests,
    )
    run = run_tests(compile([document]), [document], ["p"], lambda target: (target, (target,)), 0.0)
    assert run.failed == 0, [result.detail for result in run.results]


@pytest.mark.parametrize(
    "name", ["jwt:", "jwt:#a", "jwt:https://a", "jwt:https://a#", "jwt:https://a b#c", "jwt:https://a#b\x00", "jwt:a#" + "b" * 2000]
)
def test_what_is_no_user(name: str) -> None:
    with pytest.raises(ValidationError):
        policy({"id": "r", "allow": [name]})
