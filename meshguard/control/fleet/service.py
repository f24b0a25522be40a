"""One process in its fleet: the parts of the connection, what they change here, what is told about them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from meshguard import __version__
from meshguard.control.fleet.access import access_of, instance_name
from meshguard.control.fleet.bundles import FleetBundles
from meshguard.control.fleet.checkpoints import FleetCheckpoints
from meshguard.control.fleet.containment import Both, FleetContainment
from meshguard.control.fleet.instances import Reports
from meshguard.control.fleet.limits import FleetLimits
from meshguard.control.fleet.link import Link, Part
from meshguard.control.settings.fleet import FleetConfig
from meshguard.sources.nats_store import Store, keyed
from meshguard.telemetry.metrics import Family, Kind, Registry
from meshguard.telemetry.redaction import Redactor

if TYPE_CHECKING:
    from meshguard.control.runtime import Runtime
    from meshguard.sources.identity import IdentityUpdate

__all__ = ["FleetService", "on_loop"]

log = logging.getLogger(__name__)


def on_loop(tell: Callable[[str], None]) -> Callable[[str], None]:
    """`tell` for callers in another thread: called on the running loop, not at all once that is closed."""
    loop = asyncio.get_running_loop()

    def told(text: str) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, text)

    return told


class FleetService:
    """`record` puts an event into the ledger (None: there is none); `changed` has a new bundle judged. `identity` is that of this process,
    to be kept up to date with `identified`."""

    def __init__(
        self,
        config: FleetConfig,
        runtime: Runtime,
        registry: Registry,
        record: Callable[[str, dict[str, Any]], object] | None,
        changed: Callable[[], Awaitable[object]],
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._ledger = record
        self._changed = changed
        self.instance = instance_name(config)
        self.identity: IdentityUpdate | None = None
        self.contained = Both(runtime.contain)
        self._reports = Reports(config, self.instance, int(os.environ.get("MESHGUARD_WORKER", "0")), self._enforced)
        self.containment = FleetContainment(config, self.contained.fleet, self.record, self._reports.changed.set)
        self._limits = FleetLimits(config, self.instance, runtime.rate_limits)
        self._link = Link(access_of(config, self._identity), config.retry_s, config.retry_max_s, self._parts(), self.record)
        self._told: tuple[object, ...] = ()
        self._redactor = Redactor()
        self._limited = asyncio.Event()
        self._checkpoints: FleetCheckpoints | None = None
        registry.collect(self._families)

    def _parts(self) -> list[Part]:
        parts: list[Part] = [self._watch_quarantine, self._reports.run, self._exchange_limits]
        if self._runtime.bundles is not None and self._runtime.bundles.pull is not None:
            parts.append(self._watch_bundle)
        return parts

    def publish_checkpoints(self) -> Callable[[str], None]:
        """What is to be told of each checkpoint of the ledger, on the loop."""
        self._checkpoints = checkpoints = FleetCheckpoints(self._config, self.record)
        self._link.parts.append(checkpoints.run)
        return checkpoints.offer

    async def _identity(self) -> IdentityUpdate | None:
        return self.identity

    def identified(self, update: IdentityUpdate) -> None:
        """The own identity has changed: the store is to know the new one."""
        self.identity = update
        tls = self._config.tls
        if tls is not None and (tls.svid or tls.spiffe_id is not None):
            self._link.renew()

    def load(self) -> None:
        """What was known before the start. Raises DocumentError, OSError."""
        self.containment.load()
        self._limits.load()

    async def run(self) -> None:
        """Until cancelled. Nothing waits for it."""
        await self._link.run()

    async def leave(self) -> None:
        """The end of this process, told to the store within its deadline."""
        store = self._link.store
        if store is not None:
            await self._reports.leave(store)

    def look(self) -> None:
        """Twice a second: entries that have ended, and whether what is enforced has changed."""
        self.containment.expire()
        if self._runtime.rate_limits.accounts:
            self._limited.set()
        state = self._runtime.state
        told = (state.policy_digest, state.revision, state.last_error, len(self.containment.current.entries))
        if told != self._told:
            self._told = told
            self._reports.changed.set()

    def record(self, event: str, data: dict[str, Any]) -> None:
        """Into the ledger, where there is one; the log has it anyway."""
        if self._ledger is not None:
            self._ledger(event, data)

    async def _watch_quarantine(self, store: Store) -> None:
        self.containment.connected()
        bucket = await store.bucket(self._config.buckets.quarantine)
        await bucket.watch(keyed(self._config.name), self.containment.take, self._config.check_s)

    async def _watch_bundle(self, store: Store) -> None:
        keeper, inputs = self._runtime.bundles, self._runtime.inputs
        config = inputs.configuration.bundle
        if keeper is not None and config is not None and config.fleet is not None:
            await FleetBundles(self._config, config.fleet, keeper, self._changed, self.record).watch(store)

    async def _exchange_limits(self, store: Store) -> None:
        """Begins when a limit over the fleet is configured, which may be with a reload."""
        await self._limited.wait()
        await self._limits.run(store)

    # -- what is told ---------------------------------------------------------------------------------------------------

    def _enforced(self) -> dict[str, Any]:
        state, candidate = self._runtime.state, self._runtime.inputs.candidate
        error = self._redactor.text(state.last_error)[:500]
        told: dict[str, Any] = {
            "version": __version__,
            "pid": os.getpid(),
            "identity": state.identity,
            "heartbeat_s": self._config.heartbeat_s,
            "policy": {"digest": state.policy_digest, "revision": state.revision, "since": state.since, "error": error},
            "quarantine": self.containment.told(),
        }
        if candidate is not None:
            bundle = candidate.bundle
            told["bundle"] = {"name": bundle.name, "version": bundle.version, "digest": bundle.digest, "until": bundle.until}
        return told

    def told(self) -> dict[str, object]:
        """For the readiness detail."""
        link = self._link
        told: dict[str, object] = {
            "store": "away" if link.store is None else "connected",
            "for_s": int(time.time() - link.since),
            "instance": self.instance,
            "quarantine": self.containment.told(),
        }
        if self._checkpoints is not None and self._checkpoints.cut_short:
            told["ledger_cut_short"] = ", ".join(sorted(self._checkpoints.cut_short))
        return told | ({"error": link.error} if link.error else {})

    def listed(self) -> dict[str, object]:
        """The fleet's quarantine, for lists."""
        entries = [asdict(entry) for entry in self.containment.current.entries.values()]
        return {**self.containment.told(), "store": "away" if self._link.store is None else "connected", "quarantine": entries}

    def _cut_short(self) -> int:
        return len(self._checkpoints.cut_short) if self._checkpoints is not None else 0

    def _families(self) -> Iterator[Family]:
        link, held = self._link, self.containment.held
        for name, kind, text, value in (
            ("connected", Kind.GAUGE, "1 while the fleet's store is connected", 0 if link.store is None else 1),
            ("failures", Kind.COUNTER, "Connections to the fleet's store that failed or ended", link.failures),
            ("quarantine.sequence", Kind.GAUGE, "Number of the fleet's quarantine set in force", held.sequence if held else 0),
            ("quarantine.entries", Kind.GAUGE, "Entries of the fleet's quarantine in force", len(self.containment.current.entries)),
            ("ledger.cut_short", Kind.GAUGE, "Shards of the ledger that are smaller than the store knows them", self._cut_short()),
            ("quarantine.refused", Kind.COUNTER, "Quarantine sets of the store that were refused", self.containment.refusals),
        ):
            yield Family(f"meshguard.fleet.{name}", kind, text, "", (), [((), float(value))])
        if self._runtime.rate_limits.accounts:
            yield from self._limits.families()
