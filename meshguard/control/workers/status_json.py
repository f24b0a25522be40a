"""The state of a process as JSON values and back, and the states of many as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshguard.control.admin import EndpointStatus, ListenerStatus, Status

__all__ = ["plain", "status_of", "together"]


def plain(status: Status) -> dict[str, Any]:
    """Values that `status_of` understands."""
    return {
        "policy_digest": status.policy_digest,
        "policy_revision": status.policy_revision,
        "policy_since": status.policy_since,
        "reload_error": status.reload_error,
        "identity": status.identity,
        "identity_not_after": status.identity_not_after,
        "listeners": [(listener.name, listener.address, listener.listening) for listener in status.listeners],
        "clusters": {
            name: [(endpoint.address, endpoint.healthy, endpoint.reason) for endpoint in endpoints]
            for name, endpoints in status.clusters.items()
        },
        "keys": {name: dict(values) for name, values in status.keys.items()},
        "fleet": dict(status.fleet),
        "draining": status.draining,
        "active": status.active,
    }


def status_of(values: Mapping[str, Any]) -> Status:
    """Raises TypeError, KeyError for other values."""
    return Status(
        **{
            **values,
            "listeners": tuple(ListenerStatus(*listener) for listener in values["listeners"]),
            "clusters": {
                name: tuple(EndpointStatus(*endpoint) for endpoint in endpoints) for name, endpoints in values["clusters"].items()
            },
        }
    )


def together(states: Iterable[Status]) -> Status:
    """One state for many: a listener or an endpoint is up where any worker has it up; the identity that ends first counts; of the
    policy, the newest (which worker enforces which is told beside this)."""
    all_states = list(states)
    if not all_states:
        return Status()
    newest = max(all_states, key=lambda status: status.policy_since)
    ends = [status.identity_not_after for status in all_states if status.identity_not_after is not None]
    listeners: dict[str, ListenerStatus] = {}
    clusters: dict[str, dict[str, EndpointStatus]] = {}
    for status in all_states:
        for listener in status.listeners:
            if listener.name not in listeners or listener.listening:
                listeners[listener.name] = listener
        for name, endpoints in status.clusters.items():
            known = clusters.setdefault(name, {})
            for endpoint in endpoints:
                if endpoint.address not in known or endpoint.healthy:
                    known[endpoint.address] = endpoint
    return Status(
        policy_digest=newest.policy_digest,
        policy_revision=newest.policy_revision,
        policy_since=newest.policy_since,
        reload_error=next((status.reload_error for status in all_states if status.reload_error), ""),
        identity=newest.identity,
        identity_not_after=min(ends, default=None),
        listeners=tuple(listeners.values()),
        clusters={name: tuple(endpoints.values()) for name, endpoints in clusters.items()},
        keys=newest.keys,
        fleet=next((status.fleet for status in all_states if status.fleet.get("store") == "away"), newest.fleet),
        active=sum(status.active for status in all_states),
    )
