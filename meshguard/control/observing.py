"""Guarded operations for people who watch and run an instance: `/stats` and `/requests` (`meshguard top`), `/restart`.

    GET  /stats      counts and latencies by route and caller since somebody watches, clusters, workers, the policy in force
    GET  /shadow     what rules in shadow, a candidate policy and field rules in shadow would have done
    GET  /requests   the oldest open requests, at most 100
    POST /restart    new processes take over without a failed request (rolling restart, as by SIGUSR2)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from meshguard import __version__
from meshguard.control.operations import AdminRequest, Operation
from meshguard.control.status import Status

__all__ = ["observing"]

log = logging.getLogger(__name__)

Stats = Callable[[], Awaitable[dict[str, Any]]]
Requests = Callable[[], Awaitable[list[dict[str, Any]]]]


def observing(status: Callable[[], Status], stats: Stats, requests: Requests, restart: Callable[[], None]) -> dict[str, Operation]:
    """The operations by path. `stats` and `requests` are those of `control.live`, of one process or of all workers together."""

    async def tell_stats(request: AdminRequest) -> tuple[int, object]:
        told = await stats()
        now, state = time.time(), status()
        told |= {"schema": "meshguard.stats/1", "time": now, "pid": os.getpid(), "version": __version__, "identity": state.identity}
        told["ready"] = not state.not_ready(now)
        told["policy"] = {"digest": state.policy_digest or None, "revision": state.policy_revision}
        told["workers"] = state.workers.told(True) if state.workers is not None else None
        return 200, told

    async def tell_shadow(request: AdminRequest) -> tuple[int, object]:
        return 200, {"schema": "meshguard.shadow/1", "time": time.time(), **(await stats())["shadow"]}

    async def tell_requests(request: AdminRequest) -> tuple[int, object]:
        return 200, {"schema": "meshguard.requests/1", "requests": await requests()}

    async def begin_restart(request: AdminRequest) -> tuple[int, object]:
        log.info("a rolling restart was asked for over the admin API")
        restart()
        return 202, {"restarting": True, "pid": os.getpid()}

    return {
        "/stats": Operation(("GET",), tell_stats),
        "/requests": Operation(("GET",), tell_requests),
        "/shadow": Operation(("GET",), tell_shadow),
        "/restart": Operation(("POST",), begin_restart),
    }
