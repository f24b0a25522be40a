"""Signed policy from the store: asked for once at the start and at each reload, watched in between. The rules are those of every bundle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from meshguard.control.fleet.access import access_of
from meshguard.control.identity_source import identity_once
from meshguard.model.errors import MeshguardError
from meshguard.sources.nats_store import Entry, Store, open_store

if TYPE_CHECKING:
    from meshguard.control.settings.configuration import Configuration
    from meshguard.control.settings.fleet import FleetConfig
    from meshguard.sources.bundles import BundleKeeper

__all__ = ["FleetBundles", "pull_once"]

log = logging.getLogger(__name__)


def pull_once(configuration: Configuration) -> Callable[[], Awaitable[bytes | None]]:
    """Asks for the bundle on a connection of its own."""

    async def pull() -> bytes | None:
        fleet, bundle = configuration.fleet, configuration.bundle
        if fleet is None or bundle is None or bundle.fleet is None:
            raise MeshguardError("no fleet is configured")
        async with asyncio.timeout(fleet.connect_s + fleet.answer_s):
            store = await open_store(access_of(fleet, lambda: identity_once(configuration)))
            try:
                entry = await (await store.bucket(fleet.buckets.bundles)).get(bundle.fleet)
            finally:
                await store.close()
        return entry.value if entry is not None else None

    return pull


class FleetBundles:
    """Watches the key of the bundle. `changed` has the newest document judged and put in force, or refused and told."""

    def __init__(
        self, config: FleetConfig, key: str, keeper: BundleKeeper, changed: Callable[[], Awaitable[object]], record: Callable[..., None]
    ) -> None:
        self._config = config
        self._key = key
        self._keeper = keeper
        self._changed = changed
        self._record = record

    async def watch(self, store: Store) -> None:
        """A part of the connection."""
        bucket = await store.bucket(self._config.buckets.bundles)
        await bucket.watch(self._key, self._take, self._config.check_s)

    async def _take(self, entry: Entry | None) -> None:
        if entry is None:
            return
        if entry.value is None:
            data = {"key": self._key, "revision": entry.revision}
            log.error("the bundle was deleted from the store, what is in force goes on", extra={"data": data})
            self._record("fleet_bundle_refused", {**data, "error": "deleted"})
            return
        if self._keeper.offer(entry.value):
            await self._changed()
