"""All clusters of this process by name: reload, one sweep a second for all of them, drain and close."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.dial import Connect
from meshguard.net.cluster.health import Opener
from meshguard.net.cluster.resolve import Lookup, lookup
from meshguard.net.cluster.settings import ClusterSettings
from meshguard.net.cluster.state import ClusterState
from meshguard.net.cluster.tasks import Tasks

__all__ = ["SWEEP_S", "Clusters", "Transport"]

SWEEP_S = 1.0
"""Granularity of idle time-outs and of the return from ejection."""

_log = logging.getLogger(__name__)


class Transport(NamedTuple):
    """How a cluster reaches its endpoints: for requests, and for health checks where there are any."""

    connect: Connect
    opener: Opener | None = None


class Clusters:
    """The clusters that the newest configuration names, and those that it no longer names until they are drained."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, find: Lookup = lookup) -> None:
        self._clock = clock
        self._find = find
        self._named: dict[str, Cluster] = {}
        self._retired: set[Cluster] = set()
        self._tasks = Tasks("clusters")
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __getitem__(self, name: str) -> Cluster:
        return self._named[name]

    def __len__(self) -> int:
        return len(self._named)

    def snapshot(self) -> tuple[ClusterState, ...]:
        """The named clusters' states, in the order of the configuration."""
        return tuple(cluster.snapshot() for cluster in self._named.values())

    def apply(self, settings: Mapping[str, ClusterSettings], transports: Mapping[str, Transport], drain_s: float) -> None:
        """Make the named clusters those of `settings`; needs the running loop. A new cluster needs its transport; one that stays
        keeps endpoints and pools, and `transports` names it only when its transport changed (its connections are then recycled). One
        that is gone finishes what it carries, within `drain_s`. Raises ValueError or KeyError before anything has changed."""
        if self._closed:
            raise RuntimeError("the clusters are closed")
        fresh: dict[str, Cluster] = {}
        for name, wanted in settings.items():
            if name not in self._named:
                transport = transports[name]
                fresh[name] = Cluster(name, wanted, transport.connect, self._clock, opener=transport.opener, find=self._find)
            else:
                given = transports.get(name)
                self._named[name].require(wanted, given.opener if given is not None else None)
        named: dict[str, Cluster] = {}
        for name, wanted in settings.items():
            cluster = named[name] = fresh.get(name) or self._named[name]
            if name in fresh:
                cluster.start()
            else:
                given = transports.get(name)
                cluster.reconfigure(wanted, *(given or ()))
        gone = [cluster for name, cluster in self._named.items() if name not in named]
        self._named = named
        for cluster in gone:
            self._retired.add(cluster)
            self._tasks.spawn(self._retire(cluster, drain_s), f"retire {cluster.name}")
        if self._timer is None:
            self._sweep()

    async def drain(self) -> None:
        """Wait until nothing is in flight in any cluster; the caller sets the deadline. Background work ends at once."""
        async with asyncio.TaskGroup() as group:
            for cluster in [*self._named.values(), *self._retired]:
                group.create_task(cluster.drain())

    async def close(self) -> None:
        """End everything now."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close()
        for cluster in [*self._named.values(), *self._retired]:
            await cluster.close()

    async def _retire(self, cluster: Cluster, drain_s: float) -> None:
        try:
            async with asyncio.timeout(drain_s):
                await cluster.drain()
        except TimeoutError:
            _log.warning("cluster %s: requests were cut after %g s of draining", cluster.name, drain_s)
        await cluster.close()
        self._retired.discard(cluster)

    def _sweep(self) -> None:
        now = self._clock()
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        for cluster in [*self._named.values(), *self._retired]:
            cluster.sweep(now)
