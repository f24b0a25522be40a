"""The exporter against a real HTTP server: delivery, and every way in which a collector can fail."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from meshguard.telemetry import otlp
from meshguard.telemetry.metrics import Family, Kind, LabelValue, Registry
from meshguard.telemetry.observe import Observer
from meshguard.telemetry.otlp import OtlpExporter
from meshguard.telemetry.resource import resource_attributes
from meshguard.telemetry.span_ids import SpanIds
from meshguard.telemetry.spans import SpanRecorder
from tests.telemetry.collector import OK, Answer, Collector, attributes
from tests.telemetry.records import Record


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_FIRST_DELAY_S", 0.02)


def counted(registry: Registry, name: str) -> dict[tuple[LabelValue, ...], float]:
    family = next(family for family in registry.families() if family.name == f"meshguard.otlp.{name}")
    return {labels: value for labels, value in family.samples if isinstance(value, (int, float))}


def exporter(endpoint: str, registry: Registry, **options: object) -> OtlpExporter:
    settings: dict[str, object] = {"delay_s": 0.02, "timeout_s": 2.0} | options
    return OtlpExporter(endpoint, registry, lambda: {"service.name": "orders"}, **settings)  # type: ignore[arg-type]  # by the tests


def export(target: OtlpExporter, count: int, *, sampled: bool = True) -> None:
    """Send `count` records (two spans each) the way the product does."""
    observer = Observer([SpanRecorder(target, SpanIds(1 << 60))], Registry())
    for number in range(count):
        observer.finished(Record(number=number, sampled=sampled, client_span_id=b"%016x" % (number + 1)))
    observer.flush()


def test_spans_and_their_resource_arrive() -> None:
    registry = Registry()
    with Collector() as collector:
        target = exporter(collector.endpoint, registry, headers={"Authorization": "Bearer sesame"})
        export(target, 300)
        target.close(10)
    assert len(collector.spans) == 600
    assert len({span.span_id for span in collector.spans}) == 600
    (resource,) = {request.resource_spans[0].resource.SerializeToString() for request in collector.traces}
    assert attributes(list(collector.traces[0].resource_spans[0].resource.attributes)) == {"service.name": "orders"}
    assert resource
    scope = collector.traces[0].resource_spans[0].scope_spans[0]
    assert scope.scope.name == "meshguard"
    headers = collector.headers[0]
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["authorization"] == "Bearer sesame"
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.connections == 1  # kept alive
    assert counted(registry, "spans.sent") == {(): 600}
    assert counted(registry, "spans.dropped") == {}
    assert "sesame" not in repr(target)


def test_spans_come_without_being_asked_for_and_before_the_end() -> None:
    with Collector() as collector:
        target = exporter(collector.endpoint, Registry())
        export(target, 1)
        collector.wait(lambda c: len(c.traces) == 1)
        export(target, 1)
        collector.wait(lambda c: len(c.traces) == 2)
        target.close(10)


def test_a_path_in_the_endpoint_is_kept_and_compression_works() -> None:
    with Collector() as collector:
        target = exporter(collector.endpoint + "/otlp/", Registry(), compress=True)
        export(target, 10)
        target.close(10)
    assert collector.paths == ["/otlp/v1/traces"]
    assert collector.headers[0]["content-encoding"] == "gzip"
    assert len(collector.spans) == 20


def test_metrics_are_exported_on_time_and_at_the_end() -> None:
    registry = Registry()
    counter = registry.counter("meshguard.test", "a test").labels()
    with Collector() as collector:
        target = exporter(collector.endpoint, registry, families=registry.families, metrics_interval_s=0.1)
        target.start()
        collector.wait(lambda c: len(c.metrics) >= 2)
        counter.value = 77
        target.close(10)
    metrics = {metric.name: metric for metric in collector.metrics[-1].resource_metrics[0].scope_metrics[0].metrics}
    assert metrics["meshguard.test"].sum.data_points[0].as_int == 77


def test_a_new_process_shows_up_before_the_first_interval_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_FIRST_METRICS_S", 0.1)
    registry = Registry()
    with Collector() as collector:
        target = exporter(collector.endpoint, registry, families=registry.families, metrics_interval_s=3600.0)
        target.start()
        collector.wait(lambda c: len(c.metrics) == 1)
        target.close(10)
    assert len(collector.metrics) == 2


def test_metrics_are_read_in_the_thread_of_the_loop() -> None:
    readers: list[threading.Thread] = []

    def families() -> list[Family]:
        readers.append(threading.current_thread())
        asyncio.all_tasks()  # raises without a running loop
        return [Family("meshguard.test", Kind.COUNTER, "a test", "", (), [((), len(readers))])]

    async def scenario(endpoint: str, collector: Collector) -> None:
        target = exporter(endpoint, Registry(), families=families, metrics_interval_s=0.05)
        target.start()
        await asyncio.to_thread(collector.wait, lambda c: len(c.metrics) >= 3)
        started = time.monotonic()
        target.close(10)  # holds the loop: the thread must not wait for it
        assert time.monotonic() - started < 5

    with Collector() as collector:
        asyncio.run(scenario(collector.endpoint, collector))
    assert set(readers) == {threading.current_thread()}
    values = [request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].as_int for request in collector.metrics]
    assert values == sorted(values)
    assert values[-1] == len(readers)


def test_metrics_are_sent_soon_after_the_collector_came_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_FIRST_METRICS_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    registry = Registry()
    target = exporter(f"http://127.0.0.1:{port}", registry, families=registry.families, metrics_interval_s=3600.0)
    target.start()
    _until(lambda: counted(registry, "failures").get(("metrics", "ConnectionRefusedError"), 0) >= 2)
    with Collector(port=port) as collector:
        collector.wait(lambda c: len(c.metrics) == 1)
        target.close(10)


def test_a_collector_that_is_down_costs_nothing_and_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    registry = Registry()
    target = exporter(f"http://127.0.0.1:{port}", registry, capacity=100, attempts=100)
    before = time.perf_counter()
    for _ in range(50):
        export(target, 50)
    assert time.perf_counter() - before < 5  # 2500 records: the cost of encoding
    assert counted(registry, "spans.dropped")[("queue_full",)] >= 4000
    started = time.monotonic()
    target.close(0.3)
    assert time.monotonic() - started < 3
    _ended("otlp")
    assert sum(counted(registry, "spans.dropped").values()) == 5000
    assert counted(registry, "failures")[("traces", "ConnectionRefusedError")] >= 1


def test_a_collector_that_comes_back_gets_what_waited() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    registry = Registry()
    target = exporter(f"http://127.0.0.1:{port}", registry, attempts=100)
    export(target, 5)
    _until(lambda: counted(registry, "failures").get(("traces", "ConnectionRefusedError"), 0) >= 2)
    with Collector(port=port) as collector:
        collector.wait(lambda c: len(c.traces) == 1)
        target.close(10)
    assert len(collector.spans) == 10
    assert counted(registry, "spans.dropped") == {}


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_temporary_refusals_are_retried(status: int) -> None:
    answers: list[Answer] = [(status, b"later", {"retry-after": "0"}), (status, b"", {}), OK]
    registry = Registry()
    with Collector(lambda path: answers.pop(0)) as collector:
        target = exporter(collector.endpoint, registry)
        export(target, 1)
        target.close(10)
    assert len(collector.paths) == 3
    assert counted(registry, "spans.sent") == {(): 2}
    assert counted(registry, "failures") == {("traces", str(status)): 2}


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 307])
def test_final_refusals_are_not_retried(status: int) -> None:
    registry = Registry()
    with Collector(lambda path: (status, b"no", {"location": "http://127.0.0.1:1/"})) as collector:
        target = exporter(collector.endpoint, registry)
        export(target, 1)
        target.close(10)
    assert collector.paths == ["/v1/traces"]
    assert counted(registry, "spans.dropped") == {("failed",): 2}


def test_retries_end() -> None:
    registry = Registry()
    with Collector(lambda path: (503, b"", {})) as collector:
        target = exporter(collector.endpoint, registry, attempts=3)
        export(target, 1)
        target.close(10)
    assert len(collector.paths) == 3
    assert counted(registry, "spans.dropped") == {("failed",): 2}


def test_partial_success_is_counted() -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 3
    registry = Registry()
    with Collector(lambda path: (200, response.SerializeToString(), {})) as collector:
        target = exporter(collector.endpoint, registry)
        export(target, 5)
        target.close(10)
    assert counted(registry, "spans.sent") == {(): 7}
    assert counted(registry, "spans.dropped") == {("rejected",): 3}


def _serve(behave: Callable[[socket.socket], None]) -> tuple[str, socket.socket]:
    """A server that is no collector: `behave` gets each connection."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                try:
                    behave(connection)
                except OSError:
                    pass

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}", server


GARBAGE = {
    "no http": b"SSH-2.0-OpenSSH_9.0\r\n",
    "a broken status": b"HTTP/1.1 abc OK\r\n\r\n",
    "an endless header": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000 + b"\r\n",
    "a bad length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
    "a bad chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", list(GARBAGE))
def test_garbage_from_a_collector_is_survived(kind: str) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(GARBAGE[kind])

    endpoint, server = _serve(behave)
    registry = Registry()
    target = exporter(endpoint, registry, attempts=2, timeout_s=0.5)
    export(target, 1)
    _until(lambda: bool(sum(counted(registry, "spans.dropped").values()) + counted(registry, "spans.sent")[()]))
    target.close(5)
    server.close()
    dropped = sum(counted(registry, "spans.dropped").values())
    assert dropped + counted(registry, "spans.sent")[()] == 2
    if kind != "a bad length":  # http.client reads that as "until the end": an answer with status 200
        assert dropped == 2


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n")
        for _ in range(2000):
            connection.sendall(b"\x00" * 65536)

    endpoint, server = _serve(behave)
    registry = Registry()
    target = exporter(endpoint, registry)
    export(target, 1)
    _until(lambda: counted(registry, "spans.sent")[()] == 2)
    target.close(5)
    server.close()


def test_a_collector_that_drips_is_cut() -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        for _ in range(200):
            connection.sendall(b"H" if _ == 0 else b"T")
            time.sleep(0.05)  # the behaviour under test, not a wait

    endpoint, server = _serve(behave)
    registry = Registry()
    target = exporter(endpoint, registry, attempts=1, timeout_s=0.4)
    started = time.monotonic()
    export(target, 1)
    _until(lambda: counted(registry, "spans.dropped") == {("failed",): 2})
    assert time.monotonic() - started < 5
    target.close(5)
    server.close()


def test_nothing_is_left_open() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    threads = threading.active_count()
    with Collector() as collector:
        before = descriptors()
        for _ in range(10):
            target = exporter(collector.endpoint, Registry())
            export(target, 1)
            target.close(10)
        _until(lambda: descriptors() <= before + 1)  # the collector notices the end of a connection a moment later
    _ended("otlp")
    _until(lambda: threading.active_count() <= threads)


def test_a_collector_that_says_nothing_holds_up_nobody() -> None:
    release = threading.Event()

    def behave(connection: socket.socket) -> None:
        release.wait(10)

    endpoint, server = _serve(behave)
    registry = Registry()
    target = exporter(endpoint, registry, timeout_s=60.0)
    export(target, 1)
    started = time.monotonic()
    target.close(0.3)
    assert time.monotonic() - started < 3
    release.set()
    server.close()
    _ended("otlp")
    assert sum(counted(registry, "spans.dropped").values()) == 2


def test_https_verifies_the_collector(tmp_path: Path) -> None:
    certificate = _self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    with Collector() as collector:
        collector.server.socket = context.wrap_socket(collector.server.socket, server_side=True)
        endpoint = collector.endpoint.replace("http://", "https://")
        trusting = exporter(endpoint, Registry(), certificate=str(certificate))
        export(trusting, 1)
        trusting.close(10)
        assert len(collector.spans) == 2
        registry = Registry()
        doubting = exporter(endpoint, registry, attempts=1)
        export(doubting, 1)
        doubting.close(10)
        assert len(collector.spans) == 2
        assert counted(registry, "failures") == {("traces", "SSLCertVerificationError"): 1}


def _self_signed(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "collector")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path = directory / "cert.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_resource_that_fails_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def resource() -> dict[str, str | int | bool | float]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("not yet")
        return {"service.name": "orders"}

    registry = Registry()
    with Collector() as collector:
        target = OtlpExporter(collector.endpoint, registry, resource, delay_s=0.02)
        export(target, 1)
        _until(lambda: counted(registry, "spans.dropped") == {("failed",): 2})
        export(target, 1)
        collector.wait(lambda c: len(c.traces) == 1)
        target.close(10)
    assert any("exporter failed" in entry.getMessage() for entry in caplog.records)


@pytest.mark.parametrize(
    "endpoint",
    ["collector:4318", "ftp://collector", "http://", "http://user:pw@collector:4318", "http://collector:x", "http://c:1/?a=b", ""],
)
def test_an_endpoint_that_is_none_is_refused_without_showing_it(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"endpoint|port|Port") as caught:
        exporter(endpoint, Registry())
    assert "pw" not in str(caught.value)


def test_the_resource_honours_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    found = resource_attributes(None, "i-1")
    assert (found["service.name"], found["service.instance.id"], found["telemetry.sdk.language"]) == ("meshguard", "i-1", "python")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.name=from-attributes,service.instance.id=i-9")
    found = resource_attributes(None, "i-1")
    assert (found["deployment.environment.name"], found["service.name"], found["service.instance.id"]) == ("prod", "from-attributes", "i-9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-name")
    assert resource_attributes(None, "i-1")["service.name"] == "from-name"
    assert resource_attributes("from-config", "i-1")["service.name"] == "from-config"


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        pause.wait(0.005)


def _ended(name: str) -> None:
    _until(lambda: not any(thread.name == name for thread in threading.enumerate()))
