"""The nearest miss of a denial: the allow rule that failed in the fewest conditions, found with bounded work.

A denial must not be much dearer than a permit, or callers could buy our time with requests that are refused: at most
`MAX_RULES` rules are looked at, those of this path first, then rules of this caller close to it. It is a hint for the record, so
in a large policy it may be less than perfect; `explain` looks at every rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from meshguard.model.verdicts import NearMiss
from meshguard.policy.index import Leaf, RuleIndex, some
from meshguard.policy.rules import ANYONE, AUTHENTICATED, Rule
from meshguard.policy.trie import below, deepest

__all__ = ["MAX_RULES", "describe", "failures", "nearest"]

MAX_RULES = 16
"""Rules looked at for one denial."""
_PER_CELL = 4
_NODES = 8
_RANK = ("principal", "method", "port", "host", "path")


def nearest(
    index: RuleIndex,
    filed: Mapping[int, Sequence[Rule]],
    held: Collection[int],
    leaves: Sequence[Leaf],
    path: str,
    method: str,
    port: int,
    hosts: Collection[str],
) -> tuple[NearMiss | None, bool]:
    """The nearest miss, and whether some rule lacked nothing but another caller (then an anonymous caller is asked for its identity).

    `leaves` are those of `path`; `filed` holds a few rules of each subject; `held` are the caller's subjects."""
    best: tuple[int, int, int, int] | None = None
    chosen: tuple[Rule, list[str]] | None = None
    only_caller = False
    for rule, mine in _here(leaves, held):
        failed = failures(rule, method, port, hosts)
        if not mine:
            failed.insert(0, "principal")
            only_caller = only_caller or (len(failed) == 1 and rule.plain)
        score = (len(failed), _RANK.index(failed[0]) if failed else 0, 0, rule.order)
        if failed and (best is None or score < best):
            best, chosen = score, (rule, failed)
    if best is None or best[0] > 1:
        segments = path[1:].split("/", 64)
        for rule in _around(index, filed, held, segments):
            failed = [*failures(rule, method, port, hosts), "path"]
            score = (len(failed), _RANK.index(failed[0]), -_shared(rule.paths, segments), rule.order)
            if best is None or score < best:
                best, chosen = score, (rule, failed)
    if chosen is None:
        return None, only_caller
    rule, failed = chosen
    return NearMiss(rule.id, failed[0], describe(rule, failed)), only_caller


def failures(rule: Rule, method: str, port: int, hosts: Collection[str]) -> list[str]:
    """Which of method, port and host do not fit."""
    failed = []
    if rule.methods is not None and method not in rule.methods:
        failed.append("method")
    if rule.ports is not None and port not in rule.ports:
        failed.append("port")
    if rule.hosts is not None and rule.hosts.isdisjoint(hosts):
        failed.append("host")
    return failed


def describe(rule: Rule, failed: Iterable[str]) -> str:
    """What the rule asks for in the conditions that failed. Holds nothing of the request."""
    parts = []
    for condition in failed:
        if condition == "principal":
            parts.append(f"callers {_few(rule.callers)}")
        elif condition == "method" and rule.methods is not None:
            parts.append(f"methods {_few(sorted(rule.methods))}")
        elif condition == "port" and rule.ports is not None:
            parts.append(f"ports {_few(map(str, sorted(rule.ports)))}")
        elif condition == "host" and rule.hosts is not None:
            parts.append(f"hosts {_few(sorted(rule.hosts))}")
        elif condition == "path":
            parts.append(f"paths {_few(rule.paths)}")
    return "; ".join(parts)


def _few(values: Iterable[str]) -> str:
    listed = list(values)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _here(leaves: Sequence[Leaf], held: Collection[int]) -> Iterator[tuple[Rule, bool]]:
    """Rules of this path: the caller's own, then others', at most MAX_RULES."""
    left = MAX_RULES
    for leaf in leaves[:4]:
        for cell in leaf.of(held):
            for rule in some(cell, min(_PER_CELL, left)):
                left -= 1
                yield rule, True
    for leaf in leaves[:4]:
        for subject, cell in leaf.every():
            if left <= 0:
                return
            if subject not in held:
                for rule in some(cell, min(_PER_CELL, left)):
                    left -= 1
                    yield rule, False


def _around(index: RuleIndex, filed: Mapping[int, Sequence[Rule]], held: Collection[int], segments: Sequence[str]) -> Iterator[Rule]:
    """Rules of this caller whose path is close, then any of its rules, at most MAX_RULES."""
    left = MAX_RULES
    for leaf in below(deepest(index.root, segments), _NODES):
        for cell in leaf.of(held):
            for rule in some(cell, 2):
                if left <= 0:
                    return
                left -= 1
                yield rule
    for subject in sorted(held, reverse=True)[:3]:
        if subject not in (ANYONE, AUTHENTICATED):
            for rule in filed.get(subject, ()):
                if left <= 0:
                    return
                left -= 1
                yield rule


def _shared(paths: Sequence[str], segments: Sequence[str]) -> int:
    """Leading segments that the closest of the first paths has in common with the request's."""
    most = 0
    for path in paths[:4]:
        count = 0
        for expected, segment in zip(path[1:].split("/", 64), segments, strict=False):
            if expected != segment and "{" not in expected and expected != "*":
                break
            count += 1
        most = max(most, count)
    return most
