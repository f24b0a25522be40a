"""A rule as the engine reads it, and who it is about.

Subjects are what rules name: `anyone`, `authenticated`, a role, or a SPIFFE ID or pattern written into the rule. Each distinct one has a
small integer; a caller is a set of them, and rules are filed by them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from meshguard.policy.bodies import BodyCondition
from meshguard.policy.conditions import ClaimCondition, Condition, Facts
from meshguard.policy.expression import ExpressionCondition
from meshguard.policy.principals import PrincipalPattern

if TYPE_CHECKING:
    from meshguard.model.reasons import Reason

__all__ = ["ANYONE", "AUTHENTICATED", "Role", "Rule", "host_keys", "role_meaning"]

ANYONE = 0
"""Subject that every caller is, with or without identity."""
AUTHENTICATED = 1
"""Subject that every caller with a verified workload identity is."""


class Role:
    """`subject` is its integer; `patterns` and `claims` as in its document. `both`: identity *and* token are needed."""

    __slots__ = ("both", "claims", "name", "patterns", "subject")

    def __init__(
        self, name: str, subject: int, patterns: tuple[PrincipalPattern, ...], claims: tuple[ClaimCondition, ...], both: bool
    ) -> None:
        self.name = name
        self.subject = subject
        self.patterns = patterns
        self.claims = claims
        self.both = both


class Rule:
    """`order` is its position in the policy, `callers` and `paths` are the words of its document (`/**` for any path). None for a
    dimension means any.

    `methods` of an allow rule are exact; those of a deny rule are asked with the method in upper case. `plain` rules have no
    conditions: matching method, path, port, host and caller settles them. Compared by identity."""

    __slots__ = (
        "allow", "callers", "conditions", "hosts", "id", "methods", "needs_body", "needs_claims", "order", "paths", "plain", "ports",
        "shadow", "subjects",
    )  # fmt: skip

    def __init__(
        self,
        *,
        order: int,
        id: str,
        allow: bool,
        shadow: bool,
        callers: tuple[str, ...],
        subjects: tuple[int, ...],
        methods: frozenset[str] | None,
        paths: tuple[str, ...],
        ports: frozenset[int] | None,
        hosts: frozenset[str] | None,
        conditions: tuple[Condition, ...],
    ) -> None:
        self.order = order
        self.id = id
        self.allow = allow
        self.shadow = shadow
        self.callers = callers
        self.subjects = subjects
        self.methods = methods
        self.paths = paths
        self.ports = ports
        self.hosts = hosts
        self.conditions = conditions
        self.plain = not conditions
        self.needs_claims = any(condition.needs_claims for condition in conditions)
        self.needs_body = any(condition.needs_body for condition in conditions)

    def covers(self, method: str, port: int, hosts: Collection[str]) -> bool:
        """Whether method, port and host fit; `hosts` are the `host_keys` of the request."""
        if self.methods is not None and method not in self.methods:
            return False
        if self.ports is not None and port not in self.ports:
            return False
        return self.hosts is None or not self.hosts.isdisjoint(hosts)

    def applies(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        """Whether every condition is met, judged by the rule's effect."""
        if self.allow:
            for condition in self.conditions:  # noqa: SIM110 - a generator costs half a microsecond more
                if not condition.allows(facts, claims):
                    return False
            return True
        return all(condition.denies(facts, claims) for condition in self.conditions)

    def may_apply(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        """Whether every condition is met that does not look at the body."""
        judges = ((condition.allows if self.allow else condition.denies) for condition in self.conditions if not condition.needs_body)
        return all(judge(facts, claims) for judge in judges)

    def unread(self, facts: Facts) -> Reason | None:
        """Why its conditions cannot read the body; None where they can, or where there is none."""
        for condition in self.conditions:
            if isinstance(condition, BodyCondition | ExpressionCondition) and condition.needs_body:
                return facts.body(condition.readings).reason
        return None


def role_meaning(role: Role) -> tuple[object, ...]:
    """What a role means, to be compared between policies."""
    claims = frozenset(claim.identity for claim in role.claims)
    return (role.name, frozenset(pattern.text for pattern in role.patterns), claims, role.both)


def host_keys(host: str, depths: Collection[int]) -> tuple[str, ...]:
    """What a rule's `hosts` may say to cover `host`: itself, and `*.suffix` for each number of labels that some rule has (`depths`)."""
    labels = host.split(".")
    return (host, *("*." + ".".join(labels[-depth:]) for depth in depths if depth < len(labels)))
