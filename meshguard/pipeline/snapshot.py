"""One immutable state of everything a request is judged by. A request pins one; a change is a single assignment of the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshguard.model.principal import Principal
from meshguard.net.limits import ConnectionLimits
from meshguard.pipeline.routes import Redirect, RouteTable
from meshguard.wire.events import RequestEngine, WireLimits
from meshguard.wire.semantics import FieldRules

if TYPE_CHECKING:
    from meshguard.fields.compile import CompiledFields
    from meshguard.fields.reader import Reader
    from meshguard.identity.trust import TrustStore
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.destinations import Destinations
    from meshguard.net.original import CaptureMode
    from meshguard.pipeline.delegation import TokenReader
    from meshguard.pipeline.forwarding import Forwarding
    from meshguard.pipeline.plan import Table
    from meshguard.pipeline.rate_limits import Limiter
    from meshguard.pipeline.tokens import TokenVerifier
    from meshguard.policy.compiled import CompiledPolicy
    from meshguard.telemetry.controls import Citations
    from meshguard.wire.http2.engine import Http2Limits, ServerEngine, ServerSink
    from meshguard.wire.trace_context import Sampling

__all__ = ["Http2View", "ListenerView", "Snapshot"]

_TABLES = 10_000
"""Identities with a table per listener; then the memo starts anew."""


@dataclass(slots=True)
class Http2View:
    """HTTP/2 on a listener. `new_server(limits, rules, sink)`; `cleartext`: also without TLS, by its preface; `only`: nothing else."""

    limits: Http2Limits
    new_server: Callable[[Http2Limits, FieldRules, ServerSink], ServerEngine]
    cleartext: bool
    only: bool


@dataclass(slots=True)
class ListenerView:
    """What a listener does under one snapshot. `requires_identity` is true for `tls: mutual`."""

    name: str
    routes: RouteTable
    limits: ConnectionLimits
    wire_limits: WireLimits
    field_rules: FieldRules
    new_engine: Callable[[WireLimits, FieldRules], RequestEngine]
    requires_identity: bool
    plaintext_until: float = 0.0
    close_share: float = 0.92  # of the connection limit: from here no connection is kept alive
    shed_share: float = 0.95  # from here requests are refused
    configured: object = None  # the settings this view came from: equal ones change nothing for open connections
    trusts: Callable[[str], bool] | None = None
    speaks: bool = False  # those whom it trusts are judged as the callers that they name
    limiter: Limiter | None = None
    outbound: bool = False  # the caller is the own workload, whoever connects
    capture: CaptureMode = "none"  # how connections are redirected here
    address: tuple[str, int] = ("", 0)
    forwarding: Forwarding | None = None  # None: X-Forwarded-* of our own, and nobody is believed
    redirect: Redirect | None = None
    answer_lines: bytes = b""  # on our own answers too
    http2: Http2View | None = None
    token_reader: TokenReader | None = None  # decision tokens are read here
    tables: dict[str, Table] = field(default_factory=dict)


@dataclass(slots=True)
class Snapshot:
    """Built whole by the control plane; never changed after it is current (the memos inside are caches of pure functions)."""

    revision: int
    policy: CompiledPolicy
    trust: TrustStore | None
    own_id: str
    listeners: dict[str, ListenerView]
    clusters: dict[str, Cluster]
    fields: CompiledFields | None
    tokens: TokenVerifier | None
    sampling: Sampling
    own_reader: Reader  # this workload as the recipient of requests (fields)
    own: Principal | None = None  # this workload as the caller on outbound listeners
    destinations: dict[str, Destinations] = field(default_factory=dict)  # dynamic clusters
    shadow: CompiledPolicy | None = None  # a candidate that is asked beside the policy
    controls: Citations | None = None  # which controls of packs a request is judged by

    def policies(self) -> list[CompiledPolicy]:
        """The policy, and the candidate beside it."""
        return [self.policy] if self.shadow is None else [self.policy, self.shadow]

    def release(self) -> None:
        """The snapshot is no longer current: its memos go, and with them the cycles that would keep it from being freed at once."""
        for view in self.listeners.values():
            view.tables.clear()
        self.policy.forget()
        if self.shadow is not None:
            self.shadow.forget()

    def table(self, view: ListenerView, principal: Principal | None) -> Table:
        """The decisions for `principal` on a listener, made on first use."""
        from meshguard.pipeline.plan import Table

        key = principal.spiffe_id if principal is not None else ""
        table = view.tables.get(key)
        if table is None:
            if len(view.tables) >= _TABLES:
                view.tables.clear()
            table = view.tables[key] = Table(self, view, principal)
        return table
