"""The journey of a request as its users see it: allowed, denied, lost; heads, bodies, connection handling, header fields."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Town
from tests.harness.client import RawClient, chunked, get, segments
from tests.harness.mesh import SHOP
from tests.harness.upstream import Exchange, Upstream, raw

Dial = Callable[..., RawClient]


def test_allowed(engine: str, dial: Dial, town: Town) -> None:
    with dial(engine) as client:
        answer = client.request(get("/open/a?b=c"))
    assert (answer.status, answer.json["target"], answer.get("content-type")) == (200, "/open/a?b=c", "application/json")


@pytest.mark.parametrize(
    ("path", "who", "host", "status", "code"),
    [
        ("/admin/x", "billing", "shop.example", 403, "policy_denied"),
        ("/nowhere", "billing", "shop.example", 403, "no_rule"),
        ("/orders/7", "billing", "shop.example", 403, "no_rule"),
        ("/open/x", "support-1", "shop.example", 403, "no_rule"),
        ("/open/x", "billing", "unknown.example", 421, "misdirected"),
        ("/open/x", "billing", "lost.example", 404, "no_route"),
        ("/open/%2f", "billing", "shop.example", 400, "ambiguous_target"),
    ],
)
def test_refusals_are_problem_details(path: str, who: str, host: str, status: int, code: str, engine: str, dial: Dial, town: Town) -> None:
    """RFC 9457: status on the wire and in the body agree, a decision id leads to the record, nothing of the policy leaks."""
    mark = town.upstream.mark()
    with dial(engine, who) as client:
        answer = client.request(get(path, host=host))
        assert answer.status == status
        assert answer.problem["code"] == code
        assert answer.problem["title"]
        assert answer.get("cache-control") == "no-store"
        record = town.proxy.decision(answer.decision_id)
        leaks = (answer.head.raw + answer.body).decode().lower()
        for word in ("billing-open", "no-admin", "meshguard.yaml", "traceback", "orders", "spiffe:", "127.0.0.1", "python", "h11"):
            assert word not in leaks, word
        assert client.request(get("/open/after", host="shop.example")).status == (200 if who == "billing" else 403), (
            "the connection goes on"
        )
    assert record["why"]["reason"] == code
    assert record["outcome"]["status"] == status
    assert [s for s in town.upstream.since(mark) if s.target == path] == []


def test_rules_by_role_method_and_template(engine: str, dial: Dial) -> None:
    with dial(engine, "support-1") as client:
        assert client.request(get("/orders/7")).status == 200
        assert client.request(get("/orders/7", method="HEAD")).status == 200
        assert client.request(get("/orders/7", method="DELETE")).status == 403
        assert client.request(get("/orders/7/lines")).status == 403
        assert client.request(get("/orders/")).status == 403
    with dial(engine, "supportx") as client:
        assert client.request(get("/orders/7")).status == 403


def test_edge_and_plain_listeners_have_no_identity(dial: Dial, town: Town) -> None:
    for listener in ("plain", "edge"):
        with dial(listener, None) as client:
            assert client.request(get("/local/x")).status == 200
            assert client.request(get("/open/x")).status == 403


@pytest.mark.parametrize(
    ("request_bytes", "cluster_is_other"),
    [
        (get("/open/x"), False),
        (get("/who/x"), False),
        (get("/beta/x"), False),
        (get("/beta/x", fields=["X-Channel: beta"]), True),
        (get("/beta/x", fields=["X-Channel: alpha", "X-Channel: beta"]), True),
        (get("/open/x", host="other.example"), True),
        (get("/by-method/x"), False),
        (get("/by-method/x", method="POST", body=b""), True),
    ],
)
def test_routing(request_bytes: bytes, cluster_is_other: bool, engine: str, dial: Dial, town: Town, other: Upstream) -> None:
    before = len(other.requests)
    with dial(engine) as client:
        assert client.request(request_bytes).status == 200
    other.settle()
    assert (len(other.requests) > before) is cluster_is_other


def test_routing_by_identity(engine: str, dial: Dial, other: Upstream) -> None:
    before = len(other.requests)
    with dial(engine, "admin") as client:
        assert client.request(get("/who/am-i")).status == 200
    other.settle()
    assert len(other.requests) == before + 1


# ---- bodies and heads


@pytest.mark.parametrize("status", [200, 204, 304, 404, 500, 503])
def test_statuses_pass(status: int, engine: str, dial: Dial, town: Town) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.read()
        if status in (204, 304):
            await exchange.send(f'HTTP/1.1 {status} X\r\nETag: "e"\r\n\r\n'.encode())
        else:
            await exchange.answer(status, b"upstream says", 'ETag: "e"')

    with town.upstream.on("/open/status", script), dial(engine) as client:
        for _ in range(2):
            answer = client.request(get("/open/status"))
            assert (answer.status, answer.get("etag")) == (status, '"e"')
            assert answer.body == (b"" if status in (204, 304) else b"upstream says")


def test_head_keeps_the_length(engine: str, dial: Dial, town: Town) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")

    with town.upstream.on("/open/head", script), dial(engine) as client:
        answer = client.request(get("/open/head", method="HEAD"))
        assert (answer.status, answer.get("content-length"), answer.body) == (200, "12345", b"")
        assert client.request(get("/open/next")).status == 200


@pytest.mark.parametrize("how", ["whole", "bytes", "threes"])
def test_bodies_both_ways(how: str, engine: str, dial: Dial) -> None:
    body = bytes(range(256)) * 3
    import hashlib

    with dial(engine) as client:
        for data in (
            get("/open/b", method="POST", body=body),
            get("/open/b", method="POST", fields=["Transfer-Encoding: chunked"]) + chunked(body[:100], body[100:101], body[101:]),
        ):
            client.send(segments(data, how), expect="POST")
            answer = client.response()
            assert answer.json["body_bytes"] == len(body)
            assert answer.json["sha256"] == hashlib.sha256(body).hexdigest()


def test_interim_answers_are_forwarded(engine: str, dial: Dial, town: Town) -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with town.upstream.on("/open/hints", raw(data)), dial(engine) as client:
        answer = client.request(get("/open/hints"))
        assert [(h.status, h.get("link")) for h in answer.interim] == [(103, "</style.css>; rel=preload")]
        assert (answer.status, answer.body) == (200, b"ok")
        old = b"GET /open/hints HTTP/1.0\r\nHost: shop.example\r\n\r\n"
    with town.upstream.on("/open/hints", raw(data)), dial(engine) as client:
        assert client.request(old).interim == [], "an HTTP/1.0 client knows no 1xx"


def test_continue_is_decided_before_the_body(engine: str, dial: Dial, town: Town) -> None:
    with dial(engine) as client:
        client.send(b"POST /open/e HTTP/1.1\r\nHost: shop.example\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", expect="POST")
        assert client.head().status == 100
        client._pull()
        client.send(b"abc")
        assert client.response().json["body_bytes"] == 3


def test_pipelining_and_keep_alive(engine: str, dial: Dial) -> None:
    with dial(engine) as client:
        client.send(b"".join(get(f"/open/{i}") for i in range(10)))
        assert [client.response().get("x-seen-target") for _ in range(10)] == [f"/open/{i}" for i in range(10)]
        assert client.request(get("/open/last")).status == 200
        answer = client.request(get("/open/close", fields=["Connection: close"]))
        assert answer.get("connection").lower() == "close"
        client.assert_closed()


def test_http10(engine: str, dial: Dial) -> None:
    with dial(engine) as client:
        answer = client.request(b"GET /open/old HTTP/1.0\r\nHost: shop.example\r\n\r\n")
        assert answer.status == 200
        assert answer.json["target"] == "/open/old"
        client.assert_closed()
    with dial(engine) as client:
        answer = client.request(b"GET /open/old HTTP/1.0\r\nHost: shop.example\r\nConnection: keep-alive\r\n\r\n")
        assert answer.status == 200
        if "keep-alive" in answer.get("connection").lower():
            assert client.request(get("/open/more")).status == 200
        else:
            client.assert_closed()


# ---- header fields


def _fields(answer_json: dict[str, object]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, value in answer_json["fields"]:  # type: ignore[attr-defined]
        out.setdefault(name.lower(), []).append(value)
    return out


def test_what_the_upstream_is_told(engine: str, dial: Dial, town: Town) -> None:
    with dial(engine) as client:
        seen = _fields(
            client.request(get("/open/told", fields=["X-Own: 1", "User-Agent: test", "Cookie: a=b", "Cookie: c=d", "Accept: */*"])).json
        )
    assert seen["host"] == ["shop.example"]
    assert seen["x-own"] == ["1"]
    assert seen["user-agent"] == ["test"]
    assert "; ".join(seen["cookie"]) == "a=b; c=d"
    assert re.fullmatch(r"1\.1 [\w.-]+", seen["via"][0])
    assert seen["x-forwarded-for"] == ["127.0.0.1"]
    assert seen["x-forwarded-proto"] == ["https"]
    (xfcc,) = seen["x-forwarded-client-cert"]
    parts = dict(part.split("=", 1) for part in xfcc.split(";"))
    assert parts["By"] == SHOP + "meshguard"
    assert parts["URI"] == SHOP + "billing"
    import hashlib

    assert parts["Hash"] == hashlib.sha256(town.mesh.service("billing").der).hexdigest()


def test_field_order_and_repetition_are_kept(engine: str, dial: Dial) -> None:
    with dial(engine) as client:
        answer = client.request(get("/open/order", fields=["B: 1", "A: 2", "B: 3", "C:", "A: 4"]))
    mine = [(k.lower(), v) for k, v in answer.json["fields"] if k.lower() in "abc"]
    assert mine == [("b", "1"), ("a", "2"), ("b", "3"), ("c", ""), ("a", "4")]


def test_header_operations(engine: str, dial: Dial, town: Town) -> None:
    async def script(exchange: Exchange) -> None:
        seen = exchange.request.head
        told = f"{seen.all('x-set')}|{seen.all('x-app')}|{seen.all('x-gone')}"
        await exchange.answer(200, told.encode(), "X-Set: upstream", "X-Set: again", "X-App: upstream", "X-Gone: 1", "Server: secret/1.0")

    with town.upstream.on("/changed/x", script), dial(engine) as client:
        answer = client.request(get("/changed/x", fields=["X-Set: client", "x-set: two", "X-App: client", "X-Gone: 1", "x-GONE: 2"]))
    assert answer.body == b"['by-proxy']|['client', 'by-proxy']|[]"
    assert answer.head.all("x-set") == ["by-proxy"]
    assert answer.head.all("x-app") == ["upstream", "by-proxy"]
    assert answer.head.all("x-gone") == answer.head.all("server") == []
    assert answer.get("strict-transport-security") == "max-age=1"


def test_trailers_where_the_route_keeps_them(engine: str, dial: Dial, town: Town) -> None:
    answer_bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"
    request = get("/trailers/x", method="POST", fields=["TE: trailers", "Trailer: X-Up", "Transfer-Encoding: chunked"]) + chunked(
        b"ab", trailers=b"X-Up: 9\r\n"
    )
    with town.upstream.on("/trailers/x", raw(answer_bytes)), dial(engine) as client:
        mark = town.upstream.mark()
        client.send(request, expect="POST")
        answer = client.response()
        assert (answer.body, answer.trailers) == (b"ok", [("X-Sum", "7")]) or [(k.lower(), v) for k, v in answer.trailers] == [
            ("x-sum", "7")
        ]
        assert [(k.lower(), v) for k, v in town.upstream.since(mark)[0].trailers] == [("x-up", "9")]


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def test_traceparent(engine: str, dial: Dial) -> None:
    """Same trace, new parent; tracestate passes; an invalid traceparent starts a new trace and drops tracestate."""

    def sent(*fields: str) -> tuple[str, list[str]]:
        with dial(engine) as client:
            seen = _fields(client.request(get("/open/trace", fields=fields)).json)
        (value,) = seen["traceparent"]
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", value), value
        return value, seen.get("tracestate", [])

    value, state = sent(f"Traceparent: 00-{TRACE}-{PARENT}-01", "Tracestate: a=1,b=2")
    assert value.split("-")[1] == TRACE
    assert value.split("-")[2] != PARENT
    assert value.endswith("-01")
    assert ",".join(state).replace(" ", "") == "a=1,b=2"
    value, _ = sent(f"traceparent: cc-{TRACE}-{PARENT}-01-extra")
    assert value.split("-")[1] == TRACE
    for bad in (
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-x",
        "x",
        f"00-{TRACE}-{PARENT}",
    ):
        value, state = sent(f"Traceparent: {bad}", "Tracestate: a=1")
        assert value.split("-")[1] != TRACE, bad
        assert state == [], bad
    value, _ = sent(f"Traceparent: 00-{TRACE}-{PARENT}-01", f"Traceparent: 00-{TRACE}-{PARENT}-00")
    assert value.split("-")[1] != TRACE
    first, _ = sent()
    second, _ = sent()
    assert first.split("-")[1] != second.split("-")[1]


# ---- outbound: this proxy as the client of the mesh


def test_outbound_mtls(dial: Dial, town: Town) -> None:
    """A plain local client; the server sees the proxy's own SVID and no word of the client's about identity."""
    with dial("outbound") as client:
        answer = client.request(get("/orders-out/1", host="orders", fields=[f"X-Forwarded-Client-Cert: URI={SHOP}admin"]))
        assert answer.status == 200
        assert client.request(get("/orders-out/2", host="orders")).status == 200
    connection = town.secure.connections[town.secure.requests[-1].connection]
    assert connection.certificate == town.mesh.service("meshguard").der
    assert (SHOP + "admin").encode() not in town.secure.requests[-1].head.raw


@pytest.mark.parametrize("host", ["impostor", "unsafe"])
def test_outbound_checks_the_server(host: str, dial: Dial, town: Town) -> None:
    """Another identity of the same CA, or no TLS at all: 502, and not a byte of the request is sent."""
    mark = town.upstream.mark()
    before = len(town.impostor.requests)
    with dial("outbound") as client:
        answer = client.request(get("/orders-out/secret", host=host))
        # the plain server does not answer the ClientHello at all: a silent one cannot be told from a slow one
        assert (answer.status, answer.problem["code"]) in (
            (502, "upstream_tls_failed"),
            *([(504, "connect_timeout")] if host == "unsafe" else []),
        )
    town.impostor.settle()
    assert len(town.impostor.requests) == before
    assert not [s for s in town.upstream.since(mark) if "orders-out" in s.target]
    assert not any(b"orders-out" in c.raw for c in town.upstream.connections[-5:])
