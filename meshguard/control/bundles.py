"""Bundles in the life of the process: what is in force is kept and told, break-glass ends in its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshguard.control.runtime import Runtime
    from meshguard.sources.bundles import BundleKeeper, Candidate

__all__ = ["end_break_glass", "keep"]

log = logging.getLogger(__name__)

_LOOK_S = 0.5


def keep(keeper: BundleKeeper, candidate: Candidate) -> None:
    """The bundle is in force: kept for the next start, and told; break-glass loudly."""
    bundle = candidate.bundle
    try:
        keeper.commit(candidate)
    except OSError as exc:
        log.error("the bundle in force cannot be kept: a restart begins with an older one", extra={"data": {"error": str(exc)}})
    data = {"name": bundle.name, "version": bundle.version, "digest": bundle.digest, "signers": sorted(bundle.signers)}
    if bundle.is_break_glass:
        log.warning("break-glass in force", extra={"data": {**data, "reason": bundle.reason, "until": bundle.until}})
    else:
        log.info("bundle in force", extra={"data": {**data, "expires": bundle.expires}})


async def end_break_glass(runtime: Runtime, reload: Callable[[str], Awaitable[object]]) -> None:
    """The regular bundle comes back by itself."""
    while True:
        await asyncio.sleep(_LOOK_S)
        candidate = runtime.inputs.candidate
        if candidate is not None and runtime.bundles is not None and runtime.bundles.due(candidate.bundle):
            await reload("break-glass ended")
