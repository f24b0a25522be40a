"""Opening one connection within its deadline; every way in which that can fail becomes one of the reasons."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable

from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.reasons import CONNECT_FAILED, CONNECT_TIMEOUT, UPSTREAM_TLS_FAILED
from meshguard.net.cluster.endpoint import Connection, Endpoint

__all__ = ["Connect", "dial"]

Connect = Callable[[Endpoint], Awaitable[Connection]]
"""Opens a connection, authenticated and ready for a request. Raises UpstreamError or OSError; closes what it opened when it is
cancelled, which is how the deadline `connect_s` reaches it."""

_log = logging.getLogger(__name__)


async def dial(connect: Connect, endpoint: Endpoint, limit_s: float) -> Connection:
    """A live connection to `endpoint` within `limit_s` seconds; raises UpstreamError whose detail names the endpoint."""
    try:
        async with asyncio.timeout(limit_s):
            conn = await connect(endpoint)
    except RequestError as error:
        raise UpstreamError(error.reason, f"{endpoint.key}: {error.detail}") from error
    except TimeoutError as error:
        raise UpstreamError(CONNECT_TIMEOUT, f"{endpoint.key}: no connection within {limit_s:g} s") from error
    except ssl.SSLError as error:
        # `reason` is missing from errors that were not raised by OpenSSL itself
        raise UpstreamError(UPSTREAM_TLS_FAILED, f"{endpoint.key}: {getattr(error, 'reason', None) or type(error).__name__}") from error
    except OSError as error:
        raise UpstreamError(CONNECT_FAILED, f"{endpoint.key}: {error.strerror or type(error).__name__}") from error
    except asyncio.CancelledError:
        raise
    except Exception as error:
        # the outermost loop of this dial: the call that waits for it must get an answer whatever is wrong with `connect`
        _log.exception("opening a connection to %s raised", endpoint.key)
        raise UpstreamError(CONNECT_FAILED, f"{endpoint.key}: {type(error).__name__}") from error
    if conn.closed:
        conn.close()
        raise UpstreamError(CONNECT_FAILED, f"{endpoint.key}: closed at once")
    return conn
