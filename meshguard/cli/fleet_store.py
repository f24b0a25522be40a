"""The fleet's store as commands reach it: by the `fleet` section of a configuration, or of a document that has nothing else."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from meshguard.model.errors import DocumentError, MeshguardError

if TYPE_CHECKING:
    from meshguard.control.settings.fleet import FleetConfig
    from meshguard.sources.identity import IdentityUpdate
    from meshguard.sources.nats_store import Store

__all__ = ["Fleet", "add_config", "fleet_of", "with_store"]

T = TypeVar("T")


class Fleet:
    """A fleet as it is configured, and who we are in it."""

    def __init__(self, config: FleetConfig, identity: Callable[[], Awaitable[IdentityUpdate | None]]) -> None:
        self.config = config
        self.identity = identity


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`."""
    what = "a configuration with a `fleet` section, or a document with nothing but that section"
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help=what)


def fleet_of(path: Path) -> Fleet:
    """Raises DocumentError, MeshguardError, OSError."""
    from meshguard.control.settings.load import MAX_CONFIGURATION_BYTES, load_configuration
    from meshguard.sources.documents import read

    document = read(path, max_bytes=MAX_CONFIGURATION_BYTES)
    values = document.values if isinstance(document.values, dict) else {}
    if "listeners" in values or set(values) - {"fleet"}:
        configuration = load_configuration(path, now=time.time(), files=False).configuration
        if configuration.fleet is None:
            raise MeshguardError(f"{path}: no `fleet` is configured")
        from meshguard.control.identity_source import identity_once

        return Fleet(configuration.fleet, lambda: identity_once(configuration))
    from pydantic import ValidationError

    from meshguard.control.settings.fleet import FleetConfig, fleet_complaints
    from meshguard.sources.complaints import Complaint, complaints_of

    found = list(fleet_complaints(values))
    try:
        config = FleetConfig.model_validate(values.get("fleet"), context={"base": path.resolve().parent})
    except ValidationError as exc:
        inner = complaints_of(exc, FleetConfig, values.get("fleet"))
        found += [Complaint(("fleet", *each.path), each.expected, each.value, each.nearest) for each in inner]
        raise DocumentError(document.problems(found)) from exc
    if found:
        raise DocumentError(document.problems(found))

    async def nobody() -> IdentityUpdate | None:
        return None

    return Fleet(config, nobody)


def with_store(fleet: Fleet, work: Callable[[Store], Awaitable[T]]) -> T:
    """What `work` gives on a connection that is closed then. Raises StoreError."""
    from meshguard.control.fleet.access import access_of
    from meshguard.sources.nats_store import open_store

    async def connected() -> T:
        store = await open_store(access_of(fleet.config, fleet.identity))
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(connected())
