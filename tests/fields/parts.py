"""Keysets, rules and readers for the tests of fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from meshguard.fields.compile import CompiledFields, compile_fields
from meshguard.fields.keyset import DataKey, Keyset, KeyState
from meshguard.fields.transforms import Reader, Transform
from meshguard.model.errors import RequestError
from meshguard.model.reasons import Reason

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
ROLES = ("billing", "support", "mail", "app")
RULE: dict[str, Any] = {
    "id": "card-number",
    "paths": ["/orders/{id}"],
    "on": "response",
    "select": "$.payment.card",
    "seal": "orders-pii",
    "readers": {"billing": "open", "support": {"mask": "last4"}},
}


def keyset(name: str = "orders-pii", *materials: bytes, states: tuple[KeyState, ...] = (), granted: int = 1 << 20) -> Keyset:
    materials = materials or (KEY,)
    states = states or (KeyState.ENABLED,) * (len(materials) - 1) + (KeyState.PRIMARY,)
    keys = [
        DataKey(number + 1, state, 0.0, None if state is KeyState.DESTROYED else material, granted=granted)
        for number, (material, state) in enumerate(zip(materials, states, strict=True))
    ]
    return Keyset(name, keys)


def compiled(*rules: dict[str, Any], keysets: tuple[Keyset, ...] = ()) -> CompiledFields:
    source = SimpleNamespace(file="p.yaml", value=SimpleNamespace(fields=list(rules)))
    return compile_fields([source], ROLES, {item.name: item for item in keysets or (keyset(),)})


def transform(*rules: dict[str, Any], keysets: tuple[Keyset, ...] = (), path: str = "/orders/7", direction: str = "response") -> Transform:
    plan = compiled(*rules, keysets=keysets).plan("GET", path)
    assert plan is not None
    found = plan.response if direction == "response" else plan.request
    assert found is not None
    return found


def reader(*roles: str) -> Reader:
    return Reader(frozenset(roles))


class Counter:
    """Nonces that count, so that results are known and a repeated one would be seen. `count` is how many were drawn."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, size: int) -> bytes:
        drawn = range(self.count + 1, self.count + 1 + size // 12)
        self.count = drawn.stop - 1
        return b"".join(number.to_bytes(12) for number in drawn)


def apply(found: Transform, body: bytes, *roles: str, nonces: Callable[[int], bytes] | None = None) -> bytes:
    return found.apply(body, "application/json", reader(*roles), nonces or Counter(), 0.0).body


def envelope_of(body: bytes, *path: str) -> str:
    value = json.loads(body)
    for name in path:
        value = value[name]
    assert isinstance(value, str)
    return value


def outcome(found: Transform, body: bytes, *roles: str) -> bytes | Reason:
    """The new body, or why there is none."""
    try:
        return apply(found, body, *roles)
    except RequestError as error:
        return error.reason
