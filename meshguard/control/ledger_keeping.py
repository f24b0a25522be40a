"""Keeps a ledger in order while the proxy runs: compresses, ships and deletes complete segments, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from meshguard.control.ledger_shipping import Carrier, Marks, carriers_of, carry
from meshguard.control.settings.ledger import LedgerConfig
from meshguard.storage.gate import Gate
from meshguard.storage.retention import Doomed, Retention, compress, delete, doomed, ship
from meshguard.storage.shard_reader import ShardReader

__all__ = ["LOOK_S", "keep_ledger"]

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""Between two looks."""


async def keep_ledger(config: LedgerConfig, gate: Gate, name: str, number: int, look_s: float = LOOK_S) -> None:
    """Runs until it is cancelled. What fails is logged and tried again at the next look."""
    reader = ShardReader(number, gate.shard.directory)
    carriers = carriers_of(config.ship, name, number)
    marks = Marks(reader.directory)
    async with asyncio.TaskGroup() as group:
        for carrier in carriers:
            group.create_task(carry(carrier, reader, marks, lambda: _signed(gate)))
        shipped = partial(_shipped_by_all, carriers, marks)
        group.create_task(_keep(config, gate, reader, name, look_s, shipped))


def _shipped_by_all(carriers: Sequence[Carrier], marks: Marks) -> int | None:
    """None: nothing is shipped over the network."""
    return min((marks.get(carrier.place) for carrier in carriers), default=None)


async def _keep(config: LedgerConfig, gate: Gate, reader: ShardReader, name: str, look_s: float, shipped: Callable[[], int | None]) -> None:
    retention = Retention(
        compress=config.retention.compress == "gzip",
        days=config.retention.days,
        total_bytes=config.retention.total_bytes,
        ship=Path(config.ship.directory) if config.ship is not None and config.ship.directory is not None else None,
    )
    while True:
        try:
            for condemned in await asyncio.to_thread(_look, reader, _signed(gate), retention, name, shipped()):
                await _delete(gate, reader, condemned)
        except (OSError, ValueError) as exc:
            log.error("the ledger could not be kept in order", extra={"data": {"error": str(exc)}})
        await asyncio.sleep(look_s)


def _signed(gate: Gate) -> int:
    checkpoint = gate.shard.checkpoint
    return checkpoint.size if checkpoint is not None else 0


def _look(reader: ShardReader, signed: int, retention: Retention, name: str, shipped: int | None) -> list[Doomed]:
    if retention.compress:
        compress(reader, signed)
    if retention.ship is not None:
        ship(reader, signed, retention.ship, name)
    if retention.days is None and retention.total_bytes is None:
        return []
    return doomed(reader, signed if shipped is None else min(signed, shipped), retention, time.time(), name)


async def _delete(gate: Gate, reader: ShardReader, condemned: Doomed) -> None:
    """The deletion is on record, signed, before anything is deleted."""
    if not gate.event("expired", condemned.event):
        return
    size = gate.shard.size
    deadline = time.monotonic() + 60.0
    while _signed(gate) < size:
        if time.monotonic() > deadline:
            return  # the ledger is in trouble; at the next look
        await asyncio.sleep(0.2)
    await asyncio.to_thread(delete, reader, condemned.part)
    log.info("expired entries were deleted", extra={"data": condemned.event})
