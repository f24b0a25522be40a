"""The source of identity that a configuration names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from meshguard.sources.identity import first_update

if TYPE_CHECKING:
    from meshguard.control.settings.configuration import Configuration
    from meshguard.model.errors import MeshguardError
    from meshguard.sources.identity import IdentitySource, IdentityUpdate

__all__ = ["identity_once", "identity_source"]

ONCE_S = 10.0


def identity_source(configuration: Configuration, report: Callable[[MeshguardError], None]) -> IdentitySource | None:
    """None where the configuration has no identity."""
    config = configuration.identity
    if config is None:
        return None
    if config.files is not None:
        from meshguard.sources.files import FilesSource

        files = config.files
        return FilesSource(files.certificate, files.key, files.bundles, files.crls, report=report)
    if config.workload_api is not None:
        from meshguard.sources.workload_api import WorkloadApiSource

        return WorkloadApiSource(config.workload_api, workload=config.workload, report=report)
    if config.development_ca is not None:
        from meshguard.sources.development_ca import DevelopmentSource

        return DevelopmentSource(config.development_ca, config.trust_domain, config.workload or "/meshguard", report=report)
    return None


async def identity_once(configuration: Configuration) -> IdentityUpdate | None:
    """The identity as it is now, for a process that does not follow it. Raises MeshguardError, OSError."""
    source = identity_source(configuration, lambda problem: None)
    if source is None:
        return None
    from meshguard.sources.files import FilesSource

    if isinstance(source, FilesSource):
        return await asyncio.to_thread(source.load)
    async with aclosing(source.updates()) as updates:
        return await first_update(updates, ONCE_S)
