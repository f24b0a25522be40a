"""The engine against the linear oracle, over random policies and requests made to collide."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshguard.model.verdicts import Permit
from meshguard.policy.explain import explain
from meshguard.policy.question import Question
from tests.policy.build import caller, decide, policy
from tests.policy.oracle import Asked, verdict

_IDS = ["spiffe://td/a", "spiffe://td/ab", "spiffe://td/a/b", "spiffe://td/b", "spiffe://other/a"]
_PATTERNS = [*_IDS, "spiffe://td/*", "spiffe://td/a*", "spiffe://td/**", "spiffe://td/a/**", "spiffe://td/*/b"]
_SEGMENTS = ["a", "A", "b", "ab", "aB", "v1", "a.b", "a%20b"]
_TEMPLATE_SEGMENTS = [*_SEGMENTS, "*", "{p}", "a{p}", "{p}b", "v{p}"]
_ROLES = ["r0", "r1", "r2"]


def _path(segments: list[str], tail: str) -> str:
    seen = 0
    parts = []
    for segment in segments:
        if "{p}" in segment:
            segment = segment.replace("{p}", f"{{p{seen}}}")
            seen += 1
        parts.append(segment)
    return "".join("/" + part for part in parts) + tail or "/"


templates = st.builds(_path, st.lists(st.sampled_from(_TEMPLATE_SEGMENTS), max_size=3), st.sampled_from(["", "", "/", "/**"]))
paths = st.builds(_path, st.lists(st.sampled_from(_SEGMENTS), max_size=4), st.sampled_from(["", "", "/"]))


def some(values: list[Any], size: int = 3) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=size, unique=True)


claims = st.fixed_dictionaries(
    {}, optional={"g": st.one_of(st.sampled_from(["x", "y"]), some(["x", "y", "z"])), "t": st.sampled_from(["x", "y"])}
)
roles = st.fixed_dictionaries(
    {
        "r0": st.fixed_dictionaries({"principals": some(_PATTERNS)}),
        "r1": st.fixed_dictionaries({"jwt": st.fixed_dictionaries({"g": some(["x", "y"])}, optional={"t": some(["x", "y"])})}),
        "r2": st.fixed_dictionaries(
            {"principals": some(_PATTERNS), "jwt": st.just({"g": ["x"]}), "match": st.sampled_from(["any", "all"])}
        ),
    }
)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    effect = draw(st.sampled_from(["allow", "allow", "deny"]))
    rule: dict[str, Any] = {effect: draw(some(["anyone", "authenticated", *_ROLES, *_PATTERNS], 2))}
    optional: dict[str, st.SearchStrategy[Any]] = {
        "methods": some(["GET", "HEAD", "PUT"]),
        "paths": st.lists(templates, min_size=1, max_size=3, unique=True),
        "ports": some([1, 2]),
        "hosts": some(["h", "x.h", "*.h", "*.x.h"]),
        "headers": st.sampled_from([{"k": "x"}, {"k": "y"}, {"k": "x", "l": "x"}]),
        "claims": st.sampled_from([{"g": ["x"]}, {"g": ["y", "z"], "t": ["x"]}]),
        "shadow": st.just(True),
    }
    odds = {"paths": 0.8, "methods": 0.4, "ports": 0.15, "hosts": 0.2, "headers": 0.2, "claims": 0.15, "shadow": 0.15}
    for key, strategy in optional.items():
        if draw(st.floats(0, 1)) < odds[key]:
            rule[key] = draw(strategy)
    return rule


lines = st.lists(st.sampled_from(["x", "y", "x,y", "z , x", "z"]), max_size=2)
requests = st.builds(
    Asked,
    st.sampled_from([None, *_IDS]),
    st.sampled_from(["GET", "HEAD", "PUT", "get", "POST"]),
    paths,
    st.lists(paths.map(str.casefold), max_size=2).map(tuple),
    st.sampled_from(["h", "x.h", "y.x.h", "z"]),
    st.sampled_from([1, 2, 3]),
    st.fixed_dictionaries({"k": lines, "l": lines}),
    st.none() | claims,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(roles, st.lists(rules(), max_size=12), st.lists(requests, min_size=1, max_size=8))
def test_the_engine_agrees_with_the_oracle(role_values: dict[str, Any], rule_values: list[dict[str, Any]], asked: list[Asked]) -> None:
    compiled = policy(*rule_values, roles=role_values)
    values = {"roles": role_values, "rules": [{"id": f"r{number}", **rule} for number, rule in enumerate(rule_values)]}
    for request in asked:
        found = decide(
            compiled,
            request.who,
            f"{request.method} {request.path}",
            host=request.host,
            port=request.port,
            headers=request.headers,
            claims=request.claims,
            readings=request.readings,
        )
        effect, rule, shadow = verdict(values, request)
        assert ("allow" if isinstance(found, Permit) else "deny", found.rule_id) == (effect, rule)
        assert {(entry.rule_id, entry.effect) for entry in found.shadow} == shadow
        if isinstance(found, Permit):
            assert found.roles >= compiled.bind(caller(request.who)).roles


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(roles, st.lists(rules(), max_size=8), requests)
def test_explanations_agree_with_verdicts(role_values: dict[str, Any], rule_values: list[dict[str, Any]], request: Asked) -> None:
    compiled = policy(*rule_values, roles=role_values)
    question = Question(
        request.method,
        request.path,
        request.readings,
        host=request.host,
        port=request.port,
        now=0.0,
        headers=request.headers,
        claims=request.claims,
    )
    explanation = explain(compiled, caller(request.who), question)
    matching = {account.rule_id for account in explanation.matching}
    if explanation.verdict.rule_id is not None and len(explanation.matching) < 5:
        assert explanation.verdict.rule_id in matching
    if isinstance(explanation.verdict, Permit):
        assert not any(account.effect == "deny" and not account.shadow for account in explanation.matching)
    elif explanation.verdict.rule_id is None:
        assert not any(account.effect == "allow" and not account.shadow for account in explanation.matching)
        for account in explanation.nearest:
            assert account.failed
    assert explanation.text().startswith("ALLOWED" if isinstance(explanation.verdict, Permit) else "DENIED")
    assert explanation.structured()["rule"] == explanation.verdict.rule_id
