"""The compiled policy: immutable but for a bounded cache of bindings. Made by `compile`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from meshguard.model.errors import Problem
from meshguard.model.principal import Principal
from meshguard.policy.decision import Binding
from meshguard.policy.index import RuleIndex
from meshguard.policy.principals import PrincipalIndex
from meshguard.policy.rules import ANYONE, AUTHENTICATED, Role, Rule, host_keys
from meshguard.policy.token_roles import TokenRoles

__all__ = ["MAX_BINDINGS", "CompiledPolicy"]

MAX_BINDINGS = 4096
"""Bindings kept; the oldest goes first. A binding weighs about 1 KB without its memo."""
_SAMPLES = 4


class CompiledPolicy:
    """A policy, ready to bind callers. `digest` names its meaning, `rule_count` counts its rules, shadow rules too, `warnings` are what
    `compile` found odd but not wrong. Equal documents give equal digests whatever their order, comments and key order."""

    __slots__ = (
        "_bindings", "_principals", "allows", "both_roles", "denies", "digest", "host_depths", "names_hosts", "role_names", "roles",
        "rule_count", "rules", "samples", "shadow_allows", "shadow_denies", "token_roles", "warnings",
    )  # fmt: skip

    def __init__(
        self,
        *,
        digest: str,
        roles: Sequence[Role],
        rules: Sequence[Rule],
        principals: PrincipalIndex,
        allows: RuleIndex,
        denies: RuleIndex | None,
        shadow_allows: RuleIndex | None,
        shadow_denies: RuleIndex | None,
        warnings: Sequence[Problem] = (),
    ) -> None:
        self.digest = digest
        self.roles: Mapping[str, Role] = {role.name: role for role in roles}
        self.rules = tuple(rules)
        self.rule_count = len(rules)
        self.warnings = tuple(warnings)
        self.allows = allows
        self.denies = denies
        self.shadow_allows = shadow_allows
        self.shadow_denies = shadow_denies
        self.role_names: Mapping[int, str] = {role.subject: role.name for role in roles}
        self.both_roles = frozenset(role.subject for role in roles if role.both)
        self.token_roles = TokenRoles(roles)
        self.names_hosts = any(rule.hosts is not None for rule in rules)
        self.host_depths = frozenset(host.count(".") for rule in rules for host in rule.hosts or () if host.startswith("*."))
        self.samples: Mapping[int, Sequence[Rule]] = _sampled(rules)
        self._principals = principals
        self._bindings: dict[str | None, Binding] = {}

    def bind(self, principal: Principal | None) -> Binding:
        """The caller's binding, cached by SPIFFE ID. None is a caller without identity."""
        key = None if principal is None else principal.spiffe_id
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bind(principal)
            if len(self._bindings) >= MAX_BINDINGS:
                del self._bindings[next(iter(self._bindings))]
            self._bindings[key] = binding
        return binding

    def forget(self) -> None:
        """Drop the bindings: they and the policy hold each other, and would keep a replaced policy in memory."""
        self._bindings.clear()

    def parts(self) -> Iterator[object]:
        """What a large policy consists of, each part before what it holds: who keeps these can drop the policy at once and then let go
        of them one by one."""
        yield from self.rules
        for index in (self.allows, self.denies, self.shadow_allows, self.shadow_denies):
            if index is not None:
                yield from index.parts()

    def _bind(self, principal: Principal | None) -> Binding:
        subjects = {ANYONE}
        if principal is not None:
            subjects |= self.subjects(principal.spiffe_id)
            subjects.add(AUTHENTICATED)
        entitled = self.both_roles & subjects
        held = frozenset(subjects - entitled)
        roles = frozenset(self.role_names[subject] for subject in held if subject in self.role_names)
        return Binding(self, principal, held, entitled, roles)

    def subjects(self, spiffe_id: str) -> set[int]:
        """Subjects that an identity is by name or pattern."""
        return self._principals.find(spiffe_id)

    def host_keys(self, host: str) -> tuple[str, ...]:
        """See `rules.host_keys`."""
        return host_keys(host, self.host_depths)


def _sampled(rules: Sequence[Rule]) -> dict[int, list[Rule]]:
    samples: dict[int, list[Rule]] = {}
    for rule in rules:
        if rule.allow and not rule.shadow:
            for subject in rule.subjects:
                sample = samples.setdefault(subject, [])
                if len(sample) < _SAMPLES:
                    sample.append(rule)
    return samples
