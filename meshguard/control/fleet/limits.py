"""The exchange of fleet rate limits: what this process let through goes to the others, what they tell is charged here.

    spent --(sync_s, or at once above a share of the burst)--> a message to `meshguard.limits.FLEET` --> one process of each other instance

Plain NATS messages, kept nowhere: a message that is lost is a few requests too many. Beats without content tell who is there, which says
how much may be owed, and by how many the limits are divided when the store is away (kept on disk, for a start without it).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson

from meshguard.control.rate_limits import RateLimits
from meshguard.control.settings.fleet import FleetConfig
from meshguard.sources.nats_store import Store, keyed
from meshguard.telemetry.metrics import Family, Kind

__all__ = ["FleetLimits"]

log = logging.getLogger(__name__)

BEAT_S = 1.0
_GONE_S = 5.0
"""An instance that is not heard for so long is not there."""
_KEYS = 1000
"""In one message: 40 KB."""
_MAX_INSTANCES = 10_000
_MAX_COUNT = 1_000_000_000


class FleetLimits:
    """A part of the connection. `limits` has the accounts."""

    def __init__(self, config: FleetConfig, instance: str, limits: RateLimits) -> None:
        self._config = config
        self._instance = instance
        self._limits = limits
        self._subject = f"meshguard.limits.{keyed(config.name)}"
        self._spent = asyncio.Event()
        self._urgent = asyncio.Event()
        self._heard: dict[str, float] = {}
        self.instances = 1
        self.told = 0
        self.ignored = 0
        limits.fleet_secret = config.name.encode()
        self._path = Path(config.state) / "instances"
        self._kept = 0
        limits.on_spent, limits.on_urgent = self._spent.set, self._urgent.set

    def load(self) -> None:
        """Until the store is there, each instance takes its share of what was there last."""
        if self._config.limits.away == "share":
            try:
                self.instances = self._kept = max(1, int(self._path.read_text("ascii")))
            except (OSError, ValueError):
                return  # never connected: alone as far as is known
            self._limits.divide(self.instances)

    async def run(self, store: Store) -> None:
        """Until the connection fails; then each instance takes its share."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(store.listen(self._subject, self._hear, one_of=keyed(self._instance)))
                group.create_task(self._tell(store))
        finally:
            if self._config.limits.away == "share":
                self._limits.divide(self.instances)
                if self.instances > 1 and self._limits.accounts:
                    log.warning("fleet limits are divided while the store is away", extra={"data": {"instances": self.instances}})

    async def _tell(self, store: Store) -> None:
        self._spent.set()  # others are to know at once that we are here
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._spent.wait()
                async with asyncio.timeout(self._config.limits.sync_s):
                    await self._urgent.wait()
            except TimeoutError:
                pass  # a beat, or the time for an exchange
            self._spent.clear()
            self._urgent.clear()
            for data in self._messages():
                await store.publish(self._subject, data)
            self._count()
            if self.instances != self._kept:
                self._kept = self.instances
                await asyncio.to_thread(self._keep)
            if self._limits.shares != 1:
                self._limits.divide(1)

    def _messages(self) -> Iterator[bytes]:
        """At least one: who tells nothing is not there."""
        some = False
        for account in list(self._limits.accounts.values()):
            kept = iter([(name.hex(), count) for name, count in account.collect().items() if count > 0])
            while part := dict(islice(kept, _KEYS)):
                some = True
                self.told += sum(part.values())
                yield orjson.dumps({"i": self._instance, "l": account.id, "s": part})
        if not some:
            yield orjson.dumps({"i": self._instance})

    def _hear(self, data: bytes) -> None:
        try:
            said = orjson.loads(data)
            instance, spent = said["i"], said.get("s", {})
            if not isinstance(instance, str) or instance == self._instance:
                return
            if instance in self._heard or len(self._heard) < _MAX_INSTANCES:
                self._heard[instance] = time.monotonic()
            account = self._limits.accounts.get(said.get("l", ""))
            if account is None:
                return
            now = time.monotonic()
            for name, count in spent.items():
                if not isinstance(count, int) or not 0 < count <= _MAX_COUNT:
                    raise ValueError("a count")
                account.charge(bytes.fromhex(name), count, now, max(self.instances, len(self._heard) + 1))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.ignored += 1  # not of ours, or of a version that says it differently

    def _count(self) -> None:
        oldest = time.monotonic() - _GONE_S
        self._heard = {name: heard for name, heard in self._heard.items() if heard >= oldest}
        self.instances = len(self._heard) + 1

    def _keep(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._path.with_name(f".instances.{os.getpid()}")
            fresh.write_text(str(self._kept), "ascii")
            fresh.replace(self._path)
        except OSError as exc:
            log.warning("the number of instances cannot be kept", extra={"data": {"error": str(exc)}})

    def families(self) -> Iterator[Family]:
        """What the metrics tell of it."""
        accounts = self._limits.accounts.values()
        for name, kind, text, value in (
            ("instances", Kind.GAUGE, "Instances that exchange fleet limits, this one included", self.instances),
            ("shares", Kind.GAUGE, "By how many the fleet limits are divided here: 1 while they are exchanged", self._limits.shares),
            ("told", Kind.COUNTER, "Requests under fleet limits that others were told of", self.told),
            ("charged", Kind.COUNTER, "Requests of other instances that were counted here", sum(each.charged for each in accounts)),
            ("untold", Kind.COUNTER, "Requests that could not be told of: too many keys", sum(each.untold for each in accounts)),
            ("ignored", Kind.COUNTER, "Messages that were not understood", self.ignored),
        ):
            yield Family(f"meshguard.fleet.limits.{name}", kind, text, "", (), [((), float(value))])
