"""What changes between two policies: the classes of (caller, method, path, host, port) whose verdict flips, each with an example.

Only what a changed rule or role can touch is asked. For each rule that differs: its paths, and where they meet the paths of other rules
the narrower of both; its callers, the callers of rules on those paths, and one that no rule names; its methods and one that it does not
name. Every class is decided by the data plane's own engine under both policies. A verdict that depends on the request's own facts
(headers, claims, time, expressions) is compared by its conditions; where they differ, the change counts as one that may loosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from meshguard.model.verdicts import Denial, Permit
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.paths import Parameter, Template, parse_template
from meshguard.policy.principals import parse_principal
from meshguard.policy.question import principal_of
from meshguard.policy.rules import Rule, role_meaning

__all__ = ["Flip", "PolicyDiff", "changed_rules", "diff", "summary"]

MAX_CLASSES = 2_000_000
"""Questions asked at most (some 10 us each, twice); beyond, the result says that it is not complete."""
_FILLER = "x"
_DEEPEST = 4  # segments below `/**` that are tried
_USUAL_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "MGTEST")
"""The first that no rule names stands for every method that none names."""
_NOBODY = "spiffe://meshguard.test/nobody"


@dataclass(frozen=True, slots=True)
class Flip:
    """One class whose verdict differs. `kind`: loosened, tightened, or changed (its conditions differ). `before` and `after` are words:
    `allow by RULE`, `deny by RULE`, `deny (REASON)`, `conditions: ...`. `caller` is a
    SPIFFE ID, "" for nobody verified; the rest is an example that has this verdict."""

    kind: str
    caller: str
    method: str
    path: str
    host: str
    port: int
    before: str
    after: str

    @property
    def call(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class PolicyDiff:
    """`rules` are (what, id): added, removed, changed; `complete` is false when there were too many classes to ask about."""

    rules: tuple[tuple[str, str], ...]
    flips: tuple[Flip, ...]
    asked: int
    complete: bool

    @property
    def loosened(self) -> bool:
        """Whether somebody may do more than before, as far as it was asked, or where that cannot be told."""
        return not self.complete or any(flip.kind != "tightened" for flip in self.flips)


def changed_rules(old: CompiledPolicy, new: CompiledPolicy) -> list[tuple[str, str]]:
    """Rules by id that were added, removed or changed; a rule changes with the roles that it names."""
    before, after = _rules(old), _rules(new)
    out = [("removed", rule_id) for rule_id in before if rule_id not in after]
    out += [("added", rule_id) for rule_id in after if rule_id not in before]
    out += [("changed", rule_id) for rule_id in after if rule_id in before and before[rule_id] != after[rule_id]]
    return out


def diff(old: CompiledPolicy, new: CompiledPolicy, readings: Callable[[str], tuple[str, ...]]) -> PolicyDiff:
    """Compares. `readings` gives the case-folded readings of a canonical path (`wire.target`)."""
    rules = changed_rules(old, new)
    touched_ids = {rule_id for _, rule_id in rules}
    touched = [rule for policy in (old, new) for rule in policy.rules if rule.id in touched_ids]
    everything = [*old.rules, *new.rules]
    flips: dict[tuple[str, ...], Flip] = {}
    asked = 0
    seen: set[tuple[str, str, str, str, int]] = set()
    people: dict[str, dict[str, None]] = {rule.id: {} for rule in everything}
    for policy in (old, new):
        for rule in policy.rules:
            people[rule.id] |= _people(policy, rule)
    named = frozenset().union(*(rule.methods or () for rule in everything))
    other = next(method for method in _USUAL_METHODS if method not in named)
    for caller, method, path, host, port in _classes(touched, everything, people, other):
        if (caller, method, path, host, port) in seen:
            continue
        if asked >= MAX_CLASSES:
            return PolicyDiff(tuple(rules), tuple(flips.values()), asked, False)
        seen.add((caller, method, path, host, port))
        asked += 1
        sides = [_verdict(policy, caller, method, path, readings(path), host, port) for policy in (old, new)]
        if sides[0] != sides[1]:
            kind = _kind(*sides)
            if kind:
                flip = Flip(kind, caller, method, path, host, port, sides[0][1], sides[1][1])
                flips.setdefault((kind, caller, path, flip.before, flip.after, method if len(flips) < 10_000 else ""), flip)
    return PolicyDiff(tuple(rules), tuple(flips.values()), asked, True)


def _rules(policy: CompiledPolicy) -> dict[str, tuple[object, ...]]:
    """What each rule means, its roles written out."""
    return {rule.id: _meaning(policy, rule) for rule in policy.rules}


def _meaning(policy: CompiledPolicy, rule: Rule) -> tuple[object, ...]:
    callers = frozenset(role_meaning(policy.roles[caller]) if caller in policy.roles else caller for caller in rule.callers)
    conditions = frozenset(condition.identity for condition in rule.conditions)
    return (rule.allow, rule.shadow, callers, rule.methods, frozenset(rule.paths), rule.ports, rule.hosts, conditions)


def _people(policy: CompiledPolicy, rule: Rule) -> dict[str, None]:
    """Identities that the callers of a rule stand for, one for each pattern."""
    found: dict[str, None] = {}
    for caller in rule.callers:
        if caller in policy.roles:
            found.update(dict.fromkeys(pattern.sample() for pattern in policy.roles[caller].patterns))
        elif caller.startswith("spiffe:"):
            found[parse_principal(caller).sample()] = None
    return found


def _classes(
    touched: Sequence[Rule], everything: Sequence[Rule], people: Mapping[str, dict[str, None]], other_method: str
) -> Iterator[tuple[str, str, str, str, int]]:
    templates = {path: parse_template(path) for rule in everything for path in rule.paths}
    for rule in touched:
        paths: dict[str, None] = {}
        near: list[Rule] = []
        for text in rule.paths:
            template = templates[text]
            paths.update(dict.fromkeys(_samples(template)))
        for other in everything:
            met = [meeting for text in rule.paths for path in other.paths if (meeting := _meet(templates[text], templates[path]))]
            if met:
                near.append(other)
                paths.update(dict.fromkeys(met))
        callers = dict.fromkeys((*people[rule.id], *(caller for other in near[:200] for caller in people[other.id]), "", _NOBODY))
        methods = dict.fromkeys((*(name for each in (rule, *near[:200]) for name in sorted(each.methods or ())), other_method))
        hosts = dict.fromkeys(("localhost", *(_host(host) for each in (rule, *near[:50]) for host in sorted(each.hosts or ()))))
        ports = dict.fromkeys((443, *(port for each in (rule, *near[:50]) for port in sorted(each.ports or ()))))
        yield from itertools.product(callers, methods, paths, hosts, ports)


def _host(host: str) -> str:
    return f"{_FILLER}{host[1:]}" if host.startswith("*.") else host


def _samples(template: Template) -> list[str]:
    """Paths that the template covers: itself filled in, and for `/**` also some below."""
    base = "/" + "/".join(_fill(segment) for segment in template.segments)
    return [base, *(base.rstrip("/") + f"/{_FILLER}" * depth for depth in range(1, _DEEPEST))] if template.rest else [base]


def _fill(segment: str | Parameter) -> str:
    return segment if isinstance(segment, str) else f"{segment.prefix}{_FILLER}{segment.suffix}"


def _meet(one: Template, other: Template) -> str:
    """A path that both cover, "" when there is none (letters of different case meet too: deny rules ignore it)."""
    out: list[str] = []
    for index in range(max(len(one.segments), len(other.segments))):
        pair = [template.segments[index] if index < len(template.segments) else None for template in (one, other)]
        if None in pair:
            longer, shorter = (one, other) if pair[1] is None else (other, one)
            if not shorter.rest:
                return ""
            out += [_fill(segment) for segment in longer.segments[index:]]
            break
        segment = _common(pair[0], pair[1])  # type: ignore[arg-type]  # None was looked for above
        if segment is None:
            return ""
        out.append(segment)
    return "/" + "/".join(out)


def _common(one: str | Parameter, other: str | Parameter) -> str | None:
    if isinstance(one, str) and isinstance(other, str):
        return one if one.casefold() == other.casefold() else None
    literal, parameter = (one, other) if isinstance(one, str) else (other, one)
    if isinstance(literal, str) and isinstance(parameter, Parameter):
        long_enough = len(literal) > len(parameter.prefix) + len(parameter.suffix)
        return literal if long_enough and literal.startswith(parameter.prefix) and literal.endswith(parameter.suffix) else None
    if isinstance(one, Parameter) and isinstance(other, Parameter):
        prefix = max(one.prefix, other.prefix, key=len)
        suffix = max(one.suffix, other.suffix, key=len)
        fits = prefix.startswith((one.prefix, other.prefix)) and prefix.startswith(min(one.prefix, other.prefix, key=len))
        return f"{prefix}{_FILLER}{suffix}" if fits else None
    return None


def _verdict(
    policy: CompiledPolicy, caller: str, method: str, path: str, readings: tuple[str, ...], host: str, port: int
) -> tuple[str, str, object]:
    """(allow, deny or depends, words, what to compare)."""
    outlook = policy.bind(principal_of(caller) if caller else None).outlook(method, path, readings, host, port)
    if isinstance(outlook, Permit):
        return "allow", f"allow by {outlook.rule_id}", "allow"
    if isinstance(outlook, Denial):
        return "deny", f"deny by {outlook.rule_id}" if outlook.rule_id else f"deny ({outlook.reason.code})", "deny"
    conditions = outlook.outline()
    return "depends", "conditions: " + "; ".join(words for words, _ in conditions), tuple(key for _, key in conditions)


def _kind(before: tuple[str, str, object], after: tuple[str, str, object]) -> str:
    """What the change of a verdict is; "" where only the rule that decides is another one."""
    match before[0], after[0]:
        case ("allow", "allow") | ("deny", "deny"):
            return ""
        case ("depends", "depends"):
            return "" if before[2] == after[2] else "changed"
        case ("allow", _) | (_, "deny"):
            return "tightened"
    return "loosened"


def summary(flips: Iterable[Flip]) -> dict[str, int]:
    """How many flips of each kind."""
    counts = {"loosened": 0, "tightened": 0, "changed": 0}
    for flip in flips:
        counts[flip.kind] += 1
    return counts
