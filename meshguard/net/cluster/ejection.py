"""Passive health: an endpoint that keeps failing real requests is taken out for a while (outlier ejection).

in service --(consecutive_failures in a row, share of ejected allows it)--> ejected for eject_s * 2^level, at most CAP * eject_s
ejected    --(time is over)--> in service, level kept
in service --(eject_s without an ejection)--> level - 1
"""

from __future__ import annotations

from meshguard.model.reasons import (
    CONNECT_FAILED,
    CONNECT_TIMEOUT,
    UPSTREAM_MALFORMED,
    UPSTREAM_RESET,
    UPSTREAM_TIMEOUT,
    UPSTREAM_TLS_FAILED,
    Reason,
)
from meshguard.net.cluster.endpoint import Endpoint
from meshguard.net.cluster.settings import EjectionSettings

__all__ = ["BLAMED", "CAP", "Ejection"]

CAP = 10
"""An ejection lasts at most this many times `eject_s` (Envoy: 300 s for a base of 30 s)."""
BLAMED: frozenset[Reason] = frozenset(
    {CONNECT_FAILED, CONNECT_TIMEOUT, UPSTREAM_TLS_FAILED, UPSTREAM_RESET, UPSTREAM_TIMEOUT, UPSTREAM_MALFORMED}
)
"""Reasons that speak against the endpoint; any other is somebody else's fault and changes nothing."""


class Ejection:
    """The rules above; the state is on the endpoints."""

    __slots__ = ("settings",)

    def __init__(self, settings: EjectionSettings) -> None:
        self.settings = settings

    def failed(self, endpoint: Endpoint, out: int, total: int, now: float) -> bool:
        """Count a failure; true when `endpoint` is ejected by it. `out` of `total` endpoints are out of service already."""
        settings = self.settings
        if endpoint.ejected_until:
            return False  # what still fails of the requests in flight is known already
        endpoint.failures += 1
        if not settings.consecutive_failures or endpoint.failures < settings.consecutive_failures:
            return False
        if (out + 1) * 100 > total * settings.max_percent:
            return False  # stays in, and the count stands: it goes as soon as the share allows it and it fails again
        endpoint.failures = 0
        endpoint.ejected_until = now + settings.eject_s * min(2**endpoint.ejection_level, CAP)
        endpoint.ejection_level = min(endpoint.ejection_level + 1, CAP)
        endpoint.stats.ejections += 1
        return True

    def elapsed(self, endpoint: Endpoint, now: float) -> bool:
        """Time passed: true when an ejection of `endpoint` is over by it."""
        if endpoint.ejected_until:
            if now < endpoint.ejected_until:
                return False
            endpoint.ejected_until = 0.0
            endpoint.calm_until = now + self.settings.eject_s
            return True
        if endpoint.ejection_level and now >= endpoint.calm_until:
            endpoint.ejection_level -= 1
            endpoint.calm_until = now + self.settings.eject_s
        return False
