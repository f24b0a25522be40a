"""What is wrong: with a request, or with the document that describes requests."""

from __future__ import annotations

import json
from collections.abc import Sequence

__all__ = ["ContractError", "UnknownOperation", "Violation", "pointer"]

LONGEST_PLACE = 256
"""Characters of a place: member names are the client's."""


class Violation(Exception):
    """A request breaks its contract. `place` is where in the request (`body/items/0/qty`): it holds names that the client chose and is for
    the client only. `rule` is what in the contract: made of the contract's own text, fit for records."""

    def __init__(self, place: str, rule: str) -> None:
        super().__init__(rule)
        self.place = place[:LONGEST_PLACE]
        self.rule = rule


class UnknownOperation(Violation):
    """The contract does not know what is called."""


class ContractError(Exception):
    """A contract cannot be compiled. `problems` are (path in the document, what was expected)."""

    def __init__(self, problems: Sequence[tuple[tuple[str | int, ...], str]]) -> None:
        super().__init__("; ".join(f"{pointer(path)}: {text}" for path, text in problems))
        self.problems = list(problems)


def pointer(path: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901), printable: what is not ASCII is escaped as in JSON."""
    text = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return json.dumps(text)[1:-1].replace('\\"', '"')
