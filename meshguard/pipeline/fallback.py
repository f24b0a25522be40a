"""What a route has while its service is cut out: another cluster, a fixed answer, or both, in this order.

Nothing is asked of it until the cluster has said no, so a request that is served pays nothing. The permit was given for the request, not
for one cluster: the route leads to the other one by configuration. On record under `outcome.fallback`; a fixed answer has the reason
`fallback`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshguard.model.reasons import (
    CONNECT_FAILED,
    CONNECT_TIMEOUT,
    FALLBACK,
    NO_ENDPOINT,
    UPSTREAM_QUARANTINED,
    UPSTREAM_RESET,
    UPSTREAM_TLS_FAILED,
    Fault,
    Reason,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from meshguard.net.cluster.cluster import Cluster
    from meshguard.pipeline.exchange import Exchange

__all__ = ["CASES", "Fallback"]

CASES: dict[str, tuple[Reason, ...]] = {
    "quarantined": (UPSTREAM_QUARANTINED,),
    "no_endpoint": (NO_ENDPOINT,),
    "unreachable": (CONNECT_FAILED, CONNECT_TIMEOUT, UPSTREAM_TLS_FAILED),
}
"""The reasons that each word of `when` stands for."""


class Fallback:
    """`cases` are keys of CASES; `cluster` is a name, "" for none; `status` 0: no fixed answer. `block` are field lines, with the content
    type."""

    __slots__ = ("_reason", "_reasons", "block", "body", "cluster")

    def __init__(
        self, cases: Collection[str], cluster: str, status: int = 0, block: bytes = b"", body: bytes = b"", grpc_status: int = 14
    ) -> None:
        self._reasons = frozenset(reason for case in cases for reason in CASES[case])
        self.cluster = cluster
        self._reason = Reason(FALLBACK.code, status, grpc_status, FALLBACK.title, FALLBACK.fault) if status else None
        self.block = block
        self.body = body

    def elsewhere(self, exchange: Exchange, reason: Reason, detail: str, clusters: dict[str, Cluster]) -> Cluster | None:
        """The cluster that takes the request of which nothing was sent yet; None: there is none, or it has said no too."""
        if not self.cluster or reason not in self._reasons or hasattr(exchange, "fallback"):
            return None
        exchange.fallback = {"because": reason.code, "cluster": self.cluster, "detail": detail}
        return clusters.get(self.cluster)

    def instead(self, exchange: Exchange, reason: Reason, barred: bool) -> Reason:
        """The reason to answer by: that of the fixed answer where it applies. `barred`: the cluster is quarantined, so that a connection
        that ended was cut for it."""
        because = UPSTREAM_QUARANTINED if barred and reason is UPSTREAM_RESET else reason
        elsewhere = getattr(exchange, "fallback", None)  # the other cluster was asked: its failure, whichever, ends here
        if self._reason is None or exchange.websocket is not None or not (
            because in self._reasons or (elsewhere and reason.fault is Fault.UPSTREAM)
        ):
            return reason
        exchange.fallback = {"because": elsewhere["because"] if elsewhere else because.code, "status": self._reason.status}
        return self._reason
