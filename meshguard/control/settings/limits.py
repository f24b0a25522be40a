"""Limits of what a peer can make us hold, do or wait for. Every default is the safe one of SECURITY.md; 0 bytes means no limit
only where it says so."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from meshguard.control.settings.values import Percent, Seconds, Section, Size

__all__ = ["EDGE_HEAD_S", "LimitsConfig"]

EDGE_HEAD_S = 5.0
"""`head_s` of a listener with `tls: server` (an edge) where nothing else is said: strangers get less time than peers of the mesh."""


class LimitsConfig(Section):
    """Limits for every listener; a listener's own `limits` replace single values."""

    head_bytes: Size = Field(default=32 * 1024, ge=256, description="A request or response head in all.")
    fields: int = Field(default=100, ge=1, le=10_000, description="Header fields in a head.")
    request_line_bytes: Size = Field(default=8 * 1024, ge=64, description="The request line of HTTP/1.1.")
    chunk_line_bytes: Size = Field(default=4096, ge=16, description="One chunk size line with its extensions.")
    chunk_extension_bytes: Size = Field(default=64 * 1024, description="All chunk extensions of one body.")
    body_bytes: Size = Field(default=0, description="A request body that is passed on; 0: no limit, it is streamed.")
    refused_body_bytes: Size = Field(default=64 * 1024, description="Body read after a refusal to keep the connection; more closes it.")
    inspect_body_bytes: Size = Field(default=1024 * 1024, ge=1, description="A body held because a rule has to read it.")
    inspect_total_bytes: Size = Field(default=64 * 1024 * 1024, ge=1, description="All bodies held at one time in one process.")
    buffer_bytes: Size = Field(default=64 * 1024, ge=4096, description="High-water mark of the write buffer of a connection.")
    streams: int = Field(default=100, ge=1, le=10_000, description="Concurrent HTTP/2 streams of a connection.")
    stream_window_bytes: Size = Field(default=64 * 1024, ge=65_535, le=2**31 - 1, description="HTTP/2 flow-control window of a stream.")
    connection_window_bytes: Size = Field(default=1024 * 1024, ge=65_535, le=2**31 - 1, description="HTTP/2 window of a connection.")
    reset_burst: int = Field(default=100, ge=1, description="HTTP/2 stream resets in a burst, sent and received together.")
    reset_per_s: float = Field(default=33.0, gt=0, description="HTTP/2 stream resets a second in the long run.")
    control_burst: int = Field(default=200, ge=1, description="HTTP/2 control frames (PING, SETTINGS, empty DATA ...) in a burst.")
    control_per_s: float = Field(default=50.0, gt=0, description="HTTP/2 control frames a second in the long run.")
    handshake_s: Seconds = Field(default=5.0, description="TLS handshake.")
    head_s: Seconds = Field(default=10.0, description="From the first byte of a head to its end; 5 on listeners with `tls: server`.")
    body_idle_s: Seconds = Field(default=10.0, description="Between two reads of a request body.")
    body_total_s: Annotated[float, Field(ge=0)] = Field(default=60.0, description="A whole request body; 0: no limit.")
    idle_s: Seconds = Field(default=60.0, description="A connection without a request, a response without progress.")
    websocket_message_bytes: Size = Field(default=64 * 1024 * 1024, description="A WebSocket message, as it is on the wire; 0: no limit.")
    websocket_frame_bytes: Size = Field(default=16 * 1024 * 1024, description="A WebSocket frame; 0: no limit.")
    websocket_idle_s: Seconds = Field(default=300.0, description="A WebSocket on which nothing comes from either side.")
    websocket_ping_s: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Silence after which a side of a WebSocket is sent a ping; it then has to answer within the idle time."
        " 0: no pings."
    )
    websocket_close_s: Seconds = Field(default=5.0, description="From the first Close of a WebSocket to its end.")
    connections: int | None = Field(default=None, ge=1, description="Downstream connections; absent: half of the descriptor limit.")
    overload_close_percent: Percent = Field(default=92, description="Of `connections`: from here no connection is kept alive.")
    overload_shed_percent: Percent = Field(default=95, description="Of `connections`: from here new requests are refused.")
    requests_per_turn: int = Field(default=32, ge=1, description="Requests of one connection served in one turn of the event loop.")
