"""The one connection of an instance to the store, kept for as long as the process lives.

    connect --> all parts run on it --> any of them fails, or the connection ends --> wait (doubling, with jitter) --> connect

A part is a function of the open store that runs until something is wrong: a watch, the reports, the limits. When one fails, all begin
anew on a fresh connection: nothing can stay half alive. What was known stays in force meanwhile, and log, metric and readiness detail
say so.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from meshguard.model.errors import MeshguardError
from meshguard.sources.nats_store import Access, Store, StoreError, open_store

__all__ = ["Link", "Part"]

log = logging.getLogger(__name__)

Part = Callable[[Store], Awaitable[None]]
_STEADY_S = 30.0
"""A connection that lived so long did not fail because of how it began."""


class _Renewed(Exception):
    """The own identity has changed: the connection is made anew with it."""


class Link:
    """`record(event, data)` puts on record that the store is away, or back."""

    def __init__(self, access: Access, retry_s: float, retry_max_s: float, parts: Sequence[Part], record: Callable[..., None]) -> None:
        self._access = access
        self._retry_s = retry_s
        self._retry_max_s = retry_max_s
        self.parts = list(parts)
        self._record = record
        self._renew = asyncio.Event()
        self._told_away = False
        self.store: Store | None = None
        self.since = time.time()
        self.error = "not connected yet"
        self.failures = 0
        self.connects = 0

    def renew(self) -> None:
        """Connects anew, with the identity of now."""
        if self.store is not None:
            self._renew.set()

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            begun = time.monotonic()
            self._renew.clear()
            try:
                await self._once()
            except _Renewed:
                continue
            except (MeshguardError, OSError, ValueError) as exc:
                self._down(str(exc) or type(exc).__name__)
            except Exception as exc:
                # the outermost loop of a background service: whatever a part does wrong, the next connection is tried
                log.exception("a part of the fleet's connection failed")
                self._down(type(exc).__name__)
            failures = 0 if time.monotonic() - begun > _STEADY_S else failures + 1
            wait_s = min(self._retry_max_s, self._retry_s * 2.0 ** min(max(failures - 1, 0), 16))
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))

    async def _once(self) -> None:
        store = await open_store(self._access)
        try:
            self._up(store)
            async with asyncio.TaskGroup() as group:
                for part in (self._until_over, self._until_renewed, *self.parts):
                    group.create_task(_run(part, store))
        except BaseExceptionGroup as exc:
            raise _first(exc) from exc
        finally:
            self.store = None
            await store.close()

    async def _until_over(self, store: Store) -> None:
        await store.ended.wait()
        raise StoreError("away", f"{store.server}: {store.trouble or 'the connection is over'}")

    async def _until_renewed(self, store: Store) -> None:
        await self._renew.wait()
        raise _Renewed

    def _up(self, store: Store) -> None:
        self.store = store
        self.connects += 1
        away_s, self.since, self.error = time.time() - self.since, time.time(), ""
        data = {"server": store.server}
        if self._told_away:
            data["away_s"] = str(round(away_s, 1))
            self._record("fleet_store_back", data)
        self._told_away = False
        log.info("connected to the fleet's store", extra={"data": data})

    def _down(self, error: str) -> None:
        self.failures += 1
        if not self.error or self.error == "not connected yet":
            self.since = time.time()
        self.error = error
        if not self._told_away:
            self._told_away = True
            log.warning("THE FLEET'S STORE IS AWAY: what was last known stays in force", extra={"data": {"error": error}})
            self._record("fleet_store_away", {"error": error})


async def _run(part: Part, store: Store) -> None:
    await part(store)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong: the first error inside, a renewal before others."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        each = stack.pop()
        if isinstance(each, BaseExceptionGroup):
            stack.extend(reversed(each.exceptions))
        else:
            leaves.append(each)
    return next((each for each in leaves if isinstance(each, _Renewed)), leaves[0])
