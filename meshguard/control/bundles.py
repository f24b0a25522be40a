"""Bundles in the life of the process: what is in force is kept and told, break-glass ends in its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from meshguard.control.recording import Tell, bundle_told

if TYPE_CHECKING:
    from meshguard.control.runtime import Runtime
    from meshguard.sources.bundles import BundleKeeper, Candidate

__all__ = ["end_break_glass", "keep"]

log = logging.getLogger(__name__)

_LOOK_S = 0.5


def keep(keeper: BundleKeeper, candidate: Candidate, tell: Tell) -> None:
    """The bundle is in force: kept for the next start, and told; break-glass loudly."""
    bundle = candidate.bundle
    _record(keeper, candidate, tell)
    try:
        keeper.commit(candidate)
    except OSError as exc:
        log.error("the bundle in force cannot be kept: a restart begins with an older one", extra={"data": {"error": str(exc)}})
    data = {"name": bundle.name, "version": bundle.version, "digest": bundle.digest, "signers": sorted(bundle.signers)}
    if bundle.is_break_glass:
        log.warning("break-glass in force", extra={"data": {**data, "reason": bundle.reason, "until": bundle.until}})
    else:
        log.info("bundle in force", extra={"data": {**data, "expires": bundle.expires}})


def _record(keeper: BundleKeeper, candidate: Candidate, tell: Tell) -> None:
    """On record once, when it comes into force; the end of break-glass too."""
    before, bundle = keeper.enforced, candidate.bundle
    if before is not None and before.digest == bundle.digest:
        return
    keeper.enforced = bundle
    if before is not None and before.is_break_glass:
        tell("break_glass", {"action": "end", **bundle_told(before), "reason": before.reason, "until": before.until})
    if bundle.is_break_glass:
        tell("break_glass", {"action": "begin", **bundle_told(bundle), "reason": bundle.reason, "until": bundle.until})
    else:
        tell("bundle", {"outcome": "accepted", **bundle_told(bundle), "expires": bundle.expires})


async def end_break_glass(runtime: Runtime, reload: Callable[[str], Awaitable[object]]) -> None:
    """The regular bundle comes back by itself."""
    while True:
        await asyncio.sleep(_LOOK_S)
        candidate = runtime.inputs.candidate
        if candidate is not None and runtime.bundles is not None and runtime.bundles.due(candidate.bundle):
            await reload("break-glass ended")
