"""What an instance enforces, as it reports it to the store, and as the whole fleet is read from there."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from meshguard.control.settings.fleet import FleetConfig
from meshguard.sources.nats_store import Entry, Store, StoreError, keyed

__all__ = ["Instance", "Reports", "instances_of", "report_key"]

log = logging.getLogger(__name__)

FORMAT = 1
_LAST_TRIES = 3
SPREAD_S = 0.1
"""Reports of one change are spread over so long: a fleet that answers in one moment would hold up what it answers to."""


def report_key(fleet: str, instance: str, worker: int) -> str:
    """The key of one process."""
    return keyed(fleet, instance, str(worker))


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of the fleet as it last told. `at` is the store's time of that (epoch seconds), `state` serving or stopped, `enforces`
    what it said about policy, bundle and quarantine."""

    name: str
    worker: int
    at: float
    revision: int
    state: str
    enforces: Mapping[str, Any]

    @property
    def label(self) -> str:
        return f"{self.name}/{self.worker}" if self.worker else self.name

    def is_stale(self, now: float, stale_after_s: float) -> bool:
        """It serves, and has not told for too long."""
        return self.state != "stopped" and now - self.at > stale_after_s

    def part(self, name: str) -> Mapping[str, Any]:
        """`policy`, `bundle` or `quarantine` of what it enforces."""
        value = self.enforces.get(name)
        return value if isinstance(value, Mapping) else {}


def instances_of(fleet: str, entries: Iterable[Entry]) -> list[Instance]:
    """The readable reports, by name. One that stands under another's key is left out: who may write a key says whose report it is."""
    found = []
    for entry in entries:
        try:
            value = orjson.loads(entry.value or b"")
            instance = Instance(value["instance"], value["worker"], entry.created, entry.revision, value["state"], value)
            if value["format"] == FORMAT and report_key(fleet, instance.name, instance.worker) == entry.key:
                found.append(instance)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return sorted(found, key=lambda each: (each.name, each.worker))


class Reports:
    """Writes this process's report: at once when something changed, and every `heartbeat_s`. `tell` gives what it enforces."""

    def __init__(self, config: FleetConfig, instance: str, worker: int, tell: Callable[[], dict[str, Any]]) -> None:
        self._config = config
        self._instance = instance
        self._worker = worker
        self._tell = tell
        self._key = report_key(config.name, instance, worker)
        self.changed = asyncio.Event()
        self._state = "serving"
        self._boot = secrets.token_hex(8)

    async def run(self, store: Store) -> None:
        """A part of the connection."""
        bucket = await store.bucket(self._config.buckets.instances)
        while self._state == "serving":
            self.changed.clear()
            await bucket.put(self._key, self._value())
            try:
                async with asyncio.timeout(self._config.heartbeat_s):
                    await self.changed.wait()
                await asyncio.sleep(random.uniform(0.0, SPREAD_S))
            except TimeoutError:
                pass  # the next heartbeat
        await store.ended.wait()

    async def leave(self, store: Store) -> None:
        """The last report: stopped in order. One of a process that has taken over stays."""
        self._state = "stopped"
        for _ in range(_LAST_TRIES):
            try:
                bucket = await store.bucket(self._config.buckets.instances)
                found = await bucket.get(self._key)
                if found is not None and self._boot.encode() in (found.value or b""):
                    await bucket.replace(self._key, self._value(), found.revision)
                return
            except StoreError as exc:
                if exc.code != "conflict":  # a report was under way, or a successor's came
                    log.info("the store was not told of the end of this instance", extra={"data": {"error": str(exc)}})
                    return

    def _value(self) -> bytes:
        told = {"format": FORMAT, "instance": self._instance, "worker": self._worker, "state": self._state, "boot": self._boot}
        told |= self._tell()
        return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
