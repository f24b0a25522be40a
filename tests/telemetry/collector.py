"""An OTLP/HTTP collector for tests: a real HTTP server that decodes with the official messages, and can misbehave."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Answer = tuple[int, bytes, dict[str, str]]
OK: Answer = (200, ExportTraceServiceResponse().SerializeToString(), {"content-type": "application/x-protobuf"})


class Collector:
    """Listens on a free port of the loopback. `answer(path)` is asked for each request; None: close without an answer."""

    def __init__(self, answer: Callable[[str], Answer | None] = lambda path: OK, port: int = 0) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.connections = 0
        self.changed = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                collector.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answered = answer(self.path)
                if answered is None:
                    self.close_connection = True
                    return
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                with collector.changed:
                    collector.paths.append(self.path)
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                    if answered[0] == 200:
                        if self.path.endswith("/v1/traces"):
                            collector.traces.append(ExportTraceServiceRequest.FromString(body))
                        else:
                            collector.metrics.append(ExportMetricsServiceRequest.FromString(body))
                    collector.changed.notify_all()
                self.send_response(answered[0])
                for name, value in answered[2].items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answered[1])))
                self.end_headers()
                self.wfile.write(answered[1])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    @property
    def spans(self) -> list[Span]:
        """Every span received."""
        with self.changed:
            return [
                span
                for request in self.traces
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    def wait(self, condition: Callable[[Collector], bool], deadline_s: float = 10.0) -> None:
        """Until the condition holds; it is looked at after each request."""
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self), deadline_s), "the collector was not sent what was expected"


def attributes(pairs: list[KeyValue]) -> dict[str, str | int | bool | float]:
    """Attributes as plain values; a key that comes twice fails."""
    found: dict[str, str | int | bool | float] = {}
    for pair in pairs:
        assert pair.key not in found
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        found[pair.key] = getattr(pair.value, kind)
    return found
