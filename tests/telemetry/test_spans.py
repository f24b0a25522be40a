"""Spans: what they say (semantic conventions), decoded by the official messages."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from meshguard.model.reasons import INTERNAL_ERROR, MALFORMED_REQUEST, NO_RULE, UPSTREAM_RESET, UPSTREAM_TIMEOUT
from meshguard.model.verdicts import Denial
from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.otlp_encoding import metrics_request, rejected, resource_message, span_attribute, traces_request
from meshguard.telemetry.request_metrics import RequestMetrics
from meshguard.telemetry.span_ids import SpanIds
from meshguard.telemetry.spans import SCHEMA_URL, SpanRecorder, redacted_query
from tests.telemetry.collector import attributes
from tests.telemetry.records import DIGEST, Peer, Plan, Record, head

KEY = 0x0123456789ABCDEF
OFFSET = 1_700_000_000.0
DENIED = Denial(NO_RULE, DIGEST)


class Kept:
    def __init__(self) -> None:
        self.data = b""
        self.count = 0

    def add(self, spans: bytes, count: int) -> None:
        self.data += spans
        self.count += count


def spans(*records: Record, always: tuple[str, ...] = ()) -> list[Span]:
    sink = Kept()
    recorder = SpanRecorder(sink, SpanIds(KEY, always), lambda cluster: "https" if cluster == "app" else "http")
    recorder.consume(records, OFFSET)
    recorder.flush()
    request = ExportTraceServiceRequest.FromString(traces_request(resource_message({}), "meshguard", "1", SCHEMA_URL, sink.data))
    assert not request.resource_spans or request.resource_spans[0].scope_spans[0].schema_url == SCHEMA_URL
    found = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
    assert len(found) == sink.count
    return found


def values(span: Span) -> dict[str, Any]:
    return attributes(list(span.attributes))


def test_a_request_is_a_server_span_with_a_client_span_below() -> None:
    server, client = spans(Record(sampled=True))
    assert server.kind == Span.SPAN_KIND_SERVER
    assert server.name == "GET /orders/{id}"
    assert server.trace_id.hex() == client.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert server.parent_span_id.hex() == "00f067aa0ba902b7"
    assert client.parent_span_id == server.span_id
    assert client.span_id.hex() == "b7ad6b7169203331"  # what the upstream was told is its parent
    assert server.span_id != client.span_id
    assert server.start_time_unix_nano == pytest.approx(1_700_001_000_000_000_000, abs=1000)
    assert server.end_time_unix_nano - server.start_time_unix_nano == pytest.approx(1_500_000, abs=1000)
    assert client.end_time_unix_nano - client.start_time_unix_nano == pytest.approx(1_300_000, abs=1000)
    assert server.status.code == client.status.code == Status.STATUS_CODE_UNSET
    assert (server.flags, client.flags) == (0x301, 0x101)
    assert values(server) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/orders/{id}",
        "url.path": "/orders/7",
        "url.scheme": "https",
        "url.query": "card=REDACTED",
        "server.address": "orders.shop.example",
        "server.port": 8443,
        "client.address": "10.1.2.3",
        "network.peer.address": "10.1.2.3",
        "network.peer.port": 51234,
        "network.protocol.version": "1.1",
        "tls.protocol.version": "1.3",
        "user_agent.original": "curl/8.5",
        "meshguard.decision": "allow",
        "meshguard.rule": "read-orders",
        "meshguard.principal": "spiffe://shop.example/ns/prod/sa/billing",
        "meshguard.policy_digest": DIGEST,
        "meshguard.decision_id": "5f1c2a9e-1",
        "meshguard.listener": "inbound",
    }
    assert client.kind == Span.SPAN_KIND_CLIENT
    assert client.name == "GET /orders/{id}"
    assert values(client) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": 8080,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 8080,
        "network.protocol.version": "1.1",
        "url.full": "https://orders.shop.example/orders/7?card=REDACTED",
        "url.template": "/orders/{id}",
        "meshguard.cluster": "app",
    }


def test_a_client_span_tells_its_own_protocol_and_the_port_that_was_asked_for() -> None:
    _, client = spans(Record(sampled=True, upstream_protocol="h2", plan=Plan(port=8443)))
    assert values(client)["network.protocol.version"] == "2"
    assert values(client)["url.full"].startswith("https://orders.shop.example:8443/orders/7")


@pytest.mark.parametrize(
    ("record", "server_error", "client_error"),
    [
        (Record(status=404), "", "404"),  # a 4xx is an error of the client's side only
        (Record(status=503), "503", "503"),
        (Record(status=302), "", ""),
        (Record(refusal=UPSTREAM_TIMEOUT, status=504, answered=0.0), "upstream_timeout", "upstream_timeout"),
        (Record(refusal=UPSTREAM_RESET, status=502), "upstream_reset", "upstream_reset"),
        (Record(refusal=INTERNAL_ERROR, status=500, forwarded=0.0), "internal_error", None),
        (Record(verdict=DENIED, refusal=NO_RULE, status=403, forwarded=0.0), "", None),
        (Record(aborted="client"), "aborted_by_client", "aborted_by_client"),
        (Record(status=0, aborted="client", forwarded=0.0), "aborted_by_client", None),
    ],
)
def test_the_status_follows_the_conventions(record: Record, server_error: str, client_error: str | None) -> None:
    record.sampled = True
    found = spans(record)
    assert len(found) == (1 if client_error is None else 2)
    for span, error in zip(found, (server_error, client_error), strict=False):
        assert values(span).get("error.type", "") == error
        assert span.status.code == (Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET)


def test_what_is_not_sampled_leaves_no_span() -> None:
    denied = Record(verdict=DENIED, refusal=NO_RULE, status=403)
    failed = Record(refusal=UPSTREAM_TIMEOUT, status=504)
    assert spans(Record(), denied, failed) == []


def test_denials_and_errors_are_recorded_when_told_to() -> None:
    denied = Record(verdict=DENIED, refusal=NO_RULE, status=403, forwarded=0.0, client_span_id=b"")
    refused = Record(verdict=None, plan=None, refusal=MALFORMED_REQUEST, status=400, forwarded=0.0)
    failed = Record(refusal=UPSTREAM_TIMEOUT, status=504)
    passed_on = Record(status=500)
    assert [values(span)["meshguard.reason"] for span in spans(Record(), denied, refused, failed, always=("denials",))] == [
        "no_rule",
        "malformed_request",
    ]
    found = spans(Record(), denied, refused, failed, passed_on, Record(aborted="client"), always=("errors",))
    assert [span.kind for span in found] == [2, 3] * 3
    for span in found:
        assert span.flags & 1 == 0  # the next hop was told so


def test_a_head_that_began_no_trace_gets_one() -> None:
    blank = Record(
        head=None,
        plan=None,
        verdict=None,
        refusal=MALFORMED_REQUEST,
        status=400,
        trace_id=b"",
        parent_id=b"",
        client_span_id=b"",
        forwarded=0.0,
    )
    first, second = spans(
        blank, Record(number=2, head=None, plan=None, refusal=MALFORMED_REQUEST, trace_id=b"", client_span_id=b""), always=("denials",)
    )
    assert (len(first.trace_id), len(first.span_id), first.parent_span_id) == (16, 8, b"")
    assert first.trace_id != second.trace_id
    assert first.name == "HTTP"
    ids = SpanIds(KEY, ("denials",))  # the decision log tells the same ids
    assert (ids.trace_id(blank).decode(), ids.server_span_id(blank).decode()) == (first.trace_id.hex(), first.span_id.hex())


def test_span_ids_are_the_same_at_each_call_and_unlike_others() -> None:
    ids = SpanIds(KEY)
    made = {ids.server_span_id(Record(client_span_id=b"%016x" % n)) for n in range(1, 1000)}
    assert len(made) == 999
    assert all(re.fullmatch(rb"[0-9a-f]{16}", one) and one != b"0" * 16 for one in made)
    assert ids.server_span_id(Record(client_span_id=b"%016x" % KEY)) == b"0000000000000001"  # never all zeros
    assert ids.server_span_id(Record(span_id=b"1234567812345678")) == b"1234567812345678"
    with pytest.raises(ValueError, match="'everything'"):
        SpanIds(1, ("denials", "everything"))


def test_unknown_methods_and_missing_templates_keep_names_few() -> None:
    server, client = spans(Record(sampled=True, plan=Plan(method="BREW", template="", path="/pot/1")))
    assert (server.name, client.name) == ("HTTP", "HTTP")
    assert values(server)["http.request.method"] == "_OTHER"
    assert values(server)["http.request.method_original"] == "BREW"
    assert "http.route" not in values(server)


def test_retries_ipv6_and_http2_are_told() -> None:
    server, client = spans(Record(sampled=True, attempts=2, upstream="[fd00::1]:9000", peer=Peer(protocol="h2", tls_version="")))
    assert values(client)["http.request.resend_count"] == 2
    assert (values(client)["server.address"], values(client)["server.port"]) == ("fd00::1", 9000)
    assert values(server)["network.protocol.version"] == "2"
    assert values(server)["url.scheme"] == "http"
    assert "tls.protocol.version" not in values(server)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("a=1&b=2", "a=REDACTED&b=REDACTED"),
        ("ssn123-45-6789", "REDACTED"),
        ("123-45-6789=x", "REDACTED"),
        ("eyJhbGciOi1.x=1", "REDACTED"),
        ("filter[name]=x&page.size=", "filter[name]=REDACTED&page.size=REDACTED"),
        ("a%3Dsecret=1", "REDACTED"),
        ("", "REDACTED"),
        ("&".join(f"k={n}" for n in range(50)), "&".join(["k=REDACTED"] * 20 + ["…"])),
    ],
)
def test_queries_are_redacted(query: str, expected: str) -> None:
    assert redacted_query(query) == expected


@settings(deadline=None)  # a shared machine is slow at times
@given(st.text(max_size=200))
def test_no_digit_of_a_query_comes_through(query: str) -> None:
    assert not any(character.isdigit() for character in redacted_query(query))


def test_client_text_is_capped_in_spans() -> None:
    sent = head(b"/x", block=b"user-agent: " + b"A" * 9000 + b"\r\n")
    server, client = spans(Record(sampled=True, plan=Plan(path="/" + "p" * 9000, host="h" * 9000, template="/" + "t" * 900), head=sent))
    assert len(values(server)["url.path"]) == 2048
    assert len(values(server)["user_agent.original"]) == 256
    assert len(values(server)["server.address"]) == 255
    assert len(values(client)["url.full"]) < 2400
    assert len(server.name) < 210


@settings(deadline=None)  # a shared machine is slow at times
@given(
    path=st.text(st.characters(codec=None), max_size=50),
    block=st.binary(max_size=60),
    target=st.binary(max_size=60),
    text=st.text(st.characters(codec=None), max_size=20),
)
def test_any_text_makes_spans_that_decode(path: str, block: bytes, target: bytes, text: str) -> None:
    record = Record(sampled=True, plan=Plan(path=path, host=text, method=text), head=head(target, block=b"User-Agent:" + block))
    assert len(spans(record)) == 2


@pytest.mark.parametrize("value", ["", "text", "é", 0, 1, -1, 2**62, -(2**63), True, False, 1.5, -0.0])
def test_every_kind_of_attribute_decodes(value: str | int | bool | float) -> None:
    encoded = span_attribute("key", value)
    found = attributes(list(Span.FromString(encoded).attributes))
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


@settings(deadline=None)  # a shared machine is slow at times
@given(st.integers(0, 40_000))
def test_lengths_of_every_size_decode(size: int) -> None:
    decoded = Span.FromString(span_attribute("k", "x" * size)).attributes[0]
    assert decoded.value == AnyValue(string_value="x" * size)


def test_metrics_decode() -> None:
    registry = Registry()
    metrics = RequestMetrics(registry)
    metrics.consume([Record(), Record(ended=1000.3), Record(status=500)], 0.0)
    metrics.active("inbound").value = 2
    registry.gauge("g", "a gauge", "1").labels().value = -1.5
    overflowing = registry.counter("o", "overflows", "", ("a",), cap=1)
    overflowing.labels("x").value = 3
    overflowing.labels("y").value = 4
    request = ExportMetricsServiceRequest.FromString(
        metrics_request(resource_message({"service.name": "s"}), "meshguard", "1", SCHEMA_URL, registry.families(), 10, 20)
    )
    (resource,) = request.resource_metrics
    assert attributes(list(resource.resource.attributes)) == {"service.name": "s"}
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version, scope.schema_url) == ("meshguard", "1", SCHEMA_URL)
    found = {metric.name: metric for metric in scope.metrics}

    duration = found["http.server.request.duration"]
    assert duration.unit == "s"
    assert duration.histogram.aggregation_temporality == 2
    point = next(p for p in duration.histogram.data_points if attributes(list(p.attributes))["http.response.status_code"] == 200)
    assert point.count == 2
    assert point.sum == pytest.approx(0.3015)
    assert list(point.explicit_bounds) == [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
    assert list(point.bucket_counts) == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert (point.start_time_unix_nano, point.time_unix_nano) == (10, 20)

    requests = found["meshguard.requests"].sum
    assert requests.is_monotonic
    assert sum(point.as_int for point in requests.data_points) == 3
    active = found["http.server.active_requests"].sum
    assert (active.is_monotonic, active.aggregation_temporality, active.data_points[0].as_int) == (False, 2, 2)
    assert found["g"].gauge.data_points[0].as_double == -1.5
    assert [(attributes(list(p.attributes)), p.as_int) for p in found["o"].sum.data_points] == [
        ({"a": "x"}, 3),
        ({"otel.metric.overflow": True}, 4),
    ]


def test_partial_success_is_understood() -> None:
    traces = ExportTraceServiceResponse()
    assert rejected(traces.SerializeToString()) == 0
    traces.partial_success.error_message = "no"
    traces.partial_success.rejected_spans = 300
    assert rejected(traces.SerializeToString()) == 300
    metrics = ExportMetricsServiceResponse()
    metrics.partial_success.rejected_data_points = 5
    assert rejected(metrics.SerializeToString()) == 5


@settings(deadline=None)  # a shared machine is slow at times
@given(st.binary(max_size=64))
def test_garbage_instead_of_a_response_is_harmless(data: bytes) -> None:
    assert 0 <= rejected(data) < 2**63


@settings(deadline=None)  # a shared machine is slow at times
@given(st.integers(0, 2**63 - 1), st.text(max_size=200), st.binary(max_size=8))
def test_a_response_with_more_in_it_is_understood(count: int, message: str, cut: bytes) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.error_message = message
    response.partial_success.rejected_spans = count
    data = b"\x98\x06\x07" + response.SerializeToString()  # an unknown field before it
    assert rejected(data) == count
    assert rejected(data[: len(data) - 1] if cut else data) in (0, count)


@pytest.mark.parametrize(
    ("block", "agent"),
    [
        (b"user-agent: a\r\n", "a"),
        (b"User-Agent:\t b \r\n", "b"),
        (b"x: y\r\nUSER-agent: c\r\nz: 1\r\n", "c"),
        (b"x-user-agent: no\r\nuser-agent: d\r\n", "d"),
        (b"X-User-Agent: no\r\nUser-Agent: e\r\n", "e"),
        (b"x: user-agent: no\r\n", None),
        (b"x-user-agent: no\r\n", None),
        (b"user-agent: \r\n", None),
        (b"", None),
        (b"user-agent: f\xff\r\n", "f\\xff"),
    ],
)
def test_the_user_agent_is_found_in_every_spelling(block: bytes, agent: str | None) -> None:
    server, _ = spans(Record(sampled=True, head=head(block=block)))
    assert values(server).get("user_agent.original") == agent


@pytest.mark.parametrize("port", [0, 1, 127, 128, 16383, 16384, 65535])
def test_ports_of_every_size_decode(port: int) -> None:
    server, _ = spans(Record(sampled=True, peer=Peer(client_port=port)))
    assert values(server)["network.peer.port"] == port


def test_a_record_that_cannot_be_encoded_harms_no_other() -> None:
    sink = Kept()
    recorder = SpanRecorder(sink, SpanIds(KEY))
    broken = Record(sampled=True)
    del broken.started
    with pytest.raises(AttributeError):
        recorder.consume([Record(sampled=True), broken, Record(sampled=True)], OFFSET)
    recorder.flush()
    assert sink.count == 4
