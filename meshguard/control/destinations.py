"""From configuration to running dynamic clusters: what bounds their destinations, and how each one's server has to identify itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from meshguard.control.settings.clusters import ClusterConfig
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.destinations import DestinationsConfig, placeholders
from meshguard.control.upstreams import client_tls, cluster_settings, peer_verifier
from meshguard.control.views import principal_matcher
from meshguard.net.connector import ClientTls, Connector

if TYPE_CHECKING:
    from meshguard.identity.material import Material
    from meshguard.identity.trust import TrustStore
    from meshguard.net.destinations import Destinations, DestinationSettings
    from meshguard.net.own_addresses import AddressGuard
    from meshguard.policy.quarantine import Containment

__all__ = ["DynamicClusters", "destination_settings"]

NewConnector: TypeAlias = Callable[[ClusterConfig, ClientTls | None], Connector]
Prepared: TypeAlias = "tuple[DestinationSettings, Callable[[str], ClientTls | None], Callable[[ClientTls | None], Connector], AddressGuard]"


def destination_settings(config: ClusterConfig, workers: int = 1) -> DestinationSettings:
    """What bounds the destinations of a cluster without endpoints; see `cluster_settings` for `workers`."""
    from meshguard.net.destinations import DestinationSettings

    chosen = config.destinations or DestinationsConfig()
    tls = config.tls
    return DestinationSettings(
        cluster=cluster_settings(config, workers),
        authorities=tuple(chosen.authorities),
        default_port=chosen.default_port,
        address=chosen.address,
        original=chosen.original,
        literals=chosen.ip_literals,
        named=tls is not None and tls.spiffe_id is not None and bool(placeholders(tls.spiffe_id)),
        limit=chosen.limit,
        idle_s=chosen.idle_s,
    )


def tls_by_host(
    cluster: ClusterConfig, material: Material | None, trust: TrustStore | None, contained: Containment
) -> Callable[[str], ClientTls | None]:
    """How to speak TLS to each host: one context for all, and for each host the SPIFFE ID that its server has to prove. Raises
    IdentityError, OSError."""
    config = cluster.tls
    template = config.spiffe_id if config is not None else None
    if config is None or template is None or not placeholders(template):
        same = client_tls(config, material, trust, contained, cluster.protocol)
        return lambda host: same
    base = client_tls(config.model_copy(update={"spiffe_id": _filled(template, "any")}), material, trust, contained, cluster.protocol)
    if base is None or trust is None:
        raise ValueError("a SPIFFE ID without TLS")

    def of(host: str) -> ClientTls:
        tls = copy(base)
        tls.verify = peer_verifier(principal_matcher([_filled(template, host)]), trust, contained)
        return tls

    return of


def _filled(template: str, host: str) -> str:
    """Host names hold only characters that a SPIFFE ID's path may have, and no dots alone (wire.authority)."""
    return template.replace("{service}", host.partition(".")[0]).replace("{host}", host)


class DynamicClusters:
    """The running dynamic clusters by name; like other clusters they outlive snapshots."""

    def __init__(self, new_connector: NewConnector, contained: Containment) -> None:
        self._contained = contained
        self.by_name: dict[str, Destinations] = {}
        self._new_connector = new_connector

    def prepare(
        self, configuration: Configuration, material: Material | None, trust: TrustStore | None, workers: int = 1
    ) -> dict[str, Prepared]:
        """Everything of a change that can fail. Raises ValueError, IdentityError, OSError."""
        configs = {name: config for name, config in configuration.clusters.items() if not config.endpoints}
        if not configs:
            return {}
        from meshguard.net.own_addresses import AddressGuard  # a proxy without dynamic clusters does not pay for them
        from meshguard.wire.forwarded import parse_networks

        doors = [configuration.admin.address, *(listener.address for listener in configuration.listeners.values())]
        own = [(address.host, address.port) for address in doors]
        return {
            name: (
                destination_settings(config, workers),
                tls_by_host(config, material, trust, self._contained),
                partial(self._new_connector, config),
                AddressGuard(own, parse_networks((config.destinations or DestinationsConfig()).refuse_addresses)),
            )
            for name, config in configs.items()
        }

    def apply(self, prepared: Mapping[str, Prepared]) -> list[Destinations]:
        """Makes the dynamic clusters what was prepared; gives those that are no longer wanted."""
        for name, (settings, tls_of, new_connector, guard) in prepared.items():
            running = self.by_name.get(name)
            if running is None:
                from meshguard.net.destinations import Destinations

                self.by_name[name] = Destinations(name, settings, tls_of, new_connector, guard)
            else:
                running.reconfigure(settings, tls_of, new_connector, guard)
        return [self.by_name.pop(name) for name in [name for name in self.by_name if name not in prepared]]
