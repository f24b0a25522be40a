"""Living identities: connections end when the identity at their other end is no longer good, while they are open (E2).

Judged twice a second: expiry, revocation, a bundle that changed, a revocation list that became too old to say anything, and for long
exchanges the policy. Downstream and upstream alike. What cannot be judged is cut; it does not keep the others from being judged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from meshguard.control.judgements import still_trusted
from meshguard.model.errors import IdentityError
from meshguard.net.cluster.carrier import Carrier, Lease
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.tls import peer_chain, peer_leaf
from meshguard.policy.quarantine import NOBODY, Quarantine

if TYPE_CHECKING:
    from meshguard.identity.trust import TrustStore
    from meshguard.net.destinations import Destinations
    from meshguard.net.http1_client import UpstreamConnection
    from meshguard.net.http2_client import Http2Upstream
    from meshguard.net.listener import ServerDoor
    from meshguard.pipeline.journey import Journey
    from meshguard.pipeline.snapshot import Snapshot

__all__ = ["judge_doors", "judge_upstreams"]

log = logging.getLogger(__name__)


def judge_doors(journey: Journey, snapshot: Snapshot, trust: TrustStore | None, now: float, *, leaving: bool = False) -> None:
    """Ends connections whose caller may no longer be served: expired, revoked, untrusted or, with a request under way, now denied. The
    listener of a `leaving` journey is not in the snapshot any more."""
    for door in list(journey.connections):
        try:
            _judge_door(journey, door, snapshot, trust, now, leaving)
        except Exception:
            # the outermost loop over connections: this one cannot be shown to be good, so it ends
            log.exception("a connection could not be judged")
            door.abandon("could not be judged")


def _judge_door(journey: Journey, door: ServerDoor, snapshot: Snapshot, trust: TrustStore | None, now: float, leaving: bool) -> None:
    peer = door.peer
    if peer is None:
        return
    if not leaving and (peer.table is None or peer.table.snapshot is not snapshot):
        before = peer.refusal
        journey.identify_peer(peer, snapshot)
        if peer.refusal is not None and before is None:
            door.cut(peer.refusal.code)
            return
    if not door.recall(partial(journey.overstays, snapshot=snapshot)) and (now >= peer.expires or not still_trusted(peer, trust, now)):
        door.cut("identity_expired")


def judge_upstreams(
    families: Iterable[Cluster | Destinations], trust: TrustStore | None, now: float, quarantine: Quarantine = NOBODY
) -> None:
    """Ends connections to servers whose certificates `trust` no longer vouches for, or that are quarantined: what runs on them is cut,
    and nothing is sent there any more. A server that is known by its host name has no SPIFFE ID to judge."""
    if trust is None:
        return
    for cluster in (cluster for family in families for cluster in ((family,) if isinstance(family, Cluster) else family)):
        for connection in _connections(cluster):
            if connection.expires is None or connection.channel.closed:
                continue
            try:
                reason = _distrusted(connection, trust, now, quarantine)
            except Exception:
                # as above
                log.exception("an upstream connection could not be judged")
                reason = "could not be judged"
            if reason:
                data = {"cluster": cluster.name, "endpoint": connection.endpoint.key, "reason": reason}
                log.warning("an upstream's identity is no longer good", extra={"data": data})
                if isinstance(connection, Carrier):
                    cluster.withdraw(connection)
                else:
                    cluster.lost(connection)  # out of the pool before anybody can take it
                connection.channel.abort()


def _connections(cluster: Cluster) -> Iterator[UpstreamConnection | Http2Upstream]:
    members = cluster.members
    for endpoint in [*members.endpoints.values(), *members.leaving.values()]:
        # what the connectors of all clusters make; the connections of leases come below
        yield from cast("list[UpstreamConnection]", [conn for conn in (*endpoint.idle, *endpoint.busy) if not isinstance(conn, Lease)])
    yield from cast("list[Http2Upstream]", list(cluster.carriers))


def _distrusted(connection: UpstreamConnection | Http2Upstream, trust: TrustStore, now: float, quarantine: Quarantine) -> str:
    """Why, or nothing. The SPIFFE ID itself was compared when the connection was made, and cannot change on it."""
    tls = connection.channel.tls
    leaf = peer_leaf(tls) if tls is not None else None
    if tls is None or leaf is None:
        return "certificate_missing"
    principal = trust.recall(leaf, now)
    if principal is None:
        try:
            principal = trust.verify(peer_chain(tls), now)
        except IdentityError as exc:
            return exc.code
    return "quarantined" if quarantine and quarantine.find(principal.spiffe_id, principal.serial, now) is not None else ""
