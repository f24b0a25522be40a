"""From configuration to running clusters: settings, connectors, and how each one speaks TLS under the present identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from meshguard.control.protocols import new_client
from meshguard.control.settings.clusters import ClusterConfig, ClusterTls
from meshguard.control.views import principal_matcher
from meshguard.model.errors import IdentityError
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.settings import (
    CircuitSettings,
    ClusterSettings,
    EjectionSettings,
    HealthSettings,
    RetrySettings,
    TimeoutSettings,
)
from meshguard.net.connector import ClientTls, Connector
from meshguard.net.tls import build_client_context, peer_chain
from meshguard.policy.principals import parse_principal
from meshguard.policy.quarantine import Containment, Quarantine
from meshguard.wire.events import WireLimits
from meshguard.wire.http1 import ResponseParser
from meshguard.wire.http2.engine import Http2Limits

if TYPE_CHECKING:
    from meshguard.identity.material import Material
    from meshguard.identity.trust import TrustStore
    from meshguard.net.channel import Channel

_STREAMS = 1000
"""Requests under way on one HTTP/2 connection to an upstream, at most: the upstream's own limit is the usual bound."""
_FRAMES = 10_000
"""Resets, and control frames, that an upstream may send in a burst and a second: it is chosen by configuration, not a stranger."""

__all__ = ["ALPN", "Upstreams", "client_tls", "cluster_settings", "peer_verifier"]


def cluster_settings(config: ClusterConfig, workers: int = 1) -> ClusterSettings:
    """The cluster's own settings, without TLS. Each of several `workers` has its share of the circuit, so that all together keep to it."""
    health, circuit = config.health, config.circuit
    return ClusterSettings(
        endpoints=tuple(str(endpoint) for endpoint in config.endpoints),
        resolve=config.resolve if config.endpoints else "dns",
        refresh_s=config.refresh_s,
        balance=config.balance,
        health=None
        if health is None
        else HealthSettings(
            health.path,
            health.interval_s,
            health.timeout_s,
            health.healthy,
            health.unhealthy,
            grpc=health.grpc,
            http2=config.protocol == "h2" or (health.grpc is not None and config.protocol == "auto"),
        ),
        ejection=EjectionSettings(config.ejection.consecutive_failures, config.ejection.eject_s, config.ejection.max_percent),
        circuit=CircuitSettings(
            -(-circuit.max_in_flight // workers),
            -(-circuit.max_connections // workers),
            -(-circuit.queue // workers),
            circuit.queue_timeout_s,
        ),
        retries=RetrySettings(config.retries.attempts, config.retries.budget_percent),
        timeouts=TimeoutSettings(config.timeouts.connect_s, config.timeouts.response_s, config.timeouts.idle_s, config.timeouts.ping_s),
    )


ALPN = {"auto": ("h2", "http/1.1"), "h2": ("h2",), "http/1.1": ("http/1.1",)}


def client_tls(
    config: ClusterTls | None, material: Material | None, trust: TrustStore | None, contained: Containment, protocol: str = "http/1.1"
) -> ClientTls | None:
    """TLS towards a cluster under this identity. Raises IdentityError, OSError."""
    if config is None:
        return None
    patterns = [*config.spiffe_ids, *([config.spiffe_id] if config.spiffe_id else [])]
    own = material if (config.use_svid if config.use_svid is not None else bool(patterns)) else None
    if not patterns:
        anchors = _certificates(config.ca) if config.ca is not None else None
        return ClientTls(build_client_context(own, anchors, server_name=True, alpn=ALPN[protocol]), config.server_name, None)
    if trust is None:
        raise IdentityError("tls_context", "a SPIFFE ID of an upstream can only be checked with an own identity and its bundles")
    context = build_client_context(own, trust.anchors(), alpn=ALPN[protocol])
    return ClientTls(context, None, peer_verifier(principal_matcher(patterns), trust, contained))


def peer_verifier(matches: Callable[[str], bool], trust: TrustStore, contained: Containment) -> Callable[[Channel], float]:
    """Judges the server at the other end of a channel by `trust`; its SPIFFE ID has to match, and must not be quarantined."""

    def verify(channel: Channel) -> float:
        """INVARIANT: stands in for the host name check and is never skipped (security.md 3)."""
        tls = channel.tls
        chain = peer_chain(tls) if tls is not None else ()
        principal = trust.verify(chain, time())
        if not matches(principal.spiffe_id):
            raise IdentityError("unexpected_peer", f"the upstream is {principal.spiffe_id}")
        quarantine = contained.current
        if quarantine and quarantine.find(principal.spiffe_id, principal.serial, time()) is not None:
            raise IdentityError("quarantined", f"the upstream {principal.spiffe_id} is quarantined")
        return principal.not_after

    return verify


def _certificates(path: Path) -> list[bytes]:
    from meshguard.identity.pem import read_certificates

    return read_certificates(path.read_bytes())


def _held(quarantine: Quarantine, text: str, now: float) -> bool:
    """A server's SPIFFE ID, or a whole pattern of them, is quarantined."""
    if parse_principal(text).exact:
        return quarantine.find(text, "", now) is not None
    entry = quarantine.entries.get(text)
    return entry is not None and entry.alive(now)


class Upstreams:
    """The running clusters by name; they outlive snapshots, so that a reload keeps pools and health."""

    def __init__(self) -> None:
        self.clusters: dict[str, Cluster] = {}
        self._connectors: dict[str, Connector] = {}
        self._tls: dict[str, ClusterTls | None] = {}
        self.limits = WireLimits()
        self.workers = 1  # processes that share each circuit
        self.contained = Containment()
        self.http2_limits = Http2Limits(
            streams=_STREAMS, reset_burst=_FRAMES, reset_per_s=_FRAMES, control_burst=_FRAMES, control_per_s=_FRAMES
        )

    def contain(self, quarantine: Quarantine) -> Quarantine:
        """Puts a quarantine in force. A cluster all of whose servers are named by what is quarantined is not even connected to; where a
        pattern names them, each one is judged by its certificate."""
        self.contained.current = quarantine
        now = time()
        for name, cluster in self.clusters.items():
            tls = self._tls[name]
            named = [] if tls is None else [*tls.spiffe_ids, *([tls.spiffe_id] if tls.spiffe_id else [])]
            out = bool(named) and bool(quarantine) and all(_held(quarantine, text, now) for text in named)
            cluster.barred = f"{', '.join(named)} is quarantined" if out else ""
        return quarantine

    def new_connector(self, config: ClusterConfig, tls: ClientTls | None) -> Connector:
        """For one cluster, or one destination of a dynamic one."""
        return Connector(lambda: ResponseParser(self.limits), tls, config.protocol, partial(new_client, self.http2_limits))

    def prepare(
        self, configs: Mapping[str, ClusterConfig], material: Material | None, trust: TrustStore | None
    ) -> dict[str, tuple[ClusterSettings, ClientTls | None]]:
        """Everything of a change that can fail, done before anything is changed. Raises ValueError, IdentityError, OSError."""
        return {
            name: (cluster_settings(config, self.workers), client_tls(config.tls, material, trust, self.contained, config.protocol))
            for name, config in configs.items()
            if config.endpoints
        }

    def apply(
        self, configs: Mapping[str, ClusterConfig], prepared: Mapping[str, tuple[ClusterSettings, ClientTls | None]]
    ) -> list[Cluster]:
        """Makes the clusters what was prepared; gives those that are no longer wanted, to be drained once no snapshot uses them."""
        for name, (settings, tls) in prepared.items():
            cluster = self.clusters.get(name)
            if cluster is None:
                connector = self.new_connector(configs[name], tls)
                cluster = Cluster(name, settings, connector.connect, opener=connector.open_stream)
                connector.cluster = cluster
                self.clusters[name] = cluster
                self._connectors[name] = connector
                cluster.start()
            else:
                connector = self._connectors[name]
                connector.tls = tls
                changed = connector.protocol != configs[name].protocol
                connector.protocol = configs[name].protocol
                if cluster.settings != settings:
                    cluster.reconfigure(settings)
                if changed or tls is not None or self._tls[name] is not None:
                    cluster.recycle()  # connections made under the old identity or trust take no further request
            self._tls[name] = configs[name].tls
        gone = [name for name in self.clusters if name not in prepared]
        for name in gone:
            del self._connectors[name], self._tls[name]
        return [self.clusters.pop(name) for name in gone]
