"""The issuers of end-user tokens and their keys: loaded at the start, kept fresh while running.

An issuer whose keys cannot be had is no reason not to start: its tokens are refused until they are there (fail closed), and the
log says so. A key file that is missing or wrong is a mistake of the configuration and is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshguard.control.settings.identity import JwtConfig
from meshguard.model.errors import IdentityError

if TYPE_CHECKING:
    from meshguard.pipeline.tokens import TokenVerifier
    from meshguard.sources.jwks import JwksSource

__all__ = ["TokenKeys"]

log = logging.getLogger(__name__)


class TokenKeys:
    """`verifier` is None where no issuer is configured."""

    def __init__(self, configs: Sequence[JwtConfig]) -> None:
        self._sources: list[JwksSource] = []
        self.verifier: TokenVerifier | None = None
        if not configs:
            return
        from meshguard.identity.jwt import JwtIssuer  # only who has issuers pays for them
        from meshguard.pipeline.tokens import TokenVerifier
        from meshguard.sources.jwks import JwksSource

        issuers = []
        for config in configs:
            issuer = JwtIssuer(config.issuer, config.audiences, config.algorithms, header=config.header)
            source = JwksSource(config.jwks, issuer.replace_keys)
            issuer.on_unknown_key = source.unknown_key
            issuers.append(issuer)
            self._sources.append(source)
        self.verifier = TokenVerifier(tuple(issuers))

    async def load(self) -> None:
        """A first try for every issuer. Raises IdentityError where a key file cannot be used."""
        for source in self._sources:
            try:
                await source.refresh()
            except IdentityError as exc:
                if "://" not in source.location:
                    raise
                log.warning("token keys are not available yet", extra={"data": {"source": source.location, "error": str(exc)}})

    async def refresh(self) -> None:
        """Keeps all key sets fresh until cancelled."""
        async with asyncio.TaskGroup() as group:
            for source in self._sources:
                group.create_task(source.run())
