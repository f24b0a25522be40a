"""What is wide about a rule."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.documents import PolicyDocument
from meshguard.policy.traits import traits

ROLES = {
    "billing": {"principals": ["spiffe://shop.example/ns/prod/sa/billing", "spiffe://shop.example/ns/prod/sa/billing-*"]},
    "everything": {"principals": ["spiffe://shop.example/ns/prod/**"]},
    "team": {"principals": ["spiffe://shop.example/ns/*/sa/billing"]},
    "leaf": {"principals": ["spiffe://shop.example/ns/prod/sa/*"]},
    "staff": {"jwt": {"groups": ["staff"]}},
    "both": {"principals": ["spiffe://shop.example/**"], "jwt": {"groups": ["staff"]}, "match": "all"},
}
NARROW: dict[str, Any] = {"methods": ["GET"], "paths": ["/orders/{id}"]}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"allow": ["billing"], **NARROW}, set()),
        ({"allow": ["staff", "both"], **NARROW}, set()),
        ({"allow": ["spiffe://shop.example/ns/prod/sa/x"], **NARROW}, set()),
        ({"allow": ["everything"], **NARROW}, {"wild_caller"}),
        ({"allow": ["team"], **NARROW}, {"wild_caller"}),
        ({"allow": ["leaf"], **NARROW}, {"wild_caller"}),
        ({"allow": ["jwt:https://login.example#*"], **NARROW}, {"wild_caller"}),
        ({"allow": ["jwt:https://login.example#alice"], **NARROW}, set()),
        ({"allow": "authenticated", **NARROW}, {"any_caller"}),
        ({"allow": "anyone", **NARROW}, {"anonymous"}),
        ({"allow": "anyone", "claims": {"scope": ["read"]}, **NARROW}, {"any_caller"}),
        ({"allow": ["billing"], "paths": ["/a"]}, {"any_method"}),
        ({"allow": ["billing"]}, {"any_method", "any_path"}),
        ({"allow": "anyone", "paths": ["/**"]}, {"anonymous", "any_method", "any_path", "allow_all"}),
        ({"allow": "anyone", "headers": {"x-key": "1"}}, {"anonymous", "any_method", "any_path"}),
        ({"allow": "authenticated", "shadow": True}, set()),
        ({"deny": "anyone"}, set()),
    ],
)
def test_traits(rule: dict[str, Any], expected: set[str]) -> None:
    policy = compile_policy([PolicyDocument.model_validate({"roles": ROLES, "rules": [{"id": "r", **rule}]})])
    assert traits(policy.rules[0], policy.roles) == expected
