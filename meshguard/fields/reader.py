"""The recipient of a message, whoever that is. A module of its own: a process without field rules needs nothing else of this package."""

from __future__ import annotations

__all__ = ["Reader"]


class Reader:
    """The recipient of a message: its `roles` and, for the record, its `principal`."""

    __slots__ = ("principal", "roles")

    def __init__(self, roles: frozenset[str], principal: str | None = None) -> None:
        self.roles = roles
        self.principal = principal
