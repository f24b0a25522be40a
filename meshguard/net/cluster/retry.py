"""How much retrying a cluster stands: a share of what is in flight, so that retries cannot double the load of an outage."""

from __future__ import annotations

from meshguard.net.cluster.settings import RetrySettings

__all__ = ["FLOOR", "RetryBudget"]

FLOOR = 3
"""Retries in flight that are always allowed: at low traffic a percentage rounds to nothing (Envoy's default as well)."""


class RetryBudget:
    """Counts the retries in flight (waiting for a connection or holding one).

    INVARIANT: `active` is never negative; it changes only when a retried call enters or leaves the cluster.
    """

    __slots__ = ("active", "granted", "refused", "settings")

    def __init__(self, settings: RetrySettings) -> None:
        self.settings = settings
        self.active = 0
        self.granted = 0
        self.refused = 0

    def allows(self, attempts: int, in_flight: int, most: int | None = None) -> bool:
        """May a call that was already tried again `attempts` times be tried once more, with `in_flight` calls in the cluster? `most` is
        the call's own bound, None for the setting."""
        settings = self.settings
        allowed = attempts < (settings.attempts if most is None else most) and self.active < max(
            FLOOR, in_flight * settings.budget_percent // 100
        )
        if allowed:
            self.granted += 1
        else:
            self.refused += 1
        return allowed
