"""Field rules in shadow: the account of an enforced rule, and nothing else of it."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.fields.keyset import KeyState
from meshguard.fields.plans import RoutePlan
from meshguard.fields.transforms import Transform
from meshguard.model.errors import DocumentError, RequestError
from meshguard.model.reasons import KEY_UNAVAILABLE
from tests.fields.parts import RULE, Counter, compiled, keyset, reader

BODY = b'{"payment": {"card": "4111111111111111"}}'
SHADOW = {**RULE, "mode": "shadow"}


def shadow_of(*rules: dict[str, Any], **more: Any) -> tuple[RoutePlan, Transform]:
    plan = compiled(*rules, **more).plan("GET", "/orders/7")
    assert plan is not None
    assert plan.shadow is not None
    assert plan.shadow.response is not None
    return plan, plan.shadow.response


def test_nothing_is_sealed_and_no_nonce_is_drawn() -> None:
    pii = keyset()
    plan, tried = shadow_of(SHADOW, keysets=(pii,))
    assert plan.response is None
    nonces = Counter()
    told = tried.apply(BODY, "application/json", reader(), nonces, 0.0)
    assert [(act.operation, act.field, act.keyset, act.version, act.count) for act in told.operations] == [
        ("would_seal", "card-number", "orders-pii", 1, 1)
    ]
    assert nonces.count == 0
    assert b"4111111111111111" in told.body
    assert pii.versions[0].uses == 0


def test_the_account_is_that_of_the_enforced_rule() -> None:
    for roles in ((), ("billing",), ("support",)):
        enforced = compiled(RULE).plan("GET", "/orders/7")
        assert enforced is not None
        assert enforced.response is not None
        want = enforced.response.apply(BODY, "application/json", reader(*roles), Counter(), 0.0).operations
        _, tried = shadow_of(SHADOW)
        found = tried.apply(BODY, "application/json", reader(*roles), Counter(), 0.0).operations
        told = [("would_" + act.operation, act.field, act.version, act.count) for act in want if act.operation != "pass"]
        assert [(act.operation, act.field, act.version, act.count) for act in found] == told


def test_a_key_that_is_not_there_is_told() -> None:
    _, tried = shadow_of(SHADOW, keysets=(keyset("orders-pii", bytes(32), states=(KeyState.DISABLED,)),))
    with pytest.raises(RequestError) as refused:
        tried.apply(BODY, "application/json", reader(), Counter(), 0.0)
    assert refused.value.reason is KEY_UNAVAILABLE


def test_a_shadow_may_stand_beside_the_rule_it_is_to_replace_and_not_beside_another() -> None:
    masked = {key: value for key, value in SHADOW.items() if key not in ("seal", "readers")} | {"id": "next", "mask": "card"}
    plan, tried = shadow_of(RULE, masked)
    assert plan.response is not None
    assert [act.operation for act in tried.apply(BODY, "application/json", reader(), Counter(), 0.0).operations] == ["would_mask"]
    with pytest.raises(DocumentError):
        compiled(SHADOW, {**SHADOW, "id": "next"})


def test_the_mode_is_part_of_the_digest_and_its_default_is_not() -> None:
    assert compiled(RULE).digest == compiled({**RULE, "mode": "enforce"}).digest != compiled(SHADOW).digest
