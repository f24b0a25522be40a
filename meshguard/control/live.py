"""What runs at this moment, for people: open requests, counts, clusters. Bounded, and told to callers on this machine only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from meshguard.telemetry.live import added
from meshguard.telemetry.shadow import merged

if TYPE_CHECKING:
    from meshguard.control.runtime import Runtime
    from meshguard.pipeline.exchange import Exchange

__all__ = ["MAX_REQUESTS", "live_requests", "live_stats", "oldest", "summed"]

MAX_REQUESTS = 100
_MAX_PATH = 256
_CLUSTER = ("in_flight", "connections", "queued", "retries", "connect_failures")


def live_stats(runtime: Runtime) -> dict[str, Any]:
    """Counts since somebody watches (`telemetry.live`), and gauges of now."""
    stats = runtime.telemetry.live.read()
    stats["listeners"] = {
        name: {
            "connections": listener.connections,
            "active": int(runtime.journeys[name].active.value),
            "accepted": listener.accepted,
            "refused": listener.refused,
        }
        for name, listener in runtime.listeners.items()
    }
    shadow = runtime.inputs.shadow
    stats["shadow"] = {**runtime.telemetry.request_metrics.shadow.read(), "candidate": shadow.told() if shadow is not None else None}
    stats["clusters"] = {}
    for name, cluster in runtime.upstreams.clusters.items():
        state = cluster.snapshot()
        stats["clusters"][name] = {
            **{key: getattr(state, key) for key in _CLUSTER},
            "endpoints": {endpoint.key: endpoint.usable for endpoint in state.endpoints},
        }
    return stats


def summed(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The stats of several workers as one. An endpoint is usable where any worker can use it."""
    stats: dict[str, Any] = {"routes": [], "callers": [], "listeners": {}, "clusters": {}}
    parts = list(parts)
    stats["shadow"] = {"compared": {}, "rows": merged(part["shadow"]["rows"] for part in parts), "candidate": None}
    for part in parts:
        stats["shadow"]["candidate"] = part["shadow"]["candidate"] or stats["shadow"]["candidate"]
        _add(stats["shadow"]["compared"], part["shadow"]["compared"])
        stats["routes"] += part["routes"]
        stats["callers"] += part["callers"]
        for name, values in part["listeners"].items():
            _add(stats["listeners"].setdefault(name, {}), values)
        for name, values in part["clusters"].items():
            cluster = stats["clusters"].setdefault(name, {"endpoints": {}})
            endpoints = cluster.pop("endpoints")
            for key, usable in values["endpoints"].items():
                endpoints[key] = endpoints.get(key, False) or usable
            _add(cluster, {key: value for key, value in values.items() if key != "endpoints"})
            cluster["endpoints"] = endpoints
    stats["routes"], stats["callers"] = added(stats["routes"]), added(stats["callers"])
    return stats


def _add(total: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        total[key] = total.get(key, 0) + value


def live_requests(runtime: Runtime) -> list[dict[str, Any]]:
    """The oldest open requests, at most `MAX_REQUESTS`. Of a query nothing is told, as in the decision log."""
    now = monotonic()
    return oldest(_told(exchange, now) for exchange in _open(runtime))


def oldest(requests: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The longest running ones first."""
    return sorted(requests, key=lambda request: -request["for_s"])[:MAX_REQUESTS]


def _open(runtime: Runtime) -> Iterator[Exchange]:
    for journey in runtime.journeys.values():
        for door in list(journey.connections):
            yield from cast("list[Exchange]", door.exchanges)  # what `Journey.begin` has put there


def _told(exchange: Exchange, now: float) -> dict[str, Any]:
    plan, peer, principal = exchange.plan, exchange.peer, exchange.principal
    return {
        "id": exchange.decision_id,
        "for_s": round(now - exchange.started, 3),
        "listener": peer.listener,
        "route": plan.route if plan is not None else "",
        "method": plan.method if plan is not None else "",
        "path": plan.path[:_MAX_PATH] if plan is not None else "",
        "caller": principal.spiffe_id if principal is not None else exchange.subject,
        "address": peer.client_address,
        "upstream": exchange.upstream,
        "state": "answering" if exchange.answered else "waiting" if exchange.forwarded else "deciding",
        "request_bytes": exchange.request_bytes,
        "response_bytes": exchange.response_bytes,
    }
