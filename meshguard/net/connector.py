"""Opens upstream connections: plaintext or TLS, with the peer's identity checked before the first request byte is sent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from meshguard.model.errors import IdentityError, UpstreamError
from meshguard.model.reasons import UPSTREAM_QUARANTINED, UPSTREAM_TLS_FAILED
from meshguard.net.channel import Channel, PlainChannel, TlsChannel
from meshguard.net.http1_client import UpstreamConnection
from meshguard.wire.events import ResponseEngine

if TYPE_CHECKING:
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.cluster.endpoint import Connection, Endpoint
    from meshguard.net.http2_client import Http2Upstream
    from meshguard.wire.http2.engine import ClientEngine, ClientSink

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
    """Connects for one cluster. `tls` may be replaced at any time (rotation); None is plaintext. `protocol` is `auto`, `http/1.1` or `h2`;
    with TLS it says no more than the ALPN of the context, which has to agree."""

    __slots__ = ("_new_engine", "_new_http2", "cluster", "protocol", "tls")

    cluster: Cluster

    def __init__(
        self,
        new_engine: Callable[[], ResponseEngine],
        tls: ClientTls | None,
        protocol: str = "http/1.1",
        new_http2: Callable[[ClientSink], ClientEngine] | None = None,
    ) -> None:
        self._new_engine = new_engine
        self._new_http2 = new_http2
        self.protocol = protocol
        self.tls = tls

    def _door(self, endpoint: Endpoint, tls: ClientTls | None, ready: asyncio.Future[None]) -> UpstreamConnection | _Opening:
        """What a new channel begins with: the connection itself where its protocol is certain."""
        verify = tls.verify if tls is not None else None
        if self.protocol == "http/1.1" or (self.protocol == "auto" and tls is None):
            return UpstreamConnection(self.cluster, endpoint, self._new_engine(), verify, ready)
        return _Opening(self, endpoint, verify, ready)

    def make(
        self, http2: bool, endpoint: Endpoint, verify: Callable[[Channel], float] | None, ready: asyncio.Future[None], scheme: bytes
    ) -> UpstreamConnection | Http2Upstream:
        """The connection for a channel whose protocol is known."""
        if http2 and self._new_http2 is not None:
            from meshguard.net.http2_client import Http2Upstream  # clusters that speak HTTP/1.1 do not pay for it

            return Http2Upstream(self.cluster, endpoint, self._new_http2, verify, ready, scheme)
        return UpstreamConnection(self.cluster, endpoint, self._new_engine(), verify, ready)

    async def connect(self, endpoint: Endpoint) -> Connection:
        """An open connection whose peer is who it should be. Raises UpstreamError(UPSTREAM_TLS_FAILED), OSError, CancelledError."""
        loop = asyncio.get_running_loop()
        tls = self.tls
        ready: asyncio.Future[None] = loop.create_future()
        connection = self._door(endpoint, tls, ready)
        channel: Channel = PlainChannel(connection) if tls is None else TlsChannel(connection, tls.context, tls.server_name)
        try:
            await loop.create_connection(lambda: channel, endpoint.address.host, endpoint.address.port)
            await ready
        except IdentityError as exc:
            raise UpstreamError(UPSTREAM_QUARANTINED if exc.code == "quarantined" else UPSTREAM_TLS_FAILED, str(exc)) from exc
        except ConnectionError as exc:
            connection.discard()
            if tls is not None and str(exc).startswith("tls:"):
                raise UpstreamError(UPSTREAM_TLS_FAILED, str(exc)) from exc
            raise
        except BaseException:
            connection.discard()
            raise
        return connection.made if isinstance(connection, _Opening) else connection

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


class _Opening:
    """An upstream connection until ALPN has chosen its protocol (or at once, with prior knowledge)."""

    def __init__(
        self, connector: Connector, endpoint: Endpoint, verify: Callable[[Channel], float] | None, ready: asyncio.Future[None]
    ) -> None:
        self._connector = connector
        self._endpoint = endpoint
        self._verify = verify
        self._ready = ready
        self._channel: Channel | None = None
        self.made: UpstreamConnection | Http2Upstream = None  # type: ignore[assignment]  # set before `ready` is done without an error

    def attached(self, channel: Channel) -> None:
        self._channel = channel

    def connected(self, channel: Channel) -> None:
        tls, wanted = channel.tls, self._connector.protocol
        chosen = tls.selected_alpn_protocol() if tls is not None else "h2"
        if wanted == "h2" and chosen != "h2":
            channel.abort()
            if not self._ready.done():
                self._ready.set_exception(ConnectionError("tls: the upstream does not speak h2"))
            return
        self.made = made = self._connector.make(
            chosen == "h2", self._endpoint, self._verify, self._ready, b"https" if tls is not None else b"http"
        )
        channel.hand_over(made)
        made.attached(channel)
        made.connected(channel)

    def lost(self, reason: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(ConnectionError(reason or "closed"))

    def discard(self) -> None:
        if self.made is not None:
            self.made.discard()
        elif self._channel is not None:
            self._channel.abort()

    def received(self, data: bytes) -> None: ...
    def ended(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class _StreamPeer(Channel):
    """A stream writer as far as a peer's identity is concerned."""

    __slots__ = ("_object",)

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.closed = True  # never used for more than its peer
        self._object: ssl.SSLObject | None = writer.get_extra_info("ssl_object")

    @property
    def tls(self) -> ssl.SSLObject | None:
        return self._object


