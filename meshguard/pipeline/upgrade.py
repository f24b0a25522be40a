"""The upgrade of an exchange to a WebSocket: the client's handshake checked, ours written, the upstream's answer judged, the tunnel opened.

Loaded with the first request that asks for one. Whatever is not a valid 101 to our own handshake stays an ordinary exchange.
"""

from __future__ import annotations

from base64 import b64encode
from os import urandom
from time import monotonic
from typing import TYPE_CHECKING

from meshguard.model.errors import RequestError
from meshguard.model.messages import RequestHead, ResponseHead
from meshguard.model.reasons import UPGRADE_NOT_SUPPORTED, WEBSOCKET_DENIED
from meshguard.net.tunnel import Tunnel
from meshguard.wire.websocket_handshake import accept_of, read_answer, read_offer, without_websocket_fields

if TYPE_CHECKING:
    from meshguard.net.stream import Downstream, Upstream
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.plan import Plan
    from meshguard.pipeline.snapshot import Snapshot

__all__ = ["WebSocket"]


class WebSocket:
    """An exchange's wish for a tunnel, and the tunnel. The facts are the record's (`model.record.WebSocketFacts`)."""

    __slots__ = ("_key", "_offer", "_tunnel", "_upgrade")

    def __init__(self, head: RequestHead, plan: Plan) -> None:
        """Raises RequestError: WEBSOCKET_DENIED by the route, UPGRADE_NOT_SUPPORTED where field rules would have to read what passes,
        WEBSOCKET_HANDSHAKE."""
        if not plan.websocket:
            raise RequestError(WEBSOCKET_DENIED)
        if plan.inspects_request or plan.inspects_response:
            raise RequestError(UPGRADE_NOT_SUPPORTED, "field rules cannot read a WebSocket")
        for name, value in head.specials:
            if name == b":protocol" and value.lower() != b"websocket":
                raise RequestError(UPGRADE_NOT_SUPPORTED, "not the protocol websocket")
        self._offer = read_offer(head, keyed=head.minor != 2)
        self._key = b64encode(urandom(16))
        self._upgrade = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: %b\r\n" % self._key
        self._tunnel: Tunnel | None = None

    @property
    def opened(self) -> bool:
        return self._tunnel is not None

    @property
    def close_code(self) -> int:
        return self._tunnel.close_code if self._tunnel is not None else 0

    @property
    def closed_by(self) -> str:
        return self._tunnel.closed_by if self._tunnel is not None else ""

    def request(self, block: bytes) -> tuple[bytes, bytes]:
        """(field block, lines of the handshake) of our own request."""
        return without_websocket_fields(block), self._upgrade + self._offer.lines()

    def head_for(self, protocol: str, head: bytes) -> bytes:
        """Our request's head as it goes to an upstream that speaks `protocol`: over HTTP/2 there is neither upgrade nor key."""
        return head.replace(self._upgrade, b":protocol: websocket\r\n", 1) if protocol == "h2" else head

    def still_allowed(self, exchange: Exchange, snapshot: Snapshot) -> bool:
        """Whether the routes of `snapshot` take WebSockets where this one was opened. Raises RequestError where nothing takes it."""
        head, peer = exchange.head, exchange.peer
        view = snapshot.listeners.get(peer.listener)
        if head is None or view is None:  # a listener that is going says goodbye by itself
            return True
        plan = snapshot.table(view, peer.principal).make(head.method, head.authority, head.target, peer.local_port)
        for variant in plan.variants:
            if variant.conditions is not None and variant.conditions.headers_match(head.block):
                plan = variant
                break
        return plan.refusal is None and plan.websocket

    def open(self, exchange: Exchange, door: Downstream, connection: Upstream, head: ResponseHead) -> None:
        """The upstream has answered 101: the tunnel begins. Raises UpstreamError where the answer does not fit what was asked for."""
        offer = self._offer
        agreement = read_answer(head, offer, b"" if connection.protocol == "h2" else self._key)
        exchange.answered = monotonic()
        exchange.status = 101 if exchange.head is None or exchange.head.minor == 1 else 200
        plan, limits = exchange.plan, exchange.peer.limits
        block = head.block
        if plan is not None and plan.response_operations is not None:
            block = plan.response_operations.apply(block)
        block = without_websocket_fields(block) + agreement.lines()
        if offer.key:
            block += b"sec-websocket-accept: %b\r\n" % accept_of(offer.key)
        end = exchange.started + plan.total_s if plan is not None and plan.total_s else float("inf")
        self._tunnel = tunnel = Tunnel(exchange, door, connection, limits.websocket, compression=agreement.compression, end=end)
        behind = connection.open_tunnel(tunnel)
        before = door.open_tunnel(block, tunnel)
        if before:
            tunnel.request_data(before)
        if behind:
            tunnel.response_data(behind)
