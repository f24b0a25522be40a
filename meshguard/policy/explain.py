"""Why a request is allowed or denied, in words. Looks at every rule: for people who ask, never on the path of a request.

The verdict comes from the engine; the account of the rules is made here independently of the index, so it also shows what the bounded
nearest miss of a live denial may have left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshguard.model.principal import Principal
from meshguard.model.verdicts import Denial, Permit
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.near_miss import describe
from meshguard.policy.paths import Template, folded, parse_template
from meshguard.policy.question import Question, ask
from meshguard.policy.rules import ANYONE, AUTHENTICATED, Rule
from meshguard.policy.trie import Node, insert, walk

__all__ = ["Explanation", "RuleAccount", "explain"]

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RuleAccount:
    """How one rule relates to the request: `failed` holds (condition, what the rule asks for); empty when the rule matches."""

    rule_id: str
    effect: str
    shadow: bool
    failed: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """One line."""
        kind = f"{'shadow ' if self.shadow else ''}{self.effect} rule {self.rule_id}"
        if not self.failed:
            return f"{kind} matches"
        return f"{kind} does not match: " + "; ".join(f"{condition} ({wanted})" for condition, wanted in self.failed)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The `verdict`, the caller's `roles`, the rules that match, and of the allow rules that do not the `nearest` ones."""

    verdict: Permit | Denial
    caller: str
    call: str
    roles: tuple[str, ...]
    matching: tuple[RuleAccount, ...]
    nearest: tuple[RuleAccount, ...]

    def structured(self) -> dict[str, Any]:
        """For machines: JSON values only."""
        denial = self.verdict if isinstance(self.verdict, Denial) else None
        return {
            "verdict": "deny" if denial is not None else "allow",
            "reason": denial.reason.code if denial is not None else None,
            "rule": self.verdict.rule_id,
            "policy_digest": self.verdict.policy_digest,
            "caller": self.caller,
            "call": self.call,
            "roles": list(self.roles),
            "matching": [_structured(account) for account in self.matching],
            "nearest": [_structured(account) for account in self.nearest],
            "shadow": [{"rule": entry.rule_id, "effect": entry.effect} for entry in self.verdict.shadow],
        }

    def text(self) -> str:
        """For people: a few lines."""
        if isinstance(self.verdict, Permit):
            first = f"ALLOWED by rule {self.verdict.rule_id}"
        elif self.verdict.rule_id is not None:
            first = f"DENIED by rule {self.verdict.rule_id}"
        else:
            first = f"DENIED: {self.verdict.reason.title.lower()} ({self.verdict.reason.code})"
        lines = [first, f"  call    {self.call}", f"  caller  {self.caller}", f"  roles   {', '.join(self.roles) or 'none'}"]
        lines += [f"  {account.text()}" for account in self.matching]
        lines += [f"  {account.text()}" for account in self.nearest]
        lines += [f"  shadow rule {entry.rule_id}: {entry.effect.replace('_', ' ')}" for entry in self.verdict.shadow]
        return "\n".join(lines)


def explain(policy: CompiledPolicy, principal: Principal | None, question: Question) -> Explanation:
    """Decide the question and account for the rules. Cost: every rule is looked at."""
    verdict = ask(policy, principal, question)
    binding = policy.bind(principal)
    roles = binding.roles_with(question.claims)
    accounts = [_account(policy, rule, principal, roles, question) for rule in policy.rules]
    matching = [account for account in accounts if not account.failed]
    missed = sorted((account for account in accounts if account.failed and account.effect == "allow"), key=lambda entry: len(entry.failed))
    denied = isinstance(verdict, Denial) and verdict.rule_id is None
    return Explanation(
        verdict,
        "anonymous" if principal is None else principal.spiffe_id,
        f"{question.method} {question.path}",
        tuple(sorted(roles)),
        tuple(matching[:_SHOWN]),
        tuple(missed[:_SHOWN]) if denied else (),
    )


def _account(policy: CompiledPolicy, rule: Rule, principal: Principal | None, roles: frozenset[str], question: Question) -> RuleAccount:
    failed: list[tuple[str, str]] = []
    if not _is_caller(policy, rule, principal, roles):
        by_token = [caller for caller in rule.callers if caller in policy.roles and policy.roles[caller].claims]
        if by_token and question.claims is None:
            failed.append(("principal", f"callers {', '.join(rule.callers[:4])}; a token may give {', '.join(by_token[:4])}"))
        else:
            failed.append(("principal", describe(rule, ["principal"])))
    hosts = policy.host_keys(question.host)
    method = question.method if rule.allow else question.method.upper()
    if not _fits(rule, question):
        failed.append(("path", describe(rule, ["path"])))
    if rule.methods is not None and method not in rule.methods:
        failed.append(("method", describe(rule, ["method"])))
    if rule.ports is not None and question.port not in rule.ports:
        failed.append(("port", describe(rule, ["port"])))
    if rule.hosts is not None and rule.hosts.isdisjoint(hosts):
        failed.append(("host", describe(rule, ["host"])))
    for condition in rule.conditions:
        judge = condition.allows if rule.allow else condition.denies
        if not judge(question, question.claims):
            failed.append((condition.kind, condition.text))
    return RuleAccount(rule.id, "allow" if rule.allow else "deny", rule.shadow, tuple(failed))


def _is_caller(policy: CompiledPolicy, rule: Rule, principal: Principal | None, roles: frozenset[str]) -> bool:
    if ANYONE in rule.subjects or (principal is not None and AUTHENTICATED in rule.subjects):
        return True
    if any(caller in roles for caller in rule.callers):
        return True
    if principal is None:
        return False
    written = {subject for caller, subject in zip(rule.callers, rule.subjects, strict=True) if caller.startswith("spiffe:")}
    return not written.isdisjoint(policy.subjects(principal.spiffe_id))


def _fits(rule: Rule, question: Question) -> bool:
    if rule.allow:
        if question.path[:1] != "/":
            return any(path == "/**" for path in rule.paths)
        return any(_matches(parse_template(path), question.path[1:].split("/")) for path in rule.paths)
    readings = {question.path.casefold(), *question.readings}
    spelled = [[segment for segment in reading.split("/") if segment] for reading in readings]
    return any(_matches(variant, segments) for path in rule.paths for variant in folded(parse_template(path)) for segments in spelled)


def _matches(template: Template, segments: Sequence[str]) -> bool:
    root: Node[bool] = Node()
    node = insert(root, template.segments)
    if template.rest:
        node.rest = True
    else:
        node.end = True
    found: list[bool] = []
    walk(root, segments, found)
    return bool(found)


def _structured(account: RuleAccount) -> Mapping[str, Any]:
    return {
        "rule": account.rule_id,
        "effect": account.effect,
        "shadow": account.shadow,
        "failed": [{"condition": condition, "wanted": wanted} for condition, wanted in account.failed],
    }
