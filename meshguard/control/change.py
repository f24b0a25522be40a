"""The state of the proxy as it is told, and a next one that is built but not in force yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

    from meshguard.control.inputs import Inputs
    from meshguard.identity.trust import TrustStore
    from meshguard.net.cluster.settings import ClusterSettings
    from meshguard.net.connector import ClientTls
    from meshguard.net.listener import Listener, ServerDoor
    from meshguard.pipeline.journey import Journey
    from meshguard.pipeline.snapshot import Snapshot
    from meshguard.sources.identity import IdentityUpdate

__all__ = ["Change", "State"]


@dataclass(slots=True)
class State:
    """What readiness and the admin API tell."""

    revision: int = 0
    policy_digest: str = ""
    since: float = 0.0
    reloads: int = 0
    failures: int = 0
    last_error: str = ""
    last_error_at: float = 0.0
    identity: str = ""
    identity_not_after: float = 0.0
    ready: bool = False
    draining: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Change:
    """A state that is built whole and not in force yet. `fresh` listeners hold their addresses."""

    inputs: Inputs
    identity: IdentityUpdate | None
    trust: TrustStore | None
    snapshot: Snapshot
    contexts: dict[str, ssl.SSLContext | None]
    prepared: dict[str, tuple[ClusterSettings, ClientTls | None]]
    dynamic: Any
    fresh: list[tuple[Journey, Listener[ServerDoor]]]
