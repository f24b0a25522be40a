"""Changing the fleet's quarantine: read what is there, change it, sign it, write it if nobody was faster; then see who has taken it.

INVARIANT: a set is only built on the newest one. When the store has none, or an older one than instances enforce (it was set back, or
somebody took it away), a new set would let in whoever the lost one held: that is refused until the newest set is restored (each
instance keeps it, signed, in its state directory) or given up explicitly.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshguard.control.fleet.containment import signer_keys
from meshguard.control.fleet.instances import Instance, instances_of
from meshguard.control.settings.fleet import FleetConfig
from meshguard.integrity.containment import (
    MAX_MEMBERS,
    ContainmentError,
    ContainmentSet,
    Member,
    accept,
    encode,
    next_sequence,
    open_set,
)
from meshguard.integrity.dsse import PrivateKey, sign
from meshguard.sources.nats_store import Bucket, Entry, Store, StoreError, keyed

__all__ = ["Spread", "change_set", "living", "read_set", "restore_set", "spread"]

_TRIES = 8
_CHECK_S = 2.0

Edit = Callable[[tuple[Member, ...]], tuple[Member, ...]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Which living instances enforce a set, and which do not (yet); `took_s` until the last one that does."""

    taken: tuple[Instance, ...]
    missing: tuple[Instance, ...]
    took_s: float


async def _instances(store: Store, config: FleetConfig) -> list[Instance]:
    bucket = await store.bucket(config.buckets.instances)
    return instances_of(config.name, await bucket.all(f"{keyed(config.name)}.>"))


async def living(store: Store, config: FleetConfig, now: float) -> list[Instance]:
    """Instances that serve and report. Raises StoreError."""
    found = await _instances(store, config)
    return [each for each in found if each.state != "stopped" and not each.is_stale(now, config.stale_after_s)]


async def read_set(store: Store, config: FleetConfig) -> tuple[ContainmentSet | None, int]:
    """The set in the store and its revision. Raises ContainmentError where it is not acceptable, StoreError."""
    bucket = await store.bucket(config.buckets.quarantine)
    return await _read(bucket, config)


async def _read(bucket: Bucket, config: FleetConfig) -> tuple[ContainmentSet | None, int]:
    entry = await bucket.get(keyed(config.name))
    if entry is None or entry.value is None:
        return None, 0
    found = open_set(entry.value, signer_keys(config), config.quarantine.threshold)
    accept(found, None, config.name)
    return found, entry.revision


def _sequence(instance: Instance) -> int:
    value = instance.part("quarantine").get("sequence")
    return value if isinstance(value, int) else 0


async def change_set(
    store: Store, config: FleetConfig, edit: Edit, keys: Sequence[PrivateKey], now: float, *, discard: bool = False
) -> ContainmentSet:
    """Puts the edited set in the store, signed by each of `keys`. Raises ContainmentError, StoreError, and what `edit` raises."""
    bucket = await store.bucket(config.buckets.quarantine)
    enforced = max([_sequence(each) for each in await _instances(store, config)], default=0)
    for attempt in range(_TRIES):
        try:
            before, revision = await _read(bucket, config)
        except ContainmentError:
            if not discard:
                raise
            found = await bucket.get(keyed(config.name))
            before, revision = None, found.revision if found is not None else 0
        held = before.sequence if before is not None else 0
        if held < enforced and not discard:
            what = f"number {held}" if held else "none"
            raise ContainmentError(
                "rollback", f"the store holds {what}, instances enforce {enforced}: restore it from an instance's state, or --discard it"
            )
        members = edit(tuple(each for each in (before.members if before is not None else ()) if not each.until or now < each.until))
        if len(members) > MAX_MEMBERS:
            raise ContainmentError("malformed", f"at most {MAX_MEMBERS} entries; a pattern covers many identities")
        fresh = ContainmentSet(config.name, next_sequence([held, enforced], now), now, members)
        envelope = encode(fresh)
        for key in keys:
            envelope = sign(envelope, key)
        data = envelope.encode()
        fresh = open_set(data, signer_keys(config), config.quarantine.threshold)  # as every instance will judge it
        try:
            await bucket.replace(keyed(config.name), data, revision)
        except StoreError as exc:
            if exc.code != "conflict" or attempt == _TRIES - 1:
                raise
            continue
        return fresh
    raise StoreError("conflict", "others change the quarantine all the time")


async def restore_set(store: Store, config: FleetConfig, data: bytes) -> ContainmentSet:
    """Puts a signed set, such as an instance has kept it, back into the store, unless a newer one is there. Raises ContainmentError,
    StoreError."""
    found = open_set(data, signer_keys(config), config.quarantine.threshold)
    bucket = await store.bucket(config.buckets.quarantine)
    try:
        before, revision = await _read(bucket, config)
    except ContainmentError:
        entry = await bucket.get(keyed(config.name))
        before, revision = None, entry.revision if entry is not None else 0
    accept(found, before, config.name)
    await bucket.replace(keyed(config.name), data, revision)
    return found


async def spread(store: Store, config: FleetConfig, sequence: int, wait_s: float) -> Spread:
    """Waits until every living instance enforces a set of at least `sequence`, at most `wait_s` seconds. Raises StoreError."""
    begun = time.monotonic()
    expected = {(each.name, each.worker): each for each in await living(store, config, time.time())}
    took_s = 0.0
    done = asyncio.Event()

    def missing() -> list[Instance]:
        return [each for each in expected.values() if each.state != "stopped" and _sequence(each) < sequence]

    async def take(entry: Entry | None) -> None:
        nonlocal took_s
        for each in instances_of(config.name, [entry] if entry is not None and entry.value is not None else []):
            before = expected.get((each.name, each.worker))
            if before is None:
                continue  # it came later, or has been stale: it begins with what the store holds
            if _sequence(before) < sequence <= _sequence(each):
                took_s = time.monotonic() - begun
            expected[each.name, each.worker] = each
        if not missing():
            done.set()

    bucket = await store.bucket(config.buckets.instances)
    if missing():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s), asyncio.TaskGroup() as group:
                watching = group.create_task(bucket.watch(f"{keyed(config.name)}.>", take, _CHECK_S))
                await done.wait()
                watching.cancel()
    late = missing()
    return Spread(tuple(each for each in expected.values() if each not in late), tuple(late), took_s)
