"""The slow way: calls for which no pooled connection is at hand. They dial, or wait in a bounded line.

Theory of operation. A submitted call stands in one line, oldest first. It is served by whatever comes first: an idle connection,
its own dial, or a connection that another call gives back (then its dial becomes spare and serves the next). So nobody waits for
a slow handshake while a connection is free, and a client that goes away does not throw a handshake away.

    submit -> line is full (in flight + waiting at min(max_in_flight, max_connections) + queue)      -> failed CIRCUIT_OPEN
           -> nothing usable                                                                        -> failed NO_ENDPOINT
           -> idle connection of the picked endpoint                                                -> connected
           -> room for a dial (max_in_flight, max_connections, MAX_DIALS each endpoint)             -> dialling
           -> waits, at most queue_timeout_s                                                        -> failed CIRCUIT_OPEN
    dialling -> connected | failed: another endpoint, when there is one and the retry budget allows | failed with the dial's reason

INVARIANT: each ticket is answered exactly once or cancelled. Answers are given when the books are balanced and never from within
another answer, so a call may release, discard, submit or cancel from its answer, to any depth.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from meshguard.model.errors import UpstreamError
from meshguard.model.reasons import CIRCUIT_OPEN, CONNECT_FAILED, NO_ENDPOINT, UPSTREAM_QUARANTINED, Reason
from meshguard.net.cluster.calls import Call, Dial, Ticket, TicketState
from meshguard.net.cluster.carrier import Carrier, Lease
from meshguard.net.cluster.dial import Connect, dial
from meshguard.net.cluster.endpoint import Connection, Endpoint
from meshguard.net.cluster.pool import MAX_DIALS, RETRY, Pool
from meshguard.net.cluster.settings import ClusterSettings
from meshguard.net.cluster.tasks import Tasks

__all__ = ["Books", "Line"]

_PATIENCE_S = 0.01
"""The queue's timer never fires more often than this, whatever the deadlines."""

_log = logging.getLogger(__name__)


class Books(NamedTuple):
    """Gauges and counters of a line; `queued` calls wait without a dial of their own."""

    in_flight: int
    connections: int
    connecting: int
    queued: int
    connects: int
    connect_failures: int


class Line(Pool):
    """Adds waiting calls, dials and answers to the books."""

    def __init__(self, name: str, settings: ClusterSettings, connect: Connect, clock: Callable[[], float]) -> None:
        super().__init__(settings, clock)
        self.name = name
        self.barred = ""  # why nobody is connected: the servers are quarantined
        self.connects = 0
        self.connect_failures = 0
        self.rejections = 0
        self.queue_timeouts = 0
        self.cancellations = 0
        self._connect = connect
        self._tasks = Tasks(f"cluster {name}")
        self._answers: deque[Ticket] = deque()
        self._answering = False
        self._timer: asyncio.TimerHandle | None = None
        self._unresolved = False
        self._closed = False
        self._quiet = asyncio.Event()

    @property
    def unresolved(self) -> bool:
        """Some host name was never looked up yet; calls wait for it, as long as the queue lets them."""
        return self._unresolved

    @property
    def closed(self) -> bool:
        return self._closed

    def books(self) -> Books:
        """The numbers now."""
        queued = len(self._waiting) - self._owned
        return Books(self._in_flight, self._connections, len(self._dials), queued, self.connects, self.connect_failures)

    # called by the journey

    def submit(self, call: Call) -> None:
        """Get `call` a connection; see `Call` for the answers. Raises RuntimeError when `call` is already waiting."""
        if call.ticket is not None:
            raise RuntimeError("the call is waiting already")
        now = self._clock()
        circuit = self.settings.circuit
        ticket = call.ticket = Ticket(call, now + circuit.queue_timeout_s)
        if len(self.members.usable) < len(self.members.endpoints) and self.members.elapsed(now):
            self._pump()
        waiting = len(self._waiting) - self._owned
        most = circuit.max_in_flight if self.carriers else min(circuit.max_in_flight, circuit.max_connections)
        full = self._in_flight + waiting >= most + circuit.queue
        self._waiting[ticket] = None
        if ticket.retried:
            self.budget.active += 1
        if self._closed:
            self._refuse(ticket, NO_ENDPOINT, "the cluster is closed")
        elif self.barred:  # at once: nobody waits for a handshake whose end is known
            self._refuse(ticket, UPSTREAM_QUARANTINED, self.barred)
        elif full:
            self.rejections += 1
            self._refuse(ticket, CIRCUIT_OPEN, f"{self._in_flight} in flight, {waiting} waiting")
        elif not self._place(ticket):
            self._arm()
        self._answer()

    def cancel(self, call: Call) -> None:
        """The client went away: `call` gets no answer and its place is free. Without effect once it is answered."""
        ticket = call.ticket
        if ticket is None:
            return
        call.ticket = None
        self.cancellations += 1
        if ticket.state is TicketState.WAITING:
            self._leave(ticket)
            self._forget_retry(ticket)
            self._pump()
        ticket.state = TicketState.CANCELLED  # a granted one is taken back when its turn to be answered comes
        self._answer()

    def may_retry(self, call: Call) -> bool:
        """May `call` be submitted (again) after its connection died before any octet of a response? The caller answers for the
        request being safe to repeat. True counts as one of its attempts."""
        if not self.budget.allows(call.attempts, self._in_flight + len(self._waiting) - self._owned, call.most):
            return False
        call.attempts += 1
        return True

    def discard(self, conn: Connection, outcome: Reason | None = None) -> None:
        """Close a lent connection that cannot be used again. `outcome` is why, when the endpoint is to blame (see
        `ejection.BLAMED`); None for an ordinary end: `Connection: close`, an upgrade, a client that went away, a pooled
        connection that turned out to have been closed meanwhile."""
        if not self._yield(conn):
            self._stray(conn)
            return
        stale = self._unmark(conn)
        if isinstance(conn, Lease):
            self._returned(conn, stale)
        else:
            self._drop(conn)
        if outcome is not None:
            self._blame(conn.endpoint, outcome)
        self._pump()
        self._answer()

    def lost(self, conn: Connection) -> bool:
        """An idle connection ended (see Pool.lost): what it left room for may start now."""
        found = super().lost(conn)
        if found and self._waiting:
            self._pump()
            self._answer()
        return found

    def release_stream(self, lease: Lease) -> None:
        """The response on a carrier is complete, or its call was never begun."""
        if self.release_lease(lease):
            self._pump()
            self._answer()

    def lost_carrier(self, carrier: Carrier) -> None:
        """A carrier ended; its calls are told by itself."""
        self._dismiss(carrier)
        self._pump()
        self._answer()

    def roomier(self, carrier: Carrier) -> None:
        """A carrier can take more calls than before."""
        carrier.endpoint.breadth = max(carrier.endpoint.breadth, carrier.room)
        if self._waiting:
            self._pump()
            self._answer()

    def succeeded(self, endpoint: Endpoint) -> None:
        """A response came that does not count as a failure. Only needed while `endpoint.failures` is not 0."""
        endpoint.failures = 0

    def failed(self, endpoint: Endpoint, reason: Reason | None) -> None:
        """A request failed on `endpoint`; None stands for a status of `ejection.statuses`."""
        self._blame(endpoint, reason)
        self._pump()
        self._answer()

    def answered(self, endpoint: Endpoint, status: int) -> None:
        """The status of a final response: `failed` or `succeeded`. Only needed when `status >= 500 or endpoint.failures`."""
        if status in self.settings.ejection.statuses:
            self.failed(endpoint, None)
        else:
            self.succeeded(endpoint)

    # placing

    def _candidates(self, ticket: Ticket) -> Sequence[Endpoint]:
        """Where `ticket` may go: not where it could not connect, and not to the excluded ones while there are others."""
        usable = self.members.usable
        excluded, refused = ticket.call.excluded, ticket.refused
        if not excluded and not refused:
            return usable
        possible = [endpoint for endpoint in usable if endpoint not in refused]
        return [endpoint for endpoint in possible if endpoint not in excluded] or possible

    def _place(self, ticket: Ticket) -> bool:
        """Serve, dial or refuse a ticket that has no dial; false when it has to wait."""
        candidates = self._candidates(ticket)
        if not candidates:
            if self._unresolved:
                return False
            self._refuse(ticket, ticket.reason or NO_ENDPOINT, ticket.detail or "no usable endpoint")
            return True
        if self._in_flight >= self._max_in_flight:
            return False
        endpoint = self._balancer.pick(candidates)
        if (conn := self._take(endpoint, ticket.fresh)) is not None:
            self._grant(ticket, conn)
            return True
        for spare in self._spare:
            if spare.endpoint in candidates:
                self._own(spare, ticket)
                ticket.heir = True if ticket.heir is False else None
                return True
        if self._connections >= self._max_connections:
            for other in candidates:
                if (conn := self._take(other)) is not None:
                    self._grant(ticket, conn)
                    return True
            if self._connections >= self._max_connections and not self._evict():
                return False
        if endpoint.breadth > 1 and len(self._waiting) - self._owned <= endpoint.connecting * endpoint.breadth:
            return False  # what is being opened carries this call too
        if endpoint.connecting >= MAX_DIALS:
            calmer = [other for other in candidates if other.connecting < MAX_DIALS]
            if not calmer:
                return False
            endpoint = self._balancer.pick(calmer)
        opening = self._begin(endpoint)
        self._own(opening, ticket)
        opening.task = self._tasks.spawn(self._open(opening), f"dial {endpoint.key}")
        return True

    def _pump(self) -> None:
        """Something became free: let those in the line who have no dial try again, oldest first."""
        if len(self._waiting) == self._owned:
            return
        if self.members.usable:
            if self._in_flight >= self._max_in_flight:
                self._arm()
                return
            idle = self._connections - (self._in_flight - self._owned) - len(self._dials)
            if self._connections >= self._max_connections and not idle and not self._spare and not self.carriers:
                self._arm()
                return
        for ticket in [ticket for ticket in self._waiting if ticket.dial is None]:
            if not self._place(ticket) and not ticket.refused and not ticket.call.excluded:
                break  # what has no room for a call that may go anywhere has none for the next
        self._arm()

    def _offer(self, conn: Connection) -> None:
        """A connection in no place goes to the oldest call that may use its endpoint, else into the pool."""
        endpoint = conn.endpoint
        if endpoint.usable and not conn.closed:
            for ticket in self._waiting:
                if ticket.dial is None and self._in_flight >= self._max_in_flight:
                    break
                if (not ticket.refused and not ticket.call.excluded) or endpoint in self._candidates(ticket):
                    self._grant(ticket, conn)
                    return
                if ticket.dial is None and self._connections >= self._max_connections:
                    break  # its turn, though not at this endpoint: the pump evicts for it before anybody behind it is served
        self._park(conn)

    def _settle(self, conn: Connection) -> None:
        if self._unmark(conn) or conn.closed:
            self._drop(conn)
        else:
            self._offer(conn)
        self._pump()
        self._answer()

    # answers

    def _leave(self, ticket: Ticket) -> None:
        del self._waiting[ticket]
        if ticket.dial is not None:
            self._disown(ticket.dial)

    def _forget_retry(self, ticket: Ticket) -> None:
        if ticket.retried:
            ticket.retried = False
            self.budget.active -= 1

    def _grant(self, ticket: Ticket, conn: Connection) -> None:
        self._leave(ticket)
        self._lend(conn)
        if ticket.retried:
            self._marks[conn] = self._marks.get(conn, 0) | RETRY
        ticket.conn = conn
        ticket.state = TicketState.GRANTED
        self._answers.append(ticket)

    def _refuse(self, ticket: Ticket, reason: Reason, detail: str) -> None:
        self._leave(ticket)
        self._forget_retry(ticket)
        ticket.reason, ticket.detail = reason, detail
        ticket.state = TicketState.GRANTED
        self._answers.append(ticket)

    def _answer(self) -> None:
        if self._answering:
            return
        self._answering = True
        try:
            while self._answers:
                self._tell(self._answers.popleft())
        finally:
            self._answering = False
        if self._draining and not self._in_flight and not self._waiting:
            self._quiet.set()

    def _tell(self, ticket: Ticket) -> None:
        call, conn = ticket.call, ticket.conn
        if ticket.state is TicketState.CANCELLED:
            if isinstance(conn, Lease):
                self.release_stream(conn)
            elif conn is not None:
                self.release(conn)
            return
        ticket.state = TicketState.ANSWERED
        call.ticket = None
        try:
            if conn is not None:
                call.connected(conn)
            else:
                call.failed(ticket.reason or NO_ENDPOINT, ticket.detail)
        except Exception:
            # the outermost loop of this call: another exchange's release brought us here and must not be hurt by it
            _log.exception("cluster %s: a call raised from its answer", self.name)
            if conn is not None and conn in conn.endpoint.busy:
                self.discard(conn)

    # dials

    async def _open(self, opening: Dial) -> None:
        try:
            conn = await dial(self._connect, opening.endpoint, self.settings.timeouts.connect_s)
        except UpstreamError as error:
            self._missed(opening, error.reason, error.detail)
        except asyncio.CancelledError:
            # not by us, or the dial would have been given up before: the loop is shutting down, and its ticket gets an answer
            self._missed(opening, CONNECT_FAILED, f"{opening.endpoint.key}: cancelled")
            raise
        else:
            self._opened(opening, conn)

    def _opened(self, opening: Dial, conn: Connection) -> None:
        if opening not in self._dials:
            conn.close()
            return
        self.connects += 1
        opening.endpoint.stats.connects += 1
        ticket = self._end(opening, connected=True)
        if isinstance(conn, Carrier):
            self._admit(conn)
            if ticket is not None and conn.room > 0:
                self._grant(ticket, conn.lease())
            elif conn.retired:
                self._dismiss(conn)
        elif ticket is not None:
            self._grant(ticket, conn)
        else:
            self._offer(conn)
        self._pump()
        self._answer()

    def _missed(self, opening: Dial, reason: Reason, detail: str) -> None:
        if opening not in self._dials:
            return
        endpoint = opening.endpoint
        self.connect_failures += 1
        endpoint.stats.connect_failures += 1
        ticket = self._end(opening, connected=False)
        self._blame(endpoint, reason)
        if ticket is not None and ticket.heir:
            ticket.heir = None  # in the line again: it gets a dial of its own before it is refused for somebody else's
        elif ticket is not None:
            ticket.refused = ticket.refused | {endpoint}
            ticket.reason, ticket.detail = reason, detail
            if self._candidates(ticket) and self.may_retry(ticket.call):
                if not ticket.retried:
                    ticket.retried = True
                    self.budget.active += 1
            else:
                self._refuse(ticket, reason, detail)
        self._pump()
        self._answer()

    def _abandon(self, opening: Dial) -> None:
        """Give a dial up; its ticket stays in the line, to be placed again."""
        if opening in self._dials:
            self._end(opening, connected=False)
            if opening.task is not None:
                opening.task.cancel()

    def _blame(self, endpoint: Endpoint, reason: Reason | None) -> None:
        for fallen in self.members.failed(endpoint, reason, self._clock()):
            self._close_idle(fallen)

    # the queue's deadline

    def _arm(self) -> None:
        if self._timer is not None or len(self._waiting) == self._owned:
            return
        first = min(ticket.deadline for ticket in self._waiting if ticket.dial is None)
        delay_s = max(first - self._clock(), _PATIENCE_S)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._alarm)

    def _alarm(self) -> None:
        self._timer = None
        self.expire()

    def expire(self) -> None:
        """Refuse the calls that have waited in the queue for too long (a timer does this)."""
        now = self._clock()
        for ticket in [ticket for ticket in self._waiting if ticket.dial is None and ticket.deadline <= now]:
            self.queue_timeouts += 1
            waited_s = self.settings.circuit.queue_timeout_s
            self._refuse(ticket, ticket.reason or CIRCUIT_OPEN, ticket.detail or f"waited {waited_s:g} s for a connection")
        self._arm()
        self._answer()
