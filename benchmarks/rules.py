"""The policy that every candidate with a policy enforces: allow rules, everything else denied."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import pki

__all__ = ["GRPC", "ORDERS", "Rule", "make", "mine_first"]

ORDERS = "/api/v1/orders"
"""Prefix of the paths that the HTTP load asks for."""
GRPC = "/orders.v1.Orders"
"""Prefix of the paths that the gRPC load asks for."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`principal` may use `method` on every path below `prefix`."""

    id: str
    principal: str
    method: str
    prefix: str


def make(count: int) -> list[Rule]:
    """`count` rules; the one for the HTTP load and the one for the gRPC load stand in the middle."""
    if count < 2:
        raise ValueError("two rules are the least: one for HTTP, one for gRPC")
    rules = [
        Rule(
            f"r{i:06d}",
            f"spiffe://{pki.TRUST_DOMAIN}/ns/n{i % 40}/sa/caller-{i}",
            ("GET", "POST", "PUT", "DELETE")[i % 4],
            f"/api/v{i % 3 + 1}/service-{i}/items",
        )
        for i in range(count)
    ]
    middle = (count - 1) // 2
    rules[middle] = Rule(rules[middle].id, pki.CLIENT, "GET", ORDERS)
    rules[middle + 1] = Rule(rules[middle + 1].id, pki.CLIENT, "POST", GRPC)
    return rules


def mine_first(rules: list[Rule]) -> list[Rule]:
    """The same rules with those of the load in front, renamed in this order (Envoy sorts its policies by name)."""
    ordered = sorted(rules, key=lambda rule: rule.principal != pki.CLIENT)
    return [Rule(f"r{i:06d}", rule.principal, rule.method, rule.prefix) for i, rule in enumerate(ordered)]
