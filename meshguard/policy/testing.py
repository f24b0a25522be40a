"""Runs the tests that stand in policy documents, by the very code that decides live requests.

The caller of a test is a SPIFFE ID, an end user (`jwt:ISSUER#SUB`), `anyone` (no identity), `authenticated` (an identity that no
rule names), or a role: then an identity is made that the role's first pattern matches, or a token that its claims describe, whichever
holds the role.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from meshguard.model.errors import RequestError
from meshguard.model.principal import Principal
from meshguard.model.verdicts import Denial, Permit
from meshguard.policy.bodies import Body, Reading
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.conditions import USER
from meshguard.policy.documents import PolicyDocument, TestDocument, TestRequestDocument
from meshguard.policy.question import Question, ask, principal_of
from meshguard.policy.rules import Role

__all__ = ["Bodies", "Canonicalise", "TestResult", "TestRun", "run_tests"]

Canonicalise = Callable[[str], tuple[str, tuple[str, ...]]]
"""From a request target as sent to its canonical path and readings; raises RequestError as for a live request."""

Bodies = Callable[[str, TestRequestDocument], Callable[[Sequence[Reading]], Body]]
"""Reads the body of a tested request, by the canonical path and the request."""


class TestResult:
    """What became of `test`, number `number` of the document `file`: the `verdict` (`allow`, `deny`), the `rule` that decided ("" for the
    default), the `reason` code of a denial, and `detail`: what was expected otherwise, or the nearest miss."""

    __test__ = False  # not a test class, whatever pytest thinks of its name
    __slots__ = ("detail", "file", "number", "passed", "reason", "rule", "shadow", "test", "verdict")

    def __init__(self, file: str, number: int, test: TestDocument) -> None:
        self.file = file
        self.number = number
        self.test = test
        self.passed = False
        self.verdict = "deny"
        self.rule = ""
        self.reason = ""
        self.detail = ""
        self.shadow: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """`billing: GET /orders/7 -> allow`."""
        return f"{self.test.caller}: {self.test.call} -> {self.test.expect}"


class TestRun:
    """All `results`, and the ids of rules that decided some test (`covered`) or none (`uncovered`; shadow rules decide nothing and are
    covered by a test that they report on)."""

    __test__ = False
    __slots__ = ("covered", "results", "uncovered")

    def __init__(self, results: Sequence[TestResult], policy: CompiledPolicy) -> None:
        seen = {result.rule for result in results} | {rule_id for result in results for rule_id, _ in result.shadow}
        self.results = tuple(results)
        self.covered = tuple(rule.id for rule in policy.rules if rule.id in seen)
        self.uncovered = tuple(rule.id for rule in policy.rules if rule.id not in seen)

    @property
    def failed(self) -> int:
        """How many tests failed."""
        return sum(not result.passed for result in self.results)


def run_tests(
    policy: CompiledPolicy,
    documents: Sequence[PolicyDocument],
    files: Sequence[str],
    canonicalise: Canonicalise,
    now: float,
    bodies: Bodies | None = None,
) -> TestRun:
    """Run every test of the documents that `policy` was compiled from. `now` (epoch seconds) is the time of tests that name none, `bodies`
    reads the bodies of those that have one."""
    results = [
        _run(policy, TestResult(file, number, test), canonicalise, now, bodies)
        for document, file in zip(documents, files, strict=True)
        for number, test in enumerate(document.tests)
    ]
    return TestRun(results, policy)


def _run(policy: CompiledPolicy, result: TestResult, canonicalise: Canonicalise, now: float, bodies: Bodies | None) -> TestResult:
    test = result.test
    principal, claims = _caller(policy, test.caller)
    if test.request.claims is not None:
        claims = {**(claims or {}), **test.request.claims}
    method, _, target = test.call.partition(" ")
    try:
        path, readings = canonicalise(target)
        question = Question(
            method,
            path,
            readings,
            host=test.request.host,
            port=test.request.port,
            now=now if test.request.time is None else test.request.time.seconds(),
            headers=test.request.headers,
            claims=claims,
            before=test.request.chain or (),
            read=bodies(path, test.request) if bodies is not None and test.request.body is not None else None,
        )
        verdict: Permit | Denial = ask(policy, principal, question)
    except RequestError as exc:  # refused before any rule is asked
        verdict = Denial(exc.reason, policy.digest)
        result.detail = exc.detail
    result.rule = verdict.rule_id or ""
    result.shadow = tuple((entry.rule_id, entry.effect) for entry in verdict.shadow)
    if isinstance(verdict, Permit):
        result.verdict = "allow"
    else:
        result.reason = verdict.reason.code
        if verdict.near_miss is not None:
            miss = verdict.near_miss
            result.detail = f"nearest miss: {miss.rule_id} failed by {miss.condition} ({miss.detail})"
    result.passed = result.verdict == test.expect and (test.rule is None or test.rule == result.rule)
    if result.passed:
        result.detail = ""
    return result


def _caller(policy: CompiledPolicy, caller: str) -> tuple[Principal | None, dict[str, Any] | None]:
    """An identity and token claims that make the caller what the test says."""
    if caller.startswith("spiffe:"):
        return principal_of(caller), None
    if caller.startswith("jwt:"):
        return None, _user(caller)
    if caller == "anyone":
        return None, None
    role = policy.roles.get(caller)
    if role is None:  # `authenticated`
        return principal_of(f"spiffe://{_some_domain(policy)}/meshguard/test/nobody"), None
    principal = principal_of(role.patterns[0].sample()) if role.patterns else None
    return principal, _claims(role) if role.claims and (role.both or principal is None) else None


def _some_domain(policy: CompiledPolicy) -> str:
    patterns = [role.patterns[0] for role in policy.roles.values() if role.patterns]
    return str(patterns[0].segments[0]) if patterns else "meshguard.test"


def _user(name: str) -> dict[str, Any]:
    issuer, _, subject = name.removeprefix("jwt:").partition("#")
    return {"iss": issuer, "sub": "somebody" if subject == "*" else subject}


def _claims(role: Role) -> dict[str, Any]:
    claims: dict[str, Any] = {}
    for condition in role.claims:
        if condition.path == USER:
            claims.update(_user(str(min(condition.keys, key=repr)[1])))
            continue
        *outer, last = (condition.path,) if "://" in condition.path else condition.path.split(".")
        inner: dict[str, Any] = claims
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = min(condition.keys, key=repr)[1]
    return claims
