"""Checks of the policy: who is allowed what, by which words. Each yields what it finds, or raises NotJudged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from meshguard.control.packs.model import Fault, NotJudged, Subject

__all__ = ["POLICY_CHECKS"]

_SHOWN = 20
_ALLOWED_BY = re.compile(r"allow by (\S+)")  # as `policy.reach` words a permission with conditions


def _rules(subject: Subject, *wide: str) -> Iterator[tuple[str, int, Any, frozenset[str]]]:
    """(file, number, document, traits) of the rules with one of these traits."""
    policy, by_id, asked = subject.policies(), subject.traits(), frozenset(wide)
    for loaded in policy.documents:
        for number, document in enumerate(loaded.value.rules):
            found = by_id[document.id]
            if not found.isdisjoint(asked):
                yield loaded.file, number, document, found


def default_deny(subject: Subject) -> Iterator[Fault]:
    for file, number, rule, _ in _rules(subject, "allow_all"):
        words = "no rule that allows everybody everything: it undoes the default to deny"
        yield Fault(("rules", number), words, file, rule.id)


def no_anonymous(subject: Subject) -> Iterator[Fault]:
    for file, number, rule, _ in _rules(subject, "anonymous"):
        words = "callers with an identity (a role, a SPIFFE ID, authenticated), or claims of a verified token"
        yield Fault(("rules", number, "allow"), words, file, f"anyone in {rule.id}")


def callers_named(subject: Subject) -> Iterator[Fault]:
    for file, number, rule, found in _rules(subject, "anonymous", "any_caller", "wild_caller"):
        words = "callers by name: a role of exact SPIFFE IDs, or a pattern of which only the end of the last segment varies"
        wide = "everybody" if found & {"anonymous", "any_caller"} else "a wide pattern"
        yield Fault(("rules", number, "allow"), words, file, f"{wide} in {rule.id}")


def least_privilege(subject: Subject) -> Iterator[Fault]:
    for file, number, rule, found in _rules(subject, "any_method", "any_path"):
        if "any_method" in found:
            yield Fault(("rules", number), "the methods that are needed: without `methods` every one is allowed", file, rule.id)
        if "any_path" in found:
            place = ("rules", number, "paths") if rule.paths else ("rules", number)
            yield Fault(place, "the paths that are needed, not /**", file, rule.id)


def permissions_used(subject: Subject) -> Iterator[Fault]:
    policy = subject.policies()
    if subject.observed is None:
        raise NotJudged("not_assessed", "say --observed FILE (a decision log) to see which permissions are used")
    places = {
        document.id: (loaded.file, number) for loaded in policy.documents for number, document in enumerate(loaded.value.rules)
    }
    unused = [edge for edge in subject.observed if edge.seen == 0]
    for edge in unused[:_SHOWN]:
        named = edge.rule if edge.certain else next(iter(_ALLOWED_BY.findall(edge.rule)), "")
        file, number = places.get(named, (policy.documents[0].file, 0))
        yield Fault(("rules", number), "a permission that is used", file, f"{edge.caller} {edge.method} {edge.path}")
    if len(unused) > _SHOWN:
        yield Fault(("rules",), "permissions that are used", policy.documents[0].file, f"{len(unused) - _SHOWN} more that are not")


POLICY_CHECKS = {
    "default_deny": default_deny,
    "no_anonymous": no_anonymous,
    "callers_named": callers_named,
    "least_privilege": least_privilege,
    "permissions_used": permissions_used,
}
