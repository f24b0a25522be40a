"""Frames that are about the connection or about windows, for both sides (RFC 9113 sections 6.3 to 6.9)."""

from __future__ import annotations

from meshguard.wire.http2.connection import Connection
from meshguard.wire.http2.engine import FLOW_CONTROL_ERROR, PROTOCOL_ERROR
from meshguard.wire.http2.frames import (
    ACK,
    CONTINUATION,
    ENABLE_CONNECT_PROTOCOL,
    ENABLE_PUSH,
    FRAME_HEADER,
    FRAME_SIZE_ERROR,
    GOAWAY,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_STREAM,
    MAX_WINDOW,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    SETTINGS_ACK,
)
from meshguard.wire.http2.streams import Stream

__all__ = ["ControlledConnection"]


_LARGEST_FRAME = 65536
"""Ours, whatever the peer would take: streams take turns by frames."""


class ControlledConnection(Connection):
    """Handles every frame but HEADERS and DATA."""

    __slots__ = ("peer_extended_connect", "peer_streams")

    peer_extended_connect: bool
    """The peer takes extended CONNECT (RFC 8441 section 3)."""
    peer_streams: int
    """The peer's limit of streams that we may open."""

    def _on_other(self, kind: int, payload: bytes, flags: int, stream: int) -> None:
        if kind == CONTINUATION:
            self._on_continuation(payload, flags)
        elif kind == SETTINGS:
            self._on_settings(payload, flags, stream)
        elif kind == PING:
            self._on_ping(payload, flags, stream)
        elif kind == RST_STREAM:
            self._on_rst_stream(payload, stream)
        elif kind == GOAWAY:
            self._on_goaway(payload, stream)
        elif kind == PRIORITY:
            self._on_priority(payload, stream)
        elif kind == PUSH_PROMISE:
            self._fail(PROTOCOL_ERROR, "PUSH_PROMISE")  # a client never sends it, a server not after ENABLE_PUSH=0
        else:
            self._spend()  # an extension that we do not know is ignored (section 4.1), not for free

    # -- windows ------------------------------------------------------------------------------------------------------------

    def _on_window_update(self, data: bytes, start: int, stop: int, flags: int, stream: int) -> None:
        if stop - start != 4:
            return self._fail(FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        if self._earned:
            self._earned -= 1
        elif not self._spend():
            return None
        octets = int.from_bytes(data[start:stop], "big") & MAX_WINDOW
        if not stream:
            if not octets:
                return self._fail(PROTOCOL_ERROR, "a window increment of 0")
            was_shut = self._window <= 0
            self._window += octets
            if self._window > MAX_WINDOW:
                return self._fail(FLOW_CONTROL_ERROR, "a window above 2^31-1")
            if was_shut and self._waiting:
                self._push_all()
            return None
        state = self._table.get(stream)
        if state is None:
            if self._is_idle(stream):
                self._fail(PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
            return None
        if not octets:
            return self._stream_error(stream, PROTOCOL_ERROR, "a window increment of 0")
        state.window += octets
        if state.window > MAX_WINDOW:
            return self._stream_error(stream, FLOW_CONTROL_ERROR, "a window above 2^31-1")
        if state.waiting is not None and self._window > 0 and state.window > 0:
            self._push_told(state, False)
        return None

    # -- SETTINGS -----------------------------------------------------------------------------------------------------------

    def _on_settings(self, payload: bytes, flags: int, stream: int) -> None:
        if stream:
            return self._fail(PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                return self._fail(FRAME_SIZE_ERROR, "an acknowledgement with a payload")
            return self._on_settings_ack()
        if len(payload) % 6:
            return self._fail(FRAME_SIZE_ERROR, "SETTINGS")
        if not self._spend():
            return None
        window = self._initial_window
        for key, value in SETTING.iter_unpack(payload):
            if key == INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    return self._fail(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE")
                window = value
            elif key == MAX_FRAME_SIZE:
                if not 16384 <= value <= 16777215:
                    return self._fail(PROTOCOL_ERROR, "MAX_FRAME_SIZE")
                self._frame_most = min(value, _LARGEST_FRAME)
            elif key == MAX_CONCURRENT_STREAMS:
                self.peer_streams = value
            elif key == ENABLE_PUSH:
                if value > 1 or (value and not self._takes_push):
                    return self._fail(PROTOCOL_ERROR, "ENABLE_PUSH")
            elif key == ENABLE_CONNECT_PROTOCOL:
                if value > 1 or (self.peer_extended_connect and not value):
                    return self._fail(PROTOCOL_ERROR, "ENABLE_CONNECT_PROTOCOL")
                self.peer_extended_connect = bool(value)
        self._answer(SETTINGS_ACK)
        if window != self._initial_window and not self._dead:
            self._resize_windows(window)
        if not self._dead:
            self._on_peer_settings()
        return None

    _takes_push = True
    """Whether a peer may say ENABLE_PUSH=1."""

    def _on_peer_settings(self) -> None:
        """New settings of the peer are in force."""

    def _resize_windows(self, window: int) -> None:
        """Section 6.9.2, once for the last of several values in one frame."""
        change = window - self._initial_window
        self._initial_window = window
        opened: list[Stream] = []
        for state in self._table.values():
            state.window += change
            if state.window > MAX_WINDOW:
                return self._fail(FLOW_CONTROL_ERROR, "a window above 2^31-1")
            if state.waiting is not None and state.window > 0:
                opened.append(state)
        if change > 0 and opened:
            self._push_all()
        return None

    def _on_settings_ack(self) -> None:
        if not self._unacknowledged:
            self._spend()
            return
        self._unacknowledged -= 1
        limits = self._limits
        self._decoder.set_limit(limits.table_bytes)
        change = limits.stream_window_bytes - self._stream_room
        if change:
            self._stream_room = limits.stream_window_bytes
            for state in self._table.values():
                state.room += change
        self._frame_limit = max(limits.frame_bytes, 16384)

    # -- the others ---------------------------------------------------------------------------------------------------------

    def _on_ping(self, payload: bytes, flags: int, stream: int) -> None:
        if stream:
            return self._fail(PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            return self._fail(FRAME_SIZE_ERROR, "PING")
        if flags & ACK:
            if self._pings:
                self._pings -= 1
            else:
                self._spend()
            return None
        if self._earned:
            self._earned -= 1
        elif not self._spend():
            return None
        return self._answer(FRAME_HEADER.pack(0, 8, PING, ACK, 0) + payload)

    def _on_rst_stream(self, payload: bytes, stream: int) -> None:
        if self._is_idle(stream):
            return self._fail(PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        if len(payload) != 4:
            return self._fail(FRAME_SIZE_ERROR, "RST_STREAM")
        state = self._table.get(stream)
        if state is None:
            self._spend()
            return None
        self._forget(state)
        self._sink.aborted(stream, int.from_bytes(payload, "big"), True, "")
        return self._on_peer_reset()

    def _on_peer_reset(self) -> None:
        """The peer has reset a stream that was open."""

    def _on_goaway(self, payload: bytes, stream: int) -> None:
        if stream:
            return self._fail(PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            return self._fail(FRAME_SIZE_ERROR, "GOAWAY")
        if not self._spend():
            return None
        return self._on_peer_goaway(int.from_bytes(payload[:4], "big") & MAX_STREAM, int.from_bytes(payload[4:8], "big"))

    def _on_peer_goaway(self, last: int, code: int) -> None:
        self._sink.goaway(last, code)

    def _on_priority(self, payload: bytes, stream: int) -> None:
        """Deprecated and without effect (section 5.3.2); what is wrong about it is still an error."""
        if not stream:
            return self._fail(PROTOCOL_ERROR, "PRIORITY on stream 0")
        if not self._spend():
            return None
        wrong = 0
        if len(payload) != 5:
            wrong, detail = FRAME_SIZE_ERROR, "PRIORITY"
        elif int.from_bytes(payload[:4], "big") & MAX_STREAM == stream:
            wrong, detail = PROTOCOL_ERROR, "a stream that depends on itself"
        if not wrong:
            return None
        if stream in self._table:
            return self._stream_error(stream, wrong, detail)
        return self._fail(wrong, detail)  # there is no stream that could be reset
