"""What is told of each request: decision records, metrics, spans, shadow rules; and what must never be told."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.e2e.conftest import SECRET, Town
from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP
from tests.harness.upstream import Exchange

Dial = Callable[..., RawClient]
TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_record_of_an_allowed_request(engine: str, dial: Dial, town: Town) -> None:
    mark = town.proxy.mark()
    with dial(engine) as client:
        client.request(get("/open/rec/1?q=xyz", method="POST", body=b"12345", fields=[f"Traceparent: 00-{TRACE}-b7ad6b7169203331-01"]))
        record = town.proxy.decision_where(lambda r: r["what"]["path"] == "/open/rec/1", "the record", mark)
        local = client.local
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["time"])
    assert record["schema"] == "meshguard.decision/1"
    assert record["who"]["principal"] == SHOP + "billing"
    assert (record["who"]["address"], record["who"]["port"]) == local
    assert record["what"] | {"response_bytes": 0} == {
        "method": "POST",
        "host": "shop.example",
        "path": "/open/rec/1",
        "route": f"only-{engine}",
        "cluster": "app",
        "listener": engine,
        "protocol": "http/1.1",
        "tls": "TLSv1.3",
        "port": town.proxy.ports[engine],
        "request_bytes": 5,
        "response_bytes": 0,
        "query_bytes": 5,
    }
    assert record["what"]["response_bytes"] > 0
    assert record["why"]["verdict"] == "allow"
    assert record["why"]["rule"] == "billing-open"
    assert record["why"]["policy_digest"].startswith("sha256:")
    assert record["outcome"]["status"] == 200
    assert record["outcome"]["upstream"] == f"127.0.0.1:{town.upstream.port}"
    assert record["outcome"]["attempts"] == 1
    assert 0 < record["outcome"]["duration_us"] < 5_000_000
    assert record["trace_id"] == TRACE
    assert "xyz" not in str(record), "a query is not put on record"


def test_a_record_of_each_denial_names_the_reason(engine: str, dial: Dial, town: Town) -> None:
    with dial(engine) as client:
        denied = client.request(get("/admin/rec"))
        missed = client.request(get("/orders/7"))
        lost = client.request(get("/open/%2F"))
    record = town.proxy.decision(denied.decision_id)
    assert (record["why"]["verdict"], record["why"]["rule"], record["why"]["reason"]) == ("deny", "no-admin", "policy_denied")
    record = town.proxy.decision(missed.decision_id)
    assert (record["why"]["reason"], record["why"]["near_miss"]["rule"], record["why"]["near_miss"]["condition"]) == (
        "no_rule",
        "orders",
        "principal",
    )
    record = town.proxy.decision(lost.decision_id)
    assert record["why"]["verdict"] == "refuse"
    assert record["what"]["path"] == "/open/%2F"


def test_every_request_is_on_record_exactly_once(engine: str, dial: Dial, town: Town) -> None:
    mark = town.proxy.mark()
    with dial(engine) as client:
        for i in range(200):
            client.send(get(f"/open/once/{engine}/{i}" if i % 4 else f"/admin/once/{engine}/{i}"))
        statuses = [client.response().status for _ in range(200)]
        client.send(b"GET /open/bad HTTP/1.1\nHost: x\r\n\r\n")
        assert client.response().status == 400
    assert statuses.count(200) == 150
    town.proxy.decision_where(
        lambda r: r["outcome"]["status"] == 400 and r["what"]["listener"] == engine, "the record of the bad head", mark
    )
    mine = [r for r in town.proxy.stdout.items[mark:] if f"/once/{engine}/" in r["what"]["path"]]
    assert len(mine) == 200
    assert len({r["id"] for r in mine}) == 200


def test_client_text_cannot_forge_a_record(engine: str, dial: Dial, town: Town) -> None:
    mark = town.proxy.mark()
    evil = '/open/x","why":{"verdict":"allow"}}%0A{"forged":1}'.replace('"', "%22")
    with dial(engine) as client:
        client.request(get(evil))
        client.request(get("/open/" + "long" * 1500))
        client.request(get("/open/end-of-forgery"))
    town.proxy.decision_where(lambda r: r["what"]["path"] == "/open/end-of-forgery", "the last record", mark)
    assert not [r for r in town.proxy.stdout.items[mark:] if "forged" in r or "schema" not in r]
    assert max(len(str(r)) for r in town.proxy.stdout.items[mark:]) < 6000


def test_aborted_requests_are_on_record(engine: str, dial: Dial, town: Town) -> None:
    mark = town.proxy.mark()
    with dial(engine) as client:
        client.send(get("/stream/aborted", method="POST", fields=["Content-Length: 10"]) + b"abc")
        town.upstream.wait(lambda: [s for s in town.upstream.requests if s.target == "/stream/aborted" and s.body_bytes == 3], "the part")
    record = town.proxy.decision_where(lambda r: r["what"]["path"] == "/stream/aborted", "the record", mark)
    assert record["outcome"]["aborted"] == "client"


def test_shadow_rules_change_nothing_and_are_reported(engine: str, dial: Dial, town: Town) -> None:
    mark = town.proxy.mark()
    with dial(engine) as client:
        assert client.request(get("/shadowed/x")).status == 200
        assert client.request(get("/orders/1")).status == 403
    record = town.proxy.decision_where(lambda r: r["what"]["path"] == "/shadowed/x", "the record", mark)
    assert record["why"]["shadow"] == [{"rule": "shadow-deny", "effect": "would_deny"}]
    record = town.proxy.decision_where(lambda r: r["what"]["path"] == "/orders/1", "the record", mark)
    assert record["why"]["shadow"] == [{"rule": "shadow-allow", "effect": "would_allow"}]


def test_metrics(engine: str, dial: Dial, town: Town) -> None:
    def count(**labels: str) -> float:
        try:
            return town.proxy.metric("meshguard_requests_total", listener=engine, **labels)
        except AssertionError:
            return 0.0

    before = count(verdict="allow"), count(verdict="deny")
    with dial(engine) as client:
        for path in ("/open/m", "/open/m", "/admin/m"):
            client.request(get(path))
    from tests.harness.proxy import eventually

    eventually(lambda: (count(verdict="allow"), count(verdict="deny")) == (before[0] + 2, before[1] + 1), "the counts")
    text = town.proxy.metrics()
    assert "http_server_request_duration_seconds_bucket" in text
    assert "http_client_request_duration_seconds_count" in text
    assert "/open/m" not in text, "a raw path became a label"


def test_metrics_of_hostile_methods_and_paths_stay_bounded(engine: str, dial: Dial, town: Town) -> None:
    from tests.harness.proxy import eventually

    with dial(engine) as client:
        client.request(get("/open/card"))
        eventually(lambda: "http_server" in town.proxy.metrics(), "metrics")
        before = len(town.proxy.metrics().splitlines())
        for i in range(300):
            answer = client.request(get(f"/open/card/{i}", method=f"M{i}"), method="GET")
            assert answer.status in (200, 403, 405, 501)
            if client.eof or "close" in answer.get("connection"):
                break
    assert len(town.proxy.metrics().splitlines()) - before < 150


def test_spans(engine: str, dial: Dial, town: Town) -> None:
    """A SERVER and a CLIENT span with the stable semantic conventions; the upstream's parent is the CLIENT span."""
    trace = TRACE[:-2] + ("aa" if engine == "default" else "bb")
    with dial(engine) as client:
        answer = client.request(
            get("/open/span?token=" + SECRET, fields=[f"Traceparent: 00-{trace}-b7ad6b7169203331-01", "User-Agent: spanner"])
        )
    sent = {k.lower(): v for k, v in answer.json["fields"]}["traceparent"].split("-")
    server = town.collector.wait(lambda s: s.trace_id == trace and s.kind == 2, "of the server side")
    upstream = town.collector.wait(lambda s: s.trace_id == trace and s.kind == 3, "of the client side")
    assert server.parent_id == "b7ad6b7169203331"
    assert upstream.parent_id == server.span_id
    assert sent[2] == upstream.span_id
    assert server.resource["service.name"] == "town"
    a = server.attributes
    assert a["http.request.method"] == "GET"
    assert a["http.response.status_code"] == 200
    assert a["url.path"] == "/open/span"
    assert a["url.scheme"] == "https"
    assert a["network.protocol.version"] == "1.1"
    assert a["client.address"] == "127.0.0.1"
    assert a["user_agent.original"] == "spanner"
    assert a["server.address"] == "shop.example"
    assert server.name == f"GET {a['http.route']}" if "http.route" in a else server.name == "GET"
    assert "/open/span" not in server.name
    assert upstream.attributes["server.address"] == "127.0.0.1"
    assert upstream.attributes["server.port"] == town.upstream.port
    assert upstream.attributes["http.response.status_code"] == 200
    assert upstream.attributes["network.protocol.version"] == "1.1"
    assert server.status == 0
    assert SECRET not in str(a) + str(upstream.attributes)
    assert server.start <= upstream.start <= upstream.end <= server.end


def test_spans_of_denials_carry_the_decision(engine: str, dial: Dial, town: Town) -> None:
    trace = TRACE[:-2] + ("cc" if engine == "default" else "dd")
    with dial(engine) as client:
        answer = client.request(get("/admin/span", fields=[f"Traceparent: 00-{trace}-b7ad6b7169203331-00"]))
    span = town.collector.wait(lambda s: s.trace_id == trace, "of a denial (always sampled)")
    assert span.attributes["http.response.status_code"] == 403
    assert span.status == 0, "a 4xx leaves a SERVER span unset"
    assert answer.decision_id in str(span.attributes)
    assert "no-admin" in str(span.attributes)
    assert not [s for s in town.collector.spans if s.trace_id == trace and s.kind == 3], "a client span of a request that was not sent"


def test_an_unknown_method_is_other(engine: str, dial: Dial, town: Town) -> None:
    trace = TRACE[:-2] + ("ee" if engine == "default" else "ff")
    with dial(engine) as client:
        client.request(get("/open/odd", method="BREW", fields=[f"Traceparent: 00-{trace}-b7ad6b7169203331-01"]), method="GET")
    span = town.collector.wait(lambda s: s.trace_id == trace and s.kind == 2, "of BREW")
    assert span.attributes["http.request.method"] == "_OTHER"
    assert not span.name.startswith("BREW")


def test_metrics_arrive_at_the_collector(town: Town) -> None:
    pytest.importorskip("opentelemetry.proto")
    deadline = 20.0
    town.collector.wait_metrics(
        lambda: town.collector.metrics or b"http.server" in bytes(town.collector.raw), "OTLP metrics or spans", deadline
    )


def test_a_planted_secret_is_in_no_sink(engine: str, dial: Dial, town: Town) -> None:
    """In query, headers, cookies, bodies, user info, broken heads, failing upstreams: never in log, record, metric, span, error page."""
    token = f"{SECRET}-{engine}"

    async def leaky(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.answer(500, token.encode(), f"Set-Cookie: s={token}", f"X-Debug-Info: {token}")

    carry = [
        f"Authorization: Bearer {token}",
        f"Cookie: session={token}",
        f"X-Api-Key: {token}",
        f"X-Custom: {token}",
        f"Referer: https://x/?t={token}",
    ]
    pages = b""
    with town.upstream.on("/open/leaky", leaky):
        for data in (
            get(f"/open/leaky?card={token}", method="POST", fields=carry, body=token.encode()),
            get(f"/admin/x?card={token}", method="POST", fields=carry, body=token.encode()),
            get(f"/dead/x?card={token}", fields=carry),
            get(f"/open/%2f?card={token}", fields=carry),
            get("/open/x", fields=[f"X-A : {token}"]),
            get("/open/x", fields=[f"X_A: {token}"]),
            get("/open/x", fields=[f"Content-Length: {token}"]),
            get("/open/x", fields=[f"Transfer-Encoding: {token}"]),
            get("/open/x", host=f"user:{token}@shop.example"),
            get("/open/x", fields=[f"Expect: {token}"]),
            get("/open/x", fields=[f"Traceparent: {token}", f"Tracestate: {token}"]),
            get("/open/x", fields=[f"X-Forwarded-Client-Cert: URI={token}"]),
            get("/open/x", method="POST", fields=["Transfer-Encoding: chunked"]) + token.encode() + b"\r\n",
            f"GET http://u:{token}@shop.example/open/x HTTP/1.1\r\nHost: shop.example\r\n\r\n".encode(),
            get("/open/x", fields=[f"{token}: x\x01"]),
            get("/open/x", fields=[f"Connection: {token}"]),
        ):
            with dial(engine) as client:
                answer = client.request(data)
                if "problem" in answer.get("content-type"):
                    pages += answer.head.raw + answer.body
    from tests.harness.upstream import raw

    with town.upstream.on("/open/broken", raw(f"HTTP/1.1 200 OK\r\nX : {token}\r\n\r\n".encode())), dial(engine) as client:
        answer = client.request(get("/open/broken"))
        pages += answer.head.raw + answer.body
    trace = ("1" if engine == "default" else "2") * 32
    with dial(engine) as client:
        client.request(get("/open/flush", fields=[f"Traceparent: 00-{trace}-b7ad6b7169203331-01"]))
    town.collector.wait(lambda s: s.trace_id == trace, "after all the others")
    sinks = {
        "standard output and error": town.proxy.log_bytes,
        "spans and metrics": bytes(town.collector.raw),
        "/metrics": town.proxy.metrics().encode(),
        "/readyz": town.proxy.admin("/readyz")[1],
        "error pages": pages,
    }
    for name, data in sinks.items():
        assert token.encode() not in data, f"the secret is in {name}: {_around(data, token.encode())!r}"


def _around(data: bytes, needle: bytes) -> bytes:
    at = data.find(needle)
    return data[max(0, at - 200) : at + 100]


def test_a_dead_collector_changes_nothing(engine: str, dial: Dial, town: Town) -> None:
    town.collector.fail = True
    try:
        with dial(engine) as client:
            for i in range(50):
                assert client.request(get(f"/open/dark/{i}")).status == 200
    finally:
        town.collector.fail = False
