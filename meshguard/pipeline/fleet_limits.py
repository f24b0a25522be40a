"""Rate limits over a whole fleet: every instance counts by itself, tells the others what it let through, and counts what they tell.

No request waits for anybody: a bucket is the node's own (`limit_table`), and what others have let through is taken from it when they tell,
even below empty. So between two tellings each instance may give away what its bucket still has, the fleet together too much by at most that
of the others; but what was too much is owed, and the rate in the long run is kept.

Keys travel as hashes. When the store is away, each instance takes its share: the limit divided by the instances that were last heard of.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

from meshguard.pipeline.limit_table import Handle
from meshguard.pipeline.rate_limits import RateLimit

if TYPE_CHECKING:
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.facts import RequestFacts
    from meshguard.pipeline.limit_table import Region

__all__ = ["Account", "FleetRateLimit"]

MAX_KEYS = 16384
"""Keys that are told of in one exchange: as many as a table remembers. What others beyond them let through is not told, and counted."""
_URGENT = 8
"""A share of the burst that is told of at once, rather than at the next exchange."""


class _NamedHandle(Handle):
    __slots__ = ("name",)

    def __init__(self, handle: Handle, name: bytes) -> None:
        super().__init__(handle.tag, handle.slot, handle.mutex)
        self.name = name


class Account:
    """What this process has let through under one limit since it last told, by hash of the key. It outlives reloads. `shares` is by how
    many instances the limit is divided (1: exchanged with the others); `spent` and `urgent` are called when there is something to tell."""

    __slots__ = ("charged", "current", "id", "kept", "secret", "shares", "spent", "untold", "urgent")

    def __init__(self, id: str, secret: bytes, spent: Callable[[], None], urgent: Callable[[], None]) -> None:
        self.id = id
        self.secret = secret
        self.kept: dict[bytes, int] = {}
        self.shares = 1
        self.spent = spent
        self.urgent = urgent
        self.current: FleetRateLimit | None = None
        self.charged = 0
        self.untold = 0

    def collect(self) -> dict[bytes, int]:
        """What is to be told now; the account is empty then."""
        kept, self.kept = self.kept, {}
        return kept

    def charge(self, name: bytes, count: int, now: float, instances: int) -> None:
        """Another instance has let `count` requests of this key through. `instances`: so many buckets can be owed at most."""
        limit = self.current
        if limit is not None:
            self.charged += count
            limit.charge(name, count, now, instances)


class FleetRateLimit(RateLimit):
    """A rate limit whose bucket is shared by exchange. `account` stays over reloads."""

    __slots__ = ("_account", "_base", "_burst", "_shares", "_urgent_at")

    def share(self, account: Account, burst: int) -> FleetRateLimit:
        """Begins to count into `account`."""
        self._account = account
        self._base = self.interval
        self._burst = self.capacity
        self._shares = 1
        self._urgent_at = max(1, burst // _URGENT)
        if account.current is None:
            account.current = self
        return self

    def take(self, exchange: Exchange, facts: RequestFacts | None, now: float) -> float:
        account = self._account
        if account.shares != self._shares or account.current is not self:
            self._settle(account)
        room = super().take(exchange, facts, now)
        if room >= 0.0:
            kept = account.kept
            name = self._last.name  # type: ignore[union-attr]  # `_handle_of` makes no other
            count = kept.get(name, 0) + 1
            if count > 1 or len(kept) < MAX_KEYS:
                kept[name] = count
                account.spent()
                if count == self._urgent_at:
                    account.urgent()
            else:
                account.untold += 1
        return room

    def give_back(self) -> None:
        super().give_back()
        kept, last = self._account.kept, self._last
        if isinstance(last, _NamedHandle) and kept.get(last.name, 0) > 0:
            kept[last.name] -= 1

    def charge(self, name: bytes, count: int, now: float, instances: int) -> None:
        """See `Account.charge`."""
        region: Region = self._region
        region.charge(region.handle(name), now, count * self._base, self._burst * max(2, instances))

    def _settle(self, account: Account) -> None:
        """The limit in force is this one, by so many shares."""
        account.current = self
        self._shares = account.shares
        self.interval = self._base * account.shares
        self.capacity = max(self._burst, self.interval * 1.0001)  # one request at least

    def _handle_of(self, key: bytes) -> Handle:
        name = blake2b(key, key=self._account.secret, digest_size=12).digest()
        return _NamedHandle(self._region.handle(name), name)
