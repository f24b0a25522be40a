"""Small builders for the tests of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshguard.model.principal import Principal
from meshguard.model.verdicts import Denial, Permit
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.documents import PolicyDocument
from meshguard.policy.question import Question, ask, principal_of

BILLING = "spiffe://shop.example/ns/prod/sa/billing"
SUPPORT = "spiffe://shop.example/ns/prod/sa/support-eu"
OTHER = "spiffe://shop.example/ns/prod/sa/other"


def document(**values: Any) -> PolicyDocument:
    return PolicyDocument.model_validate(values)


def policy(*rules: dict[str, Any], roles: dict[str, Any] | None = None, **values: Any) -> CompiledPolicy:
    """A policy of one document; rules without an id are numbered."""
    listed = [{"id": f"r{number}", **rule} for number, rule in enumerate(rules)]
    return compile_policy([document(rules=listed, roles=roles or {}, **values)])


def caller(spiffe_id: str | None) -> Principal | None:
    return None if spiffe_id is None else principal_of(spiffe_id)


def decide(
    compiled: CompiledPolicy,
    spiffe_id: str | None,
    call: str,
    *,
    host: str = "localhost",
    port: int = 8443,
    headers: Mapping[str, list[str]] | None = None,
    claims: Mapping[str, Any] | None = None,
    now: float = 1_900_000_000.0,
    readings: tuple[str, ...] | None = None,
) -> Permit | Denial:
    method, _, path = call.partition(" ")
    if readings is None:
        readings = (path.casefold(),)
    question = Question(method, path, readings, host=host, port=port, now=now, headers=headers, claims=claims)
    return ask(compiled, caller(spiffe_id), question)


def outcome(verdict: Permit | Denial) -> tuple[str, str | None]:
    """("allow", rule) or (reason code, rule)."""
    return ("allow", verdict.rule_id) if isinstance(verdict, Permit) else (verdict.reason.code, verdict.rule_id)
