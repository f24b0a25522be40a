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
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from meshguard.control.bundles import keep
from meshguard.control.change import Change, State
from meshguard.control.delegation import token_writers
from meshguard.control.destinations import DynamicClusters
from meshguard.control.doors import door_maker
from meshguard.control.inputs import Inputs, load_inputs
from meshguard.control.judgements import connection_limit, own_principal, refuse_restart_only, server_context
from meshguard.control.keyring import Keyring
from meshguard.control.living import judge_doors, judge_upstreams
from meshguard.control.pacing import forget, paced
from meshguard.control.rate_limits import RateLimits
from meshguard.control.settings.listeners import ListenerConfig
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.control.telemetry import Telemetry
from meshguard.control.upstreams import Upstreams
from meshguard.control.views import listener_view
from meshguard.fields.reader import Reader
from meshguard.integrity.bundle import BundleError
from meshguard.model.errors import MeshguardError
from meshguard.net.listener import Listener, ServerDoor, TlsGate
from meshguard.net.tls import worn_out
from meshguard.pipeline.inspection_budget import InspectionBudget
from meshguard.pipeline.journey import Journey
from meshguard.pipeline.snapshot import Snapshot
from meshguard.pipeline.tokens import TokenVerifier
from meshguard.policy.quarantine import NOBODY, Quarantine
from meshguard.wire.trace_context import Sampling

if TYPE_CHECKING:
    import ssl

    from meshguard.identity.trust import TrustStore
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.destinations import Destinations
    from meshguard.sources.bundles import BundleKeeper
    from meshguard.sources.identity import IdentityUpdate

__all__ = ["Runtime"]

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_COLLECT_S = 30.0


class Runtime:
    """One proxy. `load_configuration` reads the configuration anew at each call (start and every reload)."""

    def __init__(self, load_configuration: Callable[[], LoadedConfiguration], bundles: BundleKeeper | None = None) -> None:
        self.bundles = bundles
        self._load_configuration = load_configuration
        self.state = State()
        self.upstreams = Upstreams()
        self.dynamic = DynamicClusters(self.upstreams.new_connector, self.upstreams.contained)
        self.keyring = Keyring()
        self.journeys: dict[str, Journey] = {}
        self.listeners: dict[str, Listener[ServerDoor]] = {}
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
        self._retired: list[Cluster | Destinations] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._leaving: list[tuple[Journey, Listener[ServerDoor]]] = []
        self._collect_at = float("-inf")
        self._not_renewable: set[str] = set()
        self.rate_limits = RateLimits()
        self.given: dict[str, list[socket.socket]] = {}  # sockets from another process, by address: taken instead of binding
        self.quarantine = NOBODY
        self.on_look: Callable[[], None] = lambda: None
        self.on_listener: Callable[[Listener[ServerDoor]], None] = lambda listener: None

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
        self.telemetry, self._background, self._tokens = telemetry, background, tokens
        await self._change(inputs, identity)
        self.state.ready = True

    # -- change ---------------------------------------------------------------------------------------------------------

    async def reload(self, why: str) -> bool:
        """Reads all documents anew and takes them over, or keeps the last good state and says why. True when taken over."""
        try:
            await self.take(await self.prepare(partial(load_inputs, self._load_configuration, self.keyring, self.bundles, paced())), why)
        except Exception as exc:
            # the outermost loop of a background service: whatever a change does wrong, what is in force goes on
            self._failed(why, exc)
            return False
        return True

    async def prepare(self, load: Callable[[], Inputs]) -> Change:
        """The first half of a reload: everything that can fail, with nothing changed yet. No other change happens until the result
        went to `take` or `give_up`. `load` runs in a thread. Raises what is wrong with the documents."""
        await self._changing.acquire()
        try:
            inputs = await asyncio.to_thread(load)
            refuse_restart_only(self.inputs, inputs)
            await self.keyring.start(inputs.keys)
            return await self._build(inputs, self._identity)
        except BaseException:
            self._changing.release()
            raise

    async def take(self, change: Change, why: str) -> None:
        """The second half: the change is in force. Raises what should not happen."""
        before = self.snapshot.policies() if self.snapshot is not None else []
        try:
            await self._apply(change)
        finally:
            self._changing.release()
        self._background.create_task(asyncio.to_thread(forget, before, paced()))
        self.state.reloads += 1
        self.state.last_error = self.bundles.refused if self.bundles is not None else ""
        if self.state.last_error:
            self._failed(why, BundleError("refused", self.state.last_error))
        self.telemetry.taken_over(why, self.state.revision, change.inputs)
        log.info("reloaded", extra={"data": {"why": why, "revision": self.state.revision, "policy_digest": self.state.policy_digest}})

    def give_up(self, change: Change) -> None:
        """A prepared change that is not taken after all."""
        for _, listener in change.fresh:
            listener.release()
        self._changing.release()

    async def rotate(self, identity: IdentityUpdate) -> None:
        """Takes over new certificates or bundles. Connections whose identity is no longer good end within a second."""
        async with self._changing:
            try:
                await self._change(self.inputs, identity)
            except Exception as exc:  # likewise
                self._failed("identity", exc)
                return
            log.info("identity rotated", extra={"data": {"identity": self.state.identity, "not_after": self.state.identity_not_after}})

    def contain(self, quarantine: Quarantine) -> None:
        """Puts a quarantine in force on every listener, at once."""
        self.quarantine = self.upstreams.contain(quarantine)
        material = self._identity.material if self._identity is not None else None
        own = quarantine.find(material.spiffe_id, material.serial, time.time()) if material is not None and quarantine else None
        for journey in (*self.journeys.values(), *(journey for journey, _ in self._leaving)):
            journey.contain(quarantine, own)
        judge_upstreams(self._families(), self._trust, time.time(), quarantine)

    def _failed(self, why: str, exc: Exception) -> None:
        self.state.failures += 1
        self.state.last_error = str(exc)
        self.state.last_error_at = time.time()
        self.telemetry.refused(why, str(exc), self.state.policy_digest, self.bundles)
        expected = isinstance(exc, (MeshguardError, OSError, ValueError))
        data = {"why": why, "error": str(exc)}
        log.error("change refused, the last good state goes on", exc_info=None if expected else exc, extra={"data": data})

    def report_identity_problem(self, problem: Exception) -> None:
        """A source of identity has sent something unusable."""
        self._failed("identity", problem)

    async def _change(self, inputs: Inputs, identity: IdentityUpdate | None) -> None:
        """validate -> build -> swap. INVARIANT: nothing that runs is touched before everything that can fail has been built."""
        await self._apply(await self._build(inputs, identity))

    async def _build(self, inputs: Inputs, identity: IdentityUpdate | None) -> Change:
        configuration = inputs.configuration
        trust = self._trust
        if identity is not None and identity is not self._identity:
            trust = await asyncio.to_thread(identity.trust_store, next(self._generation))
        material = identity.material if identity is not None else None
        own_id = material.spiffe_id if material is not None else ""
        writers = token_writers(configuration, material)
        views = {name: listener_view(name, config, inputs.contracts, writers) for name, config in configuration.listeners.items()}
        for name, config in configuration.listeners.items():
            views[name].limiter = self.rate_limits.limiter(config, self.telemetry.registry)
        contexts = {name: server_context(config, identity, trust) for name, config in configuration.listeners.items()}
        prepared = self.upstreams.prepare(configuration.clusters, material, trust)
        dynamic = self.dynamic.prepare(configuration, material, trust, self.upstreams.workers)
        sampling = Sampling(configuration.telemetry.sample)
        own_reader = Reader(inputs.policy.bind(own_principal(identity)).roles, own_id or None)
        snapshot = Snapshot(
            revision=self.state.revision + 1,
            policy=inputs.policy,
            trust=trust,
            own_id=own_id,
            listeners=views,
            clusters={},
            fields=inputs.fields,
            tokens=self._tokens,
            sampling=sampling,
            own_reader=own_reader,
            own=own_principal(identity),
            controls=inputs.controls,
            shadow=inputs.shadow.policy if inputs.shadow is not None else None,
        )
        fresh = self._bind_new(snapshot, configuration.listeners, contexts)  # the last thing that can fail
        return Change(inputs, identity, trust, snapshot, contexts, prepared, dynamic, fresh)

    async def _apply(self, change: Change) -> None:
        inputs, identity, trust, snapshot = change.inputs, change.identity, change.trust, change.snapshot
        contexts, fresh = change.contexts, change.fresh
        before, material = self.snapshot, identity.material if identity is not None else None
        retired: list[Cluster | Destinations] = [
            *self.upstreams.apply(inputs.configuration.clusters, change.prepared),
            *self.dynamic.apply(change.dynamic),
        ]
        snapshot.clusters.update(self.upstreams.clusters)
        snapshot.destinations.update(self.dynamic.by_name)
        self.inputs, self._identity, self._trust, self.snapshot = inputs, identity, trust, snapshot
        for journey, listener in fresh:
            self.journeys[listener.name], self.listeners[listener.name] = journey, listener
        self._swap(snapshot, inputs, contexts)
        state = self.state
        state.revision, state.policy_digest, state.since = snapshot.revision, inputs.policy.digest, time.time()
        state.warnings = [str(problem) for problem in inputs.warnings]
        if material is not None:
            state.identity, state.identity_not_after = material.spiffe_id, material.not_after
        self.telemetry.changed(state.revision, state.policy_digest, state.identity, state.identity_not_after)
        self.telemetry.cite(snapshot.controls, snapshot.shadow)
        for cluster in retired:
            task = self._background.create_task(self._retire(cluster))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        if before is not None:
            before.release()
        if inputs.candidate is not None and self.bundles is not None:
            keep(self.bundles, inputs.candidate, self.telemetry.event)
        await self.keyring.keep(inputs.keys, self._background)
        self._settle_memory()
        self._not_renewable.clear()
        if self.quarantine:
            self.contain(self.quarantine)  # for new listeners, and for a new identity of our own
        for _, listener in fresh:
            await listener.start()

    def _bind_new(
        self, snapshot: Snapshot, configs: Mapping[str, ListenerConfig], contexts: Mapping[str, ssl.SSLContext | None]
    ) -> list[tuple[Journey, Listener[ServerDoor]]]:
        """Listeners that are new in this configuration, with their addresses taken. Raises OSError, and then none is."""
        fresh: list[tuple[Journey, Listener[ServerDoor]]] = []
        try:
            for name, config in configs.items():
                if name not in self.listeners:
                    journey = self._new_journey(name, snapshot)
                    listener = self._new_listener(name, config, journey, TlsGate(contexts[name], connection_limit(config)))
                    fresh.append((journey, listener))
                    listener.bind(self.given.pop(str(config.address), ()))
                    if config.capture == "tproxy":
                        listener.take_any_destination()
        except OSError:
            for _, listener in fresh:
                listener.release()
            raise
        return fresh

    def _settle_memory(self) -> None:
        """Keeps what is loaded out of the collector's way: a full collection over a large policy takes 100 ms in the middle of traffic.
        What earlier states left behind in cycles is collected first, in a thousandth of the time at most."""
        began = time.monotonic()
        if began >= self._collect_at:
            gc.unfreeze()
            gc.collect()
            self._collect_at = began + max(_COLLECT_S, 1000 * (time.monotonic() - began))
        gc.freeze()

    def _swap(self, snapshot: Snapshot, inputs: Inputs, contexts: dict[str, ssl.SSLContext | None]) -> None:
        configuration = inputs.configuration
        self.budget.limit(configuration.limits.inspect_body_bytes, configuration.limits.inspect_total_bytes)
        for name, config in configuration.listeners.items():
            journey, gate = self.journeys[name], self.listeners[name].gate
            view = snapshot.listeners[name]
            gate.plaintext_until = view.plaintext_until
            gate.context = contexts[name]
            gate.limit, gate.overall = connection_limit(config), config.limits.connections is not None
            gate.buffer_bytes = config.limits.buffer_bytes
            journey.budget.limit(config.limits.inspect_body_bytes, config.limits.inspect_total_bytes)
            changed = journey.snapshot.listeners[name].configured != view.configured
            journey.snapshot = snapshot
            if changed:
                for door in list(journey.connections):
                    door.adopt(view.new_engine(view.wire_limits, view.field_rules), view.limits)
        for name in [name for name in self.listeners if name not in configuration.listeners]:
            self._leave(self.journeys.pop(name), self.listeners.pop(name))
        self.judge_connections()

    def _leave(self, journey: Journey, listener: Listener[ServerDoor]) -> None:
        """A listener that is no longer configured: what runs finishes, under the identities that are trusted now."""
        journey.draining = True
        entry = (journey, listener)
        self._leaving.append(entry)

        def gone() -> None:
            listener.abandon("removed")
            if entry in self._leaving:
                self._leaving.remove(entry)

        listener.finish()
        journey.on_quiet = gone
        if not journey.connections:
            gone()

    def _new_journey(self, name: str, snapshot: Snapshot) -> Journey:
        telemetry = self.telemetry
        return Journey(
            name,
            snapshot,
            telemetry.observer,
            telemetry.request_metrics.active(name),
            self._boot_id,
            self._numbers.__next__,
            InspectionBudget(within=self.budget),
            telemetry.handshake_failed,
            telemetry.gate,
        )

    def _new_listener(self, name: str, config: ListenerConfig, journey: Journey, gate: TlsGate) -> Listener[ServerDoor]:
        def on_load(share: float) -> None:
            view = journey.snapshot.listeners[name]
            full = share * listener.gate.limit > 1
            journey.crowded, journey.shedding = full and share >= view.close_share, full and share > view.shed_share

        listener = Listener(name, (config.address.host, config.address.port), gate, door_maker(journey, name), journey.connections, on_load)
        self.on_listener(listener)
        return listener

    async def _retire(self, cluster: Cluster | Destinations) -> None:
        """A cluster that left the configuration finishes what it carries."""
        self._retired.append(cluster)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.inputs.configuration.drain_s):
                    await cluster.drain()
        finally:
            self._retired.remove(cluster)
            await cluster.close()

    # -- living identities ----------------------------------------------------------------------------------------------

    def judge_connections(self) -> None:
        """Ends connections, on both sides, whose identity is no longer good."""
        now = time.time()
        for journey in self.journeys.values():
            judge_doors(journey, journey.snapshot, journey.snapshot.trust, now)
        for journey, _ in self._leaving:
            judge_doors(journey, self.snapshot or journey.snapshot, self._trust, now, leaving=True)
        judge_upstreams(self._families(), self._trust, now, self.quarantine)

    def _families(self) -> tuple[Cluster | Destinations, ...]:
        return (*self.upstreams.clusters.values(), *self.dynamic.by_name.values(), *self._retired)

    async def watch(self) -> None:
        """Judges all connections twice a second (an expired SVID ends its connections within a second), renews worn contexts, sweeps
        pools. Whatever fails in one look, the next one comes."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for part in (self.judge_connections, self._renew_contexts, self._sweep_pools, self.on_look):
                try:
                    part()
                except Exception:
                    # the outermost loop of a background service: one part's trouble does not end the others
                    log.exception("a periodic look failed")

    def _sweep_pools(self) -> None:
        now = time.monotonic()
        for family in self._families():
            family.sweep(now)

    def _renew_contexts(self) -> None:
        """OpenSSL keeps TLS 1.2 sessions in the context and Python cannot tell it not to: a context that has gathered many is replaced."""
        for name, listener in self.listeners.items():
            gate = listener.gate
            if gate.context is None or name in self._not_renewable or not worn_out(gate.context):
                continue
            try:
                gate.context = server_context(self.inputs.configuration.listeners[name], self._identity, self._trust)
            except (MeshguardError, OSError) as exc:
                # half-written files, for example: the old one serves until the next change
                self._not_renewable.add(name)
                log.warning("a TLS context could not be renewed", extra={"data": {"listener": name, "error": str(exc)}})

    # -- the end --------------------------------------------------------------------------------------------------------

    async def drain(self, grace_s: float, *, gentle_s: float = 0.0) -> None:
        """Stops accepting, lets what runs finish within `grace_s`, closes the rest. For `gentle_s` of it idle connections may still send
        a last request: somebody else accepts at this address now, and clients must not notice."""
        self.state.draining = True
        self.state.ready = False
        quiet = asyncio.Event()
        leaving = list(self._leaving)  # stays in place: identities are judged until the grace is over
        journeys = [*self.journeys.values(), *(journey for journey, _ in leaving)]

        def look() -> None:
            if not any(journey.connections for journey in journeys):
                quiet.set()

        for journey in journeys:
            journey.on_quiet = look
        if gentle_s:
            for listener in self.listeners.values():
                listener.wind_down()
            look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(gentle_s, grace_s)):
                    await quiet.wait()
        for listener in self.listeners.values():
            listener.finish()
        look()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await quiet.wait()
        for listener in (*self.listeners.values(), *(listener for _, listener in leaving)):
            listener.abandon("shutdown")
        for task in self._retiring:
            task.cancel()
        running: tuple[Cluster | Destinations, ...] = (*self.upstreams.clusters.values(), *self.dynamic.by_name.values())
        for family in running:
            await family.close()
