"""A connection that carries many calls at a time, as the pool sees it: the carrier itself, and a lease for each call on it."""

from __future__ import annotations

from meshguard.net.cluster.endpoint import Endpoint

__all__ = ["Carrier", "Lease"]


class Carrier:
    """Subclassed by the connection of a protocol with streams. The pool alone changes `lent`, `retired` and `idle_since`.

    `lent`: leases that were not given back. `retired`: it takes no further call and ends with its last one. Whatever ends it or makes it
    unusable for new calls tells the cluster: `lost_carrier`, `withdraw`; more room: `roomier`.
    """

    __slots__ = ("closed", "endpoint", "idle_since", "lent", "retired")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.closed = False
        self.idle_since = 0.0
        self.lent = 0
        self.retired = False

    @property
    def room(self) -> int:
        """Calls that may be begun now beside those that were lent."""
        raise NotImplementedError

    def lease(self) -> Lease:
        """A lease for one call; counts in `lent` until the pool has it back."""
        raise NotImplementedError

    def look(self, now: float) -> None:
        """The sweep's look, once a second: is it still alive?"""

    def close(self) -> None:
        """Ends it: in order where nothing runs. Idempotent, does not wait."""
        raise NotImplementedError


class Lease:
    """A call's part of a carrier: a `Connection` to everybody but the pool."""

    __slots__ = ("carrier", "endpoint", "idle_since")

    carrier: Carrier

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.endpoint = carrier.endpoint
        self.idle_since = 0.0

    @property
    def closed(self) -> bool:
        return self.carrier.closed

    def close(self) -> None:
        self.carrier.close()
