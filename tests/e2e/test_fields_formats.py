"""Protected fields in every format through real processes: the pair of a call (orders -> billing), and what leaves the source."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from meshguard.keys.lifecycle import create
from meshguard.storage.shard_reader import ShardReader
from tests.e2e.test_outbound import files
from tests.fields.test_protobuf import frame, order, shop, types
from tests.harness.client import RawClient, Response, chunked, get
from tests.harness.collector import Collector
from tests.harness.http2 import Call, H2Client, H2Server
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.upstream import Exchange, Upstream

SECRET = "planted-4929-1234-5678"
JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"


def _rule(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "paths": [f"/{name}/{{id}}"], "on": "both", "encrypt": "pii", **more}


BOTH = {SHOP + "orders": "open", SHOP + "bil*": "open"}
FIELDS = [
    _rule("orders", select="$.card", readers={SHOP + "billing": "open", "support": {"mask": "last4"}}),
    _rule("both", select="$.card", readers=BOTH),
    _rule("found", select="$.card", form="card", query="card", deterministic="pii", encrypt=None),
    _rule("tokens", select="$.card", tokenise="pii", encrypt=None),
    _rule("lines", select="$..card", content_types=["application/x-ndjson"], readers=BOTH),
    _rule("events", select="$.card", on="response", content_types=["text/event-stream"], readers={"support": {"mask": "last4"}}),
    _rule("heads", headers="x-card", query="card", on="request", readers={SHOP + "billing": "open"}),
    _rule("answers", headers=["x-card", "link"], on="response"),
    _rule("parts", form="card", on="request"),
    _rule("tenants", select="$.card", on="both", tenant={"spiffe": "sa"}, readers={"support": "open", "other": "open"}),
    _rule("gone", select="$.card", on="response", remove=True, encrypt=None),
    {
        **_rule("grpc", protobuf={"descriptor": "shop.pb", "fields": ["payment.card", "tags"]}, on="response", readers=BOTH),
        "paths": ["/shop.v1.Orders/Get"],
    },
]
for _each in FIELDS:
    if _each.get("encrypt", "") is None:
        del _each["encrypt"]
ROUTES = [
    {"id": "grpc", "paths": ["/shop.v1.Orders/{method}"], "to": "grpc", "trailers": "keep"},
    {"id": "rest", "to": "app"},
]
POLICY = {
    "roles": {"support": {"principals": [SHOP + "support-*"]}, "other": {"principals": [SHOP + "other"]}},
    "rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}],
    "fields": FIELDS,
}


class App:
    """The application behind a proxy: keeps the body and the head of each path, answers with what it is told or keeps."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.heads: dict[str, Any] = {}
        self.answers: dict[str, tuple[bytes, tuple[str, ...]]] = {}

    async def serve(self, exchange: Exchange) -> None:
        body = await exchange.read()
        path = exchange.request.path
        self.heads[path] = exchange.request.head
        if exchange.request.method == "POST":
            self.kept[path] = body
        answer, fields = self.answers.get(path, (self.kept.get(path, b"{}"), (JSON,)))
        await exchange.answer(200, answer, *fields)


class Pair:
    """`client` is beside the application orders, `server` beside billing. `wire` is what left the source for a peer without meshguard."""

    def __init__(
        self, client: Proxy, server: Proxy, mesh: Mesh, behind: Upstream, grpc: H2Server, app: App, wire: App, collector: Collector
    ) -> None:
        self.client = client
        self.server = server
        self.mesh = mesh
        self.behind = behind
        self.grpc = grpc
        self.app = app
        self.wire = wire
        self.collector = collector

    def call(self, data: bytes, listener: str = "outbound") -> Response:
        """The application orders calls, knowing nothing of meshguard."""
        with RawClient(self.client.address(listener)) as client:
            return client.request(data)

    def ask(self, who: str, data: bytes) -> Response:
        """Another workload asks billing, without a proxy of its own."""
        with RawClient(self.server.address("inbound"), self.mesh.client(who)) as client:
            return client.request(data)


@pytest.fixture(scope="module")
def pair(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("formats")
    app, wire = App(), App()
    with Upstream() as behind, Upstream() as beyond, H2Server() as grpc, Collector() as collector:
        behind.default, beyond.default = app.serve, wire.serve
        telemetry = {"otlp": collector.url, "sample": 1.0}
        limits = {"inspect_body_bytes": 200_000}
        record = {"profile": "development", "ledger": {"directory": "ledger"}}
        keys = {"pii": {"provider": "file", "path": "../server/keys/pii.json"}}
        for name in ("client", "server"):
            (directory / name / "keys").mkdir(parents=True, mode=0o700)
            (directory / name / "policies").mkdir()
            (directory / name / "policies" / "shop.pb").write_bytes(shop().SerializeToString())
        create(directory / "server" / "keys" / "pii.json", "pii", time.time())
        server = Proxy(
            directory / "server",
            {
                "identity": files(mesh, directory / "server", "billing"),
                "listeners": {"inbound": {"tls": "mutual", "routes": ROUTES}},
                "clusters": {"app": mesh.endpoints(behind), "grpc": {"endpoints": [f"127.0.0.1:{grpc.port}"], "protocol": "h2"}},
                "keys": keys,
                "limits": limits,
                "telemetry": telemetry,
                **record,
            },
            policies={"p.yaml": POLICY},
        )
        client = Proxy(
            directory / "client",
            {
                "identity": files(mesh, directory / "client", "orders"),
                "listeners": {
                    "outbound": {"tls": "none", "direction": "outbound", "to": "billing"},
                    "beyond": {"tls": "none", "direction": "outbound", "to": "beyond"},
                },
                "clusters": {
                    "billing": {"endpoints": [f"127.0.0.1:{server.ports['inbound']}"], "tls": {"spiffe_id": SHOP + "billing"}},
                    "beyond": mesh.endpoints(beyond),
                },
                "keys": keys,
                "limits": limits,
                "telemetry": telemetry,
                **record,
            },
            policies={"p.yaml": POLICY},
        )
        with server, client:
            yield Pair(client, server, mesh, behind, grpc, app, wire, collector)


def post(path: str, body: bytes, *fields: str) -> bytes:
    return get(path, method="POST", fields=fields or [JSON], body=body)


CARD = b'{ "id":12345678901234567890, "card":"%b", "x":1.0 }' % SECRET.encode()


def test_a_field_is_sealed_before_it_leaves_its_source(pair: Pair) -> None:
    answer = pair.call(post("/orders/1", CARD), "beyond")
    assert answer.status == 200
    left = pair.wire.kept["/orders/1"]
    sealed = json.loads(left)["card"]
    assert sealed.startswith("eyJ")
    assert left == CARD.replace(SECRET.encode(), sealed.encode())
    assert answer.body == left, "orders is no reader: it sees what is stored"


def test_a_reader_behind_the_other_proxy_gets_it_plain_and_a_stranger_does_not(pair: Pair) -> None:
    answer = pair.call(post("/orders/2", CARD))
    assert pair.app.kept["/orders/2"] == CARD, "billing reads its request"
    assert (answer.status, json.loads(answer.body)["card"][:3]) == (200, "eyJ")
    assert SECRET.encode() not in answer.body
    assert pair.ask("billing", get("/orders/2")).body == CARD
    assert json.loads(pair.ask("support-1", get("/orders/2")).body)["card"] == "*******-****-****-5678"


def test_two_readers_notice_nothing(pair: Pair) -> None:
    assert pair.call(post("/both/1", CARD)).body == CARD
    assert pair.app.kept["/both/1"] == CARD
    assert SECRET.encode() not in pair.ask("stranger", get("/both/1")).body


def test_equal_values_can_be_looked_up_in_every_format(pair: Pair) -> None:
    pair.call(post("/found/1", CARD))
    stored = json.loads(pair.app.kept["/found/1"])["card"]
    pair.call(post("/found/2", b"a=1&card=" + SECRET.encode() + b"&b", FORM))
    assert dict(parse_qsl(pair.app.kept["/found/2"].decode(), keep_blank_values=True)) == {"a": "1", "card": stored, "b": ""}
    pair.call(get("/found/3?x=%20&card=" + SECRET))
    assert pair.app.heads["/found/3"].target == "/found/3?x=%20&card=" + stored


def test_tokens_are_made_once(pair: Pair) -> None:
    pair.call(post("/tokens/1", CARD))
    pair.ask("stranger", post("/tokens/2", CARD))
    one, two = (json.loads(pair.app.kept[f"/tokens/{number}"])["card"] for number in (1, 2))
    assert one == two
    assert one.startswith("tok_1_")


def test_lines_are_treated_as_they_pass(pair: Pair) -> None:
    lines = b"".join(b'{"n":%d,"card":"%b"}\n' % (number, SECRET.encode()) for number in range(2000))
    assert len(lines) > 50_000
    kind = "Content-Type: application/x-ndjson"
    head = get("/lines/1", method="POST", fields=[kind, "Transfer-Encoding: chunked"])
    pair.app.answers["/lines/1"] = (lines, (kind,))
    answer = pair.call(head + chunked(*(lines[place : place + 7000] for place in range(0, len(lines), 7000))))
    assert pair.app.kept["/lines/1"] == lines
    assert answer.body == lines, "more than may be gathered at once passes line by line"
    stranger = pair.ask("stranger", get("/lines/1"))
    assert (stranger.status, SECRET.encode() in stranger.body, stranger.body.count(b"\n")) == (200, False, 2000)
    assert stranger.get("cache-control") == "private, no-cache"


def test_an_event_reaches_its_reader_before_the_next_one(pair: Pair) -> None:
    gate = pair.behind.event()

    async def stream(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await exchange.send(chunked(b'data: {"card":"%b"}\n\n' % SECRET.encode())[:-5])
        await gate.wait()
        await exchange.send(chunked(b'data: {"card":"second-555-5555"}\n\n'))

    with pair.behind.on("/events/1", stream), RawClient(pair.server.address("inbound"), pair.mesh.client("support-1")) as client:
        client.send(get("/events/1"), expect="GET")
        seen = b""
        while b"\n\n" not in seen:
            seen += client.receive()
        assert b'data: {"card":"*******-****-****-5678"}\n\n' in seen
        gate.set()
        while b"5555" not in seen:
            seen += client.receive()
        assert SECRET.encode() not in seen


@pytest.mark.parametrize(
    "bad", [b'{"card":"planted-4929-1234-5678","card":1}', b"nope planted-4929-1234-5678", b'{"card":"planted-4929-1234-5678"']
)
def test_a_stream_that_turns_bad_is_cut_and_says_nothing(bad: bytes, pair: Pair) -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await exchange.send(chunked(b'data: {"x":1}\n\ndata: ' + bad + b"\n\n"))

    with pair.behind.on("/events/2", stream), RawClient(pair.server.address("inbound"), pair.mesh.client("stranger")) as client:
        client.send(get("/events/2"), expect="GET")
        seen = b""
        while piece := client.receive():
            seen += piece
        assert SECRET.encode() not in seen
        assert not seen.endswith(b"0\r\n\r\n"), "the reader cannot tell that it is not whole"


def test_a_request_that_turns_bad_is_not_completed(pair: Pair) -> None:
    kind = "Content-Type: application/x-ndjson"
    mark = pair.behind.mark()
    answer = pair.ask("billing", post("/lines/3", b'{"card":1}\n{"card":\n', kind))
    assert answer.status == 400
    assert all(not seen.complete for seen in pair.behind.since(mark))


def test_heads_are_protected(pair: Pair) -> None:
    answer = pair.call(get(f"/heads/1?a=1&card={SECRET}", fields=[f"X-Card: {SECRET}", "X-Other: 1"]), "beyond")
    assert answer.status == 200
    head = pair.wire.heads["/heads/1"]
    assert SECRET not in head.target
    assert head.target.startswith("/heads/1?a=1&card=eyJ")
    assert head.all("x-card")[0].startswith("eyJ")
    assert head.all("x-other") == ["1"]
    pair.call(get(f"/heads/2?a=1&card={SECRET}", fields=[f"X-Card: {SECRET}"]))
    head = pair.app.heads["/heads/2"]
    assert (head.target, head.all("x-card")) == (f"/heads/2?a=1&card={SECRET}", [SECRET]), "billing reads its request"


def test_heads_of_answers_are_protected(pair: Pair) -> None:
    pair.app.answers["/answers/1"] = (b"plain text", (f"X-Card: {SECRET}", "Content-Type: text/plain", "X-Other: 1", f"Link: <{SECRET}>"))
    answer = pair.ask("stranger", get("/answers/1"))
    assert (answer.status, answer.body, answer.get("x-other")) == (200, b"plain text", "1")
    assert answer.get("x-card").startswith("eyJ")
    assert SECRET not in str(answer.head.fields)

    async def early(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(
            f"HTTP/1.1 103 Early Hints\r\nLink: <{SECRET}>\r\n\r\nHTTP/1.1 204 No Content\r\nX-Card: {SECRET}\r\n\r\n".encode()
        )

    with pair.behind.on("/answers/2", early):
        answer = pair.ask("stranger", get("/answers/2"))
    assert answer.status == 204
    assert answer.get("x-card").startswith("eyJ")
    assert SECRET not in str([head.fields for head in (*answer.interim, answer.head)])


def test_parts_of_a_form_are_protected(pair: Pair) -> None:
    body = b'--B\r\nContent-Disposition: form-data; name="card"\r\n\r\n%b\r\n--B\r\nContent-Disposition: form-data; name="f"; filename="a"'
    body = body % SECRET.encode() + b"\r\n\r\n\x00\xff\r\n--B--\r\n"
    assert pair.ask("stranger", post("/parts/1", body, "Content-Type: multipart/form-data; boundary=B")).status == 200
    kept = pair.app.kept["/parts/1"]
    assert SECRET.encode() not in kept
    assert kept.endswith(b'filename="a"\r\n\r\n\x00\xff\r\n--B--\r\n')


def test_coded_bodies_are_treated_inside_or_refused(pair: Pair) -> None:
    gzipped = (JSON, "Content-Encoding: gzip")
    pair.app.answers["/tokens/3"] = (b"{}", (JSON,))
    assert pair.ask("billing", post("/tokens/3", gzip.compress(CARD), *gzipped)).status == 200
    assert json.loads(gzip.decompress(pair.app.kept["/tokens/3"]))["card"].startswith("tok_")
    pair.app.answers["/orders/4"] = (gzip.compress(CARD), gzipped)
    answer = pair.ask("support-1", get("/orders/4"))
    assert answer.get("content-encoding") == "gzip"
    assert json.loads(gzip.decompress(answer.body))["card"] == "*******-****-****-5678"
    bomb = gzip.compress(b'{"card":"' + b"0" * (20 << 20) + b'"}')
    mark = pair.behind.mark()
    assert pair.ask("billing", post("/tokens/4", bomb, *gzipped)).status == 413
    assert pair.ask("billing", post("/tokens/4", gzip.compress(CARD)[:-3], *gzipped)).status == 400
    assert pair.ask("billing", post("/tokens/4", CARD, JSON, "Content-Encoding: deflate")).status == 415
    assert pair.behind.since(mark) == []
    pair.app.answers["/orders/5"] = (bomb, gzipped)
    assert pair.ask("stranger", get("/orders/5")).status == 502


def test_each_tenant_has_values_of_its_own(pair: Pair) -> None:
    pair.ask("support-1", post("/tenants/1", CARD))
    assert pair.ask("support-1", get("/tenants/1")).body == CARD
    refused = pair.ask("other", get("/tenants/1"))
    assert (refused.status, SECRET in str(refused.body)) == (502, False)


def test_a_grpc_answer_is_treated_message_by_message(pair: Pair) -> None:
    message = order(id=7, payment=types()["Payment"](card=SECRET, amount=2.5), tags=[SECRET]).SerializeToString()
    kind = [("content-type", "application/grpc"), ("te", "trailers")]

    def script(call: Call) -> None:
        if call.ended:
            call.answer(200, frame(message) * 3, kind[:1], trailers=[("grpc-status", "0")])

    pair.grpc.default = script
    answers = {}
    for who in ("billing", "stranger"):
        with H2Client(pair.server.address("inbound"), pair.mesh.client(who, ("h2",))) as client:
            answers[who] = client.get("/shop.v1.Orders/Get", method="POST", fields=kind, body=frame(b""))
    assert bytes(answers["billing"].body) == frame(message) * 3
    sealed = bytes(answers["stranger"].body)
    assert SECRET.encode() not in sealed
    length = int.from_bytes(sealed[1:5], "big")
    read = types()["Order"].FromString(sealed[5 : 5 + length])
    assert (read.id, read.payment.amount, read.payment.card[:3], read.tags[0][:3]) == (7, 2.5, "eyJ", "eyJ")
    assert len(sealed) == 3 * (5 + length)
    assert [answer.trailers for answer in answers.values()] == [{"grpc-status": "0"}] * 2


def test_removed_fields_are_gone(pair: Pair) -> None:
    pair.app.answers["/gone/1"] = (b'{"card":"x", "a":1}', (JSON,))
    assert pair.ask("stranger", get("/gone/1")).body == b'{"a":1}'


def test_every_act_is_on_record(pair: Pair) -> None:
    mark = pair.server.mark()
    pair.call(post("/orders/6", CARD))
    record = pair.server.decision_where(lambda found: found["what"]["path"] == "/orders/6", "the record", mark)
    acts = [(act["operation"], act["field"], act.get("keyset"), act.get("version")) for act in record["fields"]]
    assert ("open", "orders", "pii", 1) in acts
    assert ("seal", "orders", "pii", 1) in acts


def test_the_planted_value_is_in_no_log_span_metric_error_or_between_the_pair(pair: Pair) -> None:
    """Last in this file: what all the tests before have left behind (F9). Values were planted in bodies, headers, queries, refused and
    broken messages."""
    broken = [
        post("/orders/9", b'{"card":"%b","card":1}' % SECRET.encode()),
        post("/orders/9", SECRET.encode()),
        post("/found/9", b"card=" + SECRET.encode() + b"%", FORM),
        get(f"/found/9?Card={SECRET}"),
        get("/heads/9", fields=[f"X-Card: {SECRET}\xff"]),
        post("/parts/9", b"--B\r\n" + SECRET.encode(), "Content-Type: multipart/form-data; boundary=B"),
        post("/lines/9", b'{"card":"%b' % SECRET.encode(), "Content-Type: application/x-ndjson"),
    ]
    for data in broken:
        for answer in (pair.call(data), pair.ask("stranger", data)):
            assert SECRET.encode() not in answer.body
            assert SECRET not in str(answer.head.fields)
    with H2Client(pair.server.address("inbound"), pair.mesh.client("stranger", ("h2",))) as client:
        for data in broken:
            head, _, body = data.partition(b"\r\n\r\n")
            method, path = head.split(b" ")[:2]
            kind = [("content-type", line[14:].decode()) for line in head.split(b"\r\n") if line.startswith(b"Content-Type: ")]
            stream = client.answer(client.request(path.decode(), method.decode(), kind, body=body or None))
            assert SECRET.encode() not in stream.body
            assert SECRET not in str(stream.head)
    large = b'{"list":[%b]' % b",".join([b'{"card":"%b"}' % SECRET.encode()] * 3000)
    for data in (post("/both/9", large), post("/both/9", large + b',"card":"%b","card":1}' % SECRET.encode())):
        assert pair.ask("stranger", data).status == 400, "found out in slices"
    pair.app.answers["/orders/9"] = (b'{"card":"%b"' % SECRET.encode(), (JSON,))
    refused = pair.ask("stranger", get("/orders/9"))
    assert (refused.status, refused.problem["code"]) == (502, "response_not_inspectable")
    eventually(lambda: b"/orders/9" in pair.collector.raw, "the last spans")
    sinks = {
        "what the server wrote": pair.server.log_bytes,
        "what the client's proxy wrote": pair.client.log_bytes,
        "spans and metrics": bytes(pair.collector.raw),
        "the server's metrics": pair.server.metrics().encode(),
        "the client's metrics": pair.client.metrics().encode(),
        **{f"{path} on the wire": body for path, body in pair.wire.kept.items()},
        **{f"the head of {path} on the wire": str((head.target, head.fields)).encode() for path, head in pair.wire.heads.items()},
    }
    for proxy in (pair.server, pair.client):
        for path in ("/statusz", "/readyz", "/policyz", "/configz"):
            sinks[f"{path} of {proxy.directory.name}"] = proxy.admin(path)[1]
    needle = SECRET.encode()
    assert {name for name, sink in sinks.items() if needle in sink or needle[-14:] in sink} == set()
    assert len(sinks["what the server wrote"]) > 10_000
    kept = b"".join(entry for _, entry in ShardReader(0, pair.server.directory / "ledger" / "shard-0").entries())
    assert b"/both/9" in kept, "the ledger was looked at"
    assert needle not in kept
    assert needle[-14:] not in kept
    assert "exception in the journey" not in pair.server.stderr_text + pair.client.stderr_text
    assert _between(pair) == set()


def _between(pair: Pair) -> set[Path]:
    """Files of the two processes that hold the value."""
    return {
        path
        for proxy in (pair.server, pair.client)
        for path in proxy.directory.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    }
