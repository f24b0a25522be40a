"""What a cluster tells readiness, metrics and the admin API: values copied at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from meshguard.net.cluster.endpoint import Endpoint
from meshguard.net.cluster.line import Line

__all__ = ["ClusterState", "EndpointState", "observe"]


@dataclass(frozen=True, slots=True)
class EndpointState:
    """`state` is `unknown` (not checked yet, usable), `healthy`, `unhealthy` (active check), `ejected` (passive) or `leaving`; the
    counters run since the endpoint was first seen."""

    key: str
    name: str
    state: str
    usable: bool
    in_flight: int
    idle: int
    connecting: int
    failures: int
    connects: int
    connect_failures: int
    ejections: int
    checks_failed: int


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Gauges and counters of one cluster. `ready`: every name was looked up once, every endpoint was checked once where checks
    are configured, and at least one is usable. `queued` is how many calls wait without a dial of their own."""

    name: str
    ready: bool
    panic: bool
    endpoints: tuple[EndpointState, ...]
    in_flight: int
    connections: int
    idle: int
    connecting: int
    queued: int
    connects: int
    connect_failures: int
    ejections: int
    retries: int
    retries_refused: int
    retries_active: int
    circuit_rejections: int
    queue_timeouts: int
    cancellations: int
    strays: int


def _endpoint(endpoint: Endpoint) -> EndpointState:
    if endpoint.gone:
        state = "leaving"
    elif endpoint.ejected_until:
        state = "ejected"
    elif endpoint.healthy is None:
        state = "unknown"
    else:
        state = "healthy" if endpoint.healthy else "unhealthy"
    stats = endpoint.stats
    return EndpointState(
        key=endpoint.key,
        name=endpoint.address.name,
        state=state,
        usable=endpoint.usable,
        in_flight=endpoint.in_flight,
        idle=len(endpoint.idle) + sum(not carrier.lent for carrier in endpoint.carriers),
        connecting=endpoint.connecting,
        failures=endpoint.failures,
        connects=stats.connects,
        connect_failures=stats.connect_failures,
        ejections=stats.ejections,
        checks_failed=stats.checks_failed,
    )


def observe(line: Line) -> ClusterState:
    """The state of `line` now."""
    members = line.members
    present = list(members.endpoints.values())
    endpoints = tuple(_endpoint(endpoint) for endpoint in (*present, *members.leaving.values()))
    books = line.books()
    checked = line.settings.health is None or all(endpoint.healthy is not None for endpoint in present)
    return ClusterState(
        name=line.name,
        ready=bool(members.usable) and checked and not line.unresolved and not line.closed,
        panic=members.panic,
        endpoints=endpoints,
        in_flight=books.in_flight,
        connections=books.connections,
        idle=sum(endpoint.idle for endpoint in endpoints),
        connecting=books.connecting,
        queued=books.queued,
        connects=books.connects,
        connect_failures=books.connect_failures,
        ejections=members.ejections,
        retries=line.budget.granted,
        retries_refused=line.budget.refused,
        retries_active=line.budget.active,
        circuit_rejections=line.rejections,
        queue_timeouts=line.queue_timeouts,
        cancellations=line.cancellations,
        strays=line.strays,
    )
