"""The state of the proxy at one moment, as readiness and the admin API tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["EndpointStatus", "ListenerStatus", "Status", "WorkersStatus"]


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """A configured listener, and whether its socket is open."""

    name: str
    address: str
    listening: bool


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """An endpoint of a cluster, with the reason why it is not used."""

    address: str
    healthy: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkersStatus:
    """The processes behind one port. `each` is told to callers on this machine."""

    configured: int
    serving: int
    each: tuple[Mapping[str, object], ...] = ()

    def told(self, detail: bool) -> dict[str, object]:
        """As JSON values."""
        counts: dict[str, object] = {"configured": self.configured, "serving": self.serving}
        return counts | {"each": list(self.each)} if detail else counts


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the process at one moment. Times are epoch seconds; `identity_not_after` None: it has no identity of its own."""

    policy_digest: str = ""  # "" while none is loaded
    policy_revision: int = 0
    policy_since: float = 0.0
    reload_error: str = ""  # of the last attempt, "" when it worked
    identity: str = ""
    identity_not_after: float | None = None
    listeners: tuple[ListenerStatus, ...] = ()
    clusters: Mapping[str, tuple[EndpointStatus, ...]] = field(default_factory=dict)
    keys: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # keysets with wrapped keys, as their state stands
    draining: bool = False
    active: int = 0  # requests in progress
    workers: WorkersStatus | None = None  # where many processes serve
    fleet: Mapping[str, object] = field(default_factory=dict)  # the connection to the fleet's store, where there is one

    def not_ready(self, now: float) -> list[str]:
        """Why no traffic should be sent here; empty when it should.

        A failed reload and endpoints that are down are told but do not count: the last good policy is enforced, and taking every proxy
        of a broken upstream out of service would replace its clear answer by none.
        """
        reasons = []
        if not self.policy_digest:
            reasons.append("no_policy")
        if self.identity_not_after is not None and self.identity_not_after <= now:
            reasons.append("identity_expired")
        reasons.extend(f"listener_down:{listener.name}" for listener in self.listeners if not listener.listening)
        if self.draining:
            reasons.append("draining")
        if self.workers is not None and not self.workers.serving:
            reasons.append("no_worker_serves")
        return reasons
