"""A keyset whose keys a provider unwraps: read from its file, unwrapped, kept for a time, and dropped when nobody confirms them.

    start --unwrap--> fresh --refresh ahead of the end--> fresh
                       |  \\-- provider away: back-off with jitter, the keys go on until `cache_s` after they were last confirmed
                       +----> stale: keys are dropped, sealing and opening are refused (KEY_UNAVAILABLE), never plaintext
    stale --the provider answers--> fresh         without a restart

One flight per keyset: all its versions are asked for one after the other by one task, and requests never wait for a provider.

A rotation reaches each node by its file. INVARIANT: a node seals with a new version when the version is active (`activates`: by then the
other nodes have it) and its key is there; until then with the version before it, if that may still open.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes

from meshguard.fields.keyset import DataKey, Keyset, KeyState
from meshguard.fields.material import SALT_BYTES, KeyMaterial
from meshguard.keys.keyset_file import read_keyset
from meshguard.keys.provider import Binding, Kek, KekError
from meshguard.keys.records import KeyRecord, KeysetRecord
from meshguard.keys.tenants import open_tenants
from meshguard.model.errors import KeysetError

__all__ = ["LiveKeyset", "Timing"]

log = logging.getLogger(__name__)

REFRESH_AT = 0.5
"""Share of `cache_s` after which keys are confirmed; the rest is for an outage. Spread by a tenth: a fleet does not ask at once."""
FIRST_RETRY_S = 0.5
_LEAST_S = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """`cache_s`: how long a key may be used after the provider last confirmed it; `retry_max_s`: the longest pause in an outage."""

    cache_s: float = 3600.0
    retry_max_s: float = 30.0


class LiveKeyset:
    """One wrapped keyset of this process. `clock` is monotonic seconds, `now` epoch seconds. `keyset` stays the same object."""

    def __init__(
        self,
        name: str,
        path: Path,
        provider: str,
        kek: Kek,
        timing: Timing = Timing(),  # frozen
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.path = path
        self.kek = kek
        self.record = KeysetRecord(name, ())
        self.keyset = Keyset(name, ())
        self.problem = ""
        self.failures = 0  # in a row
        self.failed = 0
        self.unwraps = 0
        self.flights = 0
        self.unwrap_s = 0.0  # of the last flight
        self._provider = provider
        self._timing = timing
        self._clock = clock
        self._now = now
        self._jitter = jitter
        self._materials: dict[int, KeyMaterial] = {}
        self._confirmed: dict[int, float] = {}
        self._used: set[int] = set()  # versions that were here once: no other seals in their place
        self._wake = asyncio.Event()
        self._retry_at = 0.0
        self._refresh_at = 0.0
        self._tend_at = 0.0
        self._expiry: asyncio.TimerHandle | None = None

    # -- what it is -----------------------------------------------------------------------------------------------------

    @property
    def age_s(self) -> float:
        """Seconds since the oldest key in use was confirmed; 0 when none is."""
        times = [at for version, at in self._confirmed.items() if self._materials[version].present]
        return self._clock() - min(times) if times else 0.0

    @property
    def state(self) -> str:
        """`fresh`, `outage` (keys of before, the provider does not answer), `stale` (a key that should be there is not)."""
        if any(key.may_open and not key.available for key in self.keyset.versions) or self.keyset.primary is None:
            return "stale"
        return "outage" if self.failures else "fresh"

    # -- the file -------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take over the file as it is now: states at once, new keys when they are unwrapped. Raises KeysetError, and then nothing
        changes. Call it on the loop (the file is small), or before the loop runs."""
        try:
            record = read_keyset(self.path)
        except FileNotFoundError:
            raise KeysetError(
                f"{self.path}: no such keyset file (make one with `meshguard keys create {self.name} --config FILE`)"
            ) from None
        except OSError as exc:
            raise KeysetError(f"{self.path}: {exc.strerror or exc}") from exc
        if record.name != self.name:
            raise KeysetError(f"{self.path}: is keyset {record.name}, expected {self.name}")
        if record.provider != self._provider:
            raise KeysetError(f"{self.path}: is wrapped by {record.provider or 'nothing'}, expected {self._provider}")
        if record.primary is None and any(key.state is KeyState.ENABLED for key in record.keys):
            raise KeysetError(f"{self.path}: expected a primary version")
        if record == self.record and self.keyset.versions:
            return
        before = {key.version: key.wrapped for key in self.record.keys}
        changed = any(before.get(key.version) != key.wrapped for key in record.keys)
        self.record = record
        self._adopt()
        if changed:
            self._refresh_at = self._retry_at = 0.0
        self._wake.set()

    def _adopt(self) -> None:
        """The keyset as the record and the keys at hand make it."""
        record = self.record
        known = {key.version for key in record.keys}
        for version in [version for version in self._materials if version not in known]:
            self._materials.pop(version).drop()
            self._confirmed.pop(version, None)
        for key in record.keys:
            if key.state is not KeyState.DESTROYED:
                self._materials.setdefault(key.version, KeyMaterial())
            if key.state in (KeyState.DISABLED, KeyState.DESTROYED) and key.version in self._materials:
                self._materials[key.version].drop()
                self._confirmed.pop(key.version, None)
        seals = self._sealing()
        keys = []
        for key in record.keys:
            state = key.state
            if state in (KeyState.PRIMARY, KeyState.ENABLED):
                state = KeyState.PRIMARY if key.version == seals else KeyState.ENABLED
            material_of = None if state is KeyState.DESTROYED else self._materials[key.version]
            keys.append(DataKey(key.version, state, key.created, material_of, salts=_salt))
        secrets = open_tenants(record.name, record.tenants, self._materials)
        self.keyset.tenancy = record.tenancy
        self.keyset.adopt(keys, secrets)

    def _sealing(self) -> int:
        """The version that seals now; 0 for none."""
        primary = self.record.primary
        if primary is None:
            return 0
        before = max(
            (key.version for key in self.record.keys if key.state is KeyState.ENABLED and key.version < primary.version), default=0
        )
        if not before or (self._present(primary) and primary.activates <= self._now()):
            return primary.version
        if primary.activates > self._now():
            return before
        # active, but its key was not to be had yet: the one before goes on, unless the new one was here already
        waits = primary.version not in self._used and self._materials[before].present
        return before if waits else primary.version

    def _present(self, key: KeyRecord) -> bool:
        return self._materials[key.version].present

    # -- the keys -------------------------------------------------------------------------------------------------------

    async def refresh(self) -> bool:
        """Unwrap every version that may open, one after the other; True when all are confirmed. Never raises for a provider's trouble."""
        started = self._clock()
        self.flights += 1
        try:
            await self._unwrap_all()
        except KeysetError as exc:
            self._failed(exc)
            return False
        finally:
            self.flights -= 1
            self.unwrap_s = self._clock() - started
        recovered, self.failures, self.problem = self.failures, 0, ""
        self._refresh_at = self._clock() + self._timing.cache_s * REFRESH_AT * (1.0 - 0.1 * self._jitter())
        self._tend_at = 0.0  # there may be another login by now
        if recovered:
            log.info("keys are confirmed again", extra={"data": {"keyset": self.name, "after_failures": recovered}})
        return True

    async def _unwrap_all(self) -> None:
        refused: KeysetError | None = None
        for key in reversed(self.record.keys):  # the newest seals: it comes first
            if key.state not in (KeyState.PRIMARY, KeyState.ENABLED):
                continue
            try:
                octets = await self.kek.unwrap(key.wrapped, Binding(self.name, key.version))
            except KekError as exc:
                if exc.away:
                    raise
                refused = refused or exc  # one version that is not unwrapped any more does not take the others with it
                continue
            self.unwraps += 1
            current = next((item for item in self.record.keys if item.version == key.version), None)
            material = self._materials.get(key.version)
            if current is None or material is None or current.state not in (KeyState.PRIMARY, KeyState.ENABLED):
                continue  # disabled while the provider worked
            new = not material.present
            material.supply(octets)
            self._used.add(key.version)
            self._confirmed[key.version] = self._clock()
            self._arm()
            if new:
                self._adopt()
        if refused is not None:
            raise refused

    def _failed(self, exc: KeysetError) -> None:
        self.failures += 1
        self.failed += 1
        self.problem = str(exc)
        # full jitter: a fleet that lost its provider at the same moment must not come back at the same moment
        ceiling = min(self._timing.retry_max_s, FIRST_RETRY_S * 2.0 ** min(self.failures - 1, 16))
        self._retry_at = self._clock() + max(ceiling / 4, ceiling * self._jitter())
        refused = isinstance(exc, KekError) and not exc.away
        data = {"keyset": self.name, "error": self.problem, "failures": self.failures, "refused": refused, "state": self.state}
        if self.failures == 1 or self.failures & (self.failures - 1) == 0:  # 1, 2, 4, 8: a long outage does not fill the log
            log.warning("keys could not be confirmed", extra={"data": data})

    def _arm(self) -> None:
        """Sets the alarm for the first key whose time runs out."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        times = [at for version, at in self._confirmed.items() if self._materials[version].present]
        if times:
            delay_s = min(times) + self._timing.cache_s - self._clock()
            self._expiry = asyncio.get_running_loop().call_later(max(0.0, delay_s), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        limit = self._clock() - self._timing.cache_s
        gone = [version for version, at in self._confirmed.items() if at <= limit + _LEAST_S]
        for version in gone:
            del self._confirmed[version]
            self._materials[version].drop()
        if gone:
            for secret in self.keyset.tenants.values():
                secret.drop()
            self._adopt()
            data = {"keyset": self.name, "versions": gone, "error": self.problem}
            log.error("keys were not confirmed in time and are dropped", extra={"data": data})
        self._arm()

    async def run(self) -> None:
        """Keeps the keys fresh until cancelled."""
        while True:
            self._wake.clear()
            try:
                wait_s = await self._look()
            except Exception:
                # the outermost loop of a background service: keys that are there go on until their time is over
                log.exception("a look at the keys failed", extra={"data": {"keyset": self.name}})
                wait_s = self._timing.retry_max_s
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look(self) -> float:
        """Does what is due; returns the seconds until something else is."""
        if self._clock() >= max(self._retry_at, self._refresh_at if not self._missing() else 0.0):
            await self.refresh()
        if self._clock() >= self._tend_at:
            await self._tend()
        seals = self.keyset.primary.version if self.keyset.primary is not None else 0
        dues = [self._tend_at, max(self._retry_at, self._refresh_at)]
        if self._missing():
            dues.append(self._retry_at)
        if seals != self._sealing():
            self._adopt()
            log.info("another version seals", extra={"data": {"keyset": self.name, "version": self._sealing()}})
        pause_s = self.record.primary.activates - self._now() if self.record.primary is not None else 0.0
        if pause_s > 0:
            dues.append(self._clock() + min(pause_s, 60.0))  # looked at again: the wall clock may be set
        return max(_LEAST_S, min(dues) - self._clock())

    def _missing(self) -> bool:
        return any(key.may_open and not key.available for key in self.keyset.versions)

    async def _tend(self) -> None:
        try:
            self._tend_at = self._clock() + await self.kek.tend()
        except KeysetError as exc:
            self._tend_at = self._clock() + FIRST_RETRY_S * (1 + 9 * self._jitter())
            log.warning("a login could not be renewed", extra={"data": {"keyset": self.name, "error": str(exc)}})

    async def close(self) -> None:
        """Drops every key and the login."""
        if self._expiry is not None:
            self._expiry.cancel()
        for material in (*self._materials.values(), *self.keyset.tenants.values()):
            material.drop()
        await self.kek.close()

    def rotation_due(self, rotate_after_s: float) -> bool:
        """The primary version is older than that."""
        primary = self.record.primary
        return primary is not None and self._now() - primary.created >= rotate_after_s


def _salt() -> bytes:
    return token_bytes(SALT_BYTES)
