"""What both sides of the reference engine have in common: the `h2` library reads and writes the frames.

What the library leaves to its user is done here: it is fed frame by frame, so that each frame can be counted and refused before it
costs anything (floods, sizes), and GOAWAY is graceful in both directions. The counts are those of our own engine, and where that one
resets a stream this one does too, before the library could end the connection.
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
import hpack

from meshguard.wire.events import WireLimits
from meshguard.wire.http2.engine import (
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    ClientSink,
    Http2Limits,
    ServerSink,
)
from meshguard.wire.http2.frames import window_frame
from meshguard.wire.http2.reference_heads import Malformed, pairs_of_block, trailers_of
from meshguard.wire.http2.streams import ClosedStreams
from meshguard.wire.http2.token_bucket import TokenBucket

__all__ = ["ReferenceEngine"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_STREAM_CLOSED = 0x5
_FRAME_SIZE_ERROR = 0x6
_COMPRESSION_ERROR = 0x9
_ACK = 0x1
_END_STREAM = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_ALL_STREAMS = 2**31 - 1
_UPDATES_PER_FRAME = 10
"""WINDOW_UPDATE and PING frames that each DATA frame of ours earns its reader; only those beyond count as control frames."""
_SIGNALS: Any = h2.settings.SettingCodes


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
        self._resets = TokenBucket(limits.reset_burst, limits.reset_per_s)
        self._controls = TokenBucket(limits.control_burst, limits.control_per_s)
        self._updates = 0
        self._pings = 0  # ours that are not answered
        self._unacknowledged = 1  # our settings
        self._continuations = 0
        self._block_octets = 0
        self._block_stream = 0  # whose field block has begun and not ended
        self._unread = 0  # octets of answers to control frames since the last `take`
        self._last = _ALL_STREAMS  # the last stream that a GOAWAY of ours has named
        self._closed = ClosedStreams(max(256, 2 * limits.streams))
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

    @property
    def open_block(self) -> int:
        first = self._buffer[:9]
        if len(first) == 9 and first[3] == _HEADERS:
            return int.from_bytes(first[5:], "big") & _ALL_STREAMS
        return self._block_stream

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
        stream = int.from_bytes(frame[5:9], "big") & _ALL_STREAMS
        if not self._affordable(frame, kind, flags, stream):
            self._fail(ENHANCE_YOUR_CALM, f"too many frames of type {kind}")
            return
        if kind == _GOAWAY and not stream and len(frame) >= 17:  # the library would end the connection: what runs may finish
            self._told.goaway(int.from_bytes(frame[9:13], "big") & _ALL_STREAMS, int.from_bytes(frame[13:17], "big"))
            return
        if kind == _PRIORITY and not self._block_stream and stream:  # deprecated: judged, and not passed on
            self._on_priority(frame, stream)
            return
        if kind == _WINDOW and self._was_open(stream) and len(frame) == 13 and not int.from_bytes(frame[9:], "big") & _ALL_STREAMS:
            if stream in self._open:
                self._stream_error(stream, PROTOCOL_ERROR, "a window increment of 0")
            return
        if kind == _RST and not self._was_open(stream):
            self._fail(PROTOCOL_ERROR, "RST_STREAM on an idle stream")
            return
        if kind == _SETTINGS and flags & _ACK and len(frame) > 9:
            self._fail(_FRAME_SIZE_ERROR, "an acknowledgement with a payload")
            return
        if kind == _DATA and stream in self._left and not self._fits(frame, flags, stream):
            self._stream_error(stream, PROTOCOL_ERROR, "DATA and content-length disagree")
        if kind in (_DATA, _HEADERS) and stream not in self._open and self._was_open(stream):
            if not self._closed.was_reset(stream):
                self._fail(_STREAM_CLOSED, "a frame on a closed stream")
                return
            if kind == _DATA:  # late: the library would answer each frame with a reset
                self._own += window_frame(0, len(frame) - 9)
                return
        if kind in (_HEADERS, _CONTINUATION):
            self._block_stream = 0 if flags & _END_HEADERS else stream
        try:
            events = self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as exc:
            code = int(getattr(exc, "error_code", PROTOCOL_ERROR))
            if isinstance(exc.__cause__, hpack.HPACKError):
                code = _COMPRESSION_ERROR
            written = self._h2.data_to_send()
            self._own += written[:-17] if written[-14:-13] == b"\x07" else written  # its GOAWAY; ours has the code
            self._fail(code, f"{type(exc).__name__}: {exc}"[:200])
            return
        for event in events:
            if not self._dead:
                self._event(event)

    def _affordable(self, frame: bytes, kind: int, flags: int, stream: int) -> bool:
        """Pays for a frame that is only work, with a token of `control_burst`."""
        length = len(frame) - 9
        if kind == _CONTINUATION:
            self._continuations += 1
            self._block_octets += length
            if self._continuations > self._limits.continuation_frames or self._block_octets > 2 * self._limits.head_bytes + 16384:
                return False
            if length:
                return True
        elif kind == _HEADERS:
            self._continuations = 0
            self._block_octets = length
            late = stream not in self._open and self._was_open(stream)
            if not late and (length or flags & _END_HEADERS):
                return True
        elif kind == _DATA:
            padding = frame[9] + 1 if flags & _PADDED and length else 0
            if length > padding or flags & _END_STREAM:
                return True
        elif kind == _RST and stream in self._open:
            return self._client or self._resets.spend(self._now)  # a server can only reset what we have asked for
        elif kind == _PING and flags & _ACK and self._pings:
            self._pings -= 1
            return True
        elif kind == _SETTINGS and flags & _ACK and self._unacknowledged:
            self._unacknowledged -= 1
            return True
        elif kind in (_PING, _SETTINGS) and not flags & _ACK:
            self._unread += 17 if kind == _PING else 9
            if self._unread > self._limits.queue_bytes:
                return False
        if kind in (_WINDOW, _PING) and self._updates:
            self._updates -= 1
            return True
        return self._controls.spend(self._now)

    def _on_priority(self, frame: bytes, stream: int) -> None:
        wrong = _FRAME_SIZE_ERROR if len(frame) != 14 else 0
        if not wrong and int.from_bytes(frame[9:13], "big") & _ALL_STREAMS == stream:
            wrong = PROTOCOL_ERROR
        if wrong and stream in self._open:
            self._stream_error(stream, wrong, "PRIORITY")
        elif wrong:
            self._fail(wrong, "PRIORITY")

    def _fits(self, frame: bytes, flags: int, stream: int) -> bool:
        """Whether DATA keeps to the content-length of its stream."""
        padding = frame[9] + 1 if flags & _PADDED and len(frame) > 9 else 0
        left = self._left[stream] - (len(frame) - 9 - padding)
        return left == 0 if flags & _END_STREAM else left >= 0

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
                if not event.remote_reset:
                    self._closed.add_reset(stream)
                self._told.aborted(stream, int(event.error_code), bool(event.remote_reset), "reset")
                if not event.remote_reset:  # the library has reset it, for an error of the peer
                    self._charge_reset()
        elif type(event) is h2.events.WindowUpdated:
            if event.stream_id:
                if event.stream_id in self._waiting:
                    self._push(event.stream_id, tell=True)
            else:
                self._push_all()
        elif type(event) is h2.events.RemoteSettingsChanged:
            connect = event.changed_settings.get(_SIGNALS.ENABLE_CONNECT_PROTOCOL)
            if connect is not None and connect.original_value and not connect.new_value:
                self._fail(PROTOCOL_ERROR, "ENABLE_CONNECT_PROTOCOL was taken back")
                return
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
        self._unread += 13  # RST_STREAM
        if not self._dead and (self._unread + 13 > self._limits.queue_bytes or not self._resets.spend(self._now)):
            self._fail(ENHANCE_YOUR_CALM, "too many resets")

    def _was_open(self, stream: int) -> bool:
        highest = self._h2.highest_outbound_stream_id if self._client else self._h2.highest_inbound_stream_id
        return stream & 1 == 1 and stream <= highest

    def _reset(self, stream: int, code: int) -> None:
        self._closed.add_reset(stream)
        try:
            self._h2.reset_stream(stream, code)
        except h2.exceptions.ProtocolError:
            pass  # over already

    def _fail(self, code: int, detail: str) -> None:
        if not self._dead:
            self._dead = True
            self._goaway(code, min(self._h2.highest_inbound_stream_id, self._last))
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
