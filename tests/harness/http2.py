"""A raw HTTP/2 client and a scripted HTTP/2 server for the process tests, both on the `h2` library: frames when the test wants them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import orjson

DEADLINE_S = 20.0
Fields = list[tuple[str, str]]


class Stream:
    """What came on one stream."""

    def __init__(self) -> None:
        self.interim: list[dict[str, str]] = []
        self.head: dict[str, str] | None = None
        self.fields: Fields = []
        self.body = bytearray()
        self.trailers: dict[str, str] | None = None
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> int:
        assert self.head is not None, "no head"
        return int(self.head[":status"])

    @property
    def json(self) -> Any:
        return orjson.loads(bytes(self.body))

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class H2Client:
    """One connection. A `frozen` one never opens a window again by itself; `thaw` does."""

    def __init__(
        self,
        address: tuple[str, int],
        context: ssl.SSLContext | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        settings: dict[Any, int] | None = None,
        frozen: bool = False,
    ) -> None:
        self.deadline_s = deadline_s
        self.frozen = frozen
        self.owed: dict[int, int] = defaultdict(int)
        self.streams: dict[int, Stream] = defaultdict(Stream)
        self.goaways: list[tuple[int, int]] = []
        self.closed = False
        self._rest = b""
        raw = socket.create_connection(address, timeout=deadline_s)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock: socket.socket = raw if context is None else context.wrap_socket(raw, server_hostname="localhost")
        self.alpn = self.sock.selected_alpn_protocol() if isinstance(self.sock, ssl.SSLSocket) else None
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self) -> H2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def raw(self, data: bytes) -> None:
        self.flush()
        self.sock.sendall(data)

    def request(
        self,
        path: str,
        method: str = "GET",
        fields: Fields | None = None,
        *,
        body: bytes | None = None,
        end: bool = True,
        authority: str = "shop.example",
        flush: bool = True,
    ) -> int:
        stream = int(self.h2.get_next_available_stream_id())
        head = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path), *(fields or [])]
        self.h2.send_headers(stream, head, end_stream=end and body is None)
        if flush:
            self.flush()
        if body is not None:
            self.data(stream, body, end=end)
        return stream

    def data(self, stream: int, body: bytes, *, end: bool = False) -> None:
        """Sends `body` as the windows allow, reading what comes meanwhile."""
        view = memoryview(body)
        while True:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if view and room <= 0:
                self.read()
                continue
            piece, view = bytes(view[:room]), view[room:]
            self.h2.send_data(stream, piece, end_stream=end and not view)
            self.flush()
            if not view:
                return

    def fill(self, stream: int, most: int, quiet_s: float = 0.5) -> int:
        """Sends data until the windows have been shut for `quiet_s`; the octets."""
        sent = 0
        while sent < most:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room <= 0:
                try:
                    self.read(quiet_s)
                except TimeoutError:
                    return sent
                continue
            self.h2.send_data(stream, b"f" * room)
            self.flush()
            sent += room
        return sent

    def read(self, deadline_s: float | None = None) -> None:
        """One read and what it brings. Raises TimeoutError; at the end of the connection `closed` is set."""
        self.sock.settimeout(self.deadline_s if deadline_s is None else deadline_s)
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self._events(data):
            self._on(event)
        with contextlib.suppress(OSError):
            self.flush()

    def _events(self, data: bytes) -> list[h2.events.Event]:
        """The library ends a connection at the first GOAWAY; ours goes on, so that frame is taken out before."""
        self._rest += data
        events: list[h2.events.Event] = []
        while len(self._rest) >= 9:
            length = int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < 9 + length:
                break
            frame, self._rest = self._rest[: 9 + length], self._rest[9 + length :]
            if frame[3] == 7:
                self.goaways.append((int.from_bytes(frame[9:13], "big"), int.from_bytes(frame[13:17], "big")))
            else:
                events += self.h2.receive_data(frame)
        return events

    def _on(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.InformationalResponseReceived):
            self.streams[event.stream_id].interim.append(dict(event.headers))
        elif isinstance(event, h2.events.ResponseReceived):
            stream = self.streams[event.stream_id]
            stream.head, stream.fields = dict(event.headers), list(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            self.streams[event.stream_id].trailers = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.streams[event.stream_id].body += event.data
            self.owed[event.stream_id] += event.flow_controlled_length
            if not self.frozen:
                self.thaw(event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.streams[event.stream_id].ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.streams[event.stream_id].reset = int(event.error_code)

    def thaw(self, stream: int) -> None:
        octets = self.owed.pop(stream, 0)
        if octets:
            self.h2.acknowledge_received_data(octets, stream)

    def until(self, predicate: Callable[[], Any], what: str) -> None:
        """Reads until `predicate()` is true."""
        end = time.monotonic() + self.deadline_s
        while not predicate():
            assert not self.closed, f"the connection ended before {what}; goaways {self.goaways}"
            left = end - time.monotonic()
            assert left > 0, f"{what} did not happen within {self.deadline_s} s; goaways {self.goaways}"
            with contextlib.suppress(TimeoutError):
                self.read(left)

    def answer(self, stream: int) -> Stream:
        self.until(lambda: self.streams[stream].over, f"the end of stream {stream}")
        return self.streams[stream]

    def get(self, path: str, **options: Any) -> Stream:
        return self.answer(self.request(path, **options))

    def until_closed(self, deadline_s: float | None = None) -> float:
        """Reads to the end of the connection; how long it took."""
        began = time.monotonic()
        end = began + (deadline_s or self.deadline_s)
        while not self.closed:
            left = end - time.monotonic()
            assert left > 0, f"still open; goaways {self.goaways}"
            with contextlib.suppress(TimeoutError):
                self.read(left)
        return time.monotonic() - began


class Call:
    """A request that reached the server; what a script works with (in the thread of its connection)."""

    def __init__(self, peer: H2Peer, stream: int, fields: Fields) -> None:
        self.peer = peer
        self.stream = stream
        self.fields = fields
        self.body = bytearray()
        self.trailers: Fields = []
        self.ended = False
        self.reset: int | None = None

    @property
    def head(self) -> dict[str, str]:
        return dict(self.fields)

    @property
    def path(self) -> str:
        return self.head[":path"].split("?", 1)[0]

    def answer(self, status: int = 200, body: bytes = b"", fields: Fields | None = None, trailers: Fields | None = None) -> None:
        connection = self.peer.h2
        with self.peer.lock:
            connection.send_headers(self.stream, [(":status", str(status)), *(fields or [])], end_stream=not body and not trailers)
            if body:
                connection.send_data(self.stream, body, end_stream=not trailers)
            if trailers:
                connection.send_headers(self.stream, trailers, end_stream=True)
        self.peer.flush()

    def refuse(self, code: int = 7) -> None:
        with self.peer.lock:
            self.peer.h2.reset_stream(self.stream, code)
        self.peer.flush()


Script = Callable[[Call], None]


def echo(call: Call) -> None:
    """When the request is whole: what was received, as JSON."""
    if call.ended:
        seen = {"fields": call.fields, "body_bytes": len(call.body), "trailers": call.trailers, "connection": call.peer.number}
        call.answer(200, orjson.dumps(seen), [("content-type", "application/json")])


class H2Peer:
    """One connection of the server; `lock` guards the library."""

    def __init__(self, server: H2Server, number: int, sock: socket.socket) -> None:
        self.server = server
        self.number = number
        self.sock = sock
        self.calls: dict[int, Call] = {}
        self.pings = 0
        self.goaways: list[int] = []
        self.closed = False
        self.answers_pings = True
        self.opens_windows = True
        self.lock = threading.RLock()
        config = h2.config.H2Configuration(
            client_side=False, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        if server.settings:
            self.h2.local_settings = h2.settings.Settings(client=False, initial_values=server.settings)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        with self.lock, contextlib.suppress(OSError):
            data = self.h2.data_to_send()
            if data:
                self.sock.sendall(data)

    def goaway(self, last: int, code: int = 0) -> None:
        with self.lock, contextlib.suppress(OSError):
            self.sock.sendall(b"\0\0\x08\x07\0\0\0\0\0" + last.to_bytes(4, "big") + code.to_bytes(4, "big"))

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        try:
            while True:
                data = self.sock.recv(65536)
                if not data:
                    break
                if not self.answers_pings:
                    self.server.changed()
                    continue
                with self.lock:
                    events = self.h2.receive_data(data)
                for event in events:
                    self._on(event)
                self.flush()
                self.server.changed()
        except (OSError, h2.exceptions.ProtocolError) as exc:
            if not isinstance(exc, OSError):
                self.server.errors.append(repr(exc))
        finally:
            self.closed = True
            with contextlib.suppress(OSError):
                self.sock.close()
            self.server.changed()

    def _on(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            call = self.calls[event.stream_id] = Call(self, event.stream_id, [tuple(field) for field in event.headers])
            self.server.calls.append(call)
            self._script(call)
        elif isinstance(event, h2.events.DataReceived):
            call = self.calls[event.stream_id]
            call.body += event.data
            if self.opens_windows:
                with self.lock:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._script(call)
        elif isinstance(event, h2.events.TrailersReceived):
            self.calls[event.stream_id].trailers = [tuple(field) for field in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            call = self.calls[event.stream_id]
            call.ended = True
            self._script(call)
        elif isinstance(event, h2.events.StreamReset):
            self.calls[event.stream_id].reset = int(event.error_code)
        elif isinstance(event, h2.events.PingReceived):
            self.pings += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append(int(event.error_code))

    def _script(self, call: Call) -> None:
        self.server.scripts.get(call.path, self.server.default)(call)


class H2Server:
    """Listens on a loopback port; a thread for each connection. A script is called at the head, at each data and at the end."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, streams: int | None = None, settings: dict[Any, int] | None = None) -> None:
        self.scripts: dict[str, Script] = {}
        self.default: Script = echo
        self.calls: list[Call] = []
        self.peers: list[H2Peer] = []
        self.errors: list[str] = []
        self.settings: dict[Any, int] = dict(settings or {})
        if streams is not None:
            self.settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = streams
        self._tls = tls
        self._changed = threading.Condition()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                try:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                except OSError:
                    continue
            peer = H2Peer(self, len(self.peers), sock)
            self.peers.append(peer)
            threading.Thread(target=peer.run, daemon=True).start()
            self.changed()

    def changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, predicate: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
        with self._changed:
            result = self._changed.wait_for(predicate, deadline_s)
        assert result, f"HTTP/2 server: {what} did not happen within {deadline_s} s"
        return result

    def __enter__(self) -> H2Server:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for peer in self.peers:
            peer.kill()
        self._thread.join(5)
