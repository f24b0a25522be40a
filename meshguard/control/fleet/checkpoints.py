"""Checkpoints of this process's ledger in the store: what shows, from elsewhere, that a ledger was cut short or replaced.

    ledger's thread --(each checkpoint)--> newest of each origin --(every `checkpoint_s`)--> the store, unless it holds a larger one

A checkpoint is signed, so the store cannot make one up; it can only lose one, and its buckets keep the last 64 of each origin. A ledger
that comes back smaller than the store knows it does not overwrite what proves that: it is told, loudly, until an operator deletes the key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from meshguard.control.settings.fleet import FleetConfig
from meshguard.ledger.checkpoints import Checkpoint
from meshguard.ledger.notes import Note, NoteError, NoteVerifier
from meshguard.sources.nats_store import Bucket, Store, StoreError, keyed

__all__ = ["FleetCheckpoints", "held_checkpoints"]

log = logging.getLogger(__name__)


class FleetCheckpoints:
    """`cut_short` names the origins whose ledger is smaller than the store knows it."""

    def __init__(self, config: FleetConfig, record: Callable[..., None]) -> None:
        self._config = config
        self._record = record
        self._newest: dict[str, str] = {}
        self._waiting = asyncio.Event()
        self._published: dict[str, str] = {}
        self.cut_short: set[str] = set()

    def offer(self, note: str) -> None:
        """The newest checkpoint of a shard; on the loop."""
        origin = note.partition("\n")[0]
        self._newest[origin] = note
        self._waiting.set()

    async def run(self, store: Store) -> None:
        """A part of the connection."""
        bucket = await store.bucket(self._config.buckets.checkpoints)
        known: dict[str, int] = {}
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            for origin, note in list(self._newest.items()):
                if self._published.get(origin) != note and origin not in self.cut_short:
                    await self._publish(bucket, origin, note, known)
            await asyncio.sleep(self._config.checkpoint_s)

    async def _publish(self, bucket: Bucket, origin: str, note: str, known: dict[str, int]) -> None:
        key = keyed(self._config.name, origin)
        ours = Checkpoint.parse(Note.parse(note).text)
        try:
            if origin in known:
                known[origin] = await bucket.replace(key, note.encode(), known[origin])
            else:
                found = await bucket.get(key)
                if found is not None and found.value is not None and self._is_ahead(found.value, ours):
                    return
                known[origin] = await bucket.replace(key, note.encode(), found.revision if found is not None else 0)
        except StoreError as exc:
            if exc.code != "conflict":
                raise
            known.pop(origin, None)  # somebody else wrote: looked at with the next checkpoint
            self._waiting.set()
            return
        self._published[origin] = note

    def _is_ahead(self, data: bytes, ours: Checkpoint) -> bool:
        try:
            theirs = Checkpoint.parse(Note.parse(data.decode("utf-8")).text)
        except (NoteError, UnicodeDecodeError):
            return False  # no checkpoint: ours takes its place
        if theirs.origin != ours.origin or (theirs.size < ours.size or (theirs.size == ours.size and theirs.root == ours.root)):
            return False
        self.cut_short.add(ours.origin)
        told = {"origin": ours.origin, "size": ours.size, "published": theirs.size}
        log.error("THE LEDGER IS SMALLER THAN THE FLEET'S STORE KNOWS IT: cut short or replaced", extra={"data": told})
        self._record("ledger_cut_short", told)
        return True


async def held_checkpoints(store: Store, config: FleetConfig, verifiers: Sequence[NoteVerifier]) -> list[tuple[str, str]]:
    """(where from, text) of the checkpoints in the store that are of these keys' ledgers. Raises StoreError."""
    names = tuple(f"{verifier.name}/" for verifier in verifiers)
    bucket = await store.bucket(config.buckets.checkpoints)
    found = []
    for entry in await bucket.all(f"{keyed(config.name)}.>"):
        text = (entry.value or b"").decode("utf-8", "replace")
        if text.startswith(names):
            found.append((f"{bucket.name}/{entry.key}", text))
    return found
