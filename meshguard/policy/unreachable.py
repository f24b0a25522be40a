"""Finds allow rules that can never allow, because one plain deny rule for everyone covers all they say. Costs one walk a template."""

from __future__ import annotations

from collections.abc import Sequence

from meshguard.policy.index import Leaf, RuleIndex, some
from meshguard.policy.paths import Parameter, Template
from meshguard.policy.rules import ANYONE, Rule
from meshguard.policy.trie import Node, walk

__all__ = ["unreachable"]

_ANY_VALUE = "\x00"
"""Stands for a parameter: no literal template segment equals it, and a wild one accepts it."""


def unreachable(rule: Rule, templates: Sequence[Template], denies: RuleIndex) -> Rule | None:
    """The deny rule that covers every method, port and host of the allow rule `rule` on its paths (`templates`), if one does for each."""
    by: Rule | None = None
    for template in templates:
        by = _cover(rule, template, denies.root)
        if by is None:
            return None
    return by


def _cover(rule: Rule, template: Template, root: Node[Leaf]) -> Rule | None:
    segments = [_ANY_VALUE if isinstance(segment, Parameter) else segment.casefold() for segment in template.segments]
    if segments and segments[-1] == "":
        segments.pop()  # deny rules ignore a trailing slash
    leaves: list[Leaf] = []
    if template.rest:
        # only `/**` covers `/**`: a longer path that nothing else accepts finds just those
        segments += [_ANY_VALUE] * 70
    walk(root, segments, leaves)
    for leaf in leaves:
        for cell in leaf.of((ANYONE,)):
            for deny in some(cell, 8):
                if deny.plain and _contains(deny, rule):
                    return deny
    return None


def _contains(deny: Rule, rule: Rule) -> bool:
    if deny.methods is not None and (rule.methods is None or not deny.methods.issuperset(rule.methods)):
        return False
    if deny.ports is not None and (rule.ports is None or not deny.ports.issuperset(rule.ports)):
        return False
    return deny.hosts is None or (rule.hosts is not None and deny.hosts.issuperset(rule.hosts))
