"""The endpoints of a cluster and which of them may be used now.

Usable is an endpoint whose active check does not say otherwise and that is not ejected. When none is left the answer is
NO_ENDPOINT: a security proxy takes its health verdicts at their word, and a quick refusal is better than requests, possibly not
repeatable ones, sent into the dark. `panic_percent` chooses Envoy's behaviour instead: below that share of usable endpoints the
verdicts are taken for wrong and all endpoints are used. Either way each connection is still authenticated by `connect`.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshguard.model.reasons import Reason
from meshguard.net.cluster.ejection import BLAMED, Ejection
from meshguard.net.cluster.endpoint import Address, Endpoint
from meshguard.net.cluster.settings import ClusterSettings

__all__ = ["Members"]


class Members:
    """`endpoints` by key, the `usable` ones among them in order, and those `leaving` (gone from the set, with requests in flight).

    Every method that can change `usable` returns the endpoints that just fell out of service, whose idle connections are to be
    closed; the list object `usable` is replaced, never changed.
    """

    __slots__ = ("_ejection", "_panic_percent", "ejections", "endpoints", "leaving", "panic", "usable")

    def __init__(self, settings: ClusterSettings) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.leaving: dict[str, Endpoint] = {}
        self.usable: list[Endpoint] = []
        self.panic = False
        self.ejections = 0
        self.configure(settings)

    def configure(self, settings: ClusterSettings) -> None:
        """Take other rules; verdicts reached under the old ones stand until they are revised."""
        self._ejection = Ejection(settings.ejection)
        self._panic_percent = settings.panic_percent
        if settings.health is None:
            for endpoint in self.endpoints.values():
                endpoint.healthy = None
        self.rebuild()

    def rebuild(self) -> list[Endpoint]:
        """Recompute `usable`; the endpoints that left it."""
        everyone = list(self.endpoints.values())
        before = self.usable
        chosen = [endpoint for endpoint in everyone if endpoint.healthy is not False and not endpoint.ejected_until]
        self.panic = len(chosen) * 100 < len(everyone) * self._panic_percent
        if self.panic:
            chosen = everyone
        kept = set(chosen)
        for endpoint in everyone:
            endpoint.usable = endpoint in kept
        self.usable = chosen
        return [endpoint for endpoint in before if endpoint not in kept]

    def update(self, wanted: Iterable[Address]) -> tuple[list[Endpoint], list[Endpoint]]:
        """Make the set equal to `wanted`: (added, removed). Endpoints that stay keep pool, health and ejection; one that comes
        back while it is leaving is taken up again as it was, so that a flapping name does not wipe an ejection."""
        addresses = {address.key: address for address in wanted}
        removed = [endpoint for key, endpoint in self.endpoints.items() if key not in addresses]
        added = []
        kept: dict[str, Endpoint] = {}
        for key, address in addresses.items():
            endpoint = self.endpoints.get(key)
            if endpoint is None:
                endpoint = self.leaving.pop(key, None) or Endpoint(address)
                endpoint.gone = False
                added.append(endpoint)
            endpoint.address = address
            kept[key] = endpoint
        for endpoint in removed:
            endpoint.gone = True
            endpoint.usable = False
            if endpoint.busy or endpoint.connecting:
                self.leaving[endpoint.key] = endpoint
        self.endpoints = kept
        self.rebuild()
        return added, removed

    def forget(self, endpoint: Endpoint) -> None:
        """Drop a leaving endpoint once nothing is left on it."""
        if endpoint.gone and not endpoint.busy and not endpoint.connecting and self.leaving.get(endpoint.key) is endpoint:
            del self.leaving[endpoint.key]

    def failed(self, endpoint: Endpoint, reason: Reason | None, now: float) -> list[Endpoint]:
        """A request or dial failed on `endpoint`; None stands for a status that counts as a failure."""
        if endpoint.gone or (reason is not None and reason not in BLAMED):
            return []
        out = sum(1 for other in self.endpoints.values() if other.ejected_until or other.healthy is False)
        if endpoint.healthy is False:
            out -= 1  # it is out already; ejecting it takes nobody else away
        if self._ejection.failed(endpoint, out, len(self.endpoints), now):
            self.ejections += 1
            return self.rebuild()
        return []

    def checked(self, endpoint: Endpoint, healthy: bool) -> list[Endpoint]:
        """The active check's verdict."""
        if endpoint.healthy is healthy or endpoint.gone:
            return []
        endpoint.healthy = healthy
        return self.rebuild()

    def elapsed(self, now: float) -> bool:
        """Time passed: true when an endpoint came back from ejection."""
        back = [self._ejection.elapsed(endpoint, now) for endpoint in self.endpoints.values()]
        if any(back):
            self.rebuild()
            return True
        return False
