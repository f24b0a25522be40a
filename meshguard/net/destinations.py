"""A cluster whose destinations are named by the requests: one bounded `Cluster` for each of them, made on demand.

    judge(host, port) -> Destination           pure: is such a destination allowed at all? kept in plans
    Destination.cluster(original) -> Cluster   per request: the destination's cluster, made when it is not there

    absent --first request--> open --idle_s without a request, or its place is needed--> closed (absent)

INVARIANT: a destination's connections are authenticated for its own host: `tls_of(host)` gives the identity that the server has to
prove, so that a name which leads to the wrong machine is a failed dial and never a request in wrong hands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from meshguard.model.errors import RequestError
from meshguard.model.reasons import DESTINATION_REFUSED, TOO_MANY_DESTINATIONS
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.resolve import Lookup, lookup
from meshguard.net.cluster.settings import ClusterSettings
from meshguard.net.cluster.tasks import Tasks
from meshguard.net.own_addresses import AddressGuard, is_literal

if TYPE_CHECKING:
    from meshguard.net.cluster.endpoint import Connection, Endpoint
    from meshguard.net.connector import ClientTls, Connector

__all__ = ["Destination", "DestinationSettings", "Destinations", "DestinationsState"]

_COUNTERS = ("connects", "connect_failures", "ejections", "retries", "circuit_rejections", "queue_timeouts")
_GAUGES = ("in_flight", "connections", "idle", "queued")


@dataclass(frozen=True, slots=True)
class DestinationSettings:
    """`cluster` holds what each destination's cluster is bound by; its endpoints are filled in. `authorities` are patterns (`host`,
    `*.suffix`, with `:port` for one port only; empty: any). `address` is where to connect, with `{host}`, `{service}` (the first
    label) and `{port}`; with `original` it is the address that the client itself had connected to. `named` says that the server's
    identity is worked out from the host, so the host must have a name in it."""

    cluster: ClusterSettings
    authorities: Collection[str] = ()
    default_port: int = 8443
    address: str = "{host}:{port}"
    original: bool = False
    literals: bool = False
    named: bool = False
    limit: int = 256
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class DestinationsState:
    """`count` destinations are open; the gauges sum them up, the counters also those that are gone."""

    count: int
    in_flight: int
    connections: int
    idle: int
    queued: int
    connects: int
    connect_failures: int
    ejections: int
    retries: int
    circuit_rejections: int
    queue_timeouts: int


class Destination:
    """An allowed destination: the key of its cluster, not the cluster itself, which may come and go meanwhile."""

    __slots__ = ("_family", "host", "port")

    def __init__(self, family: Destinations, host: str, port: int) -> None:
        self._family = family
        self.host = host
        self.port = port

    def cluster(self, original: tuple[str, int] | None) -> Cluster:
        """The cluster to send a request to; `original` is the address that the client had connected to before it was redirected.
        Raises RequestError: TOO_MANY_DESTINATIONS, DESTINATION_REFUSED."""
        return self._family.open(self.host, self.port, original)


class _Member:
    """One open destination."""

    __slots__ = ("cluster", "connector", "host", "used")

    def __init__(self, host: str, cluster: Cluster, connector: Connector, used: float) -> None:
        self.host = host
        self.cluster = cluster
        self.connector = connector
        self.used = used

    @property
    def quiet(self) -> bool:
        books = self.cluster.books()
        return not (books.in_flight or books.queued or books.connecting)


class Destinations:
    """All destinations of one dynamic cluster. Not thread-safe: everything happens on the loop.

    `tls_of` gives how to speak TLS to a host (None: plaintext) and raises RequestError for one that cannot be identified;
    `new_connector` makes the connector of one destination."""

    def __init__(
        self,
        name: str,
        settings: DestinationSettings,
        tls_of: Callable[[str], ClientTls | None],
        new_connector: Callable[[ClientTls | None], Connector],
        guard: AddressGuard,
        clock: Callable[[], float] = time.monotonic,
        *,
        find: Lookup = lookup,
    ) -> None:
        self.name = name
        self.settings = settings
        self.evicted = 0
        self._tls_of = tls_of
        self._new_connector = new_connector
        self._guard = guard
        self._clock = clock
        self._find = find
        self._now = clock()  # coarse: the sweep moves it
        self._members: dict[tuple[str, str], _Member] = {}
        self._ending: set[_Member] = set()
        self._before = dict.fromkeys(_COUNTERS, 0)
        self._tasks = Tasks(f"destinations {name}")
        self._closed = False

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Cluster]:
        return iter([member.cluster for member in (*self._members.values(), *self._ending)])

    # -- requests -------------------------------------------------------------------------------------------------------

    def judge(self, host: str, port: int) -> Destination:
        """Whether requests may name this destination (`port` 0: none was given). Raises RequestError(DESTINATION_REFUSED)."""
        settings = self.settings
        port = port or settings.default_port
        if not host:
            raise RequestError(DESTINATION_REFUSED, "the request names no host")
        if not any(_fits(pattern, host, port) for pattern in settings.authorities) and settings.authorities:
            raise RequestError(DESTINATION_REFUSED, f"{host}:{port} is not among the authorities of cluster {self.name}")
        if is_literal(host):
            if not settings.literals:
                raise RequestError(DESTINATION_REFUSED, f"{host} is an address, not a name")
            if settings.named:
                raise RequestError(DESTINATION_REFUSED, f"{host} has no name to know the server by")
        return Destination(self, host, port)

    def open(self, host: str, port: int, original: tuple[str, int] | None) -> Cluster:
        """See `Destination.cluster`."""
        settings = self.settings
        if not settings.original:
            address = settings.address.format(host=host, port=port, service=host.partition(".")[0])
        elif original is not None:
            address = f"[{original[0]}]:{original[1]}" if ":" in original[0] else f"{original[0]}:{original[1]}"
        else:
            raise RequestError(DESTINATION_REFUSED, "the connection was not redirected here")
        member = self._members.get((host, address))
        if member is None:
            member = self._make(host, address)
        member.used = self._now
        return member.cluster

    def _make(self, host: str, address: str) -> _Member:
        settings = self.settings
        if self._closed:
            raise RequestError(DESTINATION_REFUSED, f"cluster {self.name} is closed")
        if len(self._members) >= settings.limit and not self._make_room():
            raise RequestError(TOO_MANY_DESTINATIONS, f"{len(self._members)} destinations of cluster {self.name} are in use")
        connector = self._new_connector(self._tls_of(host))

        async def connect(endpoint: Endpoint) -> Connection:
            self._guard.judge(endpoint.address.host, endpoint.address.port)
            return await connector.connect(endpoint)

        try:
            cluster = Cluster(self.name, replace(settings.cluster, endpoints=(address,)), connect, self._clock, find=self._find)
        except ValueError as exc:
            raise RequestError(DESTINATION_REFUSED, str(exc)) from exc
        connector.cluster = cluster
        cluster.start()
        member = self._members[host, address] = _Member(host, cluster, connector, self._now)
        return member

    def _make_room(self) -> bool:
        """Closes the quiet destination that was used longest ago; false when every one is busy."""
        quiet = [(key, member) for key, member in self._members.items() if member.quiet]
        if not quiet:
            return False
        self._close(min(quiet, key=lambda pair: pair[1].used)[0])
        return True

    # -- life -----------------------------------------------------------------------------------------------------------

    def reconfigure(
        self,
        settings: DestinationSettings,
        tls_of: Callable[[str], ClientTls | None],
        new_connector: Callable[[ClientTls | None], Connector],
        guard: AddressGuard,
    ) -> None:
        """Takes other settings, or another identity: connections that are open take no further request; what runs finishes."""
        moved = (settings.address, settings.original) != (self.settings.address, self.settings.original)
        self.settings, self._tls_of, self._new_connector, self._guard = settings, tls_of, new_connector, guard
        for key, member in list(self._members.items()):
            refused = False
            try:
                member.connector.tls = tls_of(member.host)
            except RequestError:
                refused = True  # this host can no longer be identified; the others can
            if moved or refused:
                self._close(key)  # its next request opens it anew, under the new settings or not at all
                continue
            cluster = member.cluster
            wanted = replace(settings.cluster, endpoints=cluster.settings.endpoints)
            if cluster.settings != wanted:
                cluster.reconfigure(wanted)
            cluster.recycle()

    def sweep(self, now: float) -> None:
        """By the owner, about once a second: idle connections, and destinations that nobody has asked for."""
        self._now = now
        for key, member in list(self._members.items()):
            member.cluster.sweep(now)
            if now - member.used > self.settings.idle_s and member.quiet:
                self._close(key)

    def _close(self, key: tuple[str, str]) -> None:
        """Lets what still runs finish; no further request comes this way."""
        member = self._members.pop(key)
        self.evicted += 1
        self._ending.add(member)
        self._tasks.spawn(self._end(member), f"close {member.host}")

    async def _end(self, member: _Member) -> None:
        try:
            await member.cluster.drain()
        finally:
            self._ending.discard(member)
            state = member.cluster.snapshot()
            for name in _COUNTERS:
                self._before[name] += getattr(state, name)
            await member.cluster.close()

    async def drain(self) -> None:
        """Returns when nothing is in flight any more; the caller sets the deadline."""
        for member in (*self._members.values(), *self._ending):
            await member.cluster.drain()

    async def close(self) -> None:
        """Ends everything now."""
        self._closed = True
        await self._tasks.close()
        while self._members:
            _, member = self._members.popitem()
            await member.cluster.close()

    def snapshot(self) -> DestinationsState:
        """The sums, for metrics."""
        sums = {**dict.fromkeys(_GAUGES, 0), **self._before}
        for member in (*self._members.values(), *self._ending):
            state = member.cluster.snapshot()
            for name in sums:
                sums[name] += getattr(state, name)
        return DestinationsState(count=len(self._members), **sums)


def _fits(pattern: str, host: str, port: int) -> bool:
    name, colon, only = pattern.rpartition(":")
    if not colon or only.endswith("]"):  # no port: what follows the last colon ends an IPv6 address
        name, only = pattern, ""
    if only and int(only) != port:
        return False
    if name.startswith("*."):
        return host.endswith(name[1:]) and len(host) > len(name) - 1
    return name in ("*", host)
