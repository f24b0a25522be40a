"""A cluster as the journey and the control plane see it: requests on one side, life cycle and changes on the other.

Per request: `checkout`, `release`, `discard`; the slow way: `submit`, `cancel`, `may_retry` (see pool and line). Here: start, endpoint
changes from name resolution and reload, health verdicts, the sweep, drain and close.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from meshguard.model.reasons import NO_ENDPOINT
from meshguard.net.cluster.dial import Connect
from meshguard.net.cluster.endpoint import Address, Endpoint
from meshguard.net.cluster.health import Checks, Opener
from meshguard.net.cluster.line import Line
from meshguard.net.cluster.resolve import Lookup, Names, is_literal, lookup
from meshguard.net.cluster.settings import ClusterSettings
from meshguard.net.cluster.state import ClusterState, observe

__all__ = ["Cluster"]


class Cluster(Line):
    """One upstream cluster of this process. Not thread-safe: everything happens on the loop.

    `connect` opens a connection (see `dial.Connect`), `clock` is monotonic seconds, `opener` opens the stream of a health check
    (needed when checks are configured), `find` looks up host names. Static endpoints can be used before `start`.
    """

    def __init__(
        self,
        name: str,
        settings: ClusterSettings,
        connect: Connect,
        clock: Callable[[], float] = time.monotonic,
        *,
        opener: Opener | None = None,
        find: Lookup = lookup,
    ) -> None:
        super().__init__(name, settings, connect, clock)
        self._opener = opener
        self._find = find
        self._names: Names | None = None
        self._checks: Checks | None = None
        self.require(settings)
        addresses = settings.addresses()
        dynamic = settings.resolve == "dns" and not all(is_literal(address.host) for address in addresses)
        self._unresolved = dynamic
        if not dynamic:
            self.members.update(addresses)

    def __repr__(self) -> str:
        return f"Cluster({self.name}, endpoints={len(self.members.endpoints)}, in_flight={self._in_flight})"

    def start(self) -> None:
        """Begin name resolution and health checks; needs the running loop."""
        self._follow()
        self._check()

    def snapshot(self) -> ClusterState:
        """Endpoints, gauges and counters now."""
        return observe(self)

    # changes

    def reconfigure(self, settings: ClusterSettings, connect: Connect | None = None, opener: Opener | None = None) -> None:
        """Take other settings. Endpoints that stay keep their pools; those that go finish what they carry. A new `connect` means
        that the old connections must not be used for further requests (see `recycle`)."""
        if self._closed:
            raise RuntimeError(f"cluster {self.name} is closed")
        self.require(settings, opener)
        if opener is not None:
            self._opener = opener
        before = self.settings
        self._configure(settings)
        for endpoint in self.members.endpoints.values():
            surplus = len(endpoint.idle) - settings.circuit.max_idle
            if surplus > 0:
                self._close_idle(endpoint, surplus)
        if (settings.endpoints, settings.resolve, settings.refresh_s) != (before.endpoints, before.resolve, before.refresh_s):
            if settings.resolve == "dns":
                self._follow()
            else:
                self._unfollow()
                self._change(settings.addresses())
        if settings.health != before.health or opener is not None:
            self._check()
        if connect is not None:
            self._connect = connect
            self.recycle()
        self._pump()
        self._answer()

    def recycle(self) -> None:
        """Use no connection that is open now, or opening, for another request: an identity or a trust bundle changed. Idle ones are
        closed at once, busy ones after their request, and calls that wait for a dial get a new one."""
        for endpoint in self.members.endpoints.values():
            self._retire(endpoint)
        for dial in list(self._dials):
            self._abandon(dial)
        self._pump()
        self._answer()

    def sweep(self, now: float) -> None:
        """Once a second, by the owner of all clusters: moves the coarse clock, ends ejections, closes connections that have been
        idle for `idle_s` (up to a second early, never late by more than the sweep is)."""
        self._now = now
        if self.members.elapsed(now):
            self._pump()
            self._answer()
        oldest = now - self.settings.timeouts.idle_s
        for endpoint in self.members.endpoints.values():
            idle = endpoint.idle
            if idle and idle[0].idle_since <= oldest:
                self._close_idle(endpoint, sum(1 for conn in idle if conn.idle_since <= oldest))
        for carrier in list(self.carriers):
            if not carrier.lent and carrier.idle_since <= oldest:
                self._dismiss(carrier)
            else:
                carrier.look(now)

    async def drain(self) -> None:
        """Let what is in flight finish: nothing is pooled any more, background work ends. Calls are still served, since an exchange
        may be pinned to the configuration that named this cluster. Returns when nothing is left; the caller sets the deadline."""
        if not self._draining:
            self._draining = True
            self._unfollow()
            self._uncheck()
            for endpoint in self.members.endpoints.values():
                self._retire(endpoint)
            self._answer()
        await self._quiet.wait()

    async def close(self) -> None:
        """End everything now: waiting calls fail, connections are closed, tasks are cancelled and awaited."""
        self._closed = self._draining = True
        self._unfollow()
        self._uncheck()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for dial in list(self._dials):
            self._abandon(dial)
        for ticket in list(self._waiting):
            self._refuse(ticket, NO_ENDPOINT, "the cluster is closed")
        for endpoint in [*self.members.endpoints.values(), *self.members.leaving.values()]:
            self._retire(endpoint)
            for conn in list(endpoint.busy):
                conn.close()
        self._answer()
        await self._tasks.close()

    # endpoints

    def _follow(self) -> None:
        """(Re)start name resolution where it is configured."""
        former, self._names = self._names, None
        if self.settings.resolve != "dns" or self._draining:
            return
        names = Names(self.settings.addresses(), self.settings.refresh_s, self._tasks, self._resolved, self._find)
        if former is not None:
            former.stop()
            names.inherit(former)
        self._names = names
        self._resolved(names.addresses())

    def _unfollow(self) -> None:
        if self._names is not None:
            self._names.stop()
            self._names = None
        self._unresolved = False

    def _resolved(self, addresses: list[Address]) -> None:
        self._unresolved = self._names is not None and self._names.pending
        self._change(addresses)

    def _change(self, addresses: Iterable[Address]) -> None:
        """The endpoint set is now `addresses`."""
        added, removed = self.members.update(addresses)
        for endpoint in removed:
            self._retire(endpoint)
            for dial in [dial for dial in self._dials if dial.endpoint is endpoint]:
                self._abandon(dial)
            if self._checks is not None:
                self._checks.leave(endpoint)
        if self._checks is not None:
            for endpoint in added:
                self._checks.watch(endpoint)
        self._pump()
        self._answer()

    # health

    def require(self, settings: ClusterSettings, opener: Opener | None = None) -> None:
        """Raises ValueError when this cluster cannot take `settings` (together with `opener`)."""
        if settings.health is not None and opener is None and self._opener is None:
            raise ValueError(f"cluster {self.name}: health checks need an opener")

    def _check(self) -> None:
        self._uncheck()
        if self.settings.health is None or self._opener is None or self._draining:
            return
        self._checks = Checks(self.settings.health, self._tasks, self._opener, self._verdict)
        for endpoint in self.members.endpoints.values():
            self._checks.watch(endpoint)

    def _uncheck(self) -> None:
        if self._checks is not None:
            self._checks.stop()
            self._checks = None

    def _verdict(self, endpoint: Endpoint, healthy: bool) -> None:
        for fallen in self.members.checked(endpoint, healthy):
            self._close_idle(fallen)
        self._pump()
        self._answer()
