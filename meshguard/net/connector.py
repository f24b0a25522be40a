"""Opens upstream connections: plaintext or TLS, with the peer's identity checked before the first request byte is sent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from meshguard.model.errors import IdentityError, UpstreamError
from meshguard.model.reasons import UPSTREAM_TLS_FAILED
from meshguard.net.channel import Channel, PlainChannel, TlsChannel
from meshguard.net.http1_client import UpstreamConnection
from meshguard.wire.events import ResponseEngine

if TYPE_CHECKING:
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.cluster.endpoint import Connection, Endpoint

__all__ = ["ClientTls", "Connector"]


class ClientTls:
    """How a cluster speaks TLS: `context`, the `server_name` to send and compare (None: none), and `verify`, which raises
    IdentityError unless the channel's peer is the one expected, and gives the end of its certificates in epoch seconds (None: the
    context has checked the name)."""

    __slots__ = ("context", "server_name", "verify")

    def __init__(self, context: ssl.SSLContext, server_name: str | None, verify: Callable[[Channel], float] | None) -> None:
        self.context = context
        self.server_name = server_name
        self.verify = verify


class Connector:
    """Connects for one cluster. `tls` may be replaced at any time (rotation); None is plaintext."""

    __slots__ = ("_new_engine", "cluster", "tls")

    cluster: Cluster

    def __init__(self, new_engine: Callable[[], ResponseEngine], tls: ClientTls | None) -> None:
        self._new_engine = new_engine
        self.tls = tls

    async def connect(self, endpoint: Endpoint) -> Connection:
        """An open connection whose peer is who it should be. Raises UpstreamError(UPSTREAM_TLS_FAILED), OSError, CancelledError."""
        loop = asyncio.get_running_loop()
        tls = self.tls
        ready: asyncio.Future[None] = loop.create_future()
        verify = tls.verify if tls is not None else None
        connection = UpstreamConnection(self.cluster, endpoint, self._new_engine(), verify, ready)
        channel: Channel = PlainChannel(connection) if tls is None else TlsChannel(connection, tls.context, tls.server_name)
        try:
            await loop.create_connection(lambda: channel, endpoint.address.host, endpoint.address.port)
            await ready
        except IdentityError as exc:
            raise UpstreamError(UPSTREAM_TLS_FAILED, str(exc)) from exc
        except ConnectionError as exc:
            connection.discard()
            if tls is not None and str(exc).startswith("tls:"):
                raise UpstreamError(UPSTREAM_TLS_FAILED, str(exc)) from exc
            raise
        except BaseException:
            connection.discard()
            raise
        return connection

    async def open_stream(self, endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same as a stream, for health checks."""
        tls = self.tls
        if tls is None:
            return await asyncio.open_connection(endpoint.address.host, endpoint.address.port)
        reader, writer = await asyncio.open_connection(
            endpoint.address.host, endpoint.address.port, ssl=tls.context, server_hostname=tls.server_name or ""
        )
        if tls.verify is not None:
            try:
                tls.verify(_StreamPeer(writer))
            except IdentityError as exc:
                writer.transport.abort()
                raise UpstreamError(UPSTREAM_TLS_FAILED, str(exc)) from exc
        return reader, writer


class _StreamPeer(Channel):
    """A stream writer as far as a peer's identity is concerned."""

    __slots__ = ("_object",)

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.closed = True  # never used for more than its peer
        self._object: ssl.SSLObject | None = writer.get_extra_info("ssl_object")

    @property
    def tls(self) -> ssl.SSLObject | None:
        return self._object


