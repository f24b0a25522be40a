"""Which of the usable endpoints a request goes to.

Least request: an exact minimum is affordable for few endpoints; for many, the better of two random ones comes within a constant
of it (M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001) at a cost that does not grow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from meshguard.net.cluster.endpoint import Endpoint

__all__ = ["FEW", "Balancer", "LeastRequest", "RoundRobin"]

FEW = 16
"""Up to here every endpoint is looked at (measured: 0.4 us for 16 busy ones)."""


class Balancer:
    """Picks one of a non-empty list; keeps its place over changes of the list."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = -1

    def pick(self, usable: Sequence[Endpoint]) -> Endpoint:
        """The endpoint for the next request; `usable` is not empty."""
        raise NotImplementedError

    def again(self) -> None:
        """The last pick had no connection at hand and its call will ask again: it is the same endpoint's turn. (Else, with two
        endpoints, a look and a submission at each request would always be the same one's.)"""
        self._turn -= self._turn >= 0


class RoundRobin(Balancer):
    """Each in turn."""

    __slots__ = ()

    def pick(self, usable: Sequence[Endpoint]) -> Endpoint:
        turn = self._turn + 1
        if turn >= len(usable):
            turn = 0
        self._turn = turn
        return usable[turn]


class LeastRequest(Balancer):
    """The fewest requests in flight; ties go round, so an idle cluster is used evenly and a free endpoint is found at once."""

    __slots__ = ("_random",)

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        super().__init__()
        self._random = draw

    def pick(self, usable: Sequence[Endpoint]) -> Endpoint:
        count = len(usable)
        turn = self._turn + 1
        if turn >= count:
            turn = 0
        self._turn = turn
        best = usable[turn]
        low = best.in_flight
        if not low:
            return best
        if count > FEW:
            # the turn is one choice, chance the other: two different endpoints, since the offset is in 1..count-1
            other = usable[turn - 1 - int(self._random() * (count - 1))]
            return other if other.in_flight < low else best
        for endpoint in usable:
            if endpoint.in_flight < low:
                low = endpoint.in_flight
                best = endpoint
        return best
