"""From configured rate limits to the limiters of listeners, over one table that outlives reloads and is shared by all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from meshguard.telemetry.metrics import Counter, Family, Kind, Registry

if TYPE_CHECKING:
    from meshguard.control.settings.listeners import ListenerConfig
    from meshguard.control.settings.rate_limits import RateLimitConfig
    from meshguard.pipeline.fleet_limits import Account
    from meshguard.pipeline.limit_table import LimitTable, Region
    from meshguard.pipeline.rate_limits import Limiter, RateLimit
    from meshguard.telemetry.metrics import Slot

__all__ = ["RateLimits"]


class RateLimits:
    """Nothing is loaded or mapped before a limit is configured. `descriptor` is of a table that other processes use too; without one,
    a table is made when it is needed."""

    def __init__(self) -> None:
        self.descriptor = -1
        self._shared = False
        self._table: LimitTable | None = None
        self._outcomes: Counter | None = None
        self._regions: dict[str, Region] = {}
        self.accounts: dict[str, Account] = {}  # of limits over the fleet, by id
        self.shares = 1
        self.fleet_secret = b""
        self.on_spent: Callable[[], None] = lambda: None
        self.on_urgent: Callable[[], None] = lambda: None

    def divide(self, shares: int) -> None:
        """Limits over the fleet are divided by so many instances from now on; 1: they are exchanged."""
        self.shares = shares
        for account in self.accounts.values():
            account.shares = shares

    def share(self, descriptor: int) -> None:
        """The table is one that other processes have (or are about to have) too."""
        self.descriptor = descriptor
        self._shared = True
        if self._table is not None:
            self._table.share()

    def limiter(self, config: ListenerConfig, registry: Registry) -> Limiter | None:
        """The limiter of a listener; None where nothing is limited. Raises OSError."""
        if not config.rate_limits:
            return None
        from meshguard.pipeline.limit_table import LimitTable, new_table_file
        from meshguard.pipeline.rate_limits import Limiter

        if self._table is None:
            if self.descriptor < 0:
                self.descriptor = new_table_file()
            self._table = LimitTable(self.descriptor, shared=self._shared)
        if self._outcomes is None:
            self._outcomes = registry.counter(
                "meshguard.rate_limit.requests", "Requests by what a rate limit said of them", "{request}", ("limit", "outcome")
            )
            registry.collect(self._families)
        outcomes = self._outcomes
        made = []
        for limit in config.rate_limits:
            region = self._regions[limit.id] = self._table.region(limit.id)
            counters = (outcomes.labels(limit.id, "allowed"), outcomes.labels(limit.id, "would_refuse" if limit.shadow else "refused"))
            made.append((self._limit(limit, region, counters), frozenset(limit.routes), limit.before == "decision"))
        return Limiter(made)

    def _limit(self, limit: RateLimitConfig, region: Region, counters: tuple[Slot, Slot]) -> RateLimit:
        from meshguard.pipeline.rate_limits import RateLimit

        burst = limit.burst if limit.burst is not None else limit.requests
        if limit.scope == "node":
            return RateLimit(limit.id, limit.key, limit.requests, limit.per_s, burst, limit.shadow, region, counters)
        from meshguard.pipeline.fleet_limits import Account, FleetRateLimit

        account = self.accounts.get(limit.id)
        if account is None:
            account = self.accounts[limit.id] = Account(limit.id, self.fleet_secret, self.on_spent, self.on_urgent)
            account.shares = self.shares
        made = FleetRateLimit(limit.id, limit.key, limit.requests, limit.per_s, burst, limit.shadow, region, counters)
        return made.share(account, burst)

    def _families(self) -> Iterator[Family]:
        table = self._table
        if table is not None:
            yield Family(
                "meshguard.rate_limit.crowded",
                Kind.COUNTER,
                "Keys that began with the debt of another, because more are alive than are remembered",
                "{key}",
                ("limit",),
                [((name,), region.crowded) for name, region in self._regions.items()],
            )
            yield Family(
                "meshguard.rate_limit.unlocked",
                Kind.COUNTER,
                "Times that a lock of the table was not had within 2 ms, and one request may have gone uncounted",
                "{request}",
                (),
                [((), table.mutexes.timeouts)],
            )
