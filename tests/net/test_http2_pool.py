"""Carriers in the pool: the books hold for connections with many calls, in every order of what may happen."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from meshguard.model.reasons import UPSTREAM_RESET
from meshguard.net.cluster.carrier import Carrier, Lease
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.endpoint import Connection, Endpoint
from meshguard.net.cluster.settings import CircuitSettings, ClusterSettings, EjectionSettings, TimeoutSettings
from tests.net.cluster_parts import Asking, Clock


class Wide(Carrier):
    """A carrier with room for `limit` calls; `peer_closes` is what the network does to it."""

    def __init__(self, endpoint: Endpoint, cluster: Cluster, limit: int) -> None:
        super().__init__(endpoint)
        self.cluster = cluster
        self.limit = limit
        self.looks = 0

    @property
    def room(self) -> int:
        return 0 if self.closed or self.retired else self.limit - self.lent

    def lease(self) -> Lease:
        self.lent += 1
        return Lease(self)

    def look(self, now: float) -> None:
        self.looks += 1

    def close(self) -> None:
        self.closed = True

    def peer_closes(self) -> None:
        self.closed = True
        self.cluster.lost_carrier(self)


class Network:
    def __init__(self, limit: int = 3) -> None:
        self.limit = limit
        self.opened: list[Wide] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.cluster: Cluster = None  # type: ignore[assignment]

    async def connect(self, endpoint: Endpoint) -> Connection:
        await self.gate.wait()
        carrier = Wide(endpoint, self.cluster, self.limit)
        self.opened.append(carrier)
        return carrier  # type: ignore[return-value]  # what the pool takes apart by its class


def build(limit: int = 3, **circuit: Any) -> tuple[Cluster, Network, Clock]:
    settings = ClusterSettings(
        endpoints=("127.0.0.1:80",),
        circuit=CircuitSettings(**circuit),
        ejection=EjectionSettings(consecutive_failures=0),
        timeouts=TimeoutSettings(idle_s=10),
    )
    network, clock = Network(limit), Clock()
    cluster = network.cluster = Cluster("app", settings, network.connect, clock)
    return cluster, network, clock


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def lease_of(call: Asking) -> Lease:
    conn = call.conn
    assert isinstance(conn, Lease)
    return conn


def check(cluster: Cluster, network: Network) -> None:
    """The books agree with what there is."""
    live = [carrier for carrier in network.opened if not carrier.closed or carrier.lent]
    state = cluster.snapshot()
    leases = sum(carrier.lent for carrier in network.opened)
    assert state.in_flight >= leases
    assert state.in_flight - leases <= state.connecting
    assert state.connections <= len(live) + state.connecting
    assert state.strays == 0
    for carrier in network.opened:
        assert carrier.lent <= carrier.limit
        assert carrier.lent >= 0


def test_one_dial_serves_all_that_fits() -> None:
    async def go() -> None:
        cluster, network, _ = build(limit=100)
        network.gate.clear()
        first = Asking()
        cluster.submit(first)  # nobody knows yet that one connection will do
        await settle()
        network.gate.set()
        await settle()
        cluster.release_stream(lease_of(first))
        for carrier in network.opened:
            carrier.peer_closes()
        network.gate.clear()
        calls = [Asking() for _ in range(50)]
        for call in calls:
            cluster.submit(call)
        await settle()
        assert cluster.snapshot().connecting == 1
        network.gate.set()
        await settle()
        assert len(network.opened) == 2
        assert {lease_of(call).carrier for call in calls} == {network.opened[1]}
        check(cluster, network)
        await cluster.close()

    asyncio.run(go())


def test_calls_wait_for_room_and_are_served_in_order() -> None:
    async def go() -> None:
        cluster, network, _ = build(limit=2, max_connections=1)
        calls = [Asking() for _ in range(5)]
        for call in calls:
            cluster.submit(call)
        await settle()
        assert [call.answers for call in calls] == [1, 1, 0, 0, 0]
        assert cluster.checkout() is None
        for n in range(3):
            cluster.release_stream(lease_of(calls[n]))
            assert calls[n + 2].answers == 1
        network.opened[0].limit = 3
        assert cluster.checkout() is not None
        check(cluster, network)
        await cluster.close()

    asyncio.run(go())


def test_a_withdrawn_carrier_ends_with_its_last_call() -> None:
    async def go() -> None:
        cluster, network, _ = build()
        calls = [Asking(), Asking()]
        for call in calls:
            cluster.submit(call)
            await settle()
        (old,) = network.opened
        cluster.withdraw(old)  # GOAWAY
        another = Asking()
        cluster.submit(another)
        await settle()
        assert lease_of(another).carrier is network.opened[1]
        cluster.release_stream(lease_of(calls[0]))
        assert not old.closed
        cluster.discard(lease_of(calls[1]), UPSTREAM_RESET)
        assert old.closed
        assert cluster.snapshot().connections == 1
        check(cluster, network)
        await cluster.close()
        assert network.opened[1].closed

    asyncio.run(go())


@pytest.mark.parametrize("how", ["recycle", "drain", "idle"])
def test_carriers_end_when_they_should(how: str) -> None:
    async def go() -> None:
        cluster, network, clock = build()
        call = Asking()
        cluster.submit(call)
        await settle()
        (carrier,) = network.opened
        if how == "recycle":
            cluster.recycle()
            assert carrier.retired
            assert not carrier.closed
            cluster.release_stream(lease_of(call))
        elif how == "drain":
            draining = asyncio.ensure_future(cluster.drain())
            await settle()
            assert not draining.done()
            cluster.release_stream(lease_of(call))
            await asyncio.wait_for(draining, 1)
        else:
            cluster.sweep(clock.now)
            cluster.release_stream(lease_of(call))
            clock.now += 9
            cluster.sweep(clock.now)
            assert not carrier.closed
            assert carrier.looks == 2
            clock.now += 2
            cluster.sweep(clock.now)
        assert carrier.closed
        assert cluster.snapshot().connections == 0
        await cluster.close()

    asyncio.run(go())


def test_a_second_release_is_a_stray() -> None:
    async def go() -> None:
        cluster, network, _ = build()
        call = Asking()
        cluster.submit(call)
        await settle()
        cluster.release_stream(lease_of(call))
        cluster.release_stream(lease_of(call))
        assert network.opened[0].lent == 0
        assert cluster.snapshot().strays == 1
        await cluster.close()

    asyncio.run(go())


@pytest.mark.parametrize("seed", range(30))
def test_the_books_hold_in_any_order(seed: int) -> None:
    draw = random.Random(seed)

    async def go() -> None:
        circuit = {"max_connections": draw.randint(1, 4), "max_in_flight": draw.randint(1, 9), "queue": 9}
        cluster, network, clock = build(limit=draw.randint(1, 4), **circuit)
        calls: list[Asking] = []
        direct: list[Lease] = []

        def held() -> list[tuple[list[Any], Lease]]:
            return [(call.conns, lease) for call in calls for lease in call.conns] + [(direct, lease) for lease in direct]

        for _ in range(120):
            act = draw.random()
            if act < 0.35:
                call = Asking()
                calls.append(call)
                cluster.submit(call)
            elif act < 0.45:
                lease = cluster.checkout()
                if lease is not None:
                    assert isinstance(lease, Lease)
                    direct.append(lease)
            elif act < 0.7 and held():
                where, lease = draw.choice(held())
                where.remove(lease)
                if draw.random() < 0.3:
                    cluster.discard(lease, draw.choice([None, UPSTREAM_RESET]))
                else:
                    cluster.release_stream(lease)
            elif act < 0.76 and calls:
                cluster.cancel(draw.choice(calls))
            elif act < 0.82:
                alive = [carrier for carrier in network.opened if not carrier.closed]
                if alive:
                    draw.choice(alive).peer_closes()
            elif act < 0.87:
                alive = [carrier for carrier in network.opened if not carrier.closed]
                if alive:
                    cluster.withdraw(draw.choice(alive))
            elif act < 0.9:
                cluster.recycle()
            elif act < 0.95:
                clock.now += draw.choice([0.1, 2, 11])
                cluster.sweep(clock.now)
                cluster.expire()
            await settle()
            check(cluster, network)
        for where, lease in held():
            where.remove(lease)
            cluster.release_stream(lease)
        await settle()
        for call in calls:
            if not call.answers:
                cluster.cancel(call)
        for where, lease in held():
            where.remove(lease)
            cluster.release_stream(lease)
        assert cluster.snapshot().in_flight == 0
        assert all(call.answers <= 1 or not call.conns for call in calls)
        await cluster.close()
        await settle()
        assert cluster.snapshot().connections == 0
        assert all(carrier.closed for carrier in network.opened)

    asyncio.run(go())
