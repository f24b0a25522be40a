"""What a request pays for its connection: checkout + release, in ns, with 1, 4, 16 and 256 endpoints.

Run: python -m benchmarks.micro.cluster. `steady` has one request at a time; `busy` keeps a full set of connections lent, so that
least request has to compare; `handover` is a release that serves a waiting call (the slow way, without the dial).
The minimum of many short rounds is printed: on a shared machine anything else measures the neighbours.
"""

from __future__ import annotations

import asyncio
import platform
import sys
import time
from collections.abc import Callable

from meshguard.model.reasons import Reason
from meshguard.net.cluster.calls import Call
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.endpoint import Connection, Endpoint
from meshguard.net.cluster.settings import CircuitSettings, ClusterSettings

ROUNDS = 400
CALLS = 500


class Wire:
    """A connection that does nothing, with the slots that the real one has."""

    __slots__ = ("closed", "endpoint", "idle_since")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.idle_since = 0.0
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Waiting(Call):
    __slots__ = ("conn",)

    conn: Connection | None

    def __init__(self) -> None:
        super().__init__()
        self.conn = None

    def connected(self, conn: Connection) -> None:
        self.conn = conn

    def failed(self, reason: Reason, detail: str) -> None:
        raise RuntimeError(f"{reason.code}: {detail}")


async def dial(endpoint: Endpoint) -> Connection:
    return Wire(endpoint)


async def turns() -> None:
    """Let the dial of a call finish."""
    for _ in range(5):
        await asyncio.sleep(0)


async def warm(endpoints: int, balance: str, lent_each: int) -> tuple[Cluster, list[Connection]]:
    """A cluster with `lent_each` connections of every endpoint lent and as many idle ones."""
    circuit = CircuitSettings(max_in_flight=1 << 20, max_connections=1 << 20)
    addresses = tuple(f"10.0.{n >> 8}.{n & 255}:80" for n in range(endpoints))
    cluster = Cluster("bench", ClusterSettings(endpoints=addresses, balance=balance, circuit=circuit), dial)  # type: ignore[arg-type]
    calls = [Waiting() for _ in range(endpoints * (lent_each + 1) * 2)]
    for call in calls:
        cluster.submit(call)
        await turns()
    conns = [call.conn for call in calls if call.conn is not None]
    lent: list[Connection] = []
    for endpoint in cluster.members.endpoints.values():
        own = [conn for conn in conns if conn.endpoint is endpoint]
        lent.extend(own[:lent_each])
        for conn in own[lent_each:]:
            cluster.release(conn)
    return cluster, lent


def measure(work: Callable[[int], None]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        work(CALLS)
        best = min(best, (time.perf_counter_ns() - started) / CALLS)
    return best


def pair(cluster: Cluster) -> Callable[[int], None]:
    def work(count: int) -> None:
        checkout, release = cluster.checkout, cluster.release
        for _ in range(count):
            conn = checkout()
            if conn is not None:
                release(conn)

    return work


def empty(count: int) -> None:
    for _ in range(count):
        pass


def handover(cluster: Cluster) -> Callable[[int], None]:
    def work(count: int) -> None:
        held = cluster.checkout()
        for _ in range(count):
            call = Waiting()
            cluster.submit(call)
            if held is not None:
                cluster.release(held)
            held = call.conn
        if held is not None:
            cluster.release(held)

    return work


async def main() -> None:
    print(f"{sys.implementation.name} {platform.python_version()}, {platform.machine()}; ns per operation, loop overhead taken off")
    idle = measure(empty)
    for count in (1, 4, 16, 256):
        for balance in ("least_request", "round_robin"):
            for lent_each in (0, 1):
                cluster, _lent = await warm(count, balance, lent_each)
                figure = measure(pair(cluster)) - idle
                print(f"checkout+release  {count:>3} endpoints  {balance:<13}  {'busy' if lent_each else 'steady':<6}  {figure:7.0f}")
                await cluster.close()
    circuit = CircuitSettings(max_in_flight=1, max_connections=1)
    cluster = Cluster("bench", ClusterSettings(endpoints=("10.0.0.1:80",), circuit=circuit), dial)
    first = Waiting()
    cluster.submit(first)
    await turns()
    if first.conn is not None:
        cluster.release(first.conn)
    print(f"submit+handover     1 endpoint   full cluster           {measure(handover(cluster)) - idle:7.0f}")
    await cluster.close()


if __name__ == "__main__":
    asyncio.run(main())
