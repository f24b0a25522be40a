"""Ships a shard to places that are reached over the network, and remembers how far each of them has it.

A carrier ships what is under a checkpoint, in order. The mark of each (the index up to which everything is there) lies in the file
`shipped` beside the segments, written after the place has confirmed; what was confirmed and not marked when the process ended is recognised
by the carrier at the place itself, so nothing comes twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import orjson

from meshguard.control.settings.ledger import ShipConfig
from meshguard.model.errors import MeshguardError
from meshguard.storage.disk import Disk
from meshguard.storage.shard_reader import ShardReader

__all__ = ["MARKS", "Carrier", "Marks", "ShippingFailed", "carriers_of", "carry"]

log = logging.getLogger(__name__)

MARKS = "shipped"
"""The file of marks, in the shard's directory."""


class ShippingFailed(MeshguardError):
    """A place did not take it; it is tried again at the next look."""


class Carrier(Protocol):
    """Of one shard to one place. `place` names it in the file of marks; `look_s`: between two looks."""

    place: str
    look_s: float

    async def ship(self, reader: ShardReader, mark: int, signed: int, done: Callable[[int], None]) -> None:
        """Ships what lies between `mark` and `signed`; `done(index)` after each step that the place has confirmed. Raises
        ShippingFailed."""

    async def close(self) -> None: ...


class Marks:
    """How far each place has the shard."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / MARKS
        self._known: dict[str, int] = {}
        try:
            told = orjson.loads(self._path.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):  # derived: the places themselves know
            told = {}
        if isinstance(told, dict):
            self._known = {name: value for name, value in told.items() if type(value) is int and value >= 0}

    def get(self, place: str) -> int:
        return self._known.get(place, 0)

    def set(self, place: str, index: int) -> None:
        """Raises OSError."""
        self._known[place] = index
        Disk().replace(str(self._path), orjson.dumps(self._known, option=orjson.OPT_SORT_KEYS))


def carriers_of(config: ShipConfig | None, name: str, number: int) -> list[Carrier]:
    """The carriers that are configured for shard `number` of the ledger `name`. Raises MeshguardError."""
    made: list[Carrier] = []
    if config is not None and config.s3 is not None:
        from meshguard.control.ledger_ship_s3 import S3Carrier

        made.append(S3Carrier(config.s3, name, number))
    if config is not None and config.nats is not None:
        from meshguard.control.ledger_ship_nats import NatsCarrier

        made.append(NatsCarrier(config.nats, name, number))
    return made


async def carry(carrier: Carrier, reader: ShardReader, marks: Marks, signed: Callable[[], int]) -> None:
    """Runs until it is cancelled. What fails is logged once until it works again, and tried at every look."""
    failing = False
    try:
        while True:
            try:
                await carrier.ship(reader, marks.get(carrier.place), signed(), lambda index: marks.set(carrier.place, index))
                if failing:
                    log.info("the ledger is shipped again", extra={"data": {"to": carrier.place}})
                failing = False
            except (MeshguardError, OSError, ValueError) as exc:
                if not failing:
                    log.error("the ledger could not be shipped", extra={"data": {"to": carrier.place, "error": str(exc)}})
                failing = True
            await asyncio.sleep(carrier.look_s)
    finally:
        await carrier.close()
