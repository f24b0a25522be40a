"""A candidate policy that breaks, in whatever way, is told and never heard."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.model.errors import RequestError
from meshguard.model.reasons import NO_RULE, TOKEN_INVALID
from meshguard.model.verdicts import Denial, Permit
from meshguard.pipeline.candidate import bound, compare, outlook_of
from meshguard.policy.decision import Conditional
from tests.pipeline.test_exchange import World

LIVE = {"allow": Permit("live", "sha256:1"), "deny": Denial(NO_RULE, "sha256:1")}


class Breaking(Conditional):
    """Its conditions raise."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def decide(self, facts: object) -> Permit | Denial:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("x"), RecursionError(), KeyError(1)])
def test_an_error_is_an_effect_of_its_own(error: Exception) -> None:
    for live in LIVE.values():
        assert compare(Breaking(error), live, World().exchange).effect == "error"


def test_a_token_that_only_the_candidate_needs() -> None:
    broken = Breaking(RequestError(TOKEN_INVALID, "x"))
    told = compare(broken, LIVE["allow"], World().exchange)
    assert (told.effect, told.reason) == ("would_deny", "token_invalid")
    assert compare(broken, LIVE["deny"], World().exchange).effect == "same"


def test_a_candidate_that_cannot_be_bound_or_asked() -> None:
    class Policy:
        def bind(self, principal: object) -> Any:
            raise RuntimeError

        def outlook(self, *arguments: object) -> Any:
            raise RuntimeError

    policy: Any = Policy()
    assert bound(policy, None) is None

    class Plan:
        method, path, readings, host, outlook = "GET", "/", ("/",), "", LIVE["allow"]

    plan: Any = Plan()
    assert outlook_of(policy, plan, 443).effect == "error"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("live", "candidate", "effect"),
    [("allow", "allow", "same"), ("allow", "deny", "would_deny"), ("deny", "allow", "would_allow"), ("deny", "deny", "same")],
)
def test_effects(live: str, candidate: str, effect: str) -> None:
    assert compare(LIVE[candidate], LIVE[live], World().exchange).effect == effect
