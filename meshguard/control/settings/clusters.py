"""Upstreams: where requests go, how the server is identified, and what bounds the damage when it is ill."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from meshguard.control.settings.destinations import DestinationsConfig
from meshguard.control.settings.values import DocumentPath, Endpoint, Percent, Seconds, Section, SpiffePattern, SpiffeTemplate

__all__ = ["CircuitConfig", "ClusterConfig", "ClusterTimeouts", "ClusterTls", "EjectionConfig", "HealthConfig", "RetryConfig"]


def _health_path(value: str) -> str:
    if not value.startswith("/") or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("a path that begins with /, such as /health")
    return value


class ClusterTls(Section):
    """TLS towards the upstream. The server is known by its SPIFFE ID, or, outside the mesh, by a name under a CA: exactly one of
    `spiffe_id`, `spiffe_ids` and `server_name`."""

    spiffe_id: SpiffeTemplate | None = Field(
        default=None, description="Without endpoints, {service} (first label) and {host} of the destination may stand in it."
    )
    spiffe_ids: list[SpiffePattern] = []
    server_name: str | None = Field(default=None, min_length=1, description="Host name that the server's certificate must have.")
    ca: DocumentPath | None = Field(default=None, description="CA certificates for `server_name`; absent: those of the system.")
    use_svid: bool | None = Field(default=None, description="Present the own SVID; absent: yes with SPIFFE IDs, no with `server_name`.")


class HealthConfig(Section):
    """Active checks: GET `path` every `interval_s`, or `grpc`."""

    path: Annotated[str, AfterValidator(_health_path)] = "/"
    interval_s: Seconds = 5.0
    timeout_s: Seconds = 1.0
    grpc: str | None = Field(
        default=None, max_length=125, description="Instead of the GET: grpc.health.v1 is asked for this service; '' is the whole server."
    )
    healthy: int = Field(default=2, ge=1, description="Successes in a row that bring an endpoint back.")
    unhealthy: int = Field(default=3, ge=1, description="Failures in a row that take an endpoint out.")


class EjectionConfig(Section):
    """Passive health: endpoints that keep failing real requests are left out for a while."""

    consecutive_failures: int = Field(default=5, ge=0, description="0 turns it off.")
    eject_s: Seconds = 30.0
    max_percent: Percent = Field(default=50, description="Of the endpoints of the cluster at most.")


class CircuitConfig(Section):
    """Bounds of the whole cluster in one process; above them a request waits in the queue, then is refused."""

    max_in_flight: int = Field(default=1024, ge=1)
    max_connections: int = Field(default=1024, ge=1)
    queue: int = Field(default=128, ge=0)
    queue_timeout_s: Seconds = 1.0


class RetryConfig(Section):
    """Retries of safe requests that the upstream did not begin to answer."""

    attempts: int = Field(default=2, ge=0, le=10)
    budget_percent: Percent = Field(default=20, description="Retries in flight, of the requests in flight.")


class ClusterTimeouts(Section):
    """`response_s`: from the end of the request to the head of the response."""

    connect_s: Seconds = 1.0
    response_s: Seconds = 15.0
    idle_s: Seconds = 60.0
    ping_s: Seconds = Field(default=25.0, description="HTTP/2: a connection without requests that is silent so long is sent a PING.")


class ClusterConfig(Section):
    """One upstream service with its endpoints; without endpoints, the services that requests name (`resolve: dns`)."""

    endpoints: list[Endpoint] = Field(default=[], description="Absent: each request names its destination (see `destinations`).")
    destinations: DestinationsConfig | None = Field(default=None, description="Only without endpoints.")
    resolve: Literal["static", "dns"] = Field(default="static", description="dns: host names become all their addresses, looked up again.")
    refresh_s: Seconds = 30.0
    balance: Literal["least_request", "round_robin"] = "least_request"
    protocol: Literal["auto", "http/1.1", "h2"] = Field(
        default="auto", description="auto: h2 or http/1.1 by ALPN with TLS, http/1.1 without. h2 without TLS is prior knowledge."
    )
    tls: ClusterTls | None = Field(default=None, description="Absent: plaintext, for an application on this machine.")
    health: HealthConfig | None = None
    ejection: EjectionConfig = Field(default={}, validate_default=True)
    circuit: CircuitConfig = Field(default={}, validate_default=True)
    retries: RetryConfig = Field(default={}, validate_default=True)
    timeouts: ClusterTimeouts = Field(default={}, validate_default=True)
