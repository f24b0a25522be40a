"""The registry, the metrics of requests and their Prometheus exposition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.reasons import INTERNAL_ERROR, MALFORMED_REQUEST, NO_RULE, UPSTREAM_TIMEOUT
from meshguard.model.record import FieldOperation
from meshguard.model.verdicts import Denial, Permit, ShadowResult
from meshguard.telemetry.metrics import OVERFLOW, HistogramValue, Registry
from meshguard.telemetry.prometheus import OPENMETRICS, TEXT, content_type, render
from meshguard.telemetry.request_metrics import RequestMetrics
from tests.telemetry.exposition import Series, parse
from tests.telemetry.records import DIGEST, Peer, Plan, Record, head


def exposed(registry: Registry, media_type: str = TEXT) -> Series:
    return parse("".join(render(registry.families(), media_type)), openmetrics=media_type == OPENMETRICS)


def only(series: Series, name: str, **labels: str) -> float:
    found = [value for (key, pairs), value in series.items() if key == name and labels.items() <= dict(pairs).items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def total(series: Series, name: str) -> float:
    return sum(value for (key, _), value in series.items() if key == name)


def test_requests_are_counted_by_route_status_and_verdict() -> None:
    registry = Registry()
    metrics = RequestMetrics(registry)
    denial = Denial(NO_RULE, DIGEST)
    metrics.consume(
        [
            Record(),
            Record(ended=1000.3, response_bytes=5000),
            Record(verdict=denial, refusal=NO_RULE, status=403, forwarded=0.0, answered=0.0, upstream=""),
            Record(verdict=None, refusal=MALFORMED_REQUEST, status=400, plan=None, head=None, forwarded=0.0, answered=0.0, upstream=""),
            Record(refusal=UPSTREAM_TIMEOUT, status=504, answered=0.0, ended=1015.0),
            Record(refusal=INTERNAL_ERROR, status=500, answered=0.0, forwarded=0.0, upstream=""),
            Record(status=0, aborted="client"),
        ],
        0.0,
    )
    series = exposed(registry)
    count = "meshguard_requests_total"
    assert only(series, count, verdict="allow", code="200", route="orders", cluster="app", listener="inbound") == 2
    assert only(series, count, verdict="deny", code="403", reason="no_rule") == 1
    assert only(series, count, verdict="refuse", code="400", reason="malformed_request") == 1
    assert only(series, count, verdict="error", reason="upstream_timeout") == 1
    assert only(series, count, verdict="error", reason="internal_error") == 1
    assert only(series, count, verdict="allow", aborted="client") == 1
    assert total(series, count) == 7

    server = "http_server_request_duration_seconds"
    ok = {"http_response_status_code": "200", "http_request_method": "GET", "http_route": "/orders/{id}", "url_scheme": "https"}
    assert only(series, f"{server}_bucket", le="0.005", **ok) == 1
    assert only(series, f"{server}_bucket", le="0.25", **ok) == 1
    assert only(series, f"{server}_bucket", le="0.5", **ok) == 2
    assert only(series, f"{server}_sum", **ok) == pytest.approx(0.3015)
    assert only(series, f"{server}_count", error_type="upstream_timeout") == 1
    assert only(series, f"{server}_count", error_type="aborted_by_client") == 1
    assert not any(key == f"{server}_count" and dict(pairs).get("error_type") in ("no_rule", "403") for key, pairs in series)

    client = "http_client_request_duration_seconds_count"
    assert only(series, client, server_address="127.0.0.1", server_port="8080", http_response_status_code="200") == 2
    assert only(series, client, error_type="upstream_timeout") == 1
    assert total(series, client) == 4  # what was not forwarded has no client request

    size = "http_server_response_body_size_bytes"
    assert only(series, f"{size}_bucket", le="1024.0", **ok) == 1
    assert only(series, f"{size}_sum", **ok) == 5480


def test_a_bound_belongs_to_its_bucket() -> None:
    registry = Registry()
    RequestMetrics(registry).consume([Record(started=0.0, forwarded=0.0, ended=0.25)], 0.0)
    series = exposed(registry)
    assert only(series, "http_server_request_duration_seconds_bucket", le="0.1") == 0
    assert only(series, "http_server_request_duration_seconds_bucket", le="0.25") == 1


def test_what_a_client_sends_cannot_flood_the_series() -> None:
    registry = Registry()
    metrics = RequestMetrics(registry, cap=50)
    for number in range(5000):
        method = f"M{number}"
        metrics.consume(
            [
                Record(plan=Plan(method=method, path=f"/{number}")),
                Record(plan=None, head=head(method=method.encode()), verdict=None, refusal=MALFORMED_REQUEST, status=400),
                Record(status=100 + number % 500),
            ],
            0.0,
        )
    series = exposed(registry)
    assert total(series, "meshguard_requests_total") == 15000
    assert sum(key == "meshguard_requests_total" for key, _ in series) <= 51
    assert only(series, "meshguard_requests_total", otel_metric_overflow="true") > 4000
    methods = {dict(pairs).get("http_request_method") for key, pairs in series if key == "http_server_request_duration_seconds_count"}
    assert methods == {"GET", "_OTHER", None}


def test_endpoints_that_churn_are_bounded() -> None:
    registry = Registry()
    RequestMetrics(registry).consume([Record(upstream=f"10.0.{n // 250}.{n % 250}:80") for n in range(1000)], 0.0)
    series = exposed(registry)
    counts = [value for (key, _), value in series.items() if key == "http_client_request_duration_seconds_count"]
    assert sum(counts) == 1000
    assert len(counts) <= 65


def test_ipv6_endpoints_are_split() -> None:
    registry = Registry()
    RequestMetrics(registry).consume([Record(upstream="[::1]:8080")], 0.0)
    assert only(exposed(registry), "http_client_request_duration_seconds_count", server_address="::1", server_port="8080") == 1


def test_field_operations_and_shadow_results_are_counted() -> None:
    registry = Registry()
    metrics = RequestMetrics(registry)
    verdict = Permit("read-orders", DIGEST, (ShadowResult("strict", "would_deny"),))
    metrics.consume([Record(verdict=verdict, operations=[FieldOperation("open", "card-number", "orders-pii", 3, 2)])] * 2, 0.0)
    series = exposed(registry)
    assert only(series, "meshguard_field_operations_total", field="card-number", operation="open", keyset="orders-pii") == 4
    assert only(series, "meshguard_shadow_decisions_total", rule="strict", effect="would_deny") == 2


def test_active_requests_go_up_and_down() -> None:
    registry = Registry()
    slot = RequestMetrics(registry).active("inbound")
    slot.value += 3
    slot.value -= 1
    assert only(exposed(registry), "http_server_active_requests", meshguard_listener="inbound") == 2


def test_plaintext_has_another_scheme() -> None:
    registry = Registry()
    RequestMetrics(registry).consume([Record(peer=Peer(tls_version="", protocol="h2"))], 0.0)
    assert only(exposed(registry), "http_server_request_duration_seconds_count", url_scheme="http", network_protocol_version="2") == 1


def test_labels_past_the_cap_share_one_series() -> None:
    counter = Registry().counter("c", "a counter", "", ("a",), cap=2)
    for value in "abcd":
        counter.labels(value).value += 1
    assert sorted(counter.family().samples) == sorted([(("a",), 1), (("b",), 1), (OVERFLOW, 2)])


def test_a_name_is_taken_once_and_labels_are_complete() -> None:
    registry = Registry()
    counter = registry.counter("c", "a counter", "", ("a", "b"))
    with pytest.raises(ValueError, match="exists"):
        registry.gauge("c", "again")
    with pytest.raises(ValueError, match="labels"):
        counter.labels("only one")
    with pytest.raises(ValueError, match="labels"):
        counter.labels()
    with pytest.raises(ValueError, match="ascend"):
        registry.histogram("h", "bounds", "s", (2.0, 1.0))


def test_a_broken_collector_hides_no_other() -> None:
    registry = Registry()
    registry.counter("fine", "works")

    def broken() -> list[object]:
        raise RuntimeError("no")

    registry.collect(broken)  # type: ignore[arg-type]  # never returns
    series = exposed(registry)
    assert only(series, "fine_total") == 0
    assert only(series, "meshguard_metrics_collector_failures_total") == 1


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.2,*/*;q=0.1",
            OPENMETRICS,
        ),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", TEXT),
        ("application/openmetrics-text;q=x", TEXT),
        (",;=,", TEXT),
    ],
)
def test_the_format_is_negotiated(accept: str, expected: str) -> None:
    assert content_type(accept) == expected


@settings(deadline=None)  # a shared machine is slow at times
@given(st.lists(st.text(), max_size=5), st.text(), st.sampled_from([TEXT, OPENMETRICS]))
def test_every_label_value_survives_the_exposition(values: list[str], help: str, media_type: str) -> None:
    registry = Registry()
    counter = registry.counter("m.c", "h" + help, "By", ("label",))
    histogram = registry.histogram("m.h", "help", "s", (0.5, 1.0), ("label",))
    for value in values:
        counter.labels(value).value += 1.5
        histogram.labels(value).observe(0.5)
    series = exposed(registry, media_type)
    for value in values:
        pairs = (("label", value),) if value else ()
        assert series[("m_c_bytes_total", pairs)] == 1.5 * values.count(value)
        assert series[("m_h_seconds_count", pairs)] == values.count(value)


def test_a_large_exposition_comes_in_pieces() -> None:
    registry = Registry()
    counter = registry.counter("m", "many", "", ("n",))
    for number in range(1000):
        counter.labels(number)
    pieces = list(render(registry.families()))
    assert len(pieces) >= 10
    assert max(map(len, pieces)) < 16_384
    assert len(parse("".join(pieces))) == 1001


def test_an_empty_histogram_value_counts_nothing() -> None:
    assert HistogramValue((1.0,), [0, 0], 0.0).count == 0


def test_a_record_that_cannot_be_read_harms_no_other() -> None:
    registry = Registry()
    metrics = RequestMetrics(registry)
    broken = Record()
    del broken.status
    with pytest.raises(AttributeError):
        metrics.consume([Record(), broken, Record()], 0.0)
    assert total(exposed(registry), "meshguard_requests_total") == 2
