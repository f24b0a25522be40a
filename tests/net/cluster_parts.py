"""Parts for the cluster's tests: connections and a network that the test steers, calls that remember their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from meshguard.model.reasons import Reason
from meshguard.net.cluster.calls import Call
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.endpoint import Connection, Endpoint
from meshguard.net.cluster.settings import ClusterSettings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Wire:
    """A connection; `peer_closes` is what the network does to it."""

    def __init__(self, endpoint: Endpoint, cluster: Cluster | None = None) -> None:
        self.endpoint = endpoint
        self.idle_since = -1.0
        self.closed = False
        self.cluster = cluster

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self.cluster is not None:
                self.cluster.lost(self)

    def peer_closes(self) -> None:
        self.close()


class Network:
    """The dials of a cluster: each waits until the test lets it succeed or fail, unless `automatic`."""

    def __init__(self, *, automatic: bool = True) -> None:
        self.automatic = automatic
        self.down: set[str] = set()
        self.pending: list[tuple[Endpoint, asyncio.Future[None]]] = []
        self.opened: list[Wire] = []
        self.dials = 0
        self.cluster: Cluster | None = None

    async def connect(self, endpoint: Endpoint) -> Connection:
        self.dials += 1
        if not self.automatic:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (endpoint, future)
            self.pending.append(entry)
            try:
                await future
            finally:
                if entry in self.pending:
                    self.pending.remove(entry)
        if endpoint.key in self.down:
            raise ConnectionRefusedError(111, "Connection refused")
        wire = Wire(endpoint, self.cluster)
        self.opened.append(wire)
        return wire

    def finish(self, index: int = 0, error: BaseException | None = None) -> None:
        _, future = self.pending.pop(index)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class Asking(Call):
    """Remembers its answers; `then` runs inside `connected`."""

    def __init__(self, then: Callable[[Connection], None] | None = None) -> None:
        super().__init__()
        self.conns: list[Connection] = []
        self.refusals: list[tuple[Reason, str]] = []
        self.cancelled = False
        self.then = then
        self.done = asyncio.Event()

    @property
    def answers(self) -> int:
        return len(self.conns) + len(self.refusals)

    @property
    def conn(self) -> Connection:
        (conn,) = self.conns
        return conn

    @property
    def reason(self) -> Reason:
        ((reason, _),) = self.refusals
        return reason

    def connected(self, conn: Connection) -> None:
        self.conns.append(conn)
        self.done.set()
        if self.then is not None:
            self.then(conn)

    def failed(self, reason: Reason, detail: str) -> None:
        self.refusals.append((reason, detail))
        self.done.set()


def build(settings: ClusterSettings, *, automatic: bool = True) -> tuple[Cluster, Network, Clock]:
    network = Network(automatic=automatic)
    clock = Clock()
    cluster = Cluster("app", settings, network.connect, clock)
    network.cluster = cluster
    return cluster, network, clock


def run(test: Coroutine[Any, Any, None]) -> None:
    """A test's story on a loop of its own, with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(bounded())


async def turns(count: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def balanced(cluster: Cluster) -> None:
    """The invariants of pool.py, over every place a connection can be in."""
    endpoints = [*cluster.members.endpoints.values(), *cluster.members.leaving.values()]
    idle = [conn for endpoint in endpoints for conn in endpoint.idle]
    busy = [conn for endpoint in endpoints for conn in endpoint.busy]
    assert len(set(idle)) == len(idle)
    assert not set(idle) & set(busy)
    assert cluster._connections == len(idle) + len(busy) + len(cluster._dials)
    owned = [dial for dial in cluster._dials if dial.ticket is not None]
    assert cluster._owned == len(owned) == sum(1 for ticket in cluster._waiting if ticket.dial is not None)
    assert set(cluster._spare) == cluster._dials - set(owned)
    assert cluster._in_flight == len(busy) + len(owned)
    for endpoint in endpoints:
        assert endpoint.in_flight == len(endpoint.busy) + sum(1 for dial in owned if dial.endpoint is endpoint) >= 0
        assert endpoint.connecting == sum(1 for dial in cluster._dials if dial.endpoint is endpoint) >= 0
        assert [conn.idle_since for conn in endpoint.idle] == sorted(conn.idle_since for conn in endpoint.idle)
        assert all(conn.endpoint is endpoint for conn in (*endpoint.idle, *endpoint.busy))
        assert not (endpoint.gone and endpoint.idle)
    assert set(cluster._marks) <= set(busy)
    retried = sum(1 for ticket in cluster._waiting if ticket.retried) + sum(1 for marks in cluster._marks.values() if marks & 1)
    assert cluster.budget.active == retried
    assert not cluster._answers
    assert cluster.strays == 0
