"""The keysets of the process: made from the configuration, kept over reloads, kept fresh, rotated when their time has come.

Keysets in the clear are read anew with every reload. Those with wrapped keys live on: a reload with the same section gives the same object,
with the keys that are unwrapped, and a change of their file is taken over in place, without a reload.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshguard.control.key_history import KeyHistory
from meshguard.control.recording import Tell, silent
from meshguard.fields.keyset import Keyset
from meshguard.model.errors import KeysetError, MeshguardError
from meshguard.sources.watch import watch
from meshguard.telemetry.metrics import Family, Kind

if TYPE_CHECKING:
    from meshguard.control.settings.keys import KeysetConfig
    from meshguard.keys.live import LiveKeyset

__all__ = ["Keyring", "LoadedKeys"]

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2
_SCHEDULE_S = 60.0
"""Longest time between two looks at the schedule: the wall clock may be set."""


@dataclass(frozen=True, slots=True)
class LoadedKeys:
    """The keysets of one configuration, by name; `live` are those with wrapped keys; `files` those whose change takes a reload."""

    keysets: Mapping[str, Keyset]
    live: Mapping[str, tuple[KeysetConfig, LiveKeyset]]
    files: tuple[Path, ...]


class Keyring:
    """`load` may run in a thread, everything else on the loop."""

    def __init__(self) -> None:
        self._live: Mapping[str, tuple[KeysetConfig, LiveKeyset]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.rotations = 0
        self.history = KeyHistory()
        self.tell: Tell = silent  # destroyed keys are put on record
        self.history.to(lambda event: self.tell("keys", event))

    # -- load -----------------------------------------------------------------------------------------------------------

    def load(self, configs: Mapping[str, KeysetConfig], *, create: bool) -> LoadedKeys:
        """The keysets of a configuration. Those that are new have no keys yet (`start`). Raises KeysetError."""
        keysets: dict[str, Keyset] = {}
        live: dict[str, tuple[KeysetConfig, LiveKeyset]] = {}
        files = []
        for name, config in configs.items():
            if config.provider == "file" and config.kek is None:
                from meshguard.keys.file import load_keyset

                keysets[name] = load_keyset(config.path, name, create=create, state=config.state, subkeys=config.subkeys)
                keysets[name].renews = config.rewrap == "passing"
                files.append(config.path)
                continue
            known = self._live.get(name)
            live[name] = known if known is not None and known[0] == config else (config, _new_live(name, config))
            keysets[name] = live[name][1].keyset
        return LoadedKeys(keysets, live, tuple(files))

    async def start(self, keys: LoadedKeys) -> None:
        """Waits for the keys of what is new in `keys`. Raises KeysetError where a keyset refuses to start without."""
        fresh = [entry for name, entry in keys.live.items() if self._live.get(name) is not entry]
        try:
            async with asyncio.TaskGroup() as group:
                for config, live in fresh:
                    group.create_task(_first(config, live))
        except* KeysetError as errors:
            raise KeysetError("; ".join(map(str, errors.exceptions))) from None

    async def keep(self, keys: LoadedKeys, background: asyncio.TaskGroup) -> None:
        """`keys` are in force: keep them fresh in `background`, and let go of what is not used any more."""
        before, self._live = self._live, keys.live
        for name, entry in before.items():
            if self._live.get(name) is not entry:
                if (task := self._tasks.pop(name, None)) is not None:
                    task.cancel()
                await entry[1].close()
        for name, keyset in keys.keysets.items():
            if name in self._live:
                self._note(self._live[name][1])
            else:
                self.history.note(name, {key.version: key.state.value for key in keyset.versions})
        for name, (config, live) in self._live.items():
            if name not in self._tasks:
                self._tasks[name] = background.create_task(self._follow(config, live))

    async def close(self) -> None:
        """Ends all work and drops all keys."""
        for task in self._tasks.values():
            task.cancel()
        for _, live in self._live.values():
            await live.close()

    # -- run ------------------------------------------------------------------------------------------------------------

    async def _follow(self, config: KeysetConfig, live: LiveKeyset) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(live.run())
            group.create_task(_watch(live, self._note, self.tell))
            if config.rotate_after is not None or config.retire_after is not None:
                group.create_task(self._schedule(config, live))

    def _note(self, live: LiveKeyset) -> None:
        from meshguard.keys.shredding import record_digest

        record = live.record
        tenants = [name for name, tenant in record.tenants.items() if tenant.wrapped]
        self.history.note(live.name, {key.version: key.state.value for key in record.keys}, tenants, record_digest(record))

    async def _schedule(self, config: KeysetConfig, live: LiveKeyset) -> None:
        """Rotates and retires when it is time; only where the file can be written, and one of several writers at a time."""
        from meshguard.keys.wrapped import retire, rotate_wrapped

        while True:
            pause_s = _SCHEDULE_S
            if os.access(config.path.parent, os.W_OK) and os.access(config.path, os.W_OK):
                try:
                    pause_s = min(pause_s, self._due_s(config, live))
                    if pause_s <= 0 and config.rotate_after is not None:
                        record = await rotate_wrapped(config.path, live.kek, time.time(), config.settle_s, older_than_s=config.rotate_after)
                        if record is not None:
                            self.rotations += 1
                            version = record.primary.version if record.primary is not None else 0
                            log.info("key rotated", extra={"data": {"keyset": live.name, "version": version, "settle_s": config.settle_s}})
                        live.read()
                        self._note(live)
                        pause_s = _SCHEDULE_S
                    if config.retire_after is not None:
                        retired = await asyncio.to_thread(retire, config.path, time.time(), config.retire_after)
                        if retired:
                            log.info("key versions disabled", extra={"data": {"keyset": live.name, "versions": retired}})
                except (KeysetError, OSError) as exc:
                    log.warning("a rotation could not be made", extra={"data": {"keyset": live.name, "error": str(exc)}})
                    pause_s = _SCHEDULE_S
            await asyncio.sleep(max(_FIRST_PAUSE_S, min(pause_s, self._next_s(config, live))))

    def _due_s(self, config: KeysetConfig, live: LiveKeyset) -> float:
        """Seconds until a rotation is due; at most 0 when it is."""
        primary = live.record.primary
        if primary is None or config.rotate_after is None:
            return _SCHEDULE_S
        return primary.created + config.rotate_after - time.time()

    def _next_s(self, config: KeysetConfig, live: LiveKeyset) -> float:
        """Seconds until the schedule is looked at again."""
        due_s = self._due_s(config, live)
        return due_s if 0 < due_s < _SCHEDULE_S else _SCHEDULE_S

    # -- what is told ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, dict[str, object]]:
        """For the readiness detail: keyset -> provider, state, versions, age, and what went wrong last."""
        told: dict[str, dict[str, object]] = {}
        for name, (config, live) in self._live.items():
            primary = live.keyset.primary
            told[name] = {
                "provider": config.provider,
                "state": live.state,
                "seals_with": primary.version if primary is not None else None,
                "opens": [key.version for key in live.keyset.versions if key.may_open and key.available],
                "missing": [key.version for key in live.keyset.versions if key.may_open and not key.available],
                "confirmed_s_ago": int(live.age_s),
                **({"problem": live.problem} if live.problem else {}),
            }
        return told

    def families(self) -> Iterator[Family]:
        """Metrics of the keysets with wrapped keys."""
        lives = [live for _, live in self._live.values()]
        if not lives:
            return
        gauges: dict[str, tuple[str, str, list[float]]] = {
            "age": ("Seconds since the provider last confirmed the oldest key in use", "s", [live.age_s for live in lives]),
            "flight_time": ("How long the last round of unwrapping took", "s", [live.unwrap_s for live in lives]),
            "in_flight": ("Rounds of unwrapping under way", "", [live.flights for live in lives]),
            "failing": ("Failed rounds since the last good one", "", [live.failures for live in lives]),
            "primary": ("The version that seals, 0 for none", "", [getattr(live.keyset.primary, "version", 0) for live in lives]),
        }
        counters: dict[str, tuple[str, str, list[float]]] = {
            "failures": ("Failed rounds of unwrapping", "{round}", [live.failed for live in lives]),
            "unwraps": ("Keys that a provider unwrapped", "{key}", [live.unwraps for live in lives]),
        }
        for kind, told in ((Kind.GAUGE, gauges), (Kind.COUNTER, counters)):
            for name, (text, unit, values) in told.items():
                samples = [((live.name,), float(value)) for live, value in zip(lives, values, strict=True)]
                yield Family(f"meshguard.keys.{name}", kind, text, unit, ("keyset",), [*samples])
        states = [((live.name, state), float(live.state == state)) for live in lives for state in ("fresh", "outage", "stale")]
        yield Family("meshguard.keys.state", Kind.GAUGE, "1 for the state that the keyset is in", "", ("keyset", "state"), [*states])
        versions = [((live.name, key.version), float(key.available)) for live in lives for key in live.keyset.versions if key.may_open]
        text = "1 where the key of a version is at hand"
        yield Family("meshguard.keys.available", Kind.GAUGE, text, "", ("keyset", "version"), [*versions])
        yield Family("meshguard.keys.rotations", Kind.COUNTER, "Versions made by schedule", "{version}", (), [((), float(self.rotations))])


def _new_live(name: str, config: KeysetConfig) -> LiveKeyset:
    from meshguard.control.settings.keys import provider_values
    from meshguard.keys.live import LiveKeyset, Timing
    from meshguard.keys.registry import kek_of

    timing = Timing(config.cache_s, config.retry_max_s)
    live = LiveKeyset(name, config.path, config.provider, kek_of(provider_values(config)), timing)
    live.keyset.renews = config.rewrap == "passing"
    live.read()
    return live


async def _first(config: KeysetConfig, live: LiveKeyset) -> None:
    """The first round, again and again until the keys are there or the start has waited long enough."""
    deadline = time.monotonic() + config.start_s
    pause_s = _FIRST_PAUSE_S
    while not await live.refresh():
        if config.on_start == "serve":
            return
        if time.monotonic() + pause_s > deadline:
            raise KeysetError(f"keyset {live.name} has no keys: {live.problem} (`on_start: serve` starts without)")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 2.0)


async def _watch(live: LiveKeyset, note: Callable[[LiveKeyset], None], tell: Tell) -> None:
    """Takes over the keyset file whenever it changes; what cannot be taken over is told, and the last good one goes on."""
    try:
        async with aclosing(watch([live.path])) as changes:
            async for _ in changes:
                _take_over(live, note, tell)
    except (OSError, RuntimeError):
        log.exception("a keyset file cannot be watched: its changes need a restart")


def _take_over(live: LiveKeyset, note: Callable[[LiveKeyset], None], tell: Tell) -> None:
    before = live.record
    try:
        live.read()
    except MeshguardError as exc:
        live.problem = str(exc)
        log.error("a keyset file is refused, the last good one goes on", extra={"data": {"keyset": live.name, "error": str(exc)}})
    else:
        versions = {str(key.version): key.state.value for key in live.record.keys}
        note(live)
        log.info("keyset changed", extra={"data": {"keyset": live.name, "versions": versions}})
        from meshguard.keys.shredding import proof_of

        proof = proof_of(before, live.record, time.time())
        if "versions" in proof or "tenants" in proof:
            tell("key_destroyed", proof)
