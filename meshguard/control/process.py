"""The process around the runtime: signals, watched files, identity updates, the admin server, an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshguard.control.admin import AdminServer, EndpointStatus, ListenerStatus, Providers, Status
from meshguard.control.bundles import end_break_glass
from meshguard.control.handover import GENTLE_S, Estate, Inheritance, SuccessorFailed, read_contained, start_successor, write_contained
from meshguard.control.identity_source import identity_source
from meshguard.control.inputs import Inputs, bundle_keeper, load_inputs
from meshguard.control.live import live_requests, live_stats
from meshguard.control.memory import release_start_pages
from meshguard.control.observing import observing
from meshguard.control.operations import admin_token
from meshguard.control.pacing import loop_first
from meshguard.control.quarantine import QuarantineRegister
from meshguard.control.runtime import Runtime
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.control.state_metrics import families
from meshguard.control.telemetry import Telemetry
from meshguard.control.tokens import TokenKeys
from meshguard.model.errors import MeshguardError
from meshguard.sources.identity import IdentitySource, IdentityUpdate, first_update
from meshguard.sources.watch import watch
from meshguard.telemetry.logs import LineHandler
from meshguard.telemetry.metrics import Family, Registry
from meshguard.telemetry.write_lock import new_lock_file

if TYPE_CHECKING:
    from meshguard.control.fleet.service import FleetService
    from meshguard.control.ledger import LedgerService
    from meshguard.sources.bundles import BundleKeeper

__all__ = ["Process", "run"]

log = logging.getLogger(__name__)

_IDENTITY_S = 30.0
_MOST_WORKERS = 1024
_IDENTITY_RETRY_S = 5.0


def run(
    load_configuration: Callable[[], LoadedConfiguration],
    registry: Registry,
    ready: Callable[[Runtime], None] | None = None,
    inheritance: Inheritance | None = None,
    handler: LineHandler | None = None,
) -> None:
    """Runs the proxy until SIGTERM or SIGINT. `ready` is called once traffic is served; `inheritance` is what an earlier process hands
    over; `handler` is that of the log. Raises MeshguardError, OSError at the start."""
    import uvloop

    loop_first()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Process(load_configuration, registry, inheritance, handler).main(ready))


class Process:
    """One process that serves alone. A worker (`control.workers.worker`) differs in the methods under "alone, or one of many"."""

    def __init__(
        self,
        load_configuration: Callable[[], LoadedConfiguration],
        registry: Registry,
        inheritance: Inheritance | None = None,
        handler: LineHandler | None = None,
    ) -> None:
        self._load_configuration = load_configuration
        self._registry = registry
        self._inheritance = inheritance or Inheritance()
        self._handler = handler
        self._runtime = Runtime(load_configuration)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._restart = asyncio.Event()
        self._drained = asyncio.Event()
        self._gentle_s = 0.0
        self._telemetry: Telemetry | None = None
        self._admin: AdminServer | None = None
        self._ledger: LedgerService | None = None
        self._fleet: FleetService | None = None
        self._restart_failures = registry.counter(
            "meshguard.restart.failures", "Rolling restarts whose new process did not become ready", "{restart}"
        ).labels()

    async def main(self, ready: Callable[[Runtime], None] | None) -> None:
        self._runtime.bundles = bundles = await self._first_bundles()
        inputs = self._first_inputs(bundles)
        configuration = inputs.configuration
        self._telemetry = telemetry = Telemetry(configuration, self._registry)
        self._share_logs()
        self._ledger = ledger = self._open_ledger(configuration, telemetry)
        runtime = self._runtime
        runtime.given = self._inheritance.sockets
        if "limits" in self._inheritance.shared:
            runtime.rate_limits.share(self._inheritance.shared["limits"])
        tokens = TokenKeys(configuration.jwt)
        await tokens.load()
        await runtime.keyring.start(inputs.keys)
        source = identity_source(configuration, runtime.report_identity_problem)
        updates: AsyncGenerator[IdentityUpdate, None] | None = source.updates() if source is not None else None
        identity = await first_update(updates, _IDENTITY_S) if updates is not None else None
        telemetry.collect(self._families)
        self._fleet = fleet = self._join_fleet(configuration, identity)
        contain = fleet.contained.node if fleet is not None else runtime.contain
        self._quarantine = quarantine = QuarantineRegister(configuration.quarantine.path, contain)
        quarantine.tell = runtime.keyring.tell = telemetry.event
        runtime.on_look = self._look
        self._signals()
        try:
            async with asyncio.TaskGroup() as background:
                quarantine.load()  # before the first listener opens
                if fleet is not None:
                    fleet.load()
                    quarantine.fleet = fleet.listed
                self._contain_more()
                await runtime.start(inputs, identity, tokens.verifier, telemetry, background)
                telemetry.start()
                await self._open(configuration)
                self._inheritance.discard()
                work = [background.create_task(runtime.watch()), *(background.create_task(part) for part in self._parts(inputs))]
                if bundles is not None:
                    work.append(background.create_task(end_break_glass(runtime, self._changed)))
                    if bundles.has_url:
                        from meshguard.sources.bundles import follow

                        work.append(background.create_task(follow(bundles, partial(self._changed, "bundle"))))
                if configuration.quarantine.path is not None:
                    work.append(background.create_task(_follow(configuration.quarantine.path, quarantine.reload)))
                if source is not None and updates is not None:
                    work.append(background.create_task(self._follow_identity(source, updates)))
                if ledger is not None:
                    work.append(background.create_task(ledger.keep()))
                if fleet is not None:
                    work.append(background.create_task(fleet.run()))
                if tokens.verifier is not None:
                    work.append(background.create_task(tokens.refresh()))
                release_start_pages()
                log.info("serving", extra={"data": self._summary(configuration)})
                if ready is not None:
                    ready(runtime)
                self._inheritance.tell_ready()
                await self._stop.wait()
                grace_s = self._grace_s()
                log.info("draining", extra={"data": {"grace_s": grace_s}})
                await runtime.drain(grace_s, gentle_s=self._gentle_s)
                self._drained.set()
                if fleet is not None:
                    await fleet.leave()
                await self._last_word()
                for task in work:
                    task.cancel()
                await runtime.keyring.close()
        finally:
            await self._close()
            if ledger is not None:
                ledger.close()
                os.close(self._inheritance.shared.pop("ledger"))
            telemetry.close()

    def _open_ledger(self, configuration: Configuration, telemetry: Telemetry) -> LedgerService | None:
        if configuration.ledger is None:
            return None
        from meshguard.control.ledger import LedgerService
        from meshguard.storage.claim import claim_shared

        claim_shared(str(configuration.ledger.directory), self._inheritance.shared)
        number = int(os.environ.get("MESHGUARD_WORKER", "0"))
        # while one process takes over from another both have this number: the second shard is for the newer one
        shards = (number, number + _MOST_WORKERS) if self._inheritance.sockets else (number,)
        service = LedgerService(configuration, self._registry, telemetry.decisions, shards)
        telemetry.gate = service.gate
        return service

    def _join_fleet(self, configuration: Configuration, identity: IdentityUpdate | None) -> FleetService | None:
        if configuration.fleet is None:
            return None
        from meshguard.control.fleet.service import FleetService, on_loop

        record = self._telemetry.event if self._telemetry is not None else None
        service = FleetService(configuration.fleet, self._runtime, self._registry, record, partial(self._changed, "bundle"))
        service.identity = identity
        if self._ledger is not None and configuration.ledger is not None and configuration.ledger.checkpoints.publish_fleet:
            self._ledger.on_checkpoint = on_loop(service.publish_checkpoints())
        return service

    def _look(self) -> None:
        self._quarantine.expire()
        if self._fleet is not None:
            self._fleet.look()

    # -- alone, or one of many --------------------------------------------------------------------------------------------

    async def _first_bundles(self) -> BundleKeeper | None:
        self._loaded = self._load_configuration()
        if self._loaded.configuration.bundle is None:
            return None
        bundles = bundle_keeper(self._loaded.configuration)
        await bundles.fetch_first()
        return bundles

    def _first_inputs(self, bundles: BundleKeeper | None) -> Inputs:
        inputs = load_inputs(lambda: self._loaded, self._runtime.keyring, bundles)
        for note in inputs.loaded.notes:
            log.warning(note)
        return inputs

    def _parts(self, inputs: Inputs) -> list[Coroutine[None, None, None]]:
        """What runs beside the traffic."""
        return [self._reload_on_signal(), self._watch_files(inputs), self._restart_on_signal()]

    async def _open(self, configuration: Configuration) -> None:
        """The way in for whoever operates this process."""
        token_file = configuration.admin.token_file
        token = admin_token(token_file, create=True) if token_file is not None else b""
        providers = Providers(self._status, self._registry.families, self._stop_accepting, self._wait_drained)
        self._admin = admin = AdminServer(providers, token=lambda: token)
        admin.extend("/quarantine", self._quarantine.operation())
        if self._ledger is not None:
            for path, operation in self._ledger.operations().items():
                admin.extend(path, operation)
        for path, operation in observing(self._status, self._live_stats, self._live_requests, self._restart.set).items():
            admin.extend(path, operation)
        address = configuration.admin.address
        await admin.start(address.host, address.port, self._inheritance.admin)

    async def _close(self) -> None:
        if self._admin is not None:
            await self._admin.close()

    def _contain_more(self) -> None:
        """Who else is cut out from the beginning."""
        descriptor = self._inheritance.shared.pop("quarantine", -1)
        if descriptor >= 0 and (entries := read_contained(descriptor)) and not self._quarantine.current:
            self._quarantine.take(entries)

    async def _changed(self, why: str) -> None:
        await self._runtime.reload(why)

    def _grace_s(self) -> float:
        return self._runtime.inputs.configuration.drain_s

    async def _last_word(self) -> None:
        """After the drain."""

    # -- what may happen meanwhile --------------------------------------------------------------------------------------

    def _signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR2, self._restart.set)

    async def _reload_on_signal(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._runtime.telemetry.reopen()
            await self._changed("signal")

    async def _restart_on_signal(self) -> None:
        """A rolling restart: another process, out of the installation as it is now, takes over; this one finishes what it has."""
        while True:
            await self._restart.wait()
            self._restart.clear()
            log.info("a new process is being started")
            try:
                if os.getpid() == 1:
                    raise SuccessorFailed("this is process 1, whose end ends the container: replace the container")
                pid = await start_successor(self._estate(), self._runtime.inputs.configuration.restart_s)
            except (MeshguardError, OSError) as exc:
                self._restart_failures.value += 1
                log.error("RESTART FAILED: the new process does not serve, this one goes on", extra={"data": {"error": str(exc)}})
                continue
            log.info("the new process serves", extra={"data": {"pid": pid}})
            self._gentle_s = GENTLE_S
            if self._admin is not None:
                self._admin.stop_listening()
            self._stop.set()

    def _estate(self) -> Estate:
        shared = self._inheritance.shared
        for name in ("log", "decisions"):
            if name not in shared:
                shared[name] = new_lock_file(name)
        self._share_logs()
        shared["quarantine"] = write_contained([asdict(entry) for entry in self._quarantine.current.entries.values()])
        limits = self._runtime.rate_limits
        if limits.descriptor >= 0:
            shared["limits"] = limits.descriptor
            limits.share(limits.descriptor)
        configured = self._runtime.inputs.configuration.listeners
        sockets = {str(configured[name].address): listener.descriptors for name, listener in self._runtime.listeners.items()}
        return Estate(sockets, self._admin.descriptor if self._admin is not None else -1, shared)

    def _share_logs(self) -> None:
        shared = self._inheritance.shared
        if "decisions" in shared and self._telemetry is not None:
            self._telemetry.share(shared["decisions"])
        if "log" in shared and self._handler is not None:
            self._handler.share(shared["log"])

    async def _watch_files(self, inputs: Inputs) -> None:
        """Documents, policies and keysets; what is watched follows the configuration."""
        files = inputs.files
        while True:
            async with aclosing(watch(files)) as changes:
                async for _ in changes:
                    await self._changed("files changed")
                    if self._runtime.inputs.files != files:
                        files = self._runtime.inputs.files
                        break

    async def _follow_identity(self, source: IdentitySource, updates: AsyncGenerator[IdentityUpdate, None]) -> None:
        """Takes over each update; a source that ends or breaks is asked again, and the last identity goes on until it expires."""
        while True:
            try:
                async with aclosing(updates):
                    async for update in updates:
                        await self._runtime.rotate(update)
                        if self._fleet is not None:
                            self._fleet.identified(update)
            except (MeshguardError, OSError) as exc:
                self._runtime.report_identity_problem(exc)
            await asyncio.sleep(_IDENTITY_RETRY_S)
            updates = source.updates()

    async def _wait_drained(self) -> None:
        await self._drained.wait()

    def _stop_accepting(self) -> None:
        self._stop.set()

    async def _live_stats(self) -> dict[str, Any]:
        self._runtime.telemetry.observer.flush()
        return live_stats(self._runtime)

    async def _live_requests(self) -> list[dict[str, Any]]:
        return live_requests(self._runtime)

    # -- what is told ---------------------------------------------------------------------------------------------------

    def _families(self) -> Iterable[Family]:
        yield from families(self._runtime, len(asyncio.all_tasks()))
        yield from self._runtime.keyring.families()

    def _status(self) -> Status:
        runtime = self._runtime
        state = runtime.state
        return Status(
            policy_digest=state.policy_digest,
            policy_revision=state.revision,
            policy_since=state.since,
            reload_error=state.last_error,
            identity=state.identity,
            identity_not_after=state.identity_not_after or None,
            listeners=tuple(
                ListenerStatus(name, f"{listener.address[0]}:{listener.address[1]}", listener.listening)
                for name, listener in runtime.listeners.items()
            ),
            clusters={
                name: tuple(
                    EndpointStatus(endpoint.key, endpoint.usable, "" if endpoint.usable else endpoint.state)
                    for endpoint in cluster.snapshot().endpoints
                )
                for name, cluster in runtime.upstreams.clusters.items()
            },
            keys=runtime.keyring.status(),
            fleet=self._fleet.told() if self._fleet is not None else {},
            draining=state.draining,
            active=sum(int(journey.active.value) for journey in runtime.journeys.values()),
        )

    def _summary(self, configuration: Configuration) -> dict[str, object]:
        state = self._runtime.state
        return {
            "listeners": {name: str(listener.address) for name, listener in configuration.listeners.items()},
            "admin": str(configuration.admin.address),
            "identity": state.identity,
            "policy_digest": state.policy_digest,
            "revision": state.revision,
            "rules": self._runtime.inputs.policy.rule_count,
            "warnings": state.warnings,
        }


async def _follow(path: Path, changed: Callable[[], None]) -> None:
    async with aclosing(watch((path,), debounce_ms=10, step_ms=5)) as changes:
        async for _ in changes:
            changed()

