"""Who can call what: every caller that a policy names against every path and method that its allow rules name, decided by the engine.

An edge is (caller, method, path template): `always` when no condition is left, `depends` when the request's own facts decide. With calls
that were seen, each edge is used or unused: an unused permission is one to take away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from meshguard.model.verdicts import Denial, Permit
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.paths import parse_template
from meshguard.policy.principals import PrincipalIndex, parse_principal
from meshguard.policy.question import principal_of
from meshguard.policy.trie import Node, insert, walk

__all__ = ["Edge", "observed_edges", "reach"]

MAX_EDGES = 100_000
_FILLER = "x"


@dataclass(frozen=True, slots=True)
class Edge:
    """`caller` is a SPIFFE ID or pattern, a role that only tokens give, or `anyone`; `method` is `*` for any; `seen` counts calls, None
    when nothing was observed."""

    caller: str
    method: str
    path: str
    host: str
    certain: bool
    rule: str
    seen: int | None = None


def reach(policy: CompiledPolicy, readings: Callable[[str], tuple[str, ...]]) -> list[Edge]:
    """The edges that the policy permits, sorted. Deny rules are respected, with their conditions."""
    edges: dict[tuple[str, str, str, str], Edge] = {}
    for rule in policy.rules:
        if not rule.allow or rule.shadow:
            continue
        for caller, sample in _callers(policy, rule.callers):
            for text in rule.paths:
                for host in sorted(rule.hosts) if rule.hosts else ("*",):
                    for method in sorted(rule.methods or ("*",)):
                        if method == "HEAD" and rule.methods is not None and "GET" in rule.methods:
                            continue  # comes with GET
                        edge = _edge(policy, caller, sample, method, text, host, rule.ports, readings)
                        if edge is not None:
                            edges.setdefault((edge.caller, edge.method, edge.path, edge.host), edge)
                        if len(edges) >= MAX_EDGES:
                            return _sorted(edges)
    return _sorted(edges)


def _sorted(edges: Mapping[tuple[str, str, str, str], Edge]) -> list[Edge]:
    return [edges[key] for key in sorted(edges)]


def _callers(policy: CompiledPolicy, words: Iterable[str]) -> list[tuple[str, str | None]]:
    """(what to call it, an identity that it stands for)."""
    out: list[tuple[str, str | None]] = []
    for word in words:
        role = policy.roles.get(word)
        if role is not None:
            out += [(pattern.text, pattern.sample()) for pattern in role.patterns]
            if role.claims and not role.patterns:
                out.append((f"{word} (by token)", None))
        elif word.startswith("spiffe:"):
            out.append((word, parse_principal(word).sample()))
        else:
            out.append((word, "spiffe://meshguard.test/nobody" if word == "authenticated" else None))
    return out


def _edge(
    policy: CompiledPolicy,
    caller: str,
    sample: str | None,
    method: str,
    text: str,
    host: str,
    ports: frozenset[int] | None,
    readings: Callable[[str], tuple[str, ...]],
) -> Edge | None:
    template = parse_template(text)
    path = "/" + "/".join(each if isinstance(each, str) else f"{each.prefix}{_FILLER}{each.suffix}" for each in template.segments)
    asked = "localhost" if host == "*" else f"{_FILLER}{host[1:]}" if host.startswith("*.") else host
    port = min(ports) if ports else 443
    binding = policy.bind(principal_of(sample) if sample else None)
    outlook = binding.outlook("GET" if method == "*" else method, path, readings(path), asked, port)
    if isinstance(outlook, Denial):
        return None
    if isinstance(outlook, Permit):
        return Edge(caller, method, text, host, True, outlook.rule_id)
    return Edge(caller, method, text, host, False, "; ".join(words for words, _ in outlook.outline()))


def observed_edges(edges: Iterable[Edge], calls: Iterable[tuple[str, str, str, str]]) -> list[Edge]:
    """The edges with the number of `calls` (principal or "", method, path, host) that took each."""
    listed = list(edges)
    patterns = []
    named: dict[str, list[int]] = {}
    roots: dict[tuple[str, str], Node[list[int]]] = {}
    for number, edge in enumerate(listed):
        if edge.caller.startswith("spiffe:"):
            patterns.append((parse_principal(edge.caller), number))
        else:
            named.setdefault(edge.caller, []).append(number)
        template = parse_template(edge.path)
        node = insert(roots.setdefault((edge.method, edge.host), Node()), template.segments)
        for cell in ("rest", "end") if template.rest else ("end",):
            if getattr(node, cell) is None:
                setattr(node, cell, [])
            getattr(node, cell).append(number)
    index = PrincipalIndex(patterns)
    seen = [0] * len(listed)
    for principal, method, path, host in calls:
        mine = index.find(principal) | set(named.get("anyone", ())) | (set(named.get("authenticated", ())) if principal else set())
        found: list[list[int]] = []
        for (asked, wanted), root in roots.items():
            here = wanted in ("*", host) or (wanted.startswith("*.") and host.endswith(wanted[1:]))
            if here and asked in ("*", "GET" if method == "HEAD" else method):
                walk(root, path[1:].split("/"), found)
        for number in {each for cell in found for each in cell} & mine:
            seen[number] += 1
    return [
        Edge(edge.caller, edge.method, edge.path, edge.host, edge.certain, edge.rule, count)
        for edge, count in zip(listed, seen, strict=True)
    ]


