"""The books of a cluster: where every connection is, and the two calls that each request makes, `checkout` and `release`.

Theory of operation. A connection is in exactly one place:

    dial --connected--> busy (lent to a call) --release--> idle --checkout--> busy
                        busy --discard, or release while stale--> closed      idle --lost, sweep, evict--> closed

INVARIANT: connections == dials + busy (but leases) + idle + carriers; in_flight == busy + owned dials == sum of the endpoints' in_flight.
Decisions about calls that wait are in `line`; here are only the moves, each of which keeps the books balanced.

A connection that carries many calls (HTTP/2) is a *carrier*: it never is in `idle` or `busy`. Each call on it has a lease, and that is in
`busy`. It is on its endpoint's list while it takes calls; withdrawn from there (GOAWAY, stale), it ends with its last lease.
"""

from __future__ import annotations

from collections.abc import Callable

from meshguard.net.cluster.balance import Balancer, LeastRequest, RoundRobin
from meshguard.net.cluster.calls import Dial, Ticket
from meshguard.net.cluster.carrier import Carrier, Lease
from meshguard.net.cluster.endpoint import Connection, Endpoint
from meshguard.net.cluster.members import Members
from meshguard.net.cluster.retry import RetryBudget
from meshguard.net.cluster.settings import ClusterSettings

__all__ = ["MAX_DIALS", "RETRY", "STALE", "Pool"]

MAX_DIALS = 32
"""Dials under way to one endpoint: a restarted upstream is not met by a thousand handshakes at once (32 mutual TLS handshakes are
about 16 ms of this process and fit the smallest usual listen backlog of 128)."""
RETRY = 1
"""Mark of a busy connection: it carries a retried call."""
STALE = 2
"""Mark of a busy connection: it ends with its call (endpoint gone, transport settings changed, cluster draining)."""


class Pool:
    """Connections of one cluster by endpoint; see the module."""

    def __init__(self, settings: ClusterSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.members = Members(settings)
        self.budget = RetryBudget(settings.retries)
        self.strays = 0
        self._clock = clock
        self._now = clock()  # coarse: the sweep moves it, so that a release reads no clock
        self._connections = 0
        self._in_flight = 0
        self._dials: set[Dial] = set()
        self._spare: dict[Dial, None] = {}
        self._owned = 0
        self._waiting: dict[Ticket, None] = {}
        self._marks: dict[Connection, int] = {}
        self.carriers: set[Carrier] = set()
        self._draining = False
        self._balancer: Balancer = LeastRequest()
        self._configure(settings)

    def _configure(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self._max_in_flight = settings.circuit.max_in_flight
        self._max_connections = settings.circuit.max_connections
        self._max_idle = settings.circuit.max_idle
        wanted = RoundRobin if settings.balance == "round_robin" else LeastRequest
        if type(self._balancer) is not wanted:
            self._balancer = wanted()
        self.members.configure(settings)
        self.budget.settings = settings.retries

    # per request

    def checkout(self) -> Connection | None:
        """A pooled connection for one request, or None: then `submit` a call. Give it back with `release` or `discard`."""
        if self._in_flight >= self._max_in_flight:
            return None
        usable = self.members.usable
        if len(usable) == 1:
            endpoint = usable[0]
        elif usable:
            endpoint = self._balancer.pick(usable)
        else:
            return None
        idle = endpoint.idle
        while idle:
            conn = idle.pop()
            if not conn.closed:
                endpoint.busy.add(conn)
                endpoint.in_flight += 1
                self._in_flight += 1
                return conn
            self._connections -= 1
        for carrier in endpoint.carriers:
            if carrier.room > 0:
                lease = carrier.lease()
                endpoint.busy.add(lease)
                endpoint.in_flight += 1
                self._in_flight += 1
                return lease
        self._balancer.again()
        return None

    def release(self, conn: Connection) -> None:
        """The response is complete and the connection reusable: into the pool, or straight to the call that waits longest. A
        connection that is not lent (a second release) is closed and counted in `strays`: it may never be in the pool twice."""
        endpoint = conn.endpoint
        try:
            endpoint.busy.remove(conn)
        except KeyError:
            self._stray(conn)
            return
        endpoint.in_flight -= 1
        self._in_flight -= 1
        idle = endpoint.idle
        if self._waiting or conn.closed or len(idle) >= self._max_idle or (self._marks and conn in self._marks):
            self._settle(conn)
            return
        conn.idle_since = self._now
        idle.append(conn)

    def release_lease(self, lease: Lease) -> bool:
        """A call on a carrier is over; true when somebody should look who may go on."""
        if not self._yield(lease):
            self.strays += 1
            return False
        self._returned(lease, bool(self._marks) and self._unmark(lease))
        return bool(self._waiting) or self._draining

    # moves

    def _returned(self, lease: Lease, stale: bool) -> None:
        carrier = lease.carrier
        carrier.lent -= 1
        if stale:
            self.withdraw(carrier)
        if not carrier.lent:
            carrier.idle_since = self._now
            if carrier.retired or carrier.closed:
                self._dismiss(carrier)

    def withdraw(self, carrier: Carrier) -> None:
        """It takes no further call, and ends with the last one it has."""
        carrier.retired = True
        if carrier in carrier.endpoint.carriers:
            carrier.endpoint.carriers.remove(carrier)
        if not carrier.lent:
            self._dismiss(carrier)

    def _dismiss(self, carrier: Carrier) -> None:
        if carrier not in self.carriers:
            return
        carrier.retired = True
        self.carriers.remove(carrier)
        if carrier in carrier.endpoint.carriers:
            carrier.endpoint.carriers.remove(carrier)
        self._connections -= 1
        carrier.close()
        self.members.forget(carrier.endpoint)

    def _admit(self, carrier: Carrier) -> None:
        """A new carrier; where nothing new may begin it serves the call that it was opened for, if any."""
        self.carriers.add(carrier)
        carrier.idle_since = self._now
        carrier.endpoint.breadth = max(1, carrier.room)
        if self._draining or carrier.endpoint.gone:
            carrier.retired = True
        else:
            carrier.endpoint.carriers.append(carrier)

    def _settle(self, conn: Connection) -> None:
        """A connection came back that needs a second look; it is in no place at this moment."""
        raise NotImplementedError

    def _stray(self, conn: Connection) -> None:
        self.strays += 1
        self.lost(conn)
        conn.close()

    def lost(self, conn: Connection) -> bool:
        """An idle connection ended: it leaves the pool. True when it was there; for any other connection nothing happens."""
        try:
            conn.endpoint.idle.remove(conn)
        except ValueError:
            return False
        self._connections -= 1
        return True

    def _lend(self, conn: Connection) -> None:
        endpoint = conn.endpoint
        endpoint.busy.add(conn)
        endpoint.in_flight += 1
        self._in_flight += 1
        if self._draining or endpoint.gone:
            self._marks[conn] = self._marks.get(conn, 0) | STALE

    def _yield(self, conn: Connection) -> bool:
        """Out of `busy`, into no place; false when it was not there."""
        endpoint = conn.endpoint
        if conn not in endpoint.busy:
            return False
        endpoint.busy.remove(conn)
        endpoint.in_flight -= 1
        self._in_flight -= 1
        return True

    def _unmark(self, conn: Connection) -> bool:
        """Take the marks off a connection that came back; true when it is stale."""
        marks = self._marks.pop(conn, 0)
        if marks & RETRY:
            self.budget.active -= 1
        return bool(marks & STALE)

    def _park(self, conn: Connection) -> None:
        """Into the pool, or closed when there is no place for it."""
        endpoint = conn.endpoint
        if conn.closed or endpoint.gone or self._draining or len(endpoint.idle) >= self._max_idle:
            self._drop(conn)
            return
        conn.idle_since = self._now
        endpoint.idle.append(conn)

    def _drop(self, conn: Connection) -> None:
        """Close a connection that is in no place."""
        self._connections -= 1
        conn.close()
        self.members.forget(conn.endpoint)

    def _take(self, endpoint: Endpoint, fresh: bool = False) -> Connection | None:
        """The freshest live idle connection of `endpoint`, out of the pool and in no place, or a lease. `fresh`: no pooled one; a carrier
        that takes calls is known to live."""
        while endpoint.idle and not fresh:
            conn = endpoint.idle.pop()
            if not conn.closed:
                return conn
            self._connections -= 1
        for carrier in endpoint.carriers:
            if carrier.room > 0:
                return carrier.lease()
        return None

    def _close_idle(self, endpoint: Endpoint, count: int | None = None) -> None:
        """Close the `count` oldest idle connections, or all."""
        doomed = endpoint.idle[:count]
        del endpoint.idle[:count]
        for conn in doomed:
            self._drop(conn)
        if count is None:
            for carrier in [carrier for carrier in endpoint.carriers if not carrier.lent]:
                self._dismiss(carrier)

    def _evict(self) -> bool:
        """Close the connection that has been idle longest; false when none is idle."""
        holders = [endpoint for endpoint in self.members.endpoints.values() if endpoint.idle]
        if not holders:
            free = [carrier for carrier in self.carriers if not carrier.lent]
            if free:
                self._dismiss(min(free, key=lambda carrier: carrier.idle_since))
            return bool(free)
        self._close_idle(min(holders, key=lambda endpoint: endpoint.idle[0].idle_since), 1)
        return True

    def _retire(self, endpoint: Endpoint) -> None:
        """Nothing that is open to `endpoint` now serves another call after the one it carries."""
        self._close_idle(endpoint)
        for carrier in list(endpoint.carriers):
            self.withdraw(carrier)
        for conn in endpoint.busy:
            self._marks[conn] = self._marks.get(conn, 0) | STALE

    def _begin(self, endpoint: Endpoint) -> Dial:
        dial = Dial(endpoint)
        self._dials.add(dial)
        endpoint.connecting += 1
        self._connections += 1
        return dial

    def _end(self, dial: Dial, *, connected: bool) -> Ticket | None:
        """The dial is over: its ticket. When `connected`, its connection goes on and is in no place."""
        ticket = self._disown(dial)
        self._spare.pop(dial, None)
        self._dials.remove(dial)
        dial.endpoint.connecting -= 1
        if not connected:
            self._connections -= 1
            self.members.forget(dial.endpoint)
        return ticket

    def _own(self, dial: Dial, ticket: Ticket) -> None:
        self._spare.pop(dial, None)
        dial.ticket = ticket
        ticket.dial = dial
        dial.endpoint.in_flight += 1
        self._in_flight += 1
        self._owned += 1

    def _disown(self, dial: Dial) -> Ticket | None:
        ticket = dial.ticket
        if ticket is not None:
            dial.ticket = ticket.dial = None
            dial.endpoint.in_flight -= 1
            self._in_flight -= 1
            self._owned -= 1
            self._spare[dial] = None
        return ticket
