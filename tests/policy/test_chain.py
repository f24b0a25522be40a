"""Conditions on who a request came from and through."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from meshguard.model.verdicts import Permit
from meshguard.policy.conditions import ChainCondition
from meshguard.policy.question import Question, ask, principal_of
from tests.policy.build import policy

SA = "spiffe://shop.example/ns/prod/sa/"
WEB, ORDERS, BILLING, PARTNER = SA + "web", SA + "orders", SA + "billing", "spiffe://partner.example/gate"


def allowed(rules: list[dict[str, object]], chain: Sequence[str]) -> bool:
    question = Question("GET", "/x", ("/x",), host="h", port=1, now=0.0, before=chain[:-1])
    return isinstance(ask(policy(*rules), principal_of(chain[-1]) if chain else None, question), Permit)


@pytest.mark.parametrize(
    ("condition", "chain", "fits"),
    [
        ({"through": [BILLING]}, (WEB, BILLING), True),
        ({"through": [BILLING]}, (WEB, BILLING, ORDERS), True),
        ({"through": [BILLING]}, (BILLING,), False),  # it began there: nothing came through it
        ({"through": [BILLING]}, (BILLING, ORDERS), False),
        ({"through": [BILLING, ORDERS]}, (WEB, ORDERS, BILLING), True),
        ({"through": [BILLING, ORDERS]}, (WEB, ORDERS), False),
        ({"through": SA + "bill*"}, (WEB, BILLING), True),
        ({"never_through": [PARTNER]}, (WEB, BILLING), True),
        ({"never_through": [PARTNER]}, (PARTNER, BILLING), False),
        ({"never_through": ["spiffe://partner.example/**"]}, (WEB, PARTNER, BILLING), False),
        ({"on_behalf_of": [WEB, ORDERS]}, (ORDERS, BILLING), True),
        ({"on_behalf_of": [WEB]}, (ORDERS, WEB), False),
        ({"on_behalf_of": [WEB]}, (WEB,), True),
        ({"on_behalf_of": [WEB], "through": [ORDERS], "never_through": [BILLING]}, (WEB, ORDERS), True),
        ({"on_behalf_of": [WEB], "through": [ORDERS], "never_through": [BILLING]}, (WEB, BILLING, ORDERS), False),
        ({"never_through": [PARTNER]}, (), False),  # of an unknown caller nothing is known
        ({"through": [BILLING]}, (), False),
    ],
)
def test_what_fits(condition: dict[str, object], chain: tuple[str, ...], fits: bool) -> None:
    assert allowed([{"id": "r", "allow": "anyone", "chain": condition}], chain) is fits
    if chain:
        everything: dict[str, object] = {"id": "all", "allow": "anyone"}
        assert allowed([everything, {"id": "d", "deny": "anyone", "chain": condition}], chain) is not fits


def test_it_is_part_of_what_a_policy_means() -> None:
    rule: dict[str, object] = {"id": "r", "allow": "anyone", "chain": {"through": [BILLING, ORDERS]}}
    plain = policy({"id": "r", "allow": "anyone"})
    same = policy(rule | {"chain": {"through": [ORDERS, BILLING]}})
    other = policy(rule | {"chain": {"never_through": [BILLING, ORDERS]}})
    assert policy(rule).digest == same.digest
    assert len({policy(rule).digest, other.digest, plain.digest}) == 3
    assert ChainCondition([BILLING], [], []).identity == ChainCondition([BILLING], [], []).identity
    assert ChainCondition([BILLING], [], []).identity != ChainCondition([], [BILLING], []).identity


def test_the_nearest_miss_names_it() -> None:
    question = Question("GET", "/x", ("/x",), host="h", port=1, now=0.0)
    verdict = ask(policy({"id": "r", "allow": "anyone", "chain": {"through": [BILLING]}}), principal_of(WEB), question)
    assert not isinstance(verdict, Permit)
    assert verdict.near_miss is not None
    assert (verdict.near_miss.condition, verdict.near_miss.detail) == ("chain", f"chain through {BILLING}")


@pytest.mark.parametrize("bad", [{}, {"through": []}, {"through": ["nobody"]}, {"over": [BILLING]}])
def test_bad_conditions(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="chain"):
        policy({"id": "r", "allow": "anyone", "chain": bad})
