"""The process around the runtime: signals, watched files, identity updates, the admin server, an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from meshguard.control.admin import AdminServer, EndpointStatus, ListenerStatus, Providers, Status
from meshguard.control.bundles import end_break_glass
from meshguard.control.inputs import Inputs, bundle_settings, load_inputs
from meshguard.control.memory import release_start_pages
from meshguard.control.operations import admin_token
from meshguard.control.quarantine import QuarantineRegister
from meshguard.control.runtime import Runtime
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.control.state_metrics import families
from meshguard.control.telemetry import Telemetry
from meshguard.control.tokens import TokenKeys
from meshguard.model.errors import MeshguardError
from meshguard.sources.bundles import BundleKeeper, follow
from meshguard.sources.identity import IdentitySource, IdentityUpdate, first_update
from meshguard.sources.watch import watch
from meshguard.telemetry.metrics import Family, Registry

if TYPE_CHECKING:
    from meshguard.control.ledger import LedgerService

__all__ = ["run"]

log = logging.getLogger(__name__)

_IDENTITY_S = 30.0
_IDENTITY_RETRY_S = 5.0


def run(load_configuration: Callable[[], LoadedConfiguration], registry: Registry, ready: Callable[[Runtime], None] | None = None) -> None:
    """Runs the proxy until SIGTERM or SIGINT. `ready` is called once traffic is served. Raises MeshguardError, OSError at the start."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Process(load_configuration, registry).main(ready))


class _Process:
    def __init__(self, load_configuration: Callable[[], LoadedConfiguration], registry: Registry) -> None:
        self._load_configuration = load_configuration
        self._registry = registry
        self._runtime = Runtime(load_configuration)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._drained = asyncio.Event()

    async def main(self, ready: Callable[[Runtime], None] | None) -> None:
        config = self._load_configuration().configuration.bundle
        bundles = BundleKeeper(bundle_settings(config)) if config is not None else None
        self._runtime.bundles = bundles
        if bundles is not None:
            await bundles.fetch_first()
        inputs = load_inputs(self._load_configuration, bundles)
        configuration = inputs.configuration
        telemetry = Telemetry(configuration, self._registry)
        for note in inputs.loaded.notes:
            log.warning(note)
        ledger = self._open_ledger(configuration, telemetry)
        runtime = self._runtime
        tokens = TokenKeys(configuration.jwt)
        await tokens.load()
        source = _identity_source(configuration, runtime.report_identity_problem)
        updates: AsyncGenerator[IdentityUpdate, None] | None = source.updates() if source is not None else None
        identity = await first_update(updates, _IDENTITY_S) if updates is not None else None
        telemetry.collect(self._families)
        token_file = configuration.admin.token_file
        token = admin_token(token_file, create=True) if token_file is not None else b""
        admin = AdminServer(Providers(self._status, self._registry.families, self._stop_accepting, self._wait_drained), token=lambda: token)
        quarantine = QuarantineRegister(configuration.quarantine.path, runtime.contain)
        runtime.on_look = quarantine.expire
        admin.extend("/quarantine", quarantine.operation())
        if ledger is not None:
            for path, operation in ledger.operations().items():
                admin.extend(path, operation)
        self._signals()
        try:
            async with asyncio.TaskGroup() as background:
                quarantine.load()  # before the first listener opens
                await runtime.start(inputs, identity, tokens.verifier, telemetry, background)
                telemetry.start()
                await admin.start(configuration.admin.address.host, configuration.admin.address.port)
                work = [
                    background.create_task(runtime.watch()),
                    background.create_task(self._reload_on_signal()),
                    background.create_task(self._watch_files(inputs)),
                ]
                if bundles is not None:
                    work.append(background.create_task(end_break_glass(runtime)))
                    if bundles.has_url:
                        work.append(background.create_task(follow(bundles, partial(runtime.reload, "bundle"))))
                if configuration.quarantine.path is not None:
                    work.append(background.create_task(_follow(configuration.quarantine.path, quarantine.reload)))
                if source is not None and updates is not None:
                    work.append(background.create_task(self._follow_identity(source, updates)))
                if ledger is not None:
                    work.append(background.create_task(ledger.keep()))
                if tokens.verifier is not None:
                    work.append(background.create_task(tokens.refresh()))
                release_start_pages()
                log.info("serving", extra={"data": self._summary(configuration)})
                if ready is not None:
                    ready(runtime)
                await self._stop.wait()
                log.info("draining", extra={"data": {"grace_s": configuration.drain_s}})
                await runtime.drain(runtime.inputs.configuration.drain_s)
                self._drained.set()
                for task in work:
                    task.cancel()
        finally:
            await admin.close()
            if ledger is not None:
                ledger.close()
            telemetry.close()

    def _open_ledger(self, configuration: Configuration, telemetry: Telemetry) -> LedgerService | None:
        if configuration.ledger is None:
            return None
        from meshguard.control.ledger import LedgerService

        service = LedgerService(configuration, self._registry, telemetry.decisions)
        telemetry.gate = service.gate
        return service

    # -- what may happen meanwhile --------------------------------------------------------------------------------------

    def _signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _reload_on_signal(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._runtime.telemetry.reopen()
            await self._runtime.reload("signal")

    async def _watch_files(self, inputs: Inputs) -> None:
        """Documents, policies and keysets; what is watched follows the configuration."""
        files = inputs.files
        while True:
            async with aclosing(watch(files)) as changes:
                async for _ in changes:
                    await self._runtime.reload("files changed")
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
            except (MeshguardError, OSError) as exc:
                self._runtime.report_identity_problem(exc)
            await asyncio.sleep(_IDENTITY_RETRY_S)
            updates = source.updates()

    async def _wait_drained(self) -> None:
        await self._drained.wait()

    def _stop_accepting(self) -> None:
        self._stop.set()

    # -- what is told ---------------------------------------------------------------------------------------------------

    def _families(self) -> Iterable[Family]:
        return families(self._runtime, len(asyncio.all_tasks()))

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


def _identity_source(configuration: Configuration, report: Callable[[MeshguardError], None]) -> IdentitySource | None:
    config = configuration.identity
    if config is None:
        return None
    if config.files is not None:
        from meshguard.sources.files import FilesSource

        files = config.files
        return FilesSource(files.certificate, files.key, files.bundles, files.crls, report=report)
    if config.workload_api is not None:
        from meshguard.sources.workload_api import WorkloadApiSource

        return WorkloadApiSource(config.workload_api, workload=config.workload, report=report)
    if config.development_ca is not None:
        from meshguard.sources.development_ca import DevelopmentSource

        return DevelopmentSource(config.development_ca, config.trust_domain, config.workload or "/meshguard", report=report)
    return None
