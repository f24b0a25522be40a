"""Sends spans and metrics to a collector by OTLP/HTTP with binary protobuf, from a thread of its own.

    add()  ->  bounded queue  ->  thread: batch, encode, POST, retry        full queue or collector down: spans are dropped and counted

The path never waits for a collector and never learns of its trouble. Retries follow the OTLP specification: 429, 502, 503, 504 and
connection failures are tried again with exponential back-off, jitter and Retry-After; everything else is final.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from meshguard import __version__
from meshguard.telemetry.metrics import Family, Registry
from meshguard.telemetry.otlp_encoding import AttributeValue, metrics_request, rejected, resource_message, traces_request
from meshguard.telemetry.spans import SCHEMA_URL

if TYPE_CHECKING:  # imported where they are used: 6 MB that a process without a collector does not need
    import http.client
    from urllib.parse import SplitResult

__all__ = ["OtlpExporter"]

_log = logging.getLogger(__name__)

_SCOPE = "meshguard"
_RETRIED = frozenset((429, 502, 503, 504))  # OTLP specification, "Retryable response codes"
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_LOOK_S = 0.1  # how often the thread looks up while it waits for the event loop
_FIRST_METRICS_S = 5.0  # a new instance shows up soon, whatever the interval
_MAX_RESPONSE_BYTES = 64 * 1024
_MAX_QUEUE_BYTES = 16 * 1024 * 1024


class OtlpExporter:
    """Exports to `endpoint` (`http://host:4318`: /v1/traces and /v1/metrics are appended to its path).

    `resource` gives the attributes of the resource and is called once, in the thread. `families` gives the metrics (`Registry.families`)
    and is called in the loop's thread (see `start`); None exports none. `headers` may hold credentials and are never shown.
    `certificate` is a CA file for https; None: the system's.
    `capacity` bounds the spans that wait, `batch` those of one request, `attempts` the tries of one request.
    Raises ValueError for an endpoint that is not an http or https URL.
    """

    def __init__(
        self,
        endpoint: str,
        registry: Registry,
        resource: Callable[[], Mapping[str, AttributeValue]],
        *,
        families: Callable[[], Sequence[Family]] | None = None,
        headers: Mapping[str, str] | None = None,
        certificate: str | None = None,
        compress: bool = False,
        timeout_s: float = 10.0,
        delay_s: float = 1.0,
        metrics_interval_s: float = 60.0,
        capacity: int = 8192,
        batch: int = 512,
        attempts: int = 6,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._url = _parsed(endpoint)
        self._path = self._url.path.rstrip("/")
        self._headers = {"content-type": "application/x-protobuf", "user-agent": f"meshguard/{__version__}", **(headers or {})}
        self._certificate = certificate
        self._compress = compress
        self._timeout_s = timeout_s
        self._delay_s = delay_s
        self._metrics_interval_s = metrics_interval_s
        self._capacity = capacity
        self._batch = batch
        self._attempts = attempts
        self._resource_source = resource
        self._resource: bytes | None = None
        self._families = families
        self._wall = wall
        self._start_ns = int(wall() * 1e9)
        self._connection: http.client.HTTPConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last: Sequence[Family] | None = None  # read by `close`
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._queue: deque[tuple[bytes, int]] = deque()
        self._queued = 0
        self._queued_bytes = 0
        self._since = 0.0  # when the oldest batch in the queue came
        self._closing = False
        self._abandoned = threading.Event()
        self._thread: threading.Thread | None = None
        self._complained = False
        self._sent = registry.counter("meshguard.otlp.spans.sent", "Spans that the collector took", "{span}").labels()
        self._dropped = registry.counter("meshguard.otlp.spans.dropped", "Spans that were not delivered", "{span}", ("reason",))
        self._failures = registry.counter(
            "meshguard.otlp.failures", "Requests to the collector that failed", "{request}", ("signal", "error.type")
        )

    def __repr__(self) -> str:
        return f"OtlpExporter({self._url.scheme}://{self._url.hostname})"

    def start(self) -> None:
        """Start the thread: metrics are exported from then on, and read by the running event loop, if there is one."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        with self._lock:
            self._start()

    def add(self, spans: bytes, count: int) -> None:
        """Queue `count` encoded spans. Never blocks, never raises."""
        with self._lock:
            if self._closing:
                self._dropped.labels("shutdown").value += count
                return
            if not self._queue:
                self._since = time.monotonic()
            elif self._queued + count > self._capacity or self._queued_bytes + len(spans) > _MAX_QUEUE_BYTES:
                self._dropped.labels("queue_full").value += count
                return
            self._queue.append((spans, count))
            self._queued += count
            self._queued_bytes += len(spans)
            self._start()
            if self._queued >= self._batch or len(self._queue) == 1:
                self._ready.notify()

    def close(self, deadline_s: float) -> None:
        """Send what is queued and the last metrics, for at most `deadline_s`, and stop. To be called in the thread of the event loop."""
        if self._families is not None and self._last is None:
            try:
                self._last = self._families()
            except Exception:
                _log.exception("the last metrics could not be read")
                self._last = ()
        with self._lock:
            if self._families is not None and not self._closing:
                self._start()
            self._closing = True
            thread = self._thread
            self._ready.notify()
        if thread is not None:
            thread.join(deadline_s)
            self._abandoned.set()
            with self._lock:
                left = sum(count for _, count in self._queue)
                self._queue.clear()
                self._queued = self._queued_bytes = 0
                self._thread = None
                if left:
                    self._dropped.labels("shutdown").value += left

    def _start(self) -> None:
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        first = min(self._metrics_interval_s, _FIRST_METRICS_S)
        metrics_at = time.monotonic() + first if self._families is not None else float("inf")
        closing = False
        while not closing and not self._abandoned.is_set():
            with self._lock:
                while not self._closing and self._queued < self._batch:
                    left = min(metrics_at, self._since + self._delay_s if self._queue else float("inf")) - time.monotonic()
                    if left <= 0:
                        break
                    self._ready.wait(None if left == float("inf") else left)
                closing = self._closing
            try:
                while self._queue and not self._abandoned.is_set():
                    self._send_spans()
                if self._families is not None and (closing or time.monotonic() >= metrics_at):
                    metrics_at = time.monotonic() + first  # until it worked: the collector may start after us
                    if self._send_metrics(self._gathered(self._families)):
                        metrics_at = time.monotonic() + self._metrics_interval_s
            except Exception:  # outermost loop of a background service
                _log.exception("the OTLP exporter failed; it goes on")
                self._abandoned.wait(_FIRST_DELAY_S)
        self._disconnect()

    def _send_spans(self) -> None:
        parts: list[bytes] = []
        count = 0
        with self._lock:
            while self._queue and (not parts or count + self._queue[0][1] <= self._batch):
                spans, number = self._queue.popleft()
                parts.append(spans)
                count += number
                self._queued -= number
                self._queued_bytes -= len(spans)
        if not parts:
            return
        answer: bytes | None = None
        try:
            answer = self._post("traces", traces_request(self._resource_bytes(), _SCOPE, __version__, SCHEMA_URL, b"".join(parts)))
        finally:  # also when something unexpected is raised: a span is sent or counted
            if answer is None:
                self._dropped.labels("failed").value += count
        if answer is None:
            return
        refused = min(rejected(answer), count)
        if refused:
            self._dropped.labels("rejected").value += refused
        self._sent.value += count - refused

    def _send_metrics(self, families: Sequence[Family]) -> bool:
        body = metrics_request(self._resource_bytes(), _SCOPE, __version__, SCHEMA_URL, families, self._start_ns, int(self._wall() * 1e9))
        return self._post("metrics", body, attempts=1) is not None  # the sums go on: a later request makes up for a lost one

    def _gathered(self, families: Callable[[], Sequence[Family]]) -> Sequence[Family]:
        """The metrics, read by the event loop where there is one: sources may look at what only its thread changes."""
        if self._last is not None:
            return self._last
        loop = self._loop
        if loop is None or not loop.is_running():
            return families()
        found: Future[Sequence[Family]] = Future()

        def read() -> None:
            try:
                found.set_result(families())
            except Exception as exc:  # raised where it is waited for
                found.set_exception(exc)

        loop.call_soon_threadsafe(read)
        while True:
            try:
                return found.result(_LOOK_S)
            except TimeoutError:
                if self._last is not None:  # `close` holds the loop and has read them itself
                    return self._last
                if not loop.is_running():
                    return families()

    def _resource_bytes(self) -> bytes:
        if self._resource is None:
            self._resource = resource_message(self._resource_source())
        return self._resource

    def _post(self, signal: str, body: bytes, attempts: int | None = None) -> bytes | None:
        """The response's body once the collector took the request; None when it did not."""
        headers = self._headers
        from http.client import HTTPException

        if self._compress:
            import gzip

            body = gzip.compress(body, 6)
            headers = {**headers, "content-encoding": "gzip"}
        delay = _FIRST_DELAY_S
        for attempt in range(attempts or self._attempts):
            if attempt:
                self._abandoned.wait(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, _LONGEST_DELAY_S)
                if self._abandoned.is_set():
                    return None
            try:
                status, answer, retry_after = self._exchange(f"{self._path}/v1/{signal}", body, headers)
            except (OSError, HTTPException, ValueError) as exc:
                self._disconnect()
                self._failed(signal, type(exc).__name__)
                continue
            if 200 <= status < 300:
                self._complained = False
                return answer
            self._failed(signal, str(status))
            if status not in _RETRIED:
                return None
            if retry_after is not None:
                delay = min(max(retry_after, delay), _LONGEST_DELAY_S)
        return None

    def _exchange(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, float | None]:
        connection = self._connection or self._connect()
        # The socket's timeout is for each read: a collector that sends a byte now and then would hold the thread for ever.
        limit = threading.Timer(self._timeout_s, self._cut, (connection,))
        limit.daemon = True
        limit.start()
        try:
            connection.request("POST", path, body, dict(headers))
            response = connection.getresponse()
            answer = response.read(_MAX_RESPONSE_BYTES)
        finally:
            limit.cancel()
        retry_after = response.getheader("retry-after", "")
        if response.will_close or not response.isclosed():  # not read to its end: the connection cannot be used again
            self._disconnect()
        return response.status, answer, float(retry_after) if retry_after.isdecimal() else None

    @staticmethod
    def _cut(connection: http.client.HTTPConnection) -> None:
        sock = connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)  # ends a read in another thread; closing would not
            except OSError:
                pass  # it has ended by itself

    def _connect(self) -> http.client.HTTPConnection:
        import http.client

        host = self._url.hostname or ""
        if self._url.scheme == "https":
            import ssl

            context = ssl.create_default_context(cafile=self._certificate)
            self._connection = http.client.HTTPSConnection(host, self._url.port, timeout=self._timeout_s, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, self._url.port, timeout=self._timeout_s)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failed(self, signal: str, error: str) -> None:
        self._failures.labels(signal, error).value += 1
        if not self._complained:  # once for each outage: the counters tell the rest
            self._complained = True
            _log.warning("the OTLP collector does not take %s: %s", signal, error)


def _parsed(endpoint: str) -> SplitResult:
    from urllib.parse import urlsplit

    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
        raise ValueError("the OTLP endpoint must be an http or https URL without user, query and fragment, such as http://collector:4318")
    _ = url.port  # raises ValueError when it is no number
    return url
