"""What protected fields add to a body, in us, and as a ratio to orjson loads + dumps of the same body.

Run: python -m benchmarks.micro.fields. Bodies are lists of orders, dense with short strings (one quote in seven octets): the hard case
for anything that looks at structure. Cases: `none`, a rule that finds nothing; `1 field` and `10 fields`, members of `$.customer` in front
of the list; `10 of list`, `$.orders[*].payment.card` with ten orders (padded to size); `all of list`, the same with orders only; `1 deep`,
a `$..name`. `locate` is finding and proving alone, `aead` the bare AES-256-GCM calls of that many values. All contestants of a row run in
turn in each round, and the minimum of the rounds is taken: on a shared machine anything else measures the neighbours.
"""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import orjson
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.documents import KEYSET, NAMES, SIZES, body_of
from meshguard.fields.compile import compile_fields
from meshguard.fields.json_locate import locate
from meshguard.fields.keyset import DataKey, Keyset, KeyState
from meshguard.fields.selectors import Matcher, parse_selector
from meshguard.fields.transforms import Reader, Transform

ROUNDS = 9


def transform_for(rule: dict[str, Any]) -> Transform:
    """The compiled rule, under a new key. Its path has the parameter `{id}`, or none."""
    keyset = Keyset(KEYSET, [DataKey(1, KeyState.PRIMARY, 0.0, secrets.token_bytes(32), granted=1 << 32)])
    source = SimpleNamespace(file=KEYSET, value=SimpleNamespace(fields=[rule]))
    plan = compile_fields([source], (), {KEYSET: keyset}).plan("GET", rule["paths"][0].replace("{id}", "1"))
    if plan is None or plan.response is None:
        raise SystemExit("no plan")
    return plan.response


def transform_of(select: list[str]) -> Transform:
    return transform_for({"id": "field", "paths": ["/x"], "on": "response", "select": select, "seal": KEYSET})


def reserialise(body: bytes) -> bytes:
    return orjson.dumps(orjson.loads(body))


def encrypt_all(cipher: AESGCM, values: list[bytes]) -> list[bytes]:
    return [cipher.encrypt(bytes(12), value, b"") for value in values]


def interleaved(contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least time of a call, in us."""
    best = dict.fromkeys(contestants, float("inf"))
    calls = {}
    for name, call in contestants.items():
        call()
        begin = time.perf_counter()
        call()
        calls[name] = max(1, int(0.02 / max(1e-7, time.perf_counter() - begin)))
    for _ in range(ROUNDS):
        for name, call in contestants.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                call()
            best[name] = min(best[name], (time.perf_counter() - begin) / calls[name])
    return {name: seconds * 1e6 for name, seconds in best.items()}


def main() -> None:
    print(f"{platform.python_implementation()} {platform.python_version()}, {backend.openssl_version_text()}")
    print(f"{'body':>9} {'case':<11} {'values':>6} {'added us':>9} {'locate us':>9} {'aead us':>8} {'orjson us':>9} {'added/orjson':>12}")
    cipher = AESGCM(secrets.token_bytes(32))
    nobody = Reader(frozenset())
    for size in SIZES:
        for case, select, body in (
            ("none", ["$.customer.absent"], body_of(size, 1)),
            ("1 field", ["$.customer.secret0"], body_of(size, 1)),
            ("10 fields", [f"$.customer.{name}" for name in NAMES], body_of(size, 10)),
            ("10 of list", ["$.orders[*].payment.card"], body_of(size, 1, 10)),
            ("all of list", ["$.orders[*].payment.card"], body_of(size, 1)),
            ("1 deep", ["$..secret0"], body_of(size, 1)),
        ):
            found = transform_of(select)
            matcher = Matcher([parse_selector(text) for text in select], [0] * len(select))
            values = [body[start:end] for _, _, start, end in locate(body, matcher)]
            took = interleaved(
                {
                    "orjson": partial(reserialise, body),
                    "added": partial(found.apply, body, "application/json", nobody, secrets.token_bytes, 0.0),
                    "locate": partial(locate, body, matcher),
                    "aead": partial(encrypt_all, cipher, values),
                }
            )
            print(
                f"{len(body):>9} {case:<11} {len(values):>6} {took['added']:>9.1f} {took['locate']:>9.1f} {took['aead']:>8.1f} "
                f"{took['orjson']:>9.1f} "
                f"{took['added'] / took['orjson']:>12.2f}"
            )


if __name__ == "__main__":
    main()
