"""HTTP/2 towards upstreams: many calls on a connection, the upstream's limits, GOAWAY and refusals without a failed request, dead peers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.client import RawClient, Response, get
from tests.harness.http2 import Call, H2Client, H2Server, echo
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import server_context
from tests.harness.proxy import Proxy, eventually

MIB = 1 << 20
POLICY = {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}


class Far:
    """The process and its HTTP/2 upstreams: `plain` (prior knowledge), `tls` (ALPN), `narrow` (two streams), `pair` (two endpoints)."""

    def __init__(self, proxy: Proxy, servers: dict[str, H2Server]) -> None:
        self.proxy = proxy
        self.servers = servers

    def dial(self, cluster: str) -> H2Client:
        return H2Client(self.proxy.address(cluster))

    def ask(self, cluster: str, path: str = "/x", **options: Any) -> Response:
        with RawClient(self.proxy.address(cluster), None, **options) as client:
            client.send(get(path), expect="GET")
            return client.response()


@pytest.fixture(scope="module")
def far(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    directory = tmp_path_factory.mktemp("far")
    context = server_context(mesh.service("orders"), mesh.ca, directory)
    context.set_alpn_protocols(["h2", "http/1.1"])
    old = server_context(mesh.service("orders"), mesh.ca, directory)
    with H2Server() as plain, H2Server(context) as tls, H2Server(streams=2) as narrow, H2Server() as left, H2Server() as right, H2Server(
        old
    ) as without:
        servers = {"plain": plain, "tls": tls, "narrow": narrow, "left": left, "right": right, "without": without}
        orders = {"spiffe_id": SHOP + "orders"}
        timeouts = {"connect_s": 1, "response_s": 3, "ping_s": 1}

        def at(*names: str, **more: Any) -> dict[str, Any]:
            return {"endpoints": [f"127.0.0.1:{servers[name].port}" for name in names], "timeouts": timeouts, **more}

        clusters = {
            "plain": at("plain", protocol="h2"),
            "tls": at("tls", tls=orders),
            "narrow": at("narrow", protocol="h2", circuit={"max_connections": 1, "queue": 50, "queue_timeout_s": 5}),
            "pair": at("left", "right", protocol="h2", balance="round_robin", retries={"budget_percent": 100}),
            "without": at("without", tls=orders, protocol="h2"),
        }
        config = {
            "identity": mesh.identity(directory),
            "listeners": {name: {"tls": "none", "protocols": ["h2", "http/1.1"], "to": name} for name in clusters},
            "clusters": clusters,
            "drain_s": 2,
        }
        with Proxy(directory, config, policies={"p.yaml": POLICY}) as proxy:
            yield Far(proxy, servers)


def test_both_protocols_in_front(far: Far) -> None:
    for cluster in ("plain", "tls"):
        seen = far.ask(cluster, "/both?q=1").json
        fields = dict(map(tuple, seen["fields"]))
        assert (fields[":path"], fields[":method"], fields[":authority"]) == ("/both?q=1", "GET", "shop.example")
        assert fields[":scheme"] == ("https" if cluster == "tls" else "http")
        assert not {"connection", "transfer-encoding", "host"} & set(fields)
        with far.dial(cluster) as client:
            stream = client.request("/both", "POST", body=b"b" * 300_000)
            assert client.answer(stream).json["body_bytes"] == 300_000


def test_one_connection_carries_many(far: Far) -> None:
    gate = threading.Event()
    server = far.servers["plain"]

    def script(call: Call) -> None:
        if call.ended:
            threading.Thread(target=lambda: (gate.wait(5), echo(call))).start()

    server.scripts["/many"] = script
    with far.dial("plain") as client:
        client.get("/x")
        before = len(server.peers)
        streams = [client.request("/many", flush=False) for _ in range(60)]
        client.flush()
        server.wait(lambda: sum(call.path == "/many" for call in server.calls) == 60, "60 requests at a time")
        gate.set()
        assert len({client.answer(stream).json["connection"] for stream in streams}) == 1
        assert len(server.peers) == before


def test_the_upstreams_limit_of_streams_holds(far: Far) -> None:
    server = far.servers["narrow"]
    most: list[int] = []
    under_way: set[tuple[int, int]] = set()
    lock = threading.Lock()

    def script(call: Call) -> None:
        if call.ended:
            with lock:
                under_way.add((call.peer.number, call.stream))
                most.append(len(under_way))

            def later() -> None:
                with lock:
                    under_way.discard((call.peer.number, call.stream))
                echo(call)

            threading.Timer(0.02, later).start()

    server.scripts["/narrow"] = script
    with far.dial("narrow") as client:
        streams = [client.request("/narrow", flush=False) for _ in range(20)]
        client.flush()
        assert {client.answer(stream).status for stream in streams} == {200}
    assert max(most) == 2
    assert len(server.peers) == 1


def test_trailers_and_interim_answers(far: Far) -> None:
    def script(call: Call) -> None:
        if call.ended:
            with call.peer.lock:
                call.peer.h2.send_headers(call.stream, [(":status", "103"), ("link", "</a>")])
            call.answer(200, b"abc", [("x-one", "1")], [("x-end", "2")])

    far.servers["plain"].scripts["/trailers"] = script
    with far.dial("plain") as client:
        answer = client.get("/trailers")
        assert (answer.interim[0][":status"], bytes(answer.body), answer.trailers) == ("103", b"abc", None)
    old = far.ask("plain", "/trailers")
    assert (old.body, old.interim[0].status) == (b"abc", 103)


def test_large_bodies(far: Far) -> None:
    block = bytes(range(256)) * 4096 * 8

    def script(call: Call) -> None:
        if call.ended:

            def send() -> None:
                view = memoryview(block)
                with call.peer.lock:
                    call.peer.h2.send_headers(call.stream, [(":status", "200")])
                while view:
                    with call.peer.lock:
                        room = min(call.peer.h2.local_flow_control_window(call.stream), 16384)
                        if room > 0:
                            piece, view = bytes(view[:room]), view[room:]
                            call.peer.h2.send_data(call.stream, piece, end_stream=not view)
                    call.peer.flush()
                    if room <= 0:
                        threading.Event().wait(0.001)

            threading.Thread(target=send).start()

    far.servers["tls"].scripts["/big"] = script
    with far.dial("tls") as client:
        assert hashlib.sha256(client.get("/big").body).digest() == hashlib.sha256(block).digest()
    assert hashlib.sha256(far.ask("tls", "/big").body).digest() == hashlib.sha256(block).digest()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_was_not_processed_goes_elsewhere(method: str, far: Far) -> None:
    """REFUSED_STREAM, and a GOAWAY that leaves the request out: the other endpoint answers, also to a POST with a short body."""
    left, right = far.servers["left"], far.servers["right"]
    refusing = True

    def refuse(call: Call) -> None:
        if call.peer.server is left and refusing:
            if call.ended:
                call.refuse()
        else:
            echo(call)

    def leave(call: Call) -> None:
        if call.peer.server is left:
            if call.ended:
                call.peer.goaway(call.stream - 1)
                call.peer.kill()
        else:
            echo(call)

    body = b"once" if method == "POST" else None
    for path, script in ((f"/refuse/{method}", refuse), (f"/leave/{method}", leave)):
        left.scripts[path] = right.scripts[path] = script
        with far.dial("pair") as client:
            for _ in range(4):
                answer = client.answer(client.request(path, method, body=body))
                assert answer.status == 200, (path, bytes(answer.body))
                assert answer.json["body_bytes"] == len(body or b"")


def test_graceful_goaways_fail_no_request(far: Far) -> None:
    """Under load every connection is drained, again and again: announced, then ended once nothing runs on it."""
    servers = (far.servers["left"], far.servers["right"])
    over = threading.Event()
    answers: list[int] = []

    def load(method: str) -> None:
        with far.dial("pair") as client:
            while not over.is_set():
                answers.append(client.answer(client.request("/graceful", method, body=b"b" * 100 if method == "POST" else None)).status)

    threads = [threading.Thread(target=load, args=(method,)) for method in ("GET", "POST", "POST")]
    for thread in threads:
        thread.start()
    for _ in range(4):
        for server in servers:
            live = [peer for peer in server.peers if not peer.closed]
            for peer in live:
                peer.goaway(2**31 - 1)
            done = len(answers)
            eventually(lambda done=done: len(answers) > done + 10, "answers")  # type: ignore[misc]
            for peer in live:
                server.wait(lambda peer=peer: peer.closed, "the end of a drained connection")  # type: ignore[misc]
    over.set()
    for thread in threads:
        thread.join(8)
    assert set(answers) == {200}


def test_an_upstream_that_dies_with_streams_under_way(far: Far) -> None:
    server = far.servers["plain"]

    def half(call: Call) -> None:
        if call.ended:
            with call.peer.lock:
                call.peer.h2.send_headers(call.stream, [(":status", "200")])
                call.peer.h2.send_data(call.stream, b"half")
            call.peer.flush()

    server.scripts["/half"] = half
    server.scripts["/silent"] = lambda call: None
    with far.dial("plain") as client:
        begun = [client.request("/half") for _ in range(3)]
        client.until(lambda: all(client.streams[s].body == b"half" for s in begun), "the first halves")
        waiting = [client.request("/silent", "POST", body=b"x") for _ in range(3)]
        server.wait(lambda: sum(call.path == "/silent" for call in server.calls) >= 3, "the others")
        for peer in server.peers:
            peer.kill()
        for stream in begun:
            answer = client.answer(stream)
            assert (answer.ended, answer.reset) == (False, 2)
        assert [client.answer(stream).status for stream in waiting] == [502] * 3
        assert client.get("/x").status == 200


def test_an_answer_that_breaks_the_rules(far: Far) -> None:
    def script(call: Call) -> None:
        if call.ended:
            call.answer(200, b"abc", [("connection", "close")])

    far.servers["plain"].scripts["/bad"] = script
    with far.dial("plain") as client:
        answer = client.get("/bad")
        assert (answer.status, answer.json["code"]) == (502, "upstream_malformed")
        assert client.get("/x").status == 200


def test_a_client_that_leaves_resets_its_stream_only(far: Far) -> None:
    server = far.servers["plain"]
    server.scripts["/left"] = lambda call: None
    with far.dial("plain") as client:
        stream = client.request("/left")
        server.wait(lambda: [call for call in server.calls if call.path == "/left"], "the request")
        client.h2.reset_stream(stream, 8)
        client.flush()
        call = next(call for call in server.calls if call.path == "/left")
        server.wait(lambda: call.reset == 8, "RST_STREAM")
        assert client.get("/x").json["connection"] == call.peer.number
    record = far.proxy.decision_where(lambda r: r["what"]["path"] == "/left", "the record")
    assert record["outcome"]["aborted"] == "client"


def test_a_peer_that_no_longer_answers_is_given_up(far: Far) -> None:
    """An idle connection is asked by PING; one whose peer is silent is replaced before a request suffers."""
    server = far.servers["tls"]
    assert far.ask("tls").status == 200
    peer = server.peers[-1]
    server.wait(lambda: peer.pings, "a PING on the idle connection")
    peer.answers_pings = False
    server.wait(lambda: peer.closed, "the end of the silent connection")
    assert far.ask("tls").status == 200
    assert server.peers[-1] is not peer


def test_a_timeout_ends_one_stream(far: Far) -> None:
    server = far.servers["plain"]
    server.scripts["/never"] = lambda call: None
    with far.dial("plain") as client:
        stream = client.request("/never")
        assert client.answer(stream).status == 504
        call = next(call for call in server.calls if call.path == "/never")
        server.wait(lambda: call.reset == 8, "RST_STREAM")
        assert client.get("/x").json["connection"] == call.peer.number


def test_an_upstream_without_alpn_is_no_h2_upstream(far: Far) -> None:
    answer = far.ask("without")
    assert (answer.status, answer.problem["code"]) == (502, "upstream_tls_failed")


def test_rotation_retires_connections_in_order(mesh: Mesh, tmp_path: Path) -> None:
    """A new identity: what runs finishes on the old connection, the next request goes over a new one; the old one gets a GOAWAY."""
    context = server_context(mesh.service("orders"), mesh.ca, tmp_path)
    context.set_alpn_protocols(["h2"])
    gate = threading.Event()

    def script(call: Call) -> None:
        if call.ended:
            threading.Thread(target=lambda: (gate.wait(8), echo(call))).start()

    with H2Server(context) as server:
        server.scripts["/slow"] = script
        config = {
            "identity": mesh.identity(tmp_path),
            "listeners": {"in": {"tls": "none", "protocols": ["h2"], "to": "app"}},
            "clusters": {"app": {"endpoints": [f"127.0.0.1:{server.port}"], "tls": {"spiffe_id": SHOP + "orders"}}},
            "drain_s": 2,
        }
        with Proxy(tmp_path, config, policies={"p.yaml": POLICY}) as proxy, H2Client(proxy.address("in")) as client:
            stream = client.request("/slow")
            server.wait(lambda: server.calls, "the request")
            since = len(proxy.stderr.items)
            mesh.ca.service("meshguard").write(tmp_path, "svid")
            proxy.stderr.wait(lambda text: "identity rotated" in text, "the rotation", since=since)
            assert client.get("/x").json["connection"] == 1
            gate.set()
            assert client.answer(stream).json["connection"] == 0
            server.wait(lambda: server.peers[0].goaways == [0], "GOAWAY on the old connection")


def test_health_over_http2(mesh: Mesh, tmp_path: Path) -> None:
    ill = threading.Event()

    def script(call: Call) -> None:
        if call.ended:
            call.answer(503 if ill.is_set() else 200, b"well")

    with H2Server() as server:
        server.scripts["/healthz"] = script
        health = {"path": "/healthz", "interval_s": 0.1, "timeout_s": 1, "unhealthy": 1, "healthy": 1}
        config = {
            "identity": mesh.identity(tmp_path),
            "listeners": {"in": {"tls": "none", "to": "app"}},
            "clusters": {"app": {"endpoints": [f"127.0.0.1:{server.port}"], "protocol": "h2", "health": health}},
            "drain_s": 1,
        }
        with Proxy(tmp_path, config, policies={"p.yaml": POLICY}) as proxy:

            def ask() -> int:
                with RawClient(proxy.address("in"), None) as client:
                    client.send(get("/x"), expect="GET")
                    return client.response().status

            assert ask() == 200
            ill.set()
            eventually(lambda: ask() == 503, "no healthy endpoint")
            ill.clear()
            eventually(lambda: ask() == 200, "a healthy endpoint")
