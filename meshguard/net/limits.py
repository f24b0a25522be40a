"""Deadlines and sizes of a downstream connection."""

from __future__ import annotations

__all__ = ["ConnectionLimits"]


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
    ) -> None:
        self.handshake_s = handshake_s
        self.head_s = head_s
        self.body_idle_s = body_idle_s
        self.body_total_s = body_total_s
        self.idle_s = idle_s
        self.body_bytes = body_bytes
        self.refused_body_bytes = refused_body_bytes
        self.requests_per_turn = requests_per_turn
