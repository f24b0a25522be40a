"""What a decision costs, by number of rules: `python -m benchmarks.micro.policy [--json]`.

Every figure is of a memo miss: `Binding.outlook` itself, which the data plane calls once for each (identity, method, authority, target)
and then remembers. The policies are synthetic: services with their own identity (85 %) or a pattern, literal, parameter and `/**` paths,
three deny rules for everyone. Every policy holds the ten rules of the smallest one.

    same       the requests of the smallest policy, asked of each: what do rules cost that cannot match? This gives the ratio.
    varied     400 requests of as many callers and rules as the policy has: in a large one nearly nothing is in the CPU's cache
    denied     requests that no rule allows, with the search for the nearest miss

CPU time of this process, the best of many short rounds (a busy neighbour only ever adds); sizes are interleaved.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.documents import PolicyDocument
from meshguard.policy.question import principal_of

SIZES = (10, 1_000, 10_000, 100_000)
QUERIES = 400
ROUNDS = 60
METHODS = (["GET"], ["GET", "POST"], ["POST"], ["PUT", "DELETE"])

Query = tuple[str, str, str]


def policy_values(count: int, seed: int = 3) -> dict[str, object]:
    """A policy document of `count` allow rules and three deny rules, as plain values."""
    rng = random.Random(seed)
    services, spread = 2, 5
    rules: list[dict[str, object]] = [
        {"id": "no-admin", "deny": "anyone", "paths": ["/admin/**"]},
        {"id": "no-debug", "deny": "anyone", "paths": ["/debug/**", "/{service}/debug/**"]},
        {"id": "no-trace", "deny": "anyone", "methods": ["TRACE"]},
    ]
    for number in range(count):
        if number == SIZES[0]:  # what comes now must not touch the callers and paths of the first
            services, spread = max(2, count // 10), max(5, count // 5)
        kind = rng.random()
        namespace = f"ns{number % 7}"
        if kind < 0.85:
            caller = f"spiffe://prod.example/ns/{namespace}/sa/svc{rng.randrange(services)}"
        else:
            caller = f"spiffe://prod.example/ns/{namespace}/sa/job{rng.randrange(services)}-*"
        base = f"/api/v{rng.randrange(3)}/res{rng.randrange(spread)}"
        path = base + rng.choice(("", "/**", "/{id}", "/{id}/items", "/{id}/items/{item}"))
        rules.append({"id": f"r{number}", "allow": [caller], "methods": list(rng.choice(METHODS)), "paths": [path]})
    return {"rules": rules}


def queries(values: dict[str, object], seed: int = 5) -> list[Query]:
    """(SPIFFE ID, method, path) of requests, four of five of which some rule allows."""
    rng = random.Random(seed)
    rules = [rule for rule in values["rules"] if "allow" in rule]  # type: ignore[attr-defined]
    made = []
    for _ in range(QUERIES):
        rule = rng.choice(rules)
        path = rule["paths"][0].replace("{id}", str(rng.randrange(10**6))).replace("{item}", "z9").replace("/**", "/a/b")
        if rng.random() < 0.2:
            path = "/nope" + path
        made.append((rule["allow"][0].replace("*", "7f9c"), rule["methods"][0], path))
    return made


def timed(work: Callable[[], None]) -> float:
    """Seconds of CPU."""
    start = time.process_time_ns()
    work()
    return (time.process_time_ns() - start) / 1e9


def measure() -> list[dict[str, object]]:
    """One row for each size."""
    rows: list[dict[str, object]] = []
    cases: list[tuple[dict[str, object], dict[str, tuple[Callable[[], None], int]]]] = []
    smallest = queries(policy_values(SIZES[0]))
    for size in SIZES:
        values = policy_values(size)
        gc.disable()  # as the control plane does while it loads a policy
        start = time.process_time()
        document = PolicyDocument.model_validate(values)
        validated = time.process_time() - start
        tracemalloc.start() if size <= 10_000 else None
        start = time.process_time()
        policy = compile_policy([document])
        compiled = time.process_time() - start
        if tracemalloc.is_tracing():
            megabytes = tracemalloc.get_traced_memory()[0] / 1e6
            tracemalloc.stop()
            start = time.process_time()
            policy = compile_policy([document])
            compiled = time.process_time() - start
        else:
            megabytes = float("nan")
        gc.enable()
        asked = queries(values)
        row: dict[str, object] = {"rules": size, "validate_s": validated, "compile_s": compiled, "policy_mb": megabytes}
        row |= bind_cost(policy, asked)
        allowed, denied = split(policy, asked)
        kinds = {"same": split(policy, smallest)[0], "varied": allowed, "denied": denied}
        rows.append(row)
        cases.append((row, {kind: (runner(policy, chosen), len(chosen)) for kind, chosen in kinds.items()}))
    gc.collect()
    gc.freeze()
    for _ in range(ROUNDS):
        for row, runs in cases:
            for kind, (run, count) in runs.items():
                taken = timed(run) / count / REPEATS * 1e9
                row[f"{kind}_ns"] = min(taken, float(row.get(f"{kind}_ns", taken)))  # type: ignore[arg-type]
    return rows


REPEATS = 2


def bind_cost(policy: CompiledPolicy, asked: list[Query]) -> dict[str, object]:
    """Microseconds for the first bind of an identity, on average and at worst."""
    taken = []
    for spiffe_id in dict.fromkeys(query[0] for query in asked):
        principal = principal_of(spiffe_id)
        start = time.process_time_ns()
        policy.bind(principal)
        taken.append((time.process_time_ns() - start) / 1e3)
    return {"bind_us": statistics.median(taken), "bind_worst_us": max(taken)}


def split(policy: CompiledPolicy, asked: list[Query]) -> tuple[list[Query], list[Query]]:
    """Requests that are allowed, and the others."""
    allowed, denied = [], []
    for query in asked:
        verdict = policy.bind(principal_of(query[0])).outlook(query[1], query[2], (query[2].lower(),), "localhost", 8443)
        (allowed if type(verdict).__name__ == "Permit" else denied).append(query)
    return allowed, denied


def runner(policy: CompiledPolicy, asked: list[Query]) -> Callable[[], None]:
    """Decides all of them REPEATS times."""
    bound = [(policy.bind(principal_of(spiffe_id)).outlook, method, path, (path.lower(),)) for spiffe_id, method, path in asked]

    def run() -> None:
        for _ in range(REPEATS):
            for outlook, method, path, readings in bound:
                outlook(method, path, readings, "localhost", 8443)

    return run


def main() -> None:
    """Print the table, or with --json the rows as they go into the benchmark report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cel", action="store_true", help="what expressions and bodies add (benchmarks.micro.policy_cel)")
    arguments = parser.parse_args()
    if arguments.cel:
        from benchmarks.micro import policy_cel

        added = policy_cel.measure()
        print(json.dumps(policy_cel.entries(added), indent=2)) if arguments.json else policy_cel.show(added)
        return
    rows = measure()
    ratio = float(rows[-1]["same_ns"]) / float(rows[0]["same_ns"])  # type: ignore[arg-type]
    if arguments.json:
        entry = {
            "name": "policy: 100 000 rules against 10",
            "ours": rows[-1]["same_ns"],
            "anchor": rows[0]["same_ns"],
            "anchor_name": "10 rules",
            "unit": "ns",
            "ratio": ratio,
            "first": 1.5,
            "aim": 1.1,
            "python": platform.python_version(),
            "openssl": "",
        }
        print(json.dumps([entry], indent=2))
        return
    print(f"CPython {platform.python_version()}; CPU of a decision without memo; ratio 100 000 / 10 rules (same requests): {ratio:.2f}")
    columns = ("rules", "same_ns", "varied_ns", "denied_ns", "bind_us", "bind_worst_us", "compile_s", "validate_s", "policy_mb")
    print("".join(f"{name:>14}" for name in columns))
    for row in rows:
        print("".join(f"{row[name]:>14.{2 if name.endswith('_s') else 1 if '_' in name else 0}f}" for name in columns))


if __name__ == "__main__":
    main()
