"""Protocols of a listener, and its HTTP/2 engine. The engines are imported when the first connection asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshguard.pipeline.snapshot import Http2View
from meshguard.wire.http2.engine import ClientEngine, ClientSink, Http2Limits, ServerEngine, ServerSink

if TYPE_CHECKING:
    from meshguard.control.settings.limits import LimitsConfig
    from meshguard.control.settings.listeners import ListenerConfig
    from meshguard.wire.semantics import FieldRules

__all__ = ["http2_limits", "http2_view", "new_client", "protocols"]


def protocols(config: ListenerConfig) -> tuple[str, ...]:
    """What a listener speaks, by preference: both with TLS, HTTP/1.1 without, where nothing is said."""
    if config.protocols is not None:
        return tuple(config.protocols)
    return ("http/1.1",) if config.tls == "none" else ("h2", "http/1.1")


def takes_websocket(config: ListenerConfig) -> bool:
    """Whether any route of the listener may be upgraded: only then is extended CONNECT announced."""
    said = [route.websocket or config.websocket for route in config.routes] or [config.websocket]
    return "allow" in said


def http2_limits(limits: LimitsConfig, *, websocket: bool = False) -> Http2Limits:
    return Http2Limits(
        extended_connect=websocket,
        streams=limits.streams,
        stream_window_bytes=limits.stream_window_bytes,
        connection_window_bytes=limits.connection_window_bytes,
        head_bytes=limits.head_bytes,
        fields=limits.fields,
        request_line_bytes=limits.request_line_bytes,
        reset_burst=limits.reset_burst,
        reset_per_s=limits.reset_per_s,
        control_burst=limits.control_burst,
        control_per_s=limits.control_per_s,
    )


def http2_view(config: ListenerConfig) -> Http2View:
    """HTTP/2 on a listener that speaks it."""
    return Http2View(
        limits=http2_limits(config.limits, websocket=takes_websocket(config)),
        new_server=_reference_server if config.engine == "reference" else _default_server,
        cleartext=config.protocols is not None and config.tls in ("none", "permissive"),
        only=protocols(config) == ("h2",),
    )


def _default_server(limits: Http2Limits, rules: FieldRules, sink: ServerSink) -> ServerEngine:
    from meshguard.wire.http2.server import Http2Server

    return Http2Server(sink, limits, rules)


def _reference_server(limits: Http2Limits, rules: FieldRules, sink: ServerSink) -> ServerEngine:
    from meshguard.wire.http2.reference import ReferenceServer

    return ReferenceServer(sink, limits, rules)


def new_client(limits: Http2Limits, sink: ClientSink) -> ClientEngine:
    """The client side: one engine, whatever a listener has chosen."""
    from meshguard.wire.http2.client import Http2Client

    return Http2Client(sink, limits)
