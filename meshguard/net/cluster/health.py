"""Active health: GET a path of every endpoint, again and again, on a connection of its own.

    unknown   --first result--> healthy | unhealthy        (at once: readiness is known after one round)
    healthy   --`unhealthy` failures in a row--> unhealthy
    unhealthy --`healthy` successes in a row--> healthy

Until the first result an endpoint counts as healthy: a deployment must not wait for its own checks.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from meshguard.model.errors import RequestError
from meshguard.net.cluster.endpoint import Endpoint
from meshguard.net.cluster.settings import HealthSettings
from meshguard.net.cluster.tasks import Tasks

__all__ = ["Checks", "Opener"]

Opener = Callable[[Endpoint], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Opens a byte stream as requests to this endpoint use it (plaintext, or TLS with the peer authenticated)."""

_SPREAD = 0.1
"""Intervals vary by this share, so that the checks of a fleet do not arrive in step."""

_log = logging.getLogger(__name__)


class Checks:
    """Runs the checks of a cluster's endpoints; `verdict(endpoint, healthy)` is called when one is reached."""

    __slots__ = ("_opener", "_settings", "_spawn", "_tasks", "_verdict")

    def __init__(self, settings: HealthSettings, tasks: Tasks, opener: Opener, verdict: Callable[[Endpoint, bool], None]) -> None:
        self._settings = settings
        self._spawn = tasks.spawn
        self._opener = opener
        self._verdict = verdict
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    @property
    def settings(self) -> HealthSettings:
        return self._settings

    def watch(self, endpoint: Endpoint) -> None:
        """Begin with `endpoint`, at once."""
        if endpoint not in self._tasks:
            self._tasks[endpoint] = self._spawn(self._watch(endpoint), f"health {endpoint.key}")

    def leave(self, endpoint: Endpoint) -> None:
        """Stop checking `endpoint`."""
        task = self._tasks.pop(endpoint, None)
        if task is not None:
            task.cancel()

    def stop(self) -> None:
        """Stop all."""
        for endpoint in list(self._tasks):
            self.leave(endpoint)

    async def _watch(self, endpoint: Endpoint) -> None:
        settings = self._settings
        row = 0  # results in a row that contradict the verdict
        while True:
            good = await self._check(endpoint)
            if not good:
                endpoint.stats.checks_failed += 1
            if good is endpoint.healthy:
                row = 0
            else:
                row += 1
                if endpoint.healthy is None or row >= (settings.healthy if good else settings.unhealthy):
                    row = 0
                    _log.info("endpoint %s is %s", endpoint.key, "healthy" if good else "unhealthy")
                    self._verdict(endpoint, good)
            await asyncio.sleep(settings.interval_s * (1 + random.uniform(-_SPREAD, _SPREAD)))

    async def _check(self, endpoint: Endpoint) -> bool:
        settings = self._settings
        try:
            async with asyncio.timeout(settings.timeout_s):
                reader, writer = await self._opener(endpoint)
                try:
                    return await self._ask(reader, writer, endpoint)
                finally:
                    writer.transport.abort()  # not close: a graceful end of TLS could outlast the deadline
        except (OSError, RequestError) as error:  # TimeoutError and ssl.SSLError are OSErrors
            _log.debug("health check of %s failed: %s", endpoint.key, error or type(error).__name__)
            return False

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, endpoint: Endpoint) -> bool:
        """The imports are here: a process that checks nothing pays for neither."""
        settings = self._settings
        tls = writer.get_extra_info("ssl_object")
        if (tls.selected_alpn_protocol() == "h2") if tls is not None else settings.http2:
            from meshguard.net.cluster.probe_http2 import probe_http2

            return await probe_http2(reader, writer, endpoint.address, settings, b"http" if tls is None else b"https")
        if settings.grpc is not None:
            raise ConnectionAbortedError("the endpoint does not speak HTTP/2, which gRPC needs")
        from meshguard.net.cluster.probe import probe

        status = await probe(reader, writer, endpoint.address, settings)
        return any(low <= status <= high for low, high in settings.statuses)
