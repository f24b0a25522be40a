"""Deadlines and sizes of a downstream connection."""

from __future__ import annotations

__all__ = ["ConnectionLimits", "WebSocketLimits"]


class WebSocketLimits:
    """Limits of an open WebSocket: octets of payload (0: no limit), seconds (`ping_s` 0: no pings of ours)."""

    __slots__ = ("close_s", "frame_bytes", "idle_s", "message_bytes", "ping_s")

    def __init__(
        self, message_bytes: int = 64 << 20, frame_bytes: int = 16 << 20, idle_s: float = 300.0, ping_s: float = 0.0, close_s: float = 5.0
    ) -> None:
        self.message_bytes = message_bytes
        self.frame_bytes = frame_bytes
        self.idle_s = idle_s
        self.ping_s = ping_s
        self.close_s = close_s


_WEBSOCKET = WebSocketLimits()


class ConnectionLimits:
    """Deadlines of a downstream connection in seconds; sizes in octets (0: no limit)."""

    __slots__ = (
        "body_bytes",
        "body_idle_s",
        "body_total_s",
        "handshake_s",
        "head_s",
        "idle_s",
        "refused_body_bytes",
        "requests_per_turn",
        "websocket",
    )

    def __init__(
        self,
        handshake_s: float = 5.0,
        head_s: float = 10.0,
        body_idle_s: float = 10.0,
        body_total_s: float = 60.0,
        idle_s: float = 60.0,
        body_bytes: int = 0,
        refused_body_bytes: int = 65536,
        requests_per_turn: int = 32,
        websocket: WebSocketLimits = _WEBSOCKET,
    ) -> None:
        self.handshake_s = handshake_s
        self.head_s = head_s
        self.body_idle_s = body_idle_s
        self.body_total_s = body_total_s
        self.idle_s = idle_s
        self.body_bytes = body_bytes
        self.refused_body_bytes = refused_body_bytes
        self.requests_per_turn = requests_per_turn
        self.websocket = websocket
