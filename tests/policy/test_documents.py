"""Policy documents: unknown keys, wrong values and cross checks, each told at its place."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from meshguard.model.errors import DocumentError, Problem
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.documents import PolicyDocument
from tests.policy.build import BILLING, document, policy


def rule(**values: Any) -> dict[str, Any]:
    return {"rules": [{"id": "r", "allow": "anyone", **values}]}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"rulez": []}, ("rulez",)),
        (rule(path=["/x"]), ("rules", 0, "path")),
        (rule(paths="/x"), ("rules", 0, "paths")),
        (rule(paths=[]), ("rules", 0, "paths")),
        (rule(paths=["/x", "/x"]), ("rules", 0, "paths")),
        (rule(paths=["x"]), ("rules", 0, "paths", 0)),
        (rule(methods=["get"]), ("rules", 0, "methods", 0)),
        (rule(methods=["*"]), ("rules", 0, "methods", 0)),
        (rule(ports=["80"]), ("rules", 0, "ports", 0)),
        (rule(ports=[0]), ("rules", 0, "ports", 0)),
        (rule(ports=[True]), ("rules", 0, "ports", 0)),
        (rule(hosts=["Shop.example"]), ("rules", 0, "hosts", 0)),
        (rule(hosts=["shop.example:80"]), ("rules", 0, "hosts", 0)),
        (rule(hosts=["*"]), ("rules", 0, "hosts", 0)),
        (rule(hosts=["a.*.example"]), ("rules", 0, "hosts", 0)),
        (rule(hosts=["shop.example."]), ("rules", 0, "hosts", 0)),
        (rule(headers={}), ("rules", 0, "headers")),
        (rule(headers={"x y": "1"}), ("rules", 0, "headers", "x y", "[key]")),
        (rule(headers={"x": {"regex": "a+"}}), ("rules", 0, "headers", "x", "regex")),
        (rule(headers={"x": {"present": True, "exact": "a"}}), ("rules", 0, "headers", "x")),
        (rule(headers={"x": {"present": False}}), ("rules", 0, "headers", "x", "present")),
        (rule(headers={"x": {}}), ("rules", 0, "headers", "x")),
        (rule(headers={"x": " a"}), ("rules", 0, "headers", "x", "exact", 0)),
        (rule(headers={"x": "a\nb"}), ("rules", 0, "headers", "x", "exact", 0)),
        (rule(headers={"x": "a", "X": "b"}), ("rules", 0)),
        (rule(claims={"a..b": "x"}), ("rules", 0, "claims", "a..b", "[key]")),
        (rule(claims={"a": []}), ("rules", 0, "claims", "a")),
        (rule(claims={"a": [1.5]}), ("rules", 0, "claims", "a", 0)),
        (rule(times=[{}]), ("rules", 0, "times", 0)),
        (rule(times=[{"from": "08:00"}]), ("rules", 0, "times", 0)),
        (rule(times=[{"from": "08:00", "to": "08:00"}]), ("rules", 0, "times", 0)),
        (rule(times=[{"from": "8", "to": "09:00"}]), ("rules", 0, "times", 0, "from")),
        (rule(times=[{"days": ["monday"]}]), ("rules", 0, "times", 0, "days", 0)),
        (rule(times=[{"days": ["mon"], "timezone": "Mars/Base"}]), ("rules", 0, "times", 0, "timezone")),
        (rule(times=[{"days": ["mon"], "timezone": "../../etc/passwd"}]), ("rules", 0, "times", 0, "timezone")),
        (rule(times=[{"after": "2030-01-01T10:00:00"}]), ("rules", 0, "times", 0, "after")),
        (rule(times=[{"after": "2030-01-02", "before": "2030-01-01"}]), ("rules", 0, "times", 0)),
        (rule(deny="anyone"), ("rules", 0)),
        ({"rules": [{"id": "r"}]}, ("rules", 0)),
        ({"rules": [{"id": "", "allow": "anyone"}]}, ("rules", 0, "id")),
        ({"rules": [{"id": "r", "allow": []}]}, ("rules", 0, "allow")),
        ({"rules": [{"id": "r", "allow": "spiffe://*/x"}]}, ("rules", 0, "allow", 0)),
        ({"rules": [{"id": "r", "allow": "anyone", "shadow": "yes"}]}, ("rules", 0, "shadow")),
        ({"roles": {"anyone": {"principals": [BILLING]}}}, ("roles", "anyone", "[key]")),
        ({"roles": {"a": {}}}, ("roles", "a")),
        ({"roles": {"a": {"principals": ["billing"]}}}, ("roles", "a", "principals", 0)),
        ({"roles": {"a": {"principals": [BILLING], "match": "both"}}}, ("roles", "a", "match")),
        ({"tests": [{"as": "anyone", "call": "/x", "expect": "allow"}]}, ("tests", 0)),
        ({"tests": [{"as": "spiffe://a.b/*", "call": "GET /x", "expect": "allow"}]}, ("tests", 0)),
        ({"tests": [{"as": "anyone", "call": "GET /x", "expect": "permit"}]}, ("tests", 0, "expect")),
    ],
)
def test_a_wrong_value_is_told_at_its_place(values: dict[str, Any], place: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        PolicyDocument.model_validate(values)
    assert place in [error["loc"][: len(place)] for error in caught.value.errors()]


def problems(*values: dict[str, Any]) -> list[Problem]:
    with pytest.raises(DocumentError) as caught:
        compile_policy([document(**entry) for entry in values], [f"{number}.yaml" for number in range(len(values))])
    return caught.value.problems


def test_an_unknown_role_names_the_nearest() -> None:
    (problem,) = problems({"roles": {"billing": {"principals": [BILLING]}}, "rules": [{"id": "r", "allow": ["anyone", "biling"]}]})
    assert (problem.file, problem.path, problem.value, problem.nearest) == ("0.yaml", "rules[0].allow[1]", "biling", "billing")


def test_every_problem_of_every_document_is_told_at_once() -> None:
    found = problems(
        {"roles": {"a": {"principals": [BILLING]}}, "rules": [{"id": "r", "allow": "a"}, {"id": "s", "deny": "nobody"}]},
        {
            "roles": {"a": {"principals": [BILLING]}},
            "rules": [{"id": "r", "allow": "a"}],
            "tests": [{"as": "aa", "call": "GET /", "expect": "deny", "rule": "t"}],
        },
    )
    assert [(problem.file, problem.path) for problem in found] == [
        ("1.yaml", "roles.a"),
        ("0.yaml", "rules[1].deny[0]"),
        ("1.yaml", "rules[0].id"),
        ("1.yaml", "tests[0].as"),
        ("1.yaml", "tests[0].rule"),
    ]


def test_too_many_conditional_rules_in_one_place_are_refused() -> None:
    rules = [{"id": f"r{number}", "allow": "anyone", "headers": {"x-tenant": f"t{number}"}} for number in range(257)]
    (problem,) = problems({"rules": rules})
    assert "at most 256 rules with conditions" in problem.expected
    assert policy(*rules[:256]).rule_count == 256
    spread = [{**entry, "paths": [f"/t{number}"]} for number, entry in enumerate(rules)]
    assert policy(*spread).rule_count == 257


def warnings(*rules: dict[str, Any], **values: Any) -> list[tuple[str, str]]:
    return [(problem.path, problem.expected) for problem in policy(*rules, **values).warnings]


def test_an_unused_role_is_a_warning_unless_a_field_reads_it() -> None:
    roles = {"a": {"principals": [BILLING]}, "b.c": {"principals": [BILLING]}}
    assert [path for path, _ in warnings(roles=roles)] == ["roles.a", 'roles["b.c"]']
    assert [path for path, _ in warnings(roles=roles, fields=[{"id": "f", "readers": {"a": "open"}}])] == ['roles["b.c"]']


@pytest.mark.parametrize(
    ("allow", "deny", "unreachable"),
    [
        ({"paths": ["/admin/x"]}, {"paths": ["/admin/**"]}, True),
        ({"paths": ["/Admin/{x}"]}, {"paths": ["/admin/*"]}, True),
        ({"paths": ["/admin/**"]}, {"paths": ["/admin/**"]}, True),
        ({"paths": ["/admin/**"]}, {"paths": ["/admin/*"]}, False),
        ({"paths": ["/admin/x", "/y"]}, {"paths": ["/admin/**"]}, False),
        ({"paths": ["/a"], "methods": ["GET"]}, {"methods": ["GET", "POST"]}, True),
        ({"paths": ["/a"]}, {"methods": ["GET"]}, False),
        ({"paths": ["/a"], "ports": [1]}, {"ports": [1, 2]}, True),
        ({"paths": ["/a"]}, {"ports": [1]}, False),
        ({"paths": ["/a"]}, {"hosts": ["h"]}, False),
        ({"paths": ["/a"]}, {"headers": {"x": "1"}}, False),
        ({"paths": ["/a"]}, {"shadow": True}, False),
        ({"paths": ["/{x}"]}, {"paths": ["/{x}.json"]}, False),
    ],
)
def test_an_unreachable_allow_rule_is_a_warning(allow: dict[str, Any], deny: dict[str, Any], unreachable: bool) -> None:
    found = warnings({"allow": "authenticated", **allow}, {"deny": "anyone", **deny})
    assert ("rules[0]" in [path for path, _ in found]) is unreachable


def test_a_deny_rule_that_a_missing_token_escapes_is_a_warning() -> None:
    (found,) = warnings({"deny": "anyone", "claims": {"tier": "blocked"}})
    assert found[0] == "rules[0]"
    assert "token" in found[1]


def digest(*documents: dict[str, Any]) -> str:
    return compile_policy([document(**entry) for entry in documents]).digest


def test_the_digest_names_the_meaning_and_nothing_else() -> None:
    roles = {"roles": {"a": {"principals": [BILLING, BILLING + "-2"]}}}
    first = {"rules": [{"id": "x", "allow": ["a", "anyone"], "methods": ["GET", "POST"], "headers": {"X-A": "1"}}]}
    second = {"rules": [{"id": "y", "deny": "anyone", "paths": ["/a"]}]}
    base = digest(roles, first, second)
    assert base.startswith("sha256:")
    assert len(base) == 71
    assert digest(second, roles, first) == base
    assert digest({**roles, "rules": second["rules"] + first["rules"]}) == base
    spelled = {
        "rules": [{"headers": {"x-a": {"exact": ["1"]}}, "methods": ["POST", "GET"], "allow": ["anyone", "a"], "id": "x", "shadow": False}]
    }
    assert digest(roles, spelled, second) == base
    assert digest(roles, first, {**second, "tests": [{"as": "a", "call": "GET /", "expect": "deny"}], "description": "d"}) == base
    changed = [
        {"rules": [{**second["rules"][0], "paths": ["/b"]}]},
        {"rules": [{**second["rules"][0], "shadow": True}]},
        {"rules": [{"id": "y", "allow": "anyone", "paths": ["/a"]}]},
        {"rules": [{"id": "y", "deny": "anyone", "paths": ["/a"], "ports": [1]}]},
        {"rules": [{"id": "y", "deny": "anyone", "paths": ["/a"], "claims": {"a": [1]}}]},
        {"rules": [{"id": "y", "deny": "anyone", "paths": ["/a"], "claims": {"a": ["1"]}}]},
        {**second, "fields": [{"id": "f"}]},
    ]
    digests = [digest(roles, first, entry) for entry in changed]
    assert len({base, *digests}) == len(digests) + 1


def test_the_schema_of_a_document_can_be_printed() -> None:
    schema = PolicyDocument.model_json_schema()
    assert set(schema["properties"]) == {"description", "roles", "rules", "fields", "tests"}
