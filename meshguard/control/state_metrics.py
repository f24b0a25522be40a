"""Metrics worked out at each scrape: what is enforced, since when, and how the clusters and connections stand."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from meshguard.telemetry.metrics import Family, Kind, Labels

if TYPE_CHECKING:
    from meshguard.control.runtime import Runtime
    from meshguard.net.cluster.state import ClusterState
    from meshguard.net.destinations import DestinationsState

__all__ = ["families"]


def families(runtime: Runtime, tasks: int) -> Iterator[Family]:
    """`tasks` is the number of asyncio tasks of the process."""
    state = runtime.state
    in_force = (state.policy_digest, str(state.revision))
    yield _gauge("meshguard.policy.info", "The policy in force", "", ("digest", "revision"), [(in_force, 1.0)])
    yield _gauge("meshguard.policy.since", "When it was taken over, epoch seconds", "s", (), [((), state.since)])
    yield _gauge("meshguard.reload.failed", "1 while the last change was refused", "", (), [((), 1.0 if state.last_error else 0.0)])
    yield _gauge("meshguard.identity.expiry", "End of the own SVID, epoch seconds", "s", (), [((), state.identity_not_after)])
    yield _gauge(
        "meshguard.connections",
        "Open downstream connections",
        "{connection}",
        ("listener",),
        [((name,), float(listener.connections)) for name, listener in runtime.listeners.items()],
    )
    yield _counter(
        "meshguard.connections.refused",
        "Connections above the limit",
        "{connection}",
        ("listener",),
        [((name,), float(listener.refused)) for name, listener in runtime.listeners.items()],
    )
    yield _counter(
        "meshguard.connections.passed",
        "New connections that went on to a worker with fewer",
        "{connection}",
        (),
        [((), float(max((listener.passing.passed for listener in runtime.listeners.values() if listener.passing), default=0)))],
    )
    states = {name: cluster.snapshot() for name, cluster in runtime.upstreams.clusters.items()}
    dynamic = {name: destinations.snapshot() for name, destinations in runtime.dynamic.by_name.items()}
    sums: dict[str, ClusterState | DestinationsState] = {**states, **dynamic}
    yield _gauge(
        "meshguard.cluster.destinations",
        "Open destinations of a cluster without endpoints",
        "{destination}",
        ("cluster",),
        [((name,), float(state.count)) for name, state in dynamic.items()],
    )
    for attribute, text in (
        ("in_flight", "Requests in flight"),
        ("connections", "Connections"),
        ("idle", "Idle connections"),
        ("queued", "Requests that wait"),
    ):
        yield _gauge(
            f"meshguard.cluster.{attribute}",
            text,
            "",
            ("cluster",),
            [((name,), float(getattr(state, attribute))) for name, state in sums.items()],
        )
    for attribute, text in (
        ("connects", "Connections opened"),
        ("connect_failures", "Connections that could not be opened"),
        ("ejections", "Endpoints taken out by passive health"),
        ("retries", "Requests tried again"),
        ("circuit_rejections", "Requests refused by the circuit"),
        ("queue_timeouts", "Requests that waited too long"),
    ):
        yield _counter(
            f"meshguard.cluster.{attribute}",
            text,
            "",
            ("cluster",),
            [((name,), float(getattr(state, attribute))) for name, state in sums.items()],
        )
    yield _gauge(
        "meshguard.cluster.usable",
        "1 where an endpoint takes requests",
        "",
        ("cluster", "endpoint"),
        [((name, endpoint.key), 1.0 if endpoint.usable else 0.0) for name, state in states.items() for endpoint in state.endpoints],
    )
    yield _gauge("meshguard.inspection.held", "Octets of bodies held for field rules", "By", (), [((), float(runtime.budget.held))])
    yield _gauge("meshguard.process.tasks", "Asyncio tasks", "", (), [((), float(tasks))])
    yield _gauge("meshguard.process.descriptors", "Open descriptors", "", (), [((), float(_descriptors()))])
    yield _gauge("process.resident_memory", "Resident memory", "By", (), [((), float(_resident()))])
    collections = float(gc.get_stats()[2]["collections"])
    yield _counter("meshguard.process.collections", "Runs of the oldest generation of the collector", "", (), [((), collections)])


def _gauge(name: str, text: str, unit: str, labels: tuple[str, ...], values: list[tuple[Labels, float]]) -> Family:
    return Family(name, Kind.GAUGE, text, unit, labels, [*values])


def _counter(name: str, text: str, unit: str, labels: tuple[str, ...], values: list[tuple[Labels, float]]) -> Family:
    return Family(name, Kind.COUNTER, text, unit, labels, [*values])


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def _resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
