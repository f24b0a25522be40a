"""The decision: a caller bound to a policy, what it may do, and what has to be looked at before that is known.

    CompiledPolicy.bind(principal) -> Binding                    the caller's subjects, found once
    Binding.outlook(...) -> Permit | Denial | Conditional        a pure function of its arguments, for the caller to memoise
    Conditional.decide(facts) -> Permit | Denial                 where headers, claims, the time or the body matter
    Conditional.without_body(facts) -> Permit | Denial | None    the same before the body is here; None: it has to be

Order of judgement: a plain deny rule is final; then, where no deny rule has conditions, a plain allow rule is final; otherwise deny
rules are evaluated, then allow rules, each in the order of the policy. Nothing matched means denied.

INVARIANT: a Permit is made in `_permit` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from meshguard.model.errors import RequestError
from meshguard.model.principal import Principal
from meshguard.model.reasons import IDENTITY_REQUIRED, NO_RULE, POLICY_DENIED, TOKEN_REQUIRED
from meshguard.model.verdicts import Denial, NearMiss, Permit, ShadowResult
from meshguard.policy import near_miss
from meshguard.policy.conditions import Condition, Facts
from meshguard.policy.index import Crowd, Leaf, covering
from meshguard.policy.rules import Rule, role_meaning

if TYPE_CHECKING:
    from meshguard.policy.compiled import CompiledPolicy

__all__ = ["MAX_SHADOW", "Binding", "Conditional"]

MAX_SHADOW = 16
"""Shadow results reported for one request."""
_HELD = -1
_NO_SUBJECTS: frozenset[int] = frozenset()

Candidate = tuple[Rule, int, Leaf]
"""A rule that covers the request, the subject that a token must make of the caller for it (`_HELD`: it is one already), its leaf."""


class Binding:
    """A caller under one policy. `principal` is the one bound first: replicas share a SPIFFE ID and so a binding, therefore validity
    is judged on the connection's own principal. `roles` are those held by identity alone."""

    __slots__ = ("_entitled", "_held", "_policy", "principal", "roles")

    def __init__(
        self, policy: CompiledPolicy, principal: Principal | None, held: frozenset[int], entitled: frozenset[int], roles: frozenset[str]
    ) -> None:
        self._policy = policy
        self._held = held
        self._entitled = entitled  # roles that ask for identity and token, and whose identity part is met
        self.principal = principal
        self.roles = roles

    def outlook(self, method: str, path: str, readings: tuple[str, ...], host: str, port: int) -> Permit | Denial | Conditional:
        """What is known before the request's own facts are asked.

        `method` as sent; `path` canonical, without query; `readings` every case-folded spelling that an upstream may read (its own
        fold is added when it is missing); `host` lower case, without port and trailing dot; `port` the listener's local port."""
        policy = self._policy
        hosts: Collection[str] = policy.host_keys(host) if policy.names_hosts else ()
        denies: list[Candidate] = []
        if policy.denies is not None:
            leaves = policy.denies.folded(_with_fold(path, readings))
            if leaves:
                final = self._select(leaves, method.upper(), port, hosts, denies)
                if final is not None:
                    return Denial(POLICY_DENIED, policy.digest, final[0].id)
        leaves = policy.allows.exact(path)
        allows: list[Candidate] = []
        allowed = self._select(leaves, method, port, hosts, allows)
        shadow: list[Candidate] = []
        if policy.shadow_denies is not None:
            self._every(policy.shadow_denies.folded(_with_fold(path, readings)), method.upper(), port, hosts, shadow)
        if policy.shadow_allows is not None and allowed is None:
            self._every(policy.shadow_allows.exact(path), method, port, hosts, shadow)
        if denies or (allows and allowed is None) or (shadow and not all(map(_settled, shadow))):
            return Conditional(self, denies, allowed, allows if allowed is None else [], shadow, (method, path, hosts, port))
        if allowed is not None:
            return _permit(allowed, policy.digest, _shadow_results(shadow, allow=False), self.roles)
        miss, only_caller = self._near_miss(method, path, hosts, port, leaves)
        reason = IDENTITY_REQUIRED if only_caller and self.principal is None else NO_RULE
        return Denial(reason, policy.digest, None, miss, _shadow_results(shadow, allow=True))

    def roles_with(self, claims: Mapping[str, object] | None) -> frozenset[str]:
        """Roles held by identity and by the claims of a verified token together."""
        if claims is None:
            return self.roles
        return self._roles(self._token_subjects(claims))

    def _roles(self, token_subjects: frozenset[int]) -> frozenset[str]:
        if not token_subjects:
            return self.roles
        names = self._policy.role_names
        return self.roles.union(names[subject] for subject in token_subjects)

    def _token_subjects(self, claims: Mapping[str, object]) -> frozenset[int]:
        """Role subjects that the token gives to this caller."""
        given = self._policy.token_roles.held(claims)
        if not given:
            return _NO_SUBJECTS
        both = self._policy.both_roles
        return frozenset(subject for subject in given if subject not in both or subject in self._entitled)

    def _select(
        self, leaves: Sequence[Leaf], method: str, port: int, hosts: Collection[str], candidates: list[Candidate]
    ) -> Candidate | None:
        """The first plain rule of this caller that covers the request; those with conditions are appended to `candidates`."""
        held = self._held
        final: Rule | None = None
        at: Leaf | None = None
        for leaf in leaves:
            sole = leaf.sole
            if sole is not None:
                if sole[0] in held and (sole[1] is None or method in sole[1]) and (final is None or sole[2].order < final.order):
                    final, at = sole[2], leaf
                continue
            for cell in leaf.of(held):
                for rule in cell.narrow_to_verdict(method, hosts) if isinstance(cell, Crowd) else cell:
                    if rule.covers(method, port, hosts):
                        if rule.plain:
                            if final is None or rule.order < final.order:
                                final, at = rule, leaf
                            break  # plain rules stand first and by order: the rest of the cell cannot change the verdict
                        candidates.append((rule, _HELD, leaf))
            if leaf.tokens is not None:
                self._by_token(leaf, method, port, hosts, candidates)
        return None if final is None or at is None else (final, _HELD, at)

    def _every(self, leaves: Sequence[Leaf], method: str, port: int, hosts: Collection[str], candidates: list[Candidate]) -> None:
        """Append every rule that covers the request, plain ones too (shadow rules are reported one by one)."""
        for leaf in leaves:
            for cell in leaf.of(self._held):
                candidates += [(rule, _HELD, leaf) for rule in covering(cell, method, port, hosts)]
            if leaf.tokens is not None:
                self._by_token(leaf, method, port, hosts, candidates)

    def _by_token(self, leaf: Leaf, method: str, port: int, hosts: Collection[str], candidates: list[Candidate]) -> None:
        """Append the rules of roles that a token may still give to this caller."""
        both = self._policy.both_roles
        for subject, cell in (leaf.tokens or {}).items():
            if subject not in self._held and (subject not in both or subject in self._entitled):
                candidates += [(rule, subject, leaf) for rule in covering(cell, method, port, hosts)]

    def _near_miss(
        self, method: str, path: str, hosts: Collection[str], port: int, leaves: Sequence[Leaf] | None = None
    ) -> tuple[NearMiss | None, bool]:
        policy = self._policy
        if leaves is None:
            leaves = policy.allows.exact(path)
        return near_miss.nearest(policy.allows, policy.samples, self._held, leaves, path, method, port, hosts)


class Conditional:
    """A decision that needs the request's facts. May be shared by equal requests: it keeps nothing of them.

    needs_claims   the verdict depends on the token: verify it, refuse the request when it is invalid
    needs_body     the verdict may depend on the body: ask `without_body` first
    shadow_body    a shadow rule looks at the body: it is read for it only where that can change nothing
    shadow_claims  only a shadow rule asks for the token: an invalid one must not refuse the request
    template       the path template of the first rule that may allow it, "" when none may (for `http.route`)
    """

    __slots__ = (
        "_allowed", "_allows", "_binding", "_denies", "_request", "_shadow", "needs_body", "needs_claims", "shadow_body", "shadow_claims",
        "template",
    )  # fmt: skip

    def __init__(
        self,
        binding: Binding,
        denies: list[Candidate],
        allowed: Candidate | None,
        allows: list[Candidate],
        shadow: list[Candidate],
        request: tuple[str, str, Collection[str], int],
    ) -> None:
        self._binding = binding
        self._denies = sorted(denies, key=_order)
        self._allowed = allowed
        self._allows = sorted(allows, key=_order)
        self._shadow = sorted(shadow, key=_order)
        self._request = request
        first = allowed or (self._allows[0] if allows else None)
        self.template = "" if first is None else first[2].text
        self.needs_claims = any(map(_needs_claims, denies)) or any(map(_needs_claims, allows))
        self.needs_body = any(rule.needs_body for rule, _, _ in (*denies, *allows))
        self.shadow_body = any(rule.needs_body for rule, _, _ in shadow)
        self.shadow_claims = not self.needs_claims and any(map(_needs_claims, shadow))

    def decide(self, facts: Facts) -> Permit | Denial:
        """Evaluate the conditions: deny rules, then allow rules, in the order of the policy. A condition that cannot be evaluated
        counts against the request. Raises RequestError when the token is needed and not valid (from `facts`)."""
        binding = self._binding
        digest = binding._policy.digest
        claims = facts.claims if self.needs_claims else None
        given = _NO_SUBJECTS if claims is None else binding._token_subjects(claims)
        for candidate in self._denies:
            if _met(candidate, facts, claims, given, on_error=True):
                return Denial(candidate[0].unread(facts) or POLICY_DENIED, digest, candidate[0].id)
        allowed = self._allowed
        if allowed is None:
            for candidate in self._allows:
                if _met(candidate, facts, claims, given, on_error=False):
                    allowed = candidate
                    break
        return self._settled(allowed, facts, claims, given, read=True)

    def without_body(self, facts: Facts) -> Permit | Denial | None:
        """The verdict if no body can change it, so that none is gathered for nothing; None: `decide`, when the body is here."""
        binding = self._binding
        claims = facts.claims if self.needs_claims else None
        given = _NO_SUBJECTS if claims is None else binding._token_subjects(claims)
        open_denies = False
        for candidate in self._denies:
            if candidate[0].needs_body:
                open_denies = open_denies or _may_meet(candidate, facts, claims, given, on_error=True)
            elif _met(candidate, facts, claims, given, on_error=True):
                return Denial(POLICY_DENIED, binding._policy.digest, candidate[0].id)
        allowed, open_allows = self._allowed, False
        if allowed is None:
            for candidate in self._allows:
                if candidate[0].needs_body:
                    open_allows = open_allows or _may_meet(candidate, facts, claims, given, on_error=False)
                elif _met(candidate, facts, claims, given, on_error=False):
                    allowed = candidate
                    break
        if (allowed is not None and open_denies) or (allowed is None and open_allows):
            return None
        return self._settled(allowed, facts, claims, given, read=False)

    def _settled(
        self, allowed: Candidate | None, facts: Facts, claims: Mapping[str, object] | None, given: frozenset[int], *, read: bool
    ) -> Permit | Denial:
        """No deny rule matches. `read`: the body is at hand; without it, rules that look at it are not told of."""
        shadow = self._shadow_results(facts, claims, given, allow=allowed is None, read=read) if self._shadow else ()
        if allowed is not None:
            return _permit(allowed, self._binding._policy.digest, shadow, self._binding._roles(given))
        return self._denial(facts, claims, given, shadow, read=read)

    def outline(self) -> tuple[tuple[str, tuple[object, ...]], ...]:
        """What the verdict rests on, in the order of judgement: words, and a key that is equal where the meaning is."""
        found = [_outlined(candidate, self._binding._policy) for candidate in self._denies]
        if self._allowed is not None:
            return (*found, ("else allow", ("allow",)))
        return (*found, *(_outlined(candidate, self._binding._policy) for candidate in self._allows))

    def means_as(self, other: Conditional) -> bool:
        """Both rest on conditions that mean the same."""
        return [key for _, key in self.outline()] == [key for _, key in other.outline()]

    def _shadow_results(
        self, facts: Facts, claims: Mapping[str, object] | None, given: frozenset[int], *, allow: bool, read: bool
    ) -> tuple[ShadowResult, ...]:
        if self.shadow_claims:
            try:
                claims = facts.claims
            except RequestError:
                claims = None  # a token that no deciding rule asks for refuses nothing
            if claims is not None:
                given = self._binding._token_subjects(claims)
        asked = [entry for entry in self._shadow if read or not entry[0].needs_body]
        return _shadow_results([entry for entry in asked if _met(entry, facts, claims, given, on_error=False)], allow=allow)

    def _denial(
        self,
        facts: Facts,
        claims: Mapping[str, object] | None,
        given: frozenset[int],
        shadow: tuple[ShadowResult, ...],
        *,
        read: bool,
    ) -> Denial:
        """No rule allows it: why, and which rule came closest."""
        method, path, hosts, port = self._request
        miss, only_caller = self._binding._near_miss(method, path, hosts, port)
        reason = IDENTITY_REQUIRED if only_caller and self._binding.principal is None else NO_RULE
        fewest = 2 if miss is not None else 1 << 30
        for rule, subject, _ in self._allows[: near_miss.MAX_RULES]:
            looked = [condition for condition in rule.conditions if read or not condition.needs_body]
            failed = [condition for condition in looked if not _holds(condition, facts, claims)]
            role_missing = subject != _HELD and subject not in given
            if reason is NO_RULE and read and rule.needs_body and not role_missing and all(condition.needs_body for condition in failed):
                reason = rule.unread(facts) or reason  # nothing else was wrong
            if claims is None and (role_missing or failed) and all(condition.needs_claims for condition in failed):
                reason = TOKEN_REQUIRED
            count = len(failed) + role_missing
            if 0 < count < fewest:
                fewest = count
                if role_missing:
                    miss = NearMiss(rule.id, "claim", f"role {self._binding._policy.role_names[subject]} by token")
                else:
                    miss = NearMiss(rule.id, failed[0].kind, failed[0].text)
        return Denial(reason, self._binding._policy.digest, None, miss, shadow)


def _outlined(candidate: Candidate, policy: CompiledPolicy) -> tuple[str, tuple[object, ...]]:
    rule, subject, _ = candidate
    role = policy.roles[policy.role_names[subject]] if subject != _HELD else None
    words = [condition.text for condition in rule.conditions] + ([f"role {role.name} by token"] if role is not None else [])
    effect = "allow" if rule.allow else "deny"
    meaning = frozenset(condition.identity for condition in rule.conditions)
    return f"{effect} by {rule.id} if {' and '.join(words)}", (effect, meaning, role_meaning(role) if role is not None else None)


def _permit(allowed: Candidate, digest: str, shadow: tuple[ShadowResult, ...], roles: frozenset[str]) -> Permit:
    return Permit(allowed[0].id, digest, shadow, roles, allowed[2].text)


def _with_fold(path: str, readings: tuple[str, ...]) -> tuple[str, ...]:
    """INVARIANT: deny rules always see the canonical path itself, whatever the caller of `outlook` listed."""
    folded = path.casefold()
    return readings if folded in readings else (folded, *readings)


def _order(candidate: Candidate) -> int:
    return candidate[0].order


def _settled(candidate: Candidate) -> bool:
    return candidate[0].plain and candidate[1] == _HELD


def _needs_claims(candidate: Candidate) -> bool:
    return candidate[0].needs_claims or candidate[1] != _HELD


def _met(candidate: Candidate, facts: Facts, claims: Mapping[str, object] | None, given: frozenset[int], *, on_error: bool) -> bool:
    """Whether the candidate's rule matches. `on_error` is the answer when a condition cannot be evaluated."""
    rule, subject, _ = candidate
    if subject != _HELD and subject not in given:
        return False
    try:
        return rule.applies(facts, claims)
    except RequestError:
        raise
    except Exception:  # whatever went wrong in a condition: a deny rule matches, an allow rule does not
        return on_error


def _may_meet(candidate: Candidate, facts: Facts, claims: Mapping[str, object] | None, given: frozenset[int], *, on_error: bool) -> bool:
    """As `_met`, whatever the body says."""
    rule, subject, _ = candidate
    if subject != _HELD and subject not in given:
        return False
    try:
        return rule.may_apply(facts, claims)
    except RequestError:
        raise
    except Exception:  # as in `_met`
        return on_error


def _holds(condition: Condition, facts: Facts, claims: Mapping[str, object] | None) -> bool:
    try:
        return condition.allows(facts, claims)
    except RequestError:
        raise
    except Exception:  # as in `_met`, for an allow rule
        return False


def _shadow_results(candidates: Sequence[Candidate], *, allow: bool) -> tuple[ShadowResult, ...]:
    """What the shadow rules of this effect would have done to the opposite verdict; each rule once."""
    if not candidates:
        return ()
    effect = "would_allow" if allow else "would_deny"
    ids = dict.fromkeys(rule.id for rule, _, _ in sorted(candidates, key=_order) if rule.allow is allow)
    return tuple(ShadowResult(rule_id, effect) for rule_id in list(ids)[:MAX_SHADOW])
