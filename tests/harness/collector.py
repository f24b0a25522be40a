"""An OTLP/HTTP collector in a thread: decodes what arrives with the official protos and lets tests wait for spans."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

__all__ = ["Collector", "Span"]


class Span:
    """One span with its attributes as a plain dictionary."""

    def __init__(self, resource: dict[str, Any], span: Any) -> None:
        self.resource = resource
        self.name: str = span.name
        self.kind: int = span.kind  # 2 server, 3 client
        self.trace_id = span.trace_id.hex()
        self.span_id = span.span_id.hex()
        self.parent_id = span.parent_span_id.hex()
        self.status: int = span.status.code
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.attributes = _attributes(span.attributes)

    def __repr__(self) -> str:
        return f"<Span {self.name} {self.attributes}>"


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(v) for v in value.array_value.values]
    return getattr(value, kind) if kind else None


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


class Collector:
    """Listens from construction to `close`; `raw` holds every decoded (decompressed) payload."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: list[Any] = []
        self.raw = bytearray()
        self.fail = False
        self._condition = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if collector.fail:
                    self.send_response(503)
                else:
                    collector._take(self.path, body)
                    self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _take(self, path: str, body: bytes) -> None:
        with self._condition:
            self.raw += body
            if path == "/v1/traces":
                for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                    resource = _attributes(resource_spans.resource.attributes)
                    self.spans += [Span(resource, span) for scope in resource_spans.scope_spans for span in scope.spans]
            elif path == "/v1/metrics":
                self.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self._condition.notify_all()

    def wait(self, predicate: Callable[[Span], Any], what: str, deadline_s: float = 20.0) -> Span:
        """The first span with a true `predicate`."""
        found: list[Span] = []

        def look() -> bool:
            found[:] = [span for span in self.spans if predicate(span)][:1]
            return bool(found)

        with self._condition:
            self._condition.wait_for(look, deadline_s)
        assert found, f"the span {what} did not arrive within {deadline_s} s; have {[s.name for s in self.spans][-10:]}"
        return found[0]

    def wait_metrics(self, predicate: Callable[[], Any], what: str, deadline_s: float = 20.0) -> None:
        with self._condition:
            assert self._condition.wait_for(predicate, deadline_s), f"{what} did not arrive"
