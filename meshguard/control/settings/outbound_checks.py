"""What must agree for outbound listeners and clusters without endpoints. Works on the plain values, as `crosscheck` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshguard.control.settings.destinations import placeholders
from meshguard.control.settings.profiles import PLAIN_UPSTREAM, permits
from meshguard.control.settings.values import parse_address
from meshguard.sources.complaints import Complaint

__all__ = ["outbound_complaints"]


def outbound_complaints(values: Mapping[str, Any], profile: str) -> Iterator[Complaint]:
    """Complaints about `direction`, `capture` and clusters whose destinations the requests name."""
    listeners, clusters = _mapping(values.get("listeners")), _mapping(values.get("clusters"))
    for name, listener in listeners.items():
        if isinstance(listener, Mapping):
            yield from _listener(("listeners", str(name)), listener, clusters, "identity" in values)
    for name, cluster in clusters.items():
        if not isinstance(cluster, Mapping):
            continue
        at = ("clusters", str(name))
        if not cluster.get("endpoints"):
            yield from _dynamic(at, cluster, profile)
        else:
            if cluster.get("destinations") is not None:
                yield Complaint((*at, "destinations"), "no such key here: a cluster has either endpoints or destinations")
            text = _mapping(cluster.get("tls")).get("spiffe_id")
            if isinstance(text, str) and placeholders(text):
                yield Complaint((*at, "tls", "spiffe_id"), "a SPIFFE ID: placeholders are for clusters without endpoints", text)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listener(at: tuple[str, ...], listener: Mapping[str, Any], clusters: Mapping[str, Any], identity: bool) -> Iterator[Complaint]:
    if listener.get("direction") == "outbound":
        if listener.get("tls") != "none":
            yield Complaint((*at, "tls"), "none: the application speaks plain HTTP to an outbound listener", str(listener.get("tls")))
        if not identity:
            yield Complaint((*at, "direction"), "an `identity`: an outbound listener speaks for its own workload", "outbound")
        if not _is_loopback(listener.get("address")):
            yield Complaint(
                (*at, "address"),
                "a loopback address: whoever reaches an outbound listener speaks with this workload's identity",
                str(listener.get("address")),
            )
    targets = [listener.get("to"), *(_mapping(route).get("to") for route in listener.get("routes") or () if isinstance(route, Mapping))]
    for target in targets:
        destinations = _mapping(_mapping(clusters.get(target) if isinstance(target, str) else None).get("destinations"))
        if destinations.get("original") is True and listener.get("capture") in (None, "none"):
            yield Complaint(
                (*at, "capture"), f"redirect or tproxy: cluster {target} connects to the address that a redirected client wanted"
            )
            return


def _is_loopback(address: object) -> bool:
    try:
        return parse_address(address).is_loopback
    except ValueError:
        return True  # its model tells it


def _dynamic(at: tuple[str, ...], cluster: Mapping[str, Any], profile: str) -> Iterator[Complaint]:
    destinations = _mapping(cluster.get("destinations"))
    if cluster.get("resolve") != "dns" and cluster.get("destinations") is None:
        yield Complaint((*at, "endpoints"), "at least one entry; or `resolve: dns` for destinations that the requests name")
        return
    if cluster.get("resolve") == "static":
        yield Complaint((*at, "resolve"), "dns: each destination is looked up by its name", "static")
    if cluster.get("health") is not None:
        yield Complaint((*at, "health"), "no such key here: destinations come and go, passive health judges them")
    tls = cluster.get("tls")
    if tls is None:
        if destinations.get("original") is True:
            yield Complaint((*at, "tls"), "a SPIFFE ID to check: any host name could be sent to the address that a client chose")
        elif permits(profile, PLAIN_UPSTREAM) == "never" and not _local_address(destinations.get("address")):
            yield Complaint((*at, "tls"), f"a value: the profile {profile} sends no plaintext to other machines")


def _local_address(address: object) -> bool:
    if not isinstance(address, str):
        return False
    host, _, _ = address.rpartition(":")
    return not placeholders(host) and _is_loopback(f"{host}:1")
