"""WebSockets over HTTP/2 (RFC 8441), on either side: extended CONNECT on a listener, extended CONNECT to an upstream that takes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import h2.settings
import pytest

from tests.harness.http2 import Call, H2Client, H2Server
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.websocket import CLOSE, TEXT, Answers, Frame, WebSocketClient, close, frame, parse, steady, swallow

CONNECT_PROTOCOL = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
ALLOW = {"rules": [{"id": "all", "allow": "anyone", "methods": ["GET"], "paths": ["/**"]}]}


class TunnelServer(H2Server):
    """An HTTP/2 upstream that takes extended CONNECT: it echoes text and answers a Close."""

    def __init__(self, *, takes: bool = True) -> None:
        super().__init__(settings={CONNECT_PROTOCOL: int(takes)})
        self.default = self.tunnel

    def tunnel(self, call: Call) -> None:
        if call.head.get(":protocol") != "websocket":
            if call.ended:
                call.answer(200, b"plain")
            return
        opened = getattr(call, "opened", False)
        if not opened:
            call.opened = True  # type: ignore[attr-defined]
            call.done = 0  # type: ignore[attr-defined]
            with call.peer.lock:
                call.peer.h2.send_headers(call.stream, [(":status", "200"), ("x-upstream", "h2")])
            call.peer.flush()
        frames = parse(bytes(call.body))[0]
        for got in frames[call.done :]:  # type: ignore[attr-defined]
            assert got.masked
            with call.peer.lock:
                if got.opcode == TEXT:
                    call.peer.h2.send_data(call.stream, frame(TEXT, got.payload, mask=b""))
                elif got.opcode == CLOSE:
                    call.peer.h2.send_data(call.stream, frame(CLOSE, got.payload, mask=b""), end_stream=True)
            call.peer.flush()
        call.done = len(frames)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def willing() -> Iterator[TunnelServer]:
    with TunnelServer() as server:
        yield server


@pytest.fixture(scope="module")
def unwilling() -> Iterator[TunnelServer]:
    with TunnelServer(takes=False) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, willing: TunnelServer, unwilling: TunnelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("streams")
    routes = [
        {"id": "h2", "paths": ["/h2/**"], "to": "h2"},
        {"id": "unwilling", "paths": ["/unwilling/**"], "to": "unwilling"},
        {"id": "deny", "paths": ["/deny/**"], "to": "app", "websocket": "deny"},
        {"id": "rest", "to": "app"},
    ]
    config: dict[str, Any] = {
        "identity": mesh.identity(directory),
        "listeners": {
            "default": {"tls": "mutual", "routes": [dict(r, id=f"{r['id']}-d") for r in routes]},
            "reference": {"tls": "mutual", "engine": "reference", "routes": [dict(r, id=f"{r['id']}-r") for r in routes]},
            "none": {"tls": "mutual", "to": "app", "websocket": "deny"},
        },
        "clusters": {
            "app": mesh.endpoints(),
            "h2": {"endpoints": [f"127.0.0.1:{willing.port}"], "protocol": "h2"},
            "unwilling": {"endpoints": [f"127.0.0.1:{unwilling.port}"], "protocol": "h2"},
        },
        "drain_s": 2,
    }
    with Proxy(directory, config, policies={"p.yaml": ALLOW}) as running:
        yield running
    assert "Traceback" not in running.stderr_text


def dial(proxy: Proxy, mesh: Mesh, listener: str = "default", who: str = "billing") -> H2Client:
    client = H2Client(proxy.address(listener), mesh.client(who, ("h2",)))
    client.until(lambda: client.h2.remote_settings is not None and client.h2.remote_settings.max_concurrent_streams < 2**31, "settings")
    return client


def connect(client: H2Client, path: str, *fields: tuple[str, str], protocol: str = "websocket") -> int:
    stream = int(client.h2.get_next_available_stream_id())
    head = [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "https"),
        (":authority", "shop.example"),
        (":path", path),
        ("sec-websocket-version", "13"),
        *fields,
    ]
    client.h2.send_headers(stream, head)
    client.flush()
    return stream


def opened(client: H2Client, path: str, *fields: tuple[str, str]) -> int:
    stream = connect(client, path, *fields)
    client.until(lambda: client.streams[stream].fields, "the answer")
    assert client.streams[stream].status == 200
    return stream


def frames_of(client: H2Client, stream: int, count: int) -> list[Frame]:
    client.until(lambda: len(parse(bytes(client.streams[stream].body))[0]) >= count, f"{count} frames")
    return parse(bytes(client.streams[stream].body))[0]


@pytest.mark.parametrize("listener", ["default", "reference"])
def test_a_stream_becomes_a_tunnel_to_http1(listener: str, proxy: Proxy, mesh: Mesh) -> None:
    """Many on one connection, beside ordinary requests; the upstream sees an ordinary upgrade with a key of ours."""
    mark = proxy.mark()
    answers = Answers()
    with mesh.upstream.on("/many", answers.as_script), dial(proxy, mesh, listener) as client:
        assert client.h2.remote_settings.enable_connect_protocol == 1
        streams = [opened(client, "/many", ("sec-websocket-protocol", "chat")) for _ in range(5)]
        for number, stream in enumerate(streams):
            client.data(stream, frame(TEXT, b"hello %d" % number) + frame(TEXT, b"a" * 30_000))
        assert client.get("/beside").status == 200
        for number, stream in enumerate(streams):
            client.until(lambda stream=stream: sum(len(f.payload) for f in frames_of(client, stream, 0)) >= 30_007, "the echoes")
            assert b"".join(f.payload for f in frames_of(client, stream, 0)) == b"hello %d" % number + b"a" * 30_000
        for stream in streams:
            before = len(frames_of(client, stream, 0))
            client.data(stream, close(1000))
            assert frames_of(client, stream, before + 1)[before].code == 1000
            client.until(lambda stream=stream: client.streams[stream].over, "the end of the stream")
        assert client.get("/beside").status == 200
    head = answers.sockets[0].exchange.request.head
    assert head.all("upgrade") == ["websocket"]
    assert head.get("sec-websocket-protocol") == "chat"
    assert f"URI={SHOP}billing" in head.get("x-forwarded-client-cert")
    record = proxy.decision_where(lambda r: r["what"]["path"] == "/many", "the record", mark)
    assert (record["outcome"]["status"], record["outcome"]["websocket"]) == (200, {"close": 1000, "by": "client"})
    assert (record["what"]["method"], record["what"]["protocol"]) == ("GET", "h2")


def test_a_tunnel_to_an_upstream_over_http2(proxy: Proxy, mesh: Mesh, willing: TunnelServer) -> None:
    """From HTTP/1.1 and from HTTP/2: extended CONNECT, no key and no upgrade; the connection goes on to carry others."""
    with WebSocketClient(proxy.address("default"), mesh.client("billing"), "/h2/one") as client:
        assert client.answer.get("x-upstream") == "h2"
        for text in (b"one", b"two" * 3000):
            client.send(frame(TEXT, text))
            assert client.frame().payload == text
        client.send(close(3000, b"done"))
        assert client.frame().code == 3000
        client.assert_closed()
    with dial(proxy, mesh) as client2:
        stream = opened(client2, "/h2/two")
        client2.data(stream, frame(TEXT, b"three"))
        assert frames_of(client2, stream, 1)[0].payload == b"three"
        assert client2.get("/h2/plain").body == b"plain"
        client2.data(stream, close(1000))
        assert frames_of(client2, stream, 2)[1].code == 1000
    tunnels = [call for call in willing.calls if call.head.get(":protocol") == "websocket"]
    for call in tunnels:
        assert call.head[":method"] == "CONNECT"
        assert not {"upgrade", "connection", "sec-websocket-key"} & call.head.keys()
        assert call.head["sec-websocket-version"] == "13"
    assert len({call.peer.number for call in willing.calls}) == 1
    assert willing.errors == []


def test_an_upstream_that_does_not_announce_it_is_not_asked(proxy: Proxy, mesh: Mesh, unwilling: TunnelServer) -> None:
    with dial(proxy, mesh) as client:
        for _ in range(2):
            answer = client.answer(connect(client, "/unwilling/ws"))
            assert (answer.status, answer.json["code"]) == (501, "upgrade_not_supported")
        assert client.get("/unwilling/plain").body == b"plain"
    assert all(call.head[":method"] != "CONNECT" for call in unwilling.calls)


def test_a_plain_200_is_no_tunnel(proxy: Proxy, mesh: Mesh) -> None:
    """To an extended CONNECT a 2xx means a tunnel: an HTTP/1.1 upstream that answered an upgrade with 200 has opened none."""
    with dial(proxy, mesh) as client:
        stream = connect(client, "/no-such-socket")
        answer = client.answer(stream)
        assert (answer.status, answer.json["code"]) == (501, "upgrade_not_supported")


@pytest.mark.parametrize(
    ("path", "fields", "protocol", "status", "code"),
    [
        ("/deny/ws", [], "websocket", 403, "websocket_denied"),
        ("/other", [], "connect-udp", 501, "upgrade_not_supported"),
        ("/other", [("sec-websocket-protocol", "a, a")], "websocket", 400, "websocket_handshake"),
        ("/other", [("sec-websocket-extensions", "permessage-deflate; =")], "websocket", 400, "websocket_handshake"),
    ],
)
def test_what_is_refused(path: str, fields: Any, protocol: str, status: int, code: str, proxy: Proxy, mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with dial(proxy, mesh) as client:
        answer = client.answer(connect(client, path, *fields, protocol=protocol))
        assert (answer.status, answer.json["code"]) == (status, code)
    assert mesh.upstream.since(mark) == []


def test_where_no_route_takes_one_it_is_not_announced(proxy: Proxy, mesh: Mesh) -> None:
    with dial(proxy, mesh, "none") as client:
        assert client.h2.remote_settings.enable_connect_protocol == 0
        stream = connect(client, "/ws")
        client.until(lambda: client.streams[stream].over or client.closed, "the end")
        assert client.streams[stream].reset is not None
        assert not client.streams[stream].fields


def test_a_violation_ends_its_stream_only(proxy: Proxy, mesh: Mesh) -> None:
    answers = Answers()
    with mesh.upstream.on("/bad", answers.as_script), dial(proxy, mesh) as client:
        bad, good = opened(client, "/bad"), opened(client, "/bad")
        client.data(bad, frame(TEXT, b"fine") + frame(TEXT, b"\xff"))
        frames = frames_of(client, bad, 2)
        assert (frames[0].payload, frames[1].code) == (b"fine", 1007)
        client.until(lambda: client.streams[bad].over, "the end of the stream")
        client.data(good, frame(TEXT, b"still"))
        assert frames_of(client, good, 1)[0].payload == b"still"
        assert [f.code for f in answers.sockets[0].frames if f.opcode == CLOSE] == [1001]


def test_a_reset_stream_breaks_its_tunnel(proxy: Proxy, mesh: Mesh) -> None:
    answers = Answers(swallow)
    with mesh.upstream.on("/reset", answers.as_script), dial(proxy, mesh) as client:
        stream = opened(client, "/reset")
        client.data(stream, frame(TEXT, b"x"))
        mesh.upstream.wait(lambda: answers.sockets and answers.sockets[0].seen, "the message")
        client.h2.reset_stream(stream, 8)
        client.flush()
        mesh.upstream.wait(lambda: answers.sockets[0].ended, "the end upstream")
        assert [f.opcode for f in answers.sockets[0].frames] == [TEXT]
        assert client.get("/after").status == 200


def test_a_slow_reader_of_one_stream_holds_its_writer(proxy: Proxy, mesh: Mesh) -> None:
    count, piece = 200, frame(2, bytes(60_000), mask=b"")
    state = {"sent": 0}

    async def floods(socket: Any) -> None:
        await socket.read()
        for _ in range(count):
            await socket.send(piece)
            state["sent"] += 1
            mesh.upstream.changed()
        await swallow(socket)

    with mesh.upstream.on("/flood", Answers(floods).as_script):
        client = H2Client(proxy.address("default"), mesh.client("billing", ("h2",)), frozen=True)
        with client:
            client.until(lambda: client.h2.remote_settings.enable_connect_protocol == 1, "settings")
            stream = opened(client, "/flood")
            client.data(stream, frame(TEXT, b"go"))
            client.until(lambda: len(client.streams[stream].body) >= 60_000, "a window full")
            before = proxy.rss_bytes()
            assert state["sent"] < count
            assert eventually(steady(lambda: state["sent"]), "the writer's standstill")
            assert state["sent"] < count
            assert proxy.rss_bytes() - before < 8 << 20


def test_a_denied_caller_hears_1008_and_keeps_the_connection(proxy: Proxy, mesh: Mesh) -> None:
    answers = Answers()
    with mesh.upstream.on("/held", answers.as_script), dial(proxy, mesh) as client:
        stream = opened(client, "/held")
        client.data(stream, frame(TEXT, b"x"))
        assert frames_of(client, stream, 1)[0].payload == b"x"
        try:
            proxy.write_policy("p.yaml", {"rules": [{"id": "no", "deny": "anyone", "paths": ["/held"]}, *ALLOW["rules"]]})
            assert "reloaded" in proxy.reload()
            since = time.monotonic()
            assert frames_of(client, stream, 2)[1].code == 1008
            assert time.monotonic() - since < 1.5
            assert client.get("/beside").status == 200
            mesh.upstream.wait(lambda: answers.sockets[0].ended, "the end upstream")
            assert [f.code for f in answers.sockets[0].frames if f.opcode == CLOSE] == [1008]
        finally:
            proxy.write_policy("p.yaml", ALLOW)
            assert "reloaded" in proxy.reload()
