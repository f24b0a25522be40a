"""The life of the proxy process: start, snapshots, reload, rotation, drain.

A change has one way in: new inputs (files) or a new identity -> everything that can fail is built -> one assignment of the next
snapshot to every journey -> the change is recorded. If anything fails, the last good state goes on and the failure is shown in the
log, the metrics and the readiness detail.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import resource
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshguard.control.inputs import Inputs, load_inputs
from meshguard.control.settings.listeners import ListenerConfig
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.control.telemetry import Telemetry
from meshguard.control.upstreams import Upstreams
from meshguard.control.views import listener_view
from meshguard.fields.transforms import Reader
from meshguard.model.errors import DocumentError, IdentityError, MeshguardError, Problem
from meshguard.model.principal import Principal
from meshguard.net.http1_server import Http1Connection
from meshguard.net.listener import Listener, TlsGate
from meshguard.net.tls import ServerMode, build_server_context, worn_out
from meshguard.pipeline.inspection import InspectionBudget
from meshguard.pipeline.journey import Journey
from meshguard.pipeline.peer import Peer
from meshguard.pipeline.snapshot import Snapshot
from meshguard.pipeline.tokens import TokenVerifier
from meshguard.wire.trace_context import Sampling

if TYPE_CHECKING:
    import ssl

    from meshguard.identity.trust import TrustStore
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.sources.identity import IdentityUpdate

__all__ = ["Runtime", "State"]

log = logging.getLogger(__name__)

_ALPN = ("http/1.1",)
_EXPIRY_LOOK_S = 0.5
_COLLECT_S = 30.0


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


class Runtime:
    """One proxy. `load_configuration` reads the configuration anew at each call (start and every reload)."""

    def __init__(self, load_configuration: Callable[[], LoadedConfiguration]) -> None:
        self._load_configuration = load_configuration
        self.state = State()
        self.upstreams = Upstreams()
        self.journeys: dict[str, Journey] = {}
        self.listeners: dict[str, Listener[Http1Connection]] = {}
        self.inputs: Inputs = None  # type: ignore[assignment]  # set by start before anything else runs
        self.snapshot: Snapshot | None = None
        self.telemetry: Telemetry = None  # type: ignore[assignment]  # likewise
        self._identity: IdentityUpdate | None = None
        self._trust: TrustStore | None = None
        self._generation = itertools.count(1)
        self._numbers = itertools.count(1)
        self._boot_id = secrets.token_hex(6)
        self.budget = InspectionBudget()
        self._changing = asyncio.Lock()
        self._tokens: TokenVerifier | None = None
        self._retired: list[Cluster] = []
        self._collected_at = float("-inf")

    # -- start ----------------------------------------------------------------------------------------------------------

    async def start(
        self,
        inputs: Inputs,
        identity: IdentityUpdate | None,
        tokens: TokenVerifier | None,
        telemetry: Telemetry,
        background: asyncio.TaskGroup,
    ) -> None:
        """Builds the first snapshot and opens the listeners. Raises MeshguardError, OSError."""
        self.telemetry = telemetry
        self._background = background
        self._tokens = tokens
        await self._change(inputs, identity)
        for name in inputs.configuration.listeners:
            await self.listeners[name].start()
        self.state.ready = True

    # -- change ---------------------------------------------------------------------------------------------------------

    async def reload(self, why: str) -> bool:
        """Reads all documents anew and takes them over, or keeps the last good state and says why. True when taken over."""
        async with self._changing:
            try:
                inputs = await asyncio.to_thread(load_inputs, self._load_configuration)
                self._refuse_restart_only(inputs)
                await self._change(inputs, self._identity)
                await self._open_new_listeners()
            except (MeshguardError, OSError, ValueError) as exc:
                self._failed(why, exc)
                return False
            self.state.reloads += 1
            self.state.last_error = ""
            self.telemetry.reloads.value += 1
            data = {"why": why, "revision": self.state.revision, "policy_digest": self.state.policy_digest}
            log.info("reloaded", extra={"data": data})
            return True

    async def rotate(self, identity: IdentityUpdate) -> None:
        """Takes over new certificates or bundles. Connections whose identity is no longer good end within a second."""
        async with self._changing:
            try:
                await self._change(self.inputs, identity)
            except (MeshguardError, OSError, ValueError) as exc:
                self._failed("identity", exc)
                return
            log.info("identity rotated", extra={"data": {"identity": self.state.identity, "not_after": self.state.identity_not_after}})

    def _failed(self, why: str, exc: Exception) -> None:
        self.state.failures += 1
        self.state.last_error = str(exc)
        self.state.last_error_at = time.time()
        self.telemetry.reload_failures.value += 1
        log.error("change refused, the last good state goes on", extra={"data": {"why": why, "error": str(exc)}})

    def report_identity_problem(self, problem: MeshguardError) -> None:
        """A source of identity has sent something unusable."""
        self._failed("identity", problem)

    def _refuse_restart_only(self, inputs: Inputs) -> None:
        """Changes that would need new sockets under old names or another identity source: clear words instead of half a change."""
        old, new = self.inputs.configuration, inputs.configuration
        problems = []
        for path, before, after in (
            ("identity", old.identity, new.identity),
            ("admin", old.admin, new.admin),
            ("decision_log", old.decision_log, new.decision_log),
            ("telemetry", old.telemetry, new.telemetry),
            ("jwt", old.jwt, new.jwt),
            *((f"listeners.{name}.address", _address(old.listeners.get(name)), _address(new.listeners[name])) for name in new.listeners),
        ):
            if before is not None and before != after:
                problems.append(Problem(inputs.loaded.document.file, path, "no change while running: this takes a restart"))
        if problems:
            raise DocumentError(problems)

    async def _change(self, inputs: Inputs, identity: IdentityUpdate | None) -> None:
        """validate -> build -> swap. INVARIANT: nothing that runs is touched before everything that can fail has been built."""
        configuration = inputs.configuration
        trust = self._trust
        if identity is not None and identity is not self._identity:
            trust = await asyncio.to_thread(identity.trust_store, next(self._generation))
        material = identity.material if identity is not None else None
        own_id = material.spiffe_id if material is not None else ""
        views = {name: listener_view(name, config) for name, config in configuration.listeners.items()}
        contexts = {name: _server_context(config, identity, trust) for name, config in configuration.listeners.items()}
        prepared = self.upstreams.prepare(configuration.clusters, material, trust)
        revision = self.state.revision + 1

        retired = self.upstreams.apply(configuration.clusters, prepared)
        snapshot = Snapshot(
            revision=revision,
            policy=inputs.policy,
            trust=trust,
            own_id=own_id,
            listeners=views,
            clusters={**self.upstreams.clusters},
            fields=inputs.fields,
            tokens=self._tokens,
            sampling=Sampling(configuration.telemetry.sample),
            own_reader=Reader(inputs.policy.bind(_own_principal(identity)).roles, own_id or None),
        )
        before = self.snapshot
        self._swap(snapshot, inputs, contexts)
        self.inputs, self._identity, self._trust, self.snapshot = inputs, identity, trust, snapshot
        state = self.state
        state.revision, state.policy_digest, state.since = revision, inputs.policy.digest, time.time()
        state.warnings = [str(problem) for problem in inputs.warnings]
        if material is not None:
            state.identity, state.identity_not_after = material.spiffe_id, material.not_after
        for cluster in retired:
            self._retired.append(cluster)
            self._background.create_task(self._retire(cluster))
        if before is not None:
            before.release()
        self._settle_memory()

    def _settle_memory(self) -> None:
        """Keeps what is loaded out of the collector's way: a full collection over a large policy would take 100 ms in the middle of
        traffic. What an earlier state left behind in cycles is collected first, but not at every one of many changes in a row."""
        now = time.monotonic()
        if now - self._collected_at >= _COLLECT_S:
            self._collected_at = now
            gc.unfreeze()
            gc.collect()
        gc.freeze()

    def _swap(self, snapshot: Snapshot, inputs: Inputs, contexts: dict[str, ssl.SSLContext | None]) -> None:
        configuration = inputs.configuration
        self.budget.body_bytes = configuration.limits.inspect_body_bytes
        self.budget.total_bytes = configuration.limits.inspect_total_bytes
        for name, config in configuration.listeners.items():
            journey = self.journeys.get(name)
            if journey is None:
                journey = self.journeys[name] = self._new_journey(name, snapshot)
                self.listeners[name] = self._new_listener(name, config, journey, TlsGate(contexts[name], _connection_limit(config)))
            gate = self.listeners[name].gate
            gate.plaintext_until = snapshot.listeners[name].plaintext_until
            gate.context = contexts[name]
            gate.limit = _connection_limit(config)
            gate.buffer_bytes = config.limits.buffer_bytes
            journey.snapshot = snapshot
        for name in [name for name in self.listeners if name not in configuration.listeners]:
            self.journeys.pop(name).draining = True
            self.listeners.pop(name).finish()
        self.judge_connections()

    def _new_journey(self, name: str, snapshot: Snapshot) -> Journey:
        telemetry = self.telemetry
        return Journey(
            name,
            snapshot,
            telemetry.observer,
            telemetry.request_metrics.active(name),
            self._boot_id,
            self._numbers.__next__,
            self.budget,
            telemetry.handshake_failed,
        )

    def _new_listener(self, name: str, config: ListenerConfig, journey: Journey, gate: TlsGate) -> Listener[Http1Connection]:
        def new_door() -> Http1Connection:
            view = journey.snapshot.listeners[name]
            return Http1Connection(journey, view.new_engine(view.wire_limits, view.field_rules), view.limits)

        def on_load(share: float) -> None:
            view = journey.snapshot.listeners[name]
            journey.crowded = share >= view.close_share
            journey.shedding = share >= view.shed_share

        return Listener(name, (config.address.host, config.address.port), gate, new_door, journey.connections, on_load)

    async def _open_new_listeners(self) -> None:
        for listener in self.listeners.values():
            if not listener.listening:
                await listener.start()

    async def _retire(self, cluster: Cluster) -> None:
        """A cluster that left the configuration finishes what it carries."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.inputs.configuration.drain_s):
                await cluster.drain()
        await cluster.close()
        self._retired.remove(cluster)

    # -- living identities ----------------------------------------------------------------------------------------------

    def judge_connections(self) -> None:
        """Ends connections whose identity has expired, was revoked or lost its trust; idle ones and those with a request alike."""
        now = time.time()
        for journey in self.journeys.values():
            snapshot = journey.snapshot
            for door in list(journey.connections):
                peer = door.peer
                if peer is None:
                    continue
                if peer.table is None or peer.table.snapshot is not snapshot:
                    before = peer.refusal
                    journey.identify_peer(peer, snapshot)
                    if peer.refusal is not None and before is None:
                        door.cut(peer.refusal.code)
                        continue
                if now >= peer.expires or not _still_trusted(peer, snapshot, now):
                    door.cut("identity_expired")

    async def watch_expiry(self) -> None:
        """Judges all connections twice a second: an expired SVID ends its connections within a second (security.md 3)."""
        while True:
            await asyncio.sleep(_EXPIRY_LOOK_S)
            self.judge_connections()
            self._renew_contexts()
            now = time.monotonic()
            for cluster in (*self.upstreams.clusters.values(), *self._retired):
                cluster.sweep(now)

    def _renew_contexts(self) -> None:
        """OpenSSL keeps TLS 1.2 sessions in the context and Python cannot tell it not to: a context that has gathered many is replaced."""
        for name, listener in self.listeners.items():
            if listener.gate.context is not None and worn_out(listener.gate.context):
                listener.gate.context = _server_context(self.inputs.configuration.listeners[name], self._identity, self._trust)

    # -- the end --------------------------------------------------------------------------------------------------------

    async def drain(self, grace_s: float) -> None:
        """Stops accepting, lets what runs finish within `grace_s`, closes the rest."""
        self.state.draining = True
        self.state.ready = False
        for listener in self.listeners.values():
            listener.finish()
        quiet = asyncio.Event()

        def look() -> None:
            if not any(journey.connections for journey in self.journeys.values()):
                quiet.set()

        for journey in self.journeys.values():
            journey.on_quiet = look
        look()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await quiet.wait()
        for listener in self.listeners.values():
            listener.abandon("shutdown")
        for cluster in list(self.upstreams.clusters.values()):
            await cluster.close()


def _still_trusted(peer: Peer, snapshot: Snapshot, now: float) -> bool:
    """Also what can end without any change: a revocation list that is too old to say that a certificate is good."""
    if peer.principal is None or snapshot.trust is None or not peer.chain:
        return True
    try:
        return (snapshot.trust.recall(peer.chain[0], now) or snapshot.trust.verify(peer.chain, now)) is not None
    except IdentityError:
        return False


def _address(config: ListenerConfig | None) -> str | None:
    return None if config is None else str(config.address)


def _server_context(config: ListenerConfig, identity: IdentityUpdate | None, trust: TrustStore | None) -> ssl.SSLContext | None:
    if config.tls == "none":
        return None
    if config.tls == "server" and config.certificate is not None and config.key is not None:
        from meshguard.identity.material import load_material
        from meshguard.identity.pem import read_certificates

        material = load_material(read_certificates(config.certificate.read_bytes()), config.key.read_bytes(), svid=False)
        return build_server_context(material, (), mode="server", alpn=_ALPN)
    if identity is None or trust is None:
        raise IdentityError("identity_unavailable", "a TLS listener needs an own identity")
    mode: ServerMode = "server" if config.tls == "server" else "mutual"
    return build_server_context(identity.material, trust.anchors(), mode=mode, alpn=_ALPN)


def _own_principal(identity: IdentityUpdate | None) -> Principal | None:
    if identity is None:
        return None
    material = identity.material
    path = material.spiffe_id.removeprefix(f"spiffe://{material.trust_domain}")
    return Principal(
        material.spiffe_id, material.trust_domain, path, material.not_before, material.not_after, material.serial, material.thumbprint
    )


def _connection_limit(config: ListenerConfig) -> int:
    if config.limits.connections is not None:
        return config.limits.connections
    return max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


