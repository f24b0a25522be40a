"""What dependants of a quarantined service get: at once, a fixed answer or another cluster, over HTTP/1.1, HTTP/2 and gRPC, on record."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.client import RawClient, Response, Truncated, get
from tests.harness.commands import meshguard
from tests.harness.http2 import H2Client
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import server_context
from tests.harness.proxy import Proxy
from tests.harness.upstream import Exchange, Upstream

RESPOND = {
    "status": 200,
    "content_type": "application/json",
    "headers": {"x-stale": "yes"},
    "body": '{"prices": []}',
    "grpc_status": 9,
}
POLICY = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}


class Town:
    def __init__(self, proxy: Proxy, mesh: Mesh, orders: Upstream) -> None:
        self.proxy = proxy
        self.mesh = mesh
        self.orders = orders

    def ask(self, path: str, method: str = "GET", **more: Any) -> Response:
        with RawClient(self.proxy.address("inbound"), self.mesh.client("billing")) as client:
            return client.request(get(path, method=method, **more), method)

    def record(self, path: str) -> dict[str, Any]:
        what = f"the decision of {path}"
        record: dict[str, Any] = self.proxy.decision_where(lambda entry: entry.get("what", {}).get("path") == path, what)
        return record

    def run(self, *arguments: str, expect: int = 0) -> str:
        return meshguard(*arguments, "--config", self.proxy.config_path, expect=expect)[0]


def silent_port() -> tuple[socket.socket, int]:
    """Takes connections and says nothing: a handshake with it never ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


@pytest.fixture(scope="module")
def town(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("fallback")
    orders = Upstream(server_context(mesh.service("orders"), mesh.ca, directory))
    silent, port = silent_port()
    config: dict[str, Any] = {
        "profile": "development",
        "identity": mesh.identity(directory),
        "listeners": {
            "inbound": {
                "tls": "mutual",
                "routes": [
                    {"id": "fixed", "paths": ["/fixed/**", "/shop.Orders/*"], "to": "orders", "fallback": {"respond": RESPOND}},
                    {"id": "other", "paths": ["/other/**"], "to": "orders", "fallback": {"to": "app"}},
                    {"id": "both", "paths": ["/both/**"], "to": "orders", "fallback": {"to": "dead", "respond": RESPOND}},
                    {"id": "hung", "paths": ["/hung/**"], "to": "hung", "fallback": {"respond": RESPOND}},
                    {"id": "down", "paths": ["/down/**"], "to": "dead", "fallback": {"when": ["unreachable", "no_endpoint"], "to": "app"}},
                    {"id": "kept", "paths": ["/kept/**"], "to": "dead", "fallback": {"respond": RESPOND}},
                    {"id": "empty", "paths": ["/empty/**"], "to": "orders", "fallback": {"respond": {"status": 429}}},
                    {"id": "bare", "paths": ["/bare/**"], "to": "orders"},
                ],
            }
        },
        "clusters": {
            "app": mesh.endpoints(),
            "orders": {"endpoints": [f"127.0.0.1:{orders.port}"], "tls": {"spiffe_id": SHOP + "orders"}},
            "hung": {
                "endpoints": [f"127.0.0.1:{port}"],
                "tls": {"spiffe_id": SHOP + "orders"},
                "timeouts": {"connect_s": 30},
            },
            "dead": {"endpoints": ["127.0.0.1:9"], "ejection": {"consecutive_failures": 0}},
        },
        "ledger": {"directory": "ledger"},
        "quarantine": {"path": "quarantine.json"},
        "drain_s": 1,
    }
    running = Proxy(directory, config, policies={"p.yaml": POLICY})
    config["admin"]["token_file"] = "admin.token"
    running.write_config()
    with orders, silent, running:
        yield Town(running, mesh, orders)


@pytest.fixture
def out(town: Town) -> Iterator[None]:
    """The service is quarantined."""
    town.run("quarantine", "add", SHOP + "orders", "--reason", "leaked key")
    yield
    town.run("quarantine", "remove", SHOP + "orders")


def test_before_and_after_the_service_itself_answers(town: Town) -> None:
    mark = town.orders.mark()
    assert town.ask("/fixed/before").status == 200
    assert len(town.orders.since(mark)) == 1
    assert "fallback" not in town.record("/fixed/before")["outcome"]


def test_a_fixed_answer(town: Town, out: None) -> None:
    mark = town.orders.mark()
    answer = town.ask("/fixed/1")
    assert (answer.status, answer.json) == (200, {"prices": []})
    assert (answer.get("content-type"), answer.get("x-stale")) == ("application/json", "yes")
    assert (town.ask("/fixed/2", "HEAD").status, town.ask("/fixed/3", "POST", body=b"x" * 1000).json) == (200, {"prices": []})
    assert (town.ask("/empty/1").status, town.ask("/empty/1").body) == (429, b"")
    assert not town.orders.since(mark)
    record = town.record("/fixed/1")
    assert (record["why"]["reason"], record["why"]["rule"], record["outcome"]["status"]) == ("fallback", "all", 200)
    assert record["outcome"]["fallback"] == {"because": "upstream_quarantined", "status": 200}
    told = town.run("explain", record["id"])
    assert "the route's fallback by a fixed answer, because upstream_quarantined" in told
    assert f"quarantine: {SHOP}orders since " in told
    assert "leaked key" in told
    assert town.ask("/bare/1").problem["code"] == "upstream_quarantined", "a route without one says what it said"


def test_http2_and_grpc_are_told_in_their_own_words(town: Town, out: None) -> None:
    with H2Client(town.proxy.address("inbound"), town.mesh.client("billing", ("h2",))) as client:
        answer = client.get("/fixed/h2")
        assert (answer.status, answer.json) == (200, {"prices": []})
        assert client.get("/empty/h2").status == 429
        stream = client.request("/shop.Orders/Get", "POST", [("content-type", "application/grpc"), ("te", "trailers")], body=b"\0\0\0\0\0")
        call = client.answer(stream)
        assert (call.status, dict(call.fields)["grpc-status"]) == (200, "9")
        assert not call.body
    record = town.record("/shop.Orders/Get")
    assert (record["why"]["reason"], record["outcome"]["grpc_status"]) == ("fallback", 9)


def test_another_cluster_takes_over_with_the_whole_request(town: Town, out: None) -> None:
    mark = town.mesh.upstream.mark()
    assert town.ask("/other/1", "POST", body=b"y" * 100_000).status == 200
    (seen,) = town.mesh.upstream.since(mark)
    assert bytes(seen.body) == b"y" * 100_000
    record = town.record("/other/1")
    assert (record["why"]["verdict"], record["outcome"]["upstream"]) == ("allow", f"127.0.0.1:{town.mesh.upstream.port}")
    assert record["outcome"]["fallback"]["because"] == "upstream_quarantined"
    assert record["outcome"]["fallback"]["cluster"] == "app"
    assert "by cluster app" in town.run("explain", record["id"])


def test_the_fixed_answer_when_the_other_cluster_fails_too(town: Town, out: None) -> None:
    assert town.ask("/both/1").json == {"prices": []}
    assert town.record("/both/1")["outcome"]["fallback"] == {"because": "upstream_quarantined", "status": 200}


def test_nobody_waits_for_a_server_whose_identity_is_out(town: Town, out: None) -> None:
    """Its handshake would never end, and its deadline is farther away than the client's patience (8 s)."""
    assert town.ask("/hung/1").json == {"prices": []}


def test_no_endpoint_only_where_it_is_asked_for(town: Town) -> None:
    mark = town.mesh.upstream.mark()
    assert town.ask("/down/1").status == 200
    assert len(town.mesh.upstream.since(mark)) == 1
    assert town.record("/down/1")["outcome"]["fallback"]["because"] in ("connect_failed", "no_endpoint")
    assert town.ask("/kept/1").status == 502


def test_a_request_that_is_under_way_gets_the_fixed_answer(town: Town) -> None:
    began = threading.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.read()
        began.set()
        await exchange.gone()

    with town.orders.on("/fixed/slow", slow), RawClient(town.proxy.address("inbound"), town.mesh.client("billing")) as client:
        client.send(get("/fixed/slow", method="POST", body=b"1"), expect="POST")
        assert began.wait(8)
        town.run("quarantine", "add", SHOP + "orders")
        try:
            answer = client.response()
        finally:
            town.run("quarantine", "remove", SHOP + "orders")
        assert (answer.status, answer.json) == (200, {"prices": []})
    assert town.record("/fixed/slow")["outcome"]["fallback"]["because"] == "upstream_quarantined"


def test_what_the_fallback_of_a_route_may_not_be(town: Town) -> None:
    config = json.loads(json.dumps(town.proxy.config))
    routes = config["listeners"]["inbound"]["routes"]
    for change, words in (
        ({"to": "nowhere"}, "the name of a cluster"),
        ({"to": "orders"}, "another cluster than the route's own"),
        ({}, "to, respond, or both"),
        ({"respond": {"status": 204}}, "a status that may have content"),
        ({"respond": {"headers": {"content-length": "7"}}}, "a field that meshguard does not write itself"),
    ):
        routes[0]["fallback"] = change
        path = town.proxy.directory / "wrong.yaml"
        path.write_text(json.dumps(config))
        assert words in meshguard("check", path, expect=1)[1]


def test_a_quarantined_workload_does_not_answer_for_anybody(town: Town) -> None:
    """The fallback is of the upstream; a proxy whose own workload is out serves nothing, not even that."""
    town.run("quarantine", "add", SHOP + "meshguard")
    try:
        assert town.ask("/fixed/own").problem["code"] == "upstream_quarantined"
    except Truncated:
        pass  # cut before its answer
    finally:
        town.run("quarantine", "remove", SHOP + "meshguard")
