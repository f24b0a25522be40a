"""How many octets may be held to be inspected."""

from __future__ import annotations

from meshguard.model.errors import RequestError
from meshguard.model.reasons import BODY_OVER_LIMIT, INSPECTION_OVERLOADED
from meshguard.pipeline.slices import Slices

__all__ = ["InspectionBudget"]


class InspectionBudget:
    """Octets held for inspection, over all exchanges of a listener, `within` those of the process, whose total holds for both."""

    __slots__ = ("_within", "body_bytes", "held", "slices", "total_bytes")

    def __init__(self, body_bytes: int = 1 << 20, total_bytes: int = 64 << 20, *, within: InspectionBudget | None = None) -> None:
        self._within = within
        self.slices = Slices()  # the work on what is held that takes long
        self.limit(body_bytes, total_bytes)
        self.held = 0

    def limit(self, body_bytes: int, total_bytes: int) -> None:
        """Other limits; what is held stays."""
        self.body_bytes = body_bytes
        self.total_bytes = total_bytes

    def take(self, count: int, size: int) -> None:
        """`count` more octets for a body that then has `size`. Raises RequestError."""
        if size > self.body_bytes:
            raise RequestError(BODY_OVER_LIMIT, f"more than {self.body_bytes} octets")
        if self.held + count > self.total_bytes:
            raise RequestError(INSPECTION_OVERLOADED)
        within = self._within
        if within is not None:
            if within.held + count > within.total_bytes:
                raise RequestError(INSPECTION_OVERLOADED)
            within.held += count
        self.held += count

    def give_back(self, count: int) -> None:
        """`count` octets are no longer held."""
        self.held -= count
        if self._within is not None:
            self._within.held -= count
