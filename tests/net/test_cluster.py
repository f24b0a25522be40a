"""Checkout, submit, release: who gets which connection, with a steered network and a fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from meshguard.model.reasons import CIRCUIT_OPEN, CONNECT_FAILED, CONNECT_TIMEOUT, NO_ENDPOINT, UPSTREAM_RESET, UPSTREAM_TLS_FAILED
from meshguard.model.errors import UpstreamError
from meshguard.net.cluster.pool import MAX_DIALS
from meshguard.net.cluster.settings import CircuitSettings, ClusterSettings, EjectionSettings, RetrySettings, TimeoutSettings
from tests.net.cluster_parts import Asking, Wire, balanced, build, turns

ONE = ClusterSettings(endpoints=("127.0.0.1:8080",))
TWO = ClusterSettings(endpoints=("127.0.0.1:8080", "127.0.0.2:8080"))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_first_request_dials_and_the_next_reuses() -> None:
    async def story() -> None:
        cluster, network, _ = build(ONE)
        assert cluster.checkout() is None
        call = Asking()
        cluster.submit(call)
        await turns()
        cluster.release(call.conn)
        assert cluster.checkout() is call.conn
        assert network.dials == 1
        balanced(cluster)
        await cluster.close()

    run(story())
