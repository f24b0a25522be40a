"""Settings of one cluster: frozen values with the keys of the configuration document; units are in the names.

Defaults follow the limits table of the security design (1024 in flight, a queue of 128, retries at most 20 %, connect 1 s,
response 15 s, idle 60 s). TLS is not here: it is inside the `connect` callable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from meshguard.net.cluster.endpoint import Address, parse_address

__all__ = ["CircuitSettings", "ClusterSettings", "EjectionSettings", "HealthSettings", "RetrySettings", "TimeoutSettings"]


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Active checks: GET `path` every `interval_s`, answered within `timeout_s` with a status in one of the inclusive `statuses`
    ranges. `healthy` successes in a row bring an endpoint back, `unhealthy` failures in a row take it out; the very first
    result of an endpoint decides at once. `host` is the Host field, the endpoint's own name when empty. `grpc`: instead of the GET, the
    health service of gRPC is asked for this service (empty: for the server). `http2`: without TLS the check speaks HTTP/2."""

    path: str = "/"
    interval_s: float = 5.0
    timeout_s: float = 1.0
    healthy: int = 2
    unhealthy: int = 3
    statuses: tuple[tuple[int, int], ...] = ((200, 299),)
    host: str = ""
    grpc: str | None = None
    http2: bool = False

    def __post_init__(self) -> None:
        if self.grpc is not None and len(self.grpc.encode("utf-8")) > 125:
            raise ValueError("health: grpc must be the name of a service, at most 125 octets")
        if min(self.healthy, self.unhealthy) < 1 or self.interval_s <= 0 or self.timeout_s <= 0:
            raise ValueError("health: healthy and unhealthy must be at least 1, interval_s and timeout_s above 0")
        if not self.path.startswith("/") or not self.path.isascii() or not self.path.isprintable() or " " in self.path:
            raise ValueError("health: path must be an absolute ASCII path")


@dataclass(frozen=True, slots=True)
class EjectionSettings:
    """Passive health: `consecutive_failures` (0 turns it off) eject an endpoint for `eject_s`, twice as long with each further
    ejection up to ten times; at most `max_percent` of the endpoints are out of service by ejection (so the only endpoint of
    a cluster is never ejected unless this is 100). `statuses` are the upstream answers that count as failures."""

    consecutive_failures: int = 5
    eject_s: float = 30.0
    max_percent: int = 50
    statuses: frozenset[int] = frozenset({502, 503, 504})

    def __post_init__(self) -> None:
        if self.consecutive_failures < 0 or self.eject_s <= 0 or not 0 <= self.max_percent <= 100:
            raise ValueError("ejection: consecutive_failures >= 0, eject_s > 0 and max_percent in 0..100 are required")


@dataclass(frozen=True, slots=True)
class CircuitSettings:
    """Limits of the whole cluster in this process: requests in flight, connections (idle, busy and opening), calls that wait
    above those limits and for how long, and idle connections kept for each endpoint."""

    max_in_flight: int = 1024
    max_connections: int = 1024
    queue: int = 128
    queue_timeout_s: float = 1.0
    max_idle: int = 256

    def __post_init__(self) -> None:
        if min(self.max_in_flight, self.max_connections) < 1 or min(self.queue, self.max_idle) < 0 or self.queue_timeout_s <= 0:
            raise ValueError("circuit: max_in_flight and max_connections >= 1, queue and max_idle >= 0, queue_timeout_s > 0 are required")


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """A call is tried again at most `attempts` times, and retries in flight stay within `budget_percent` of the calls in flight
    (three are always allowed: `retry.FLOOR`)."""

    attempts: int = 2
    budget_percent: int = 20

    def __post_init__(self) -> None:
        if self.attempts < 0 or not 0 <= self.budget_percent <= 100:
            raise ValueError("retries: attempts >= 0 and budget_percent in 0..100 are required")


@dataclass(frozen=True, slots=True)
class TimeoutSettings:
    """`connect_s` bounds one dial (TCP and TLS), `idle_s` the life of an unused connection. `response_s` is the journey's. `ping_s`: an
    unused HTTP/2 connection that was silent for so long is asked whether it lives, and has `connect_s` to answer."""

    connect_s: float = 1.0
    response_s: float = 15.0
    idle_s: float = 60.0
    ping_s: float = 25.0

    def __post_init__(self) -> None:
        if min(self.connect_s, self.response_s, self.idle_s, self.ping_s) <= 0:
            raise ValueError("timeouts: connect_s, response_s, idle_s and ping_s must be above 0")


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """One cluster. `endpoints` are `host:port` or `[v6]:port`; with `resolve: dns` host names become all their addresses, refreshed
    every `refresh_s`. Below `panic_percent` of usable endpoints all are used, whatever their health (0: never; see members)."""

    endpoints: tuple[str, ...] = ()
    resolve: Literal["static", "dns"] = "static"
    refresh_s: float = 30.0
    balance: Literal["least_request", "round_robin"] = "least_request"
    panic_percent: int = 0
    health: HealthSettings | None = None
    ejection: EjectionSettings = field(default_factory=EjectionSettings)
    circuit: CircuitSettings = field(default_factory=CircuitSettings)
    retries: RetrySettings = field(default_factory=RetrySettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)

    def __post_init__(self) -> None:
        if self.refresh_s <= 0 or not 0 <= self.panic_percent <= 100:
            raise ValueError("cluster: refresh_s > 0 and panic_percent in 0..100 are required")
        self.addresses()

    def addresses(self) -> list[Address]:
        """The endpoints, parsed; raises ValueError."""
        return [parse_address(text) for text in self.endpoints]
