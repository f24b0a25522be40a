"""The books hold whatever happens in whatever order.

Invariant: after every step each connection is in exactly one place, counters equal what they count, every call was answered at most
once, a connection is lent to one call at a time, and at the end nothing is left over.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshguard.model.reasons import UPSTREAM_RESET
from meshguard.net.cluster.endpoint import Connection
from meshguard.net.cluster.settings import CircuitSettings, ClusterSettings, EjectionSettings, RetrySettings, TimeoutSettings
from tests.net.cluster_parts import Asking, balanced, build, turns

KEYS = tuple(f"127.0.0.{n}:80" for n in range(1, 5))
ENDPOINTS = st.lists(st.sampled_from(KEYS), unique=True, min_size=0, max_size=4).map(tuple)
CIRCUITS = st.builds(
    CircuitSettings,
    max_in_flight=st.integers(1, 6),
    max_connections=st.integers(1, 6),
    queue=st.integers(0, 4),
    max_idle=st.integers(0, 4),
    queue_timeout_s=st.sampled_from([1.0, 5.0]),
)
BALANCE = st.sampled_from(["least_request", "round_robin"])
PICK = st.integers(0, 1000)


class Exchange(Asking):
    """A call of the test; `finished` counts the connections that it gave back."""

    finished = 0


class Traffic(RuleBasedStateMachine):
    @initialize(endpoints=ENDPOINTS, circuit=CIRCUITS, balance=BALANCE)
    def start(self, endpoints: tuple[str, ...], circuit: CircuitSettings, balance: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.calls: list[Exchange] = []
        self.cancelled: set[Exchange] = set()
        self.direct: list[Connection] = []
        self.before: tuple[int, int] = (0, 0)
        wanted = ClusterSettings(
            endpoints=endpoints,
            circuit=circuit,
            balance=balance,  # type: ignore[arg-type]
            ejection=EjectionSettings(consecutive_failures=2, eject_s=10, max_percent=60),
            retries=RetrySettings(attempts=2),
            timeouts=TimeoutSettings(connect_s=1000, idle_s=30),
        )
        self.cluster, self.network, self.clock = build(wanted, automatic=False)

    def inside(self, action: Callable[[], object]) -> None:
        async def go() -> None:
            action()
            await turns(4)

        self.loop.run_until_complete(go())

    def lent(self) -> list[Connection]:
        """Every connection that the cluster says is lent, as the holders know it."""
        held = list(self.direct)
        for call in self.calls:
            held.extend(call.conns)
        return held

    def give_up(self, conn: Connection) -> None:
        if conn in self.direct:
            self.direct.remove(conn)
        for call in self.calls:
            if conn in call.conns:
                call.conns.remove(conn)
                call.finished += 1

    # what clients do

    @rule(excluded=st.sets(st.sampled_from(KEYS), max_size=2), retried=st.booleans())
    def submit(self, excluded: set[str], retried: bool) -> None:
        call = Exchange()
        call.excluded = {self.cluster.members.endpoints[key] for key in excluded if key in self.cluster.members.endpoints}
        if retried and not self.cluster.may_retry(call):
            return
        books = self.cluster.books()
        circuit = self.cluster.settings.circuit
        room = min(circuit.max_in_flight, circuit.max_connections) + circuit.queue
        full = books.in_flight + books.queued >= room
        self.calls.append(call)
        self.inside(lambda: self.cluster.submit(call))
        if full:
            assert call.refusals
        else:
            now = self.cluster.books()
            assert now.in_flight + now.queued <= max(room, books.in_flight + books.queued)

    @rule()
    def checkout(self) -> None:
        conn = self.cluster.checkout()
        if conn is not None:
            assert not conn.closed
            assert conn.endpoint.usable
            assert self.cluster.books().in_flight <= self.cluster.settings.circuit.max_in_flight
            self.direct.append(conn)

    @precondition(lambda self: self.lent())
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        held = self.lent()
        conn = held[pick % len(held)]
        self.give_up(conn)
        self.inside(lambda: self.cluster.release(conn))

    @precondition(lambda self: self.lent())
    @rule(pick=PICK, blame=st.booleans())
    def discard(self, pick: int, blame: bool) -> None:
        held = self.lent()
        conn = held[pick % len(held)]
        self.give_up(conn)
        self.inside(lambda: self.cluster.discard(conn, UPSTREAM_RESET if blame else None))
        assert conn.closed

    @precondition(lambda self: any(call.ticket for call in self.calls))
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        waiting = [call for call in self.calls if call.ticket is not None]
        call = waiting[pick % len(waiting)]
        self.cancelled.add(call)
        self.inside(lambda: self.cluster.cancel(call))

    # what the network does

    @precondition(lambda self: self.network.pending)
    @rule(pick=PICK, fails=st.booleans())
    def dial_ends(self, pick: int, fails: bool) -> None:
        index = pick % len(self.network.pending)
        self.inside(lambda: self.network.finish(index, ConnectionRefusedError(111, "refused") if fails else None))

    @rule(pick=PICK)
    def peer_closes(self, pick: int) -> None:
        alive = [wire for wire in self.network.opened if not wire.closed]
        if alive:
            self.inside(alive[pick % len(alive)].peer_closes)

    @rule(pick=PICK)
    def dies_unnoticed(self, pick: int) -> None:
        alive = [wire for wire in self.network.opened if not wire.closed]
        if alive:
            alive[pick % len(alive)].closed = True

    # what time and operators do

    @rule(seconds=st.sampled_from([0.5, 1.0, 6.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

        def pass_() -> None:
            self.cluster.expire()
            self.cluster.sweep(self.clock.now)

        self.inside(pass_)

    @rule(endpoints=ENDPOINTS, circuit=CIRCUITS, balance=BALANCE)
    def reconfigure(self, endpoints: tuple[str, ...], circuit: CircuitSettings, balance: str) -> None:
        wanted = dataclasses.replace(self.cluster.settings, endpoints=endpoints, circuit=circuit, balance=balance)  # type: ignore[arg-type]
        self.inside(lambda: self.cluster.reconfigure(wanted))

    @rule()
    def recycle(self) -> None:
        before = {conn for endpoint in self.cluster.members.endpoints.values() for conn in endpoint.idle}
        self.inside(self.cluster.recycle)
        assert all(conn.closed for conn in before)

    @rule(key=st.sampled_from(KEYS), healthy=st.booleans())
    def verdict(self, key: str, healthy: bool) -> None:
        endpoint = self.cluster.members.endpoints.get(key)
        if endpoint is not None:
            self.inside(lambda: self.cluster._verdict(endpoint, healthy))

    # what must hold

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "cluster"):
            balanced(self.cluster)

    @invariant()
    def nobody_shares_a_connection(self) -> None:
        if not hasattr(self, "cluster"):
            return
        held = self.lent()
        assert len(held) == len(set(held))
        endpoints = [*self.cluster.members.endpoints.values(), *self.cluster.members.leaving.values()]
        assert {conn for endpoint in endpoints for conn in endpoint.busy} == set(held)

    @invariant()
    def one_answer_each(self) -> None:
        for call in getattr(self, "calls", []):
            assert call.answers + call.finished + (call.ticket is not None) + (call in self.cancelled) == 1

    @invariant()
    def limits_hold(self) -> None:
        """A limit may be exceeded only by what was there before it was lowered."""
        if hasattr(self, "cluster"):
            books, circuit = self.cluster.books(), self.cluster.settings.circuit
            assert books.in_flight <= max(circuit.max_in_flight, self.before[0])
            assert books.connections <= max(circuit.max_connections, self.before[1])
            self.before = books[:2]

    @invariant()
    def no_waste(self) -> None:
        """Nobody who may go anywhere waits while something is free for it."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        free = [ticket for ticket in cluster._waiting if ticket.dial is None and not ticket.refused and not ticket.call.excluded]
        if not free:
            return
        circuit = cluster.settings.circuit
        assert cluster.members.usable
        if cluster.books().in_flight < circuit.max_in_flight:
            assert not [dial for dial in cluster._spare if dial.endpoint.usable]
            assert cluster.books().connections >= circuit.max_connections
            assert not [conn for endpoint in cluster.members.usable for conn in endpoint.idle if not conn.closed]

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return

        async def finish() -> None:
            for conn in self.lent():
                self.give_up(conn)
                self.cluster.release(conn)
            await turns(4)
            await self.cluster.close()
            for conn in self.lent():
                self.give_up(conn)
                self.cluster.discard(conn)

        self.loop.run_until_complete(finish())
        balanced(self.cluster)
        assert self.cluster.books()[:4] == (0, 0, 0, 0)
        assert self.cluster.budget.active == 0
        assert all(wire.closed for wire in self.network.opened)
        assert all(call.ticket is None for call in self.calls)
        self.loop.close()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
