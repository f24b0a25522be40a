"""What is wide about a rule: the words that a review of access looks for. Each rule is looked at once, when a policy comes into force.

    anonymous    an allow rule for `anyone`: also callers without an identity
    any_caller   for `authenticated`: every workload of every trusted domain
    wild_caller  for a pattern that spans more than the last segment of a SPIFFE ID, or for all users of an issuer
    any_method   no methods are named
    any_path     `/**`, or no paths are named
    allow_all    anonymous or any_caller, with any path and any method, on no condition: the default to deny is undone
"""

from __future__ import annotations

from collections.abc import Mapping

from meshguard.policy.paths import Parameter
from meshguard.policy.principals import PrincipalPattern, parse_principal
from meshguard.policy.rules import Role, Rule

__all__ = ["is_wild", "traits"]


def traits(rule: Rule, roles: Mapping[str, Role]) -> frozenset[str]:
    """The traits of an allow rule; deny rules and rules in shadow give nobody anything and have none."""
    if not rule.allow or rule.shadow:
        return frozenset()
    found = set()
    for caller in rule.callers:
        if caller == "anyone":
            # a claim that has to be there is an identity too, of an end user
            found.add("any_caller" if rule.needs_claims else "anonymous")
        elif caller == "authenticated":
            found.add("any_caller")
        elif caller.startswith("jwt:"):
            found |= {"wild_caller"} if caller.endswith("#*") else set()
        elif caller.startswith("spiffe:"):
            found |= {"wild_caller"} if is_wild(parse_principal(caller)) else set()
        elif any(map(is_wild, roles[caller].patterns)) and not roles[caller].both:
            found.add("wild_caller")
    if rule.methods is None:
        found.add("any_method")
    if "/**" in rule.paths:
        found.add("any_path")
    if rule.plain and {"any_method", "any_path"} <= found and found & {"anonymous", "any_caller"}:
        found.add("allow_all")
    return frozenset(found)


def is_wild(pattern: PrincipalPattern) -> bool:
    """It stands for more than workloads of one name: `/**`, a segment before the last that varies, or a last one that is only `*`."""
    if pattern.exact:
        return False
    last = pattern.segments[-1]
    whole = isinstance(last, Parameter) and not last.prefix and not last.suffix
    return pattern.rest or whole or any(isinstance(segment, Parameter) for segment in pattern.segments[:-1])
