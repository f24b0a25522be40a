"""The JSON documents that the rows of field protection load, and the rules that protect fields of them.

Lists of orders, dense with short strings (one quote in seven octets): the hard case for whatever looks at structure. The protected values
are members of `$.customer`, card numbers of 16 digits.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.rules import ORDERS

__all__ = ["KEYSET", "KINDS", "NAMES", "PREFIXES", "SIZES", "body_of", "field_rules", "order", "write"]

NAMES = [f"secret{number}" for number in range(10)]
SIZES = (1_000, 10_000, 100_000, 1_000_000)
KINDS = [(size, secrets) for size in SIZES for secrets in (1, 10)]
"""(size, values that are worth protecting) of each document."""
KEYSET = "bench"
PREFIXES = {0: ORDERS + "/none/", 1: ORDERS + "/one/", 10: ORDERS + "/ten/"}
"""Where a request gets a document of which so many fields are protected."""


def order(dice: random.Random, number: int, pad: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "customer": {"name": f"Name {dice.randrange(10**6)}", "email": f"u{number}@example.com", "vip": dice.random() < 0.5},
        "payment": {"card": str(dice.randrange(10**15, 10**16)), "amount": round(dice.random() * 1000, 2), "currency": "EUR"},
        "items": [
            {"sku": f"SKU-{dice.randrange(10**5)}", "qty": dice.randrange(9), "price": dice.random() * 10, "note": None} for _ in range(3)
        ],
        "comment": "lorem ipsum dolor sit amet " * (1 + pad // 27),
    }


def body_of(size: int, secrets_in: int, orders: int | None = None) -> bytes:
    """A document of about `size` octets with so many protected values in front, or with so many orders and the rest without cards."""
    dice = random.Random(size)
    document: dict[str, Any] = {"customer": {name: str(dice.randrange(10**15, 10**16)) for name in NAMES[:secrets_in]}, "orders": []}
    if orders is not None:
        document["orders"] = [order(dice, number) for number in range(orders)]
        document["log"] = []
    target = document["orders"] if orders is None else document["log"]
    text = _dump(document)
    while len(text) < size:
        for _ in range(max(1, (size - len(text)) // 500)):
            item = order(dice, len(target))
            if orders is not None:
                del item["payment"]
            target.append(item)
        text = _dump(document)
    return text


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def field_rules() -> list[dict[str, Any]]:
    """Field rules: nobody reads, so every answer is sealed."""
    return [
        {
            "id": f"secret-{count}",
            "paths": [prefix + "{id}"],
            "on": "response",
            "select": [f"$.customer.{name}" for name in NAMES[:count]],
            "seal": KEYSET,
        }
        for count, prefix in PREFIXES.items()
        if count
    ]


def write(directory: Path) -> list[Path]:
    """The documents as files, by size; their places in this list are what a request names them by."""
    paths = []
    for size, secrets in KINDS:
        path = directory / f"document-{size}-{secrets}.json"
        path.write_bytes(body_of(size, secrets))
        paths.append(path)
    return paths
