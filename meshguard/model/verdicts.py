"""The answer of a decision: a `Permit` or a `Denial`, with the reason on it.

INVARIANT: only `meshguard.policy` makes a `Permit`, and the upstream call takes one as an argument: no path reaches the
network undecided (held by tests/test_architecture.py).
"""

from __future__ import annotations

from meshguard.model.reasons import Reason

__all__ = ["CandidateResult", "Denial", "NearMiss", "Permit", "ShadowResult"]


class ShadowResult:
    """What a shadow rule would have done: `effect` is `would_allow` or `would_deny`."""

    __slots__ = ("effect", "rule_id")

    def __init__(self, rule_id: str, effect: str) -> None:
        self.rule_id = rule_id
        self.effect = effect


class CandidateResult:
    """What a candidate policy would have made of a request: `effect` is `same`, `would_allow`, `would_deny` or `error` (of the candidate
    itself); by which rule, or for which `reason` (a code) and how far from the `nearest` rule."""

    __slots__ = ("effect", "nearest", "policy_digest", "reason", "rule_id")

    def __init__(self, effect: str, rule_id: str = "", reason: str = "", nearest: str = "", policy_digest: str = "") -> None:
        self.effect = effect
        self.rule_id = rule_id
        self.reason = reason
        self.nearest = nearest
        self.policy_digest = policy_digest


class NearMiss:
    """The allow rule that came closest, the `condition` that failed (`principal`, `method`, `path`, `port`, `host`, `header`,
    `claim`, `time`, `chain`, `body`, `expression`) and `detail` for the record."""

    __slots__ = ("condition", "detail", "rule_id")

    def __init__(self, rule_id: str, condition: str, detail: str = "") -> None:
        self.rule_id = rule_id
        self.condition = condition
        self.detail = detail


class Permit:
    """Allowed by `rule_id` under the policy with `policy_digest`. Immutable; may be shared by equal requests. `template` is the path
    template by which the rule matched: of low cardinality, for `http.route`."""

    __slots__ = ("policy_digest", "roles", "rule_id", "shadow", "template")

    def __init__(
        self,
        rule_id: str,
        policy_digest: str,
        shadow: tuple[ShadowResult, ...] = (),
        roles: frozenset[str] = frozenset(),
        template: str = "",
    ) -> None:
        self.rule_id = rule_id
        self.policy_digest = policy_digest
        self.shadow = shadow
        self.roles = roles
        self.template = template


class Denial:
    """Refused: `reason` (what the client sees), the deny `rule_id` where one decided, else the `near_miss`."""

    __slots__ = ("near_miss", "policy_digest", "reason", "rule_id", "shadow")

    def __init__(
        self,
        reason: Reason,
        policy_digest: str,
        rule_id: str | None = None,
        near_miss: NearMiss | None = None,
        shadow: tuple[ShadowResult, ...] = (),
    ) -> None:
        self.reason = reason
        self.rule_id = rule_id
        self.near_miss = near_miss
        self.policy_digest = policy_digest
        self.shadow = shadow
