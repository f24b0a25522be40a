"""What both sides of the reference engine have in common: the `h2` library reads and writes the frames.

What the library leaves to its user is done here: it is fed frame by frame, so that each frame can be counted and refused before it
costs anything (floods, sizes), and GOAWAY is graceful in both directions.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from meshguard.wire.events import WireLimits
from meshguard.wire.http2.engine import (
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    ClientSink,
    Http2Limits,
    ServerSink,
)
from meshguard.wire.http2.reference_heads import Malformed, pairs_of_block, trailers_of

__all__ = ["ReferenceEngine"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_FRAME_SIZE_ERROR = 0x6
_ACK = 0x1
_END_STREAM = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_ALL_STREAMS = 2**31 - 1
_UPDATES_PER_FRAME = 10
"""WINDOW_UPDATE frames that each DATA frame of ours earns its reader; only those beyond count as control frames."""
_SIGNALS: Any = h2.settings.SettingCodes


class _Bucket:
    """Tokens: `burst` at once, `per_s` in the long run."""

    __slots__ = ("_burst", "_left", "_per_s", "_then")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = self._left = float(burst)
        self._per_s = per_s
        self._then = 0.0

    def take(self, now: float) -> bool:
        self._left = min(self._burst, self._left + (now - self._then) * self._per_s)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Waiting:
    """What a stream has to send beyond the peer's windows."""

    __slots__ = ("end", "octets", "pieces", "trailers")

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.octets = 0
        self.end = False
        self.trailers: bytes | None = None


class _Connection(h2.connection.H2Connection):
    """Counts no incoming streams: the engine does, and refuses one stream where the library would end the connection."""

    @property
    def open_inbound_streams(self) -> int:
        _ = super().open_inbound_streams  # it also forgets the closed ones
        return 0


class ReferenceEngine:
    """What both sides have in common."""

    _client = False

    def __init__(self, sink: ServerSink | ClientSink, limits: Http2Limits) -> None:
        self._told = sink
        self._limits = limits
        self._wire = WireLimits(limits.head_bytes, limits.fields, limits.request_line_bytes)
        config = h2.config.H2Configuration(
            client_side=self._client,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,  # the crumbs of a cookie are counted before they are joined
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = _Connection(config)
        self._h2.decoder.max_header_list_size = max(65536, 2 * limits.head_bytes)
        self._buffer = b""
        self._own = b""
        self._dead = False
        self._now = 0.0
        self._resets = _Bucket(limits.reset_burst, limits.reset_per_s)
        self._controls = _Bucket(limits.control_burst, limits.control_per_s)
        self._updates = 0
        self._continuations = 0
        self._unread = 0  # octets of answers to control frames since the last `take`
        self._open: dict[int, bytes] = {}  # streams that are not over on both sides; the request's method
        self.streams = 0
        self._peer_done: set[int] = set()
        self._we_done: set[int] = set()
        self._waiting: dict[int, _Waiting] = {}
        self._trailers: dict[int, bytes] = {}
        self._left: dict[int, int] = {}  # octets of a declared length that have not come: the library forgets them at trailers

    def start(self) -> None:
        limits = self._limits
        own = {
            _SIGNALS.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            _SIGNALS.MAX_FRAME_SIZE: limits.frame_bytes,
            _SIGNALS.HEADER_TABLE_SIZE: limits.table_bytes,
            _SIGNALS.MAX_CONCURRENT_STREAMS: 0 if self._client else limits.streams,
            _SIGNALS.ENABLE_PUSH: 0,
        }
        if not self._client:
            own[_SIGNALS.ENABLE_CONNECT_PROTOCOL] = int(limits.extended_connect)
        self._h2.local_settings = h2.settings.Settings(client=self._client, initial_values=own)
        self._h2.initiate_connection()
        # in force at once for what we count ourselves, whenever the peer acknowledges them
        surplus = limits.connection_window_bytes - 65535
        if surplus > 0:
            self._h2.increment_flow_control_window(surplus)

    def take(self) -> bytes:
        self._unread = 0
        own, self._own = self._own, b""
        return self._h2.data_to_send() + own

    # -- receiving ------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        if self._dead:
            return
        self._now = now
        buffer = self._buffer + data if self._buffer else data
        position = 0
        while not self._dead and len(buffer) - position >= 9:
            length = int.from_bytes(buffer[position : position + 3], "big")
            if length > self._limits.frame_bytes:
                self._fail(_FRAME_SIZE_ERROR, f"a frame of {length} octets")
                return
            end = position + 9 + length
            if len(buffer) < end:
                break
            frame = buffer[position:end]
            position = end
            self._frame(frame, frame[3], frame[4])
        self._buffer = buffer[position:]

    def _frame(self, frame: bytes, kind: int, flags: int) -> None:
        if not self._affordable(frame, kind, flags):
            self._fail(ENHANCE_YOUR_CALM, f"too many frames of type {kind}")
            return
        if kind == _GOAWAY and len(frame) >= 17:  # the library would end the connection: what runs may finish
            self._told.goaway(int.from_bytes(frame[9:13], "big") & _ALL_STREAMS, int.from_bytes(frame[13:17], "big"))
            return
        try:
            events = self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as exc:
            self._dead = True
            code = int(getattr(exc, "error_code", PROTOCOL_ERROR))
            self._told.failed(code, f"{type(exc).__name__}: {exc}"[:200])
            return
        for event in events:
            if not self._dead:
                self._event(event)

    def _affordable(self, frame: bytes, kind: int, flags: int) -> bool:
        length = len(frame) - 9
        if kind == _CONTINUATION:
            self._continuations += 1
            return self._continuations <= self._limits.continuation_frames
        if kind == _HEADERS:
            self._continuations = 0
            self._updates += _UPDATES_PER_FRAME  # a message moves windows as well
            return True
        if kind == _DATA:
            padding = frame[9] + 1 if flags & _PADDED and length else 0
            return length > padding or bool(flags & _END_STREAM) or self._controls.take(self._now)
        if kind == _RST:
            return self._resets.take(self._now)
        if kind in (_PING, _SETTINGS):
            if flags & _ACK:
                return True
            self._unread += 17 if kind == _PING else 9
            return self._unread <= self._limits.queue_bytes and self._controls.take(self._now)
        if kind == _WINDOW and self._updates:
            self._updates -= 1
            return True
        return kind == _GOAWAY or self._controls.take(self._now)

    def _event(self, event: h2.events.Event) -> None:
        if type(event) is h2.events.DataReceived:
            stream, data = event.stream_id, event.data
            if stream not in self._open:
                self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
                return
            padding = event.flow_controlled_length - len(data)
            if padding:
                self._told.padding(stream, padding)
            if data:
                if stream in self._left:
                    self._left[stream] -= len(data)
                self._told.data(stream, bytes(data))
        elif type(event) is h2.events.TrailersReceived:
            self._on_trailers(event.stream_id, event.headers)
        elif type(event) is h2.events.StreamEnded:
            self._on_end(event.stream_id)
        elif type(event) is h2.events.StreamReset:
            stream = event.stream_id
            if stream in self._open:
                self._forget(stream)
                self._told.aborted(stream, int(event.error_code), bool(event.remote_reset), "reset")
        elif type(event) is h2.events.WindowUpdated:
            if event.stream_id:
                if event.stream_id in self._waiting:
                    self._push(event.stream_id, tell=True)
            else:
                self._push_all()
        elif type(event) is h2.events.RemoteSettingsChanged:
            self._on_settings()
            self._push_all()

    def _on_trailers(self, stream: int, fields: Any) -> None:
        if stream not in self._open:
            return
        try:
            self._trailers[stream] = trailers_of(fields, self._limits)
        except Malformed as exc:
            self._stream_error(stream, PROTOCOL_ERROR, str(exc))

    def _on_end(self, stream: int) -> None:
        if stream in self._open and stream not in self._peer_done:
            if self._left.get(stream):
                self._stream_error(stream, PROTOCOL_ERROR, "the body is not as long as its content-length")
                return
            trailers = self._trailers.pop(stream, b"")
            self._peer_ended(stream)
            self._told.end(stream, trailers)

    def _peer_ended(self, stream: int) -> None:
        self._peer_done.add(stream)
        if stream in self._we_done:
            self._forget(stream)

    def _sent_end(self, stream: int) -> None:
        self._waiting.pop(stream, None)
        self._we_done.add(stream)
        if stream in self._peer_done:
            self._forget(stream)

    def _on_settings(self) -> None: ...

    def _forget(self, stream: int) -> None:
        self._open.pop(stream, None)
        self.streams = len(self._open)
        self._waiting.pop(stream, None)
        self._trailers.pop(stream, None)
        self._left.pop(stream, None)
        self._peer_done.discard(stream)
        self._we_done.discard(stream)

    def _stream_error(self, stream: int, code: int, detail: str) -> None:
        """The peer broke a rule on a stream: it costs the same as a reset of its own."""
        self._forget(stream)
        self._reset(stream, code)
        self._told.aborted(stream, code, False, detail)
        self._charge_reset()

    def _charge_reset(self) -> None:
        if not self._resets.take(self._now):
            self._fail(ENHANCE_YOUR_CALM, "too many resets")

    def _reset(self, stream: int, code: int) -> None:
        try:
            self._h2.reset_stream(stream, code)
        except h2.exceptions.ProtocolError:
            pass  # over already

    def _fail(self, code: int, detail: str) -> None:
        if not self._dead:
            self._dead = True
            self._goaway(code, self._h2.highest_inbound_stream_id)
            self._told.failed(code, detail)

    def _goaway(self, code: int, last: int) -> None:
        self._own += b"\0\0\x08\x07\0\0\0\0\0" + last.to_bytes(4, "big") + code.to_bytes(4, "big")

    # -- sending --------------------------------------------------------------------------------------------------------

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        if stream not in self._open or self._dead:
            return 0
        waiting = self._waiting.get(stream)
        if waiting is None:
            waiting = self._waiting[stream] = _Waiting()
        if data:
            waiting.pieces.append(data)
            waiting.octets += len(data)
        waiting.end = waiting.end or end
        return self._push(stream, tell=False)

    def send_trailers(self, stream: int, block: bytes) -> None:
        if stream not in self._open or self._dead:
            return
        waiting = self._waiting.get(stream)
        if waiting is not None:
            if block:
                waiting.trailers = block
            else:
                waiting.end = True
            self._push(stream, tell=False)
        elif block:
            self._h2.send_headers(stream, pairs_of_block(block), end_stream=True)
            self._sent_end(stream)
        else:
            self._h2.end_stream(stream)
            self._sent_end(stream)

    def _push_all(self) -> None:
        for stream in list(self._waiting):
            if stream in self._waiting:
                self._push(stream, tell=True)

    def _push(self, stream: int, *, tell: bool) -> int:
        """Sends what the windows allow; octets that still wait."""
        waiting = self._waiting[stream]
        connection = self._h2
        pieces = waiting.pieces
        while pieces:
            room = min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size)
            if room <= 0:
                return waiting.octets
            piece = pieces.popleft()
            if len(piece) > room:
                pieces.appendleft(piece[room:])
                piece = piece[:room]
            waiting.octets -= len(piece)
            last = waiting.end and not pieces and waiting.trailers is None
            connection.send_data(stream, piece, end_stream=last)
            self._updates = min(self._updates + _UPDATES_PER_FRAME, 100_000)
            if last:
                self._sent_end(stream)
                if tell:
                    self._told.writable(stream)
                return 0
        del self._waiting[stream]
        if waiting.trailers is not None:
            connection.send_headers(stream, pairs_of_block(waiting.trailers), end_stream=True)
            self._sent_end(stream)
        elif waiting.end:
            connection.end_stream(stream)
            self._sent_end(stream)
        if tell:
            self._told.writable(stream)
        return 0

    def reset(self, stream: int, code: int) -> None:
        if stream in self._open and not self._dead:
            self._forget(stream)
            self._reset(stream, code)

    def consumed(self, stream: int, octets: int) -> None:
        if not self._dead:
            self._h2.acknowledge_received_data(octets, stream)
