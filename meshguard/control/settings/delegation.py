"""Decision tokens in the configuration: whom they are addressed to, and what must agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshguard.sources.complaints import Complaint

__all__ = ["audience_of", "delegation_complaints"]


def audience_of(tls: Mapping[str, Any] | None) -> str:
    """Whom a token for a cluster with these `tls` settings is addressed to: its one SPIFFE ID, or the trust domain of its patterns. Empty
    where neither is known: then nobody could be held to it."""
    if not tls:
        return ""
    one = tls.get("spiffe_id")
    patterns = [one] if isinstance(one, str) else [item for item in tls.get("spiffe_ids") or () if isinstance(item, str)]
    if len(patterns) == 1 and not any(mark in patterns[0] for mark in "*{"):
        return str(patterns[0])
    domains = {pattern.removeprefix("spiffe://").partition("/")[0] for pattern in patterns}
    if len(domains) != 1 or any(mark in domain for domain in domains for mark in "*{"):
        return ""
    return f"spiffe://{domains.pop()}"


def delegation_complaints(values: Mapping[str, Any]) -> Iterator[Complaint]:
    """What must agree; works on the plain values."""
    listeners, clusters = values.get("listeners"), values.get("clusters")
    for name, listener in listeners.items() if isinstance(listeners, Mapping) else ():
        if not isinstance(listener, Mapping):
            continue
        at: tuple[str | int, ...] = ("listeners", str(name))
        reads = listener.get("decision_token", "none") != "none"
        if reads and listener.get("direction") != "outbound" and listener.get("tls", "mutual") not in ("mutual", "permissive"):
            yield Complaint(
                (*at, "decision_token"), "a listener with client certificates, or an outbound one: a token is bound to its connection"
            )
        routes = listener.get("routes")
        for index, route in enumerate(routes if isinstance(routes, list) else ()):
            what = route.get("decision_token", "none") if isinstance(route, Mapping) else "none"
            place = (*at, "routes", index, "decision_token")
            if what == "send":
                cluster = clusters.get(route.get("to")) if isinstance(clusters, Mapping) else None
                tls = cluster.get("tls") if isinstance(cluster, Mapping) else None
                if not audience_of(tls if isinstance(tls, Mapping) else None):
                    yield Complaint(
                        place, "a cluster whose tls names a SPIFFE ID, or patterns of one trust domain: a token has an audience", what
                    )
                if "identity" not in values:
                    yield Complaint(place, "an `identity`: its key signs", what)
            elif what == "pass" and not reads:
                yield Complaint(place, "`decision_token: accept` or `require` on the listener: only verified tokens are passed on", what)
