"""The reference engine: the `h2` library reads the frames, behind the same interface and after the same checks as the default one.

Heads go through the strict parsers of HTTP/1.1 (`reference_heads`). It costs several times the default engine and is there to be
compared with, and for those who prefer a library that many others use.
"""

from __future__ import annotations

import h2.events

from meshguard.model.errors import RequestError
from meshguard.model.messages import NO_BODY
from meshguard.model.reasons import MALFORMED_REQUEST
from meshguard.wire.http2.engine import PROTOCOL_ERROR, REFUSED_STREAM, ClientSink, Http2Limits, ServerSink
from meshguard.wire.http2.reference_base import ReferenceEngine
from meshguard.wire.http2.reference_heads import Malformed, pairs_of_block, pairs_of_request, request_of, response_of
from meshguard.wire.semantics import FieldRules

__all__ = ["ReferenceClient", "ReferenceServer"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_GOAWAY = 7


class ReferenceServer(ReferenceEngine):
    """See `engine.ServerEngine`."""

    def __init__(self, sink: ServerSink, limits: Http2Limits, rules: FieldRules) -> None:
        super().__init__(sink, limits)
        self._sink = sink
        self._rules = rules
        self._preface = b""
        self._greeted = False
        self._processed = 0

    def receive(self, data: bytes, now: float) -> None:
        if not self._greeted and not self._dead:
            self._preface += data
            if not PREFACE.startswith(self._preface[:24]):
                self._fail(PROTOCOL_ERROR, "not the preface of HTTP/2")
                return
            if len(self._preface) < 24:
                return
            self._h2.receive_data(PREFACE)
            data, self._preface, self._greeted = self._preface[24:], b"", True
        super().receive(data, now)

    def _event(self, event: h2.events.Event) -> None:
        if type(event) is not h2.events.RequestReceived:
            super()._event(event)
            return
        stream = event.stream_id
        if stream > self._last:
            self._reset(stream, REFUSED_STREAM)
            return
        self._processed = max(self._processed, stream)
        if len(self._open) >= self._limits.streams:
            self._reset(stream, REFUSED_STREAM)
            self._charge_reset()
            return
        ended = event.stream_ended is not None
        self._open[stream] = b""
        self.streams = len(self._open)
        if ended:
            self._peer_done.add(stream)
        try:
            head = request_of(event.headers, ended, self._limits, self._wire, self._rules)
        except RequestError as error:
            if error.reason is not MALFORMED_REQUEST:
                error.content_type = next((bytes(value) for name, value in event.headers if name == b"content-type"), b"")
                self._sink.refused(stream, error, True)
            else:
                self._malformed(stream, error)
            return
        except Malformed as exc:
            self._malformed(stream, RequestError(MALFORMED_REQUEST, str(exc)))
            return
        declared = next((value for name, value in event.headers if name == b"content-length"), None)
        if declared is not None and not ended:
            self._left[stream] = int(declared)
        self._sink.request(stream, head)

    def _malformed(self, stream: int, error: RequestError) -> None:
        self._forget(stream)
        self._reset(stream, PROTOCOL_ERROR)
        self._sink.refused(stream, error, False)
        self._charge_reset()

    def send_interim(self, stream: int, status: int, block: bytes) -> None:
        if stream in self._open and not self._dead:
            self._h2.send_headers(stream, [(b":status", b"%d" % status), *pairs_of_block(block)])

    def send_head(self, stream: int, status: int, block: bytes, end: bool) -> None:
        if stream in self._open and not self._dead:
            self._h2.send_headers(stream, [(b":status", b"%d" % status), *pairs_of_block(block)], end_stream=end)
            if end:
                self._sent_end(stream)

    def send_whole(self, stream: int, status: int, block: bytes, body: bytes) -> int:
        self.send_head(stream, status, b"%bcontent-length: %d\r\n" % (block, len(body)), not body)
        return self.send_data(stream, body, True) if body else 0

    def goaway(self, code: int, last_stream: int | None = None) -> None:
        if not self._dead:
            self._last = min(self._last, self._processed if last_stream is None else last_stream)
            self._goaway(code, self._last)


class ReferenceClient(ReferenceEngine):
    """See `engine.ClientEngine`."""

    _client = True

    def __init__(self, sink: ClientSink, limits: Http2Limits) -> None:
        super().__init__(sink, limits)
        self._sink = sink
        self._going = False
        self._settled = False
        self._silent: set[int] = set()  # streams whose head said that nothing follows

    @property
    def free(self) -> int:
        if self._going or self._dead:
            return 0
        most = self._h2.remote_settings.max_concurrent_streams if self._settled else 100
        return max(0, min(most, self._limits.streams) - len(self._open))

    @property
    def extended_connect(self) -> bool | None:
        return bool(self._h2.remote_settings.enable_connect_protocol) if self._settled else None

    def request(self, head: bytes, scheme: bytes, end: bool) -> int:
        method, fields = pairs_of_request(head, scheme)
        stream = int(self._h2.get_next_available_stream_id())
        self._open[stream] = method
        self.streams = len(self._open)
        self._h2.send_headers(stream, fields, end_stream=end)
        if end:
            self._we_done.add(stream)
        return stream

    def _frame(self, frame: bytes, kind: int, flags: int) -> None:
        if kind == _GOAWAY:
            self._going = True
        super()._frame(frame, kind, flags)

    def _on_settings(self) -> None:
        self._settled = True
        self._sink.capacity()

    def _event(self, event: h2.events.Event) -> None:
        if type(event) is not h2.events.ResponseReceived and type(event) is not h2.events.InformationalResponseReceived:
            if type(event) is h2.events.DataReceived and event.data and event.stream_id in self._silent:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._stream_error(event.stream_id, PROTOCOL_ERROR, "DATA behind a head that says there is none")
                return
            super()._event(event)
            return
        stream = event.stream_id
        method = self._open.get(stream)
        if method is None:
            return
        ended = getattr(event, "stream_ended", None) is not None
        try:
            head = response_of(event.headers, ended, method, self._wire)
        except Malformed as exc:
            self._stream_error(stream, PROTOCOL_ERROR, str(exc))
            return
        if ended:
            self._peer_ended(stream)
        elif head.length > 0:
            self._left[stream] = head.length
        elif head.status >= 200 and head.length == NO_BODY:
            self._silent.add(stream)
        self._sink.response(stream, head)

    def _on_end(self, stream: int) -> None:
        if stream in self._silent:
            self._peer_ended(stream)  # it was told with the head
        else:
            super()._on_end(stream)

    def _forget(self, stream: int) -> None:
        self._silent.discard(stream)
        if stream in self._open:
            super()._forget(stream)
            self._sink.capacity()

    def goaway(self, code: int) -> None:
        if not self._dead:
            self._going = True
            self._goaway(code, 0)

    def ping(self, payload: bytes) -> None:
        if not self._dead:
            self._pings += 1
            self._h2.ping(payload)
