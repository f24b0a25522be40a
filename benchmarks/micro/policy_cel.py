"""What expressions and bodies add to a decision: `python -m benchmarks.micro.policy --cel [--json]`.

    plain      the decision of a request, no rule of the policy has a `when`
    beside     the same requests, every tenth rule has a `when`, but none that concerns them: it should cost nothing
    cel        the same requests, their rules have a `when`: outlook and evaluation
    memo       the same with the outlook remembered, as the data plane has it: what an expression adds to each request
    linear     every rule asked in turn, as a policy of one list does it (callers and paths as compiled regular expressions)

and for one request: conditions that look at the body, with and without reading it. CPU time, the best of many rounds.
"""

from __future__ import annotations

import gc
import platform
import re
from collections.abc import Callable
from typing import Any

from benchmarks.micro.policy import Query, policy_values, queries, split, timed
from meshguard.pipeline.bodies import BodyReader
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.decision import Conditional
from meshguard.policy.documents import PolicyDocument
from meshguard.policy.question import Question, principal_of

__all__ = ["entries", "measure", "show"]

SIZES = (10, 1_000, 100_000)
ROUNDS = 25
WHEN = 'request.method != "TRACE" && identity.trust_domain == "prod.example"'
BODY = b'{"amount":4200,"currency":"EUR","items":[{"sku":"a","qty":1},{"sku":"b","qty":2}],"note":"for the rent"}'


def _with_when(document: PolicyDocument, ids: set[str]) -> CompiledPolicy:
    rules = [rule.model_copy(update={"when": WHEN}) if rule.id in ids else rule for rule in document.rules]
    return compile_policy([document.model_copy(update={"rules": rules})])


def _decider(policy: CompiledPolicy, asked: list[Query], *, memo: bool) -> Callable[[], None]:
    """Decides all of them once; with `memo` outlooks are at hand."""
    work = []
    for spiffe_id, method, path in asked:
        question = Question(method, path, (path.lower(),), host="localhost", port=8443, now=1.9e9)
        question.principal = principal_of(spiffe_id)
        outlook = policy.bind(question.principal).outlook
        work.append((outlook, outlook(method, path, (path.lower(),), "localhost", 8443), question, method, path, (path.lower(),)))

    def remembered() -> None:
        for _, outlook, question, _, _, _ in work:
            if isinstance(outlook, Conditional):
                outlook.decide(question)

    def afresh() -> None:
        for outlook, _, question, method, path, readings in work:
            found = outlook(method, path, readings, "localhost", 8443)
            if isinstance(found, Conditional):
                found.decide(question)

    return remembered if memo else afresh


def _linear(values: dict[str, Any], asked: list[Query]) -> Callable[[], None]:
    """A list of rules, each tried: caller, method, path."""

    def expression(text: str) -> str:
        rest = text.endswith("/**")
        inner = re.escape(text.removesuffix("/**"))
        return re.sub(r"\\\{[a-z]+\\\}|\\\*", "[^/]+", inner) + ("(?:/.*)?" if rest else "")

    rules = [
        (
            "allow" in rule,
            None if "deny" in rule else re.compile("|".join(map(expression, rule["allow"]))).fullmatch,
            frozenset(rule.get("methods", ())),
            re.compile("|".join(map(expression, rule.get("paths", ["/**"])))).fullmatch,
        )
        for rule in values["rules"]
    ]

    def run() -> None:
        for spiffe_id, method, path in asked:
            allowed = denied = False
            for allow, caller, methods, matches in rules:
                if (not methods or method in methods) and (caller is None or caller(spiffe_id)) and matches(path):
                    allowed, denied = allowed or allow, denied or not allow
            if denied or not allowed:
                raise AssertionError("the linear policy decides otherwise")

    return run


def measure() -> list[dict[str, float]]:
    """One row for each size, in microseconds a decision."""
    rows = []
    for size in SIZES:
        values: dict[str, Any] = policy_values(size)
        gc.disable()
        document = PolicyDocument.model_validate(values)
        plain = compile_policy([document])
        asked = split(plain, queries(policy_values(SIZES[0])))[0]
        concerned = {rule["id"] for rule in values["rules"][: SIZES[0] + 3]}
        others = {rule["id"] for number, rule in enumerate(values["rules"]) if number % 10 == 0} - concerned
        beside = _with_when(document, others)
        cel = _with_when(document, others | {rule_id for rule_id in concerned if rule_id.startswith("r")})
        gc.enable()
        gc.collect()
        runs = {
            "plain": _decider(plain, asked, memo=False),
            "beside": _decider(beside, asked, memo=False),
            "cel": _decider(cel, asked, memo=False),
            "memo": _decider(cel, asked, memo=True),
        }
        row: dict[str, float] = {"rules": size}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                taken = timed(run) / len(asked) * 1e6
                row[name] = min(taken, row.get(name, taken))
        few = asked[: max(1, min(len(asked), 10_000 // size))]
        linear = _linear(values, few)
        row["linear"] = min(timed(linear) for _ in range(3)) / len(few) * 1e6
        rows.append(row)
    return rows


def bodies() -> dict[str, float]:
    """Microseconds for one small JSON body: judged by a `body` rule and by a `when`, read before and read for it."""
    out = {}
    for name, rule in (("body rule", {"body": {"json": {"$.amount": {"max": 5000}}}}), ("when on body", {"when": "body.amount <= 5000"})):
        policy = compile_policy([PolicyDocument.model_validate({"rules": [{"id": "r", "allow": "anyone", **rule}]})])
        outlook = policy.bind(None).outlook("POST", "/x", ("/x",), "localhost", 8443)
        if not isinstance(outlook, Conditional):
            raise AssertionError("a decision that rests on the body")

        def lines(name: str) -> list[str]:
            return ["application/json"] if name == "content-type" else []

        read = BodyReader("/x", lines, BODY, 1 << 20).read
        held = Question("POST", "/x", ("/x",), host="localhost", port=8443, now=1.9e9, read=read)

        def remembered(outlook: Conditional = outlook, held: Question = held) -> None:
            for _ in range(200):
                outlook.decide(held)

        def afresh(outlook: Conditional = outlook) -> None:
            for _ in range(200):
                reader = BodyReader("/x", lines, BODY, 1 << 20).read
                outlook.decide(Question("POST", "/x", ("/x",), host="localhost", port=8443, now=1.9e9, read=reader))

        for kind, run in (("", remembered), (f", reading {len(BODY)} octets", afresh)):
            out[name + kind] = min(timed(run) for _ in range(ROUNDS)) / 200 * 1e6
    return out


def show(rows: list[dict[str, float]]) -> None:
    """The tables."""
    print(f"CPython {platform.python_version()}; CPU of a decision in microseconds (memo: what an expression adds to each request)")
    names = ("rules", "plain", "beside", "cel", "memo", "linear")
    print("".join(f"{name:>12}" for name in names))
    for row in rows:
        print(f"{row['rules']:>12.0f}" + "".join(f"{row[name]:>12.2f}" for name in names[1:]))
    for name, taken in bodies().items():
        print(f"{name:<40}{taken:>8.2f}")


def entries(rows: list[dict[str, float]]) -> list[dict[str, object]]:
    """Rows of the benchmark report."""
    last = rows[-1]
    shared = {"unit": "us", "python": platform.python_version(), "openssl": ""}
    return [
        {"name": "policy: an expression, added to each request", "ours": last["memo"], "anchor": 6.0, "anchor_name": "target",
         "ratio": last["memo"] / 6.0, "first": 1.0, "aim": 1.0, **shared},
        {"name": "policy: 100 000 rules, expressions beside", "ours": last["beside"], "anchor": last["plain"], "anchor_name": "none",
         "ratio": last["beside"] / last["plain"], "first": 1.1, "aim": 1.0, **shared},
        {"name": "policy: 100 000 rules against a linear list", "ours": last["plain"], "anchor": last["linear"], "anchor_name": "linear",
         "ratio": last["plain"] / last["linear"], "first": 0.01, "aim": 0.001, **shared},
    ]  # fmt: skip
