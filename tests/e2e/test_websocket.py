"""WebSockets through the real process: what passes, what is on record, and how one ends when its caller, its listener or its peers do."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Pong, TextMessage
from wsproto.events import Ping as PingEvent
from wsproto.extensions import PerMessageDeflate

from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import Certificate
from tests.harness.proxy import ROOT, Proxy, eventually
from tests.harness.websocket import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Answers,
    Socket,
    WebSocketClient,
    close,
    frame,
    handshake,
    parse,
    steady,
    swallow,
)

ENGINES = ("default", "reference")
WITHIN_S = 1.5  # within a second, on a machine that does other things as well
ALLOW = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}, {"id": "local", "allow": "anyone", "paths": ["/**"]}]}


class Hall:
    """A process with listeners for WebSockets, and what can be changed about it."""

    def __init__(self, proxy: Proxy, mesh: Mesh, directory: Path) -> None:
        self.proxy = proxy
        self.mesh = mesh
        self._directory = directory
        self._revoked: list[Certificate] = []

    def open(self, listener: str = "default", who: str = "billing", path: str = "/ws", *fields: str, **options: Any) -> WebSocketClient:
        tls = None if listener.startswith("plain") else self.mesh.client(who)
        return WebSocketClient(self.proxy.address(listener), tls, path, *fields, **options)

    def revoke(self, who: Certificate) -> None:
        self._revoked.append(who)
        fresh = self._directory / "fresh.crl"
        fresh.write_bytes(self.mesh.ca.crl(*self._revoked, number=1 + len(self._revoked)))
        fresh.replace(self._directory / "shop.crl")

    def policy(self, document: Any) -> None:
        self.proxy.write_policy("p.yaml", document)
        assert "reloaded" in self.proxy.reload()

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        change(self.proxy.config["listeners"])
        self.proxy.write_config()
        assert "reloaded" in self.proxy.reload()

    def record(self, path: str, since: int) -> dict[str, Any]:
        return self.proxy.decision_where(lambda r: r["what"]["path"] == path, f"the record of {path}", since)


@pytest.fixture(scope="module")
def hall(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    directory = tmp_path_factory.mktemp("hall")
    (directory / "shop.crl").write_bytes(mesh.ca.crl())
    (directory / "partner.crl").write_bytes(mesh.partner.crl())
    routes = [{"id": "no-sockets", "paths": ["/quiet/**"], "to": "app", "websocket": "deny"}, {"id": "rest", "to": "app"}]
    listeners: dict[str, Any] = {
        engine: {"tls": "mutual", "engine": engine, "routes": [dict(r, id=f"{r['id']}-{engine}") for r in routes]} for engine in ENGINES
    }
    listeners |= {
        "plain": {"tls": "none", "to": "app"},
        "plain-brief": {
            "tls": "none",
            "to": "app",
            "limits": {"websocket_idle_s": 0.6, "websocket_close_s": 0.5},
        },
        "plain-pinging": {"tls": "none", "to": "app", "limits": {"websocket_idle_s": 0.9, "websocket_ping_s": 0.2}},
        "plain-deny": {
            "tls": "none",
            "websocket": "deny",
            "routes": [{"id": "but", "paths": ["/but"], "to": "app", "websocket": "allow"}, {"id": "others", "to": "app"}],
        },
        "gone": {"tls": "mutual", "to": "app"},
    }
    config = {
        "identity": mesh.identity(directory, crls=["shop.crl", "partner.crl"]),
        "listeners": listeners,
        "clusters": {"app": mesh.endpoints()},
        "quarantine": {"path": "quarantine.json"},
        "drain_s": 4,
    }
    running = Proxy(directory, config, policies={"p.yaml": ALLOW})
    config["admin"]["token_file"] = "admin.token"
    running.write_config()
    with running.start() as proxy:
        yield Hall(proxy, mesh, directory)
    assert "Traceback" not in proxy.stderr_text


@contextlib.contextmanager
def upgrading(hall: Hall, path: str = "/ws", answers: Answers | None = None) -> Iterator[Answers]:
    answers = answers or Answers()
    with hall.mesh.upstream.on(path, answers.as_script):
        yield answers


def talk(client: WebSocketClient, connection: Connection, event: Any, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """Sends one event by `wsproto` and collects what comes back until it is enough."""
    client.send(connection.send(event))
    found: list[Any] = []
    if client._rest:
        connection.receive_data(client._rest)
        client._rest = b""
    while not enough(found):
        found += list(connection.events())
        if not enough(found):
            data = client.receive()
            assert data, found
            connection.receive_data(data)
    return found


@pytest.mark.parametrize("listener", [*ENGINES, "plain"])
def test_messages_pass_both_ways(listener: str, hall: Hall) -> None:
    """Text, octets, fragments, pings, a close: as without us, and the record tells all of it."""
    path = f"/pass/{listener}"
    mark, opened = hall.proxy.mark(), len(hall.mesh.upstream.connections)
    with upgrading(hall, path) as answers, hall.open(listener, path=path) as client:
        assert client.answer.all("connection") == ["Upgrade"] or client.answer.all("connection") == ["upgrade"]
        connection = Connection(ConnectionType.CLIENT)
        texts = ["hello", "κόσμε ☃ 𝄞", "", "a" * 70_000, "é" * 200_000]
        for text in texts:
            found = talk(client, connection, TextMessage(text), lambda f: any(e.message_finished for e in f))
            assert "".join(event.data for event in found) == text
        for size in (0, 125, 126, 65535, 65536, 1_000_000):
            data = bytes(size)
            found = talk(client, connection, BytesMessage(data), lambda f: any(e.message_finished for e in f))
            assert b"".join(bytes(event.data) for event in found) == data
        client.send(connection.send(TextMessage("one ", message_finished=False)))
        found = talk(client, connection, TextMessage("two"), lambda f: any(e.message_finished for e in f))
        assert "".join(event.data for event in found) == "one two"
        assert isinstance(talk(client, connection, PingEvent(b"are you"), bool)[0], Pong)
        found = talk(client, connection, CloseConnection(1000, "bye"), bool)
        assert (found[0].code, found[0].reason) == (1000, "bye")
        client.assert_closed()
        record = hall.record(path, mark)
        socket = answers.sockets[0]
    assert record["outcome"]["status"] == 101
    assert record["outcome"]["websocket"] == {"close": 1000, "by": "client"}
    assert "aborted" not in record["outcome"]
    assert record["why"]["verdict"] == "allow"
    assert record["what"]["request_bytes"] == len(socket.seen)
    assert record["what"]["response_bytes"] > 1_500_000
    assert record["outcome"]["duration_us"] > 1000
    seen = socket.exchange.request.head
    assert seen.all("upgrade") == ["websocket"]
    assert seen.get("sec-websocket-key") != "dGhlIHNhbXBsZSBub25jZQ=="
    if listener != "plain":
        assert f"URI={SHOP}billing" in seen.get("x-forwarded-client-cert")
        assert record["who"]["principal"] == SHOP + "billing"
    assert len(hall.mesh.upstream.connections) <= opened + 1
    assert hall.proxy.metric("meshguard_websocket_closes_total", listener=listener, code="1000", by="client") >= 1


def test_an_upgraded_connection_is_never_used_again(hall: Hall) -> None:
    """Also when both ends closed in order and the upstream keeps its TCP connection open: it is closed by us, and the next request gets
    another one."""

    async def stays(socket: Socket) -> None:
        while data := await socket.read():
            if parse(data)[0][-1].opcode == CLOSE:
                await socket.send(close(1000, mask=b""))

    with upgrading(hall, "/stays", Answers(stays)) as answers:
        with hall.open("plain-brief", path="/stays") as client:
            client.send(close(1000))
            assert client.frame().code == 1000
            client.assert_closed()
        with RawClient(hall.proxy.address("plain-brief")) as other:
            answer = other.request(get("/next"))
        assert answer.json["connection"] != answers.sockets[0].exchange.connection.number
        hall.mesh.upstream.wait(lambda: answers.sockets[0].ended, "the end of the upgraded connection")


def test_compression_is_between_the_ends(hall: Hall) -> None:
    with upgrading(hall, "/deflate", Answers(deflate=True)) as answers:
        offer = "Sec-WebSocket-Extensions: x-unknown, permessage-deflate; client_max_window_bits"
        with hall.open("default", "billing", "/deflate", offer) as client:
            hall.mesh.upstream.wait(lambda: answers.sockets, "the socket")
            seen = answers.sockets[0].exchange.request.head
            assert seen.all("sec-websocket-extensions") == ["permessage-deflate; client_max_window_bits"]
            extension = PerMessageDeflate()
            extension.finalize(client.answer.get("sec-websocket-extensions"))
            connection = Connection(ConnectionType.CLIENT, [extension])
            for text in ("hello hello hello", "again " * 30_000):
                found = talk(client, connection, TextMessage(text), lambda f: any(e.message_finished for e in f))
                assert "".join(event.data for event in found) == text
            assert len(answers.sockets[0].seen) < 5_000
            client.send(frame(PING, rsv=4))  # still validated
            assert client.frames_to_end()[-1].code == 1002


def test_subprotocols_are_agreed_on_by_the_ends(hall: Hall) -> None:
    with upgrading(hall, "/chat", Answers(swallow, "Sec-WebSocket-Protocol: v2.chat", "Set-Cookie: a=b")) as answers:
        with hall.open(
            "default", "billing", "/chat", "Sec-WebSocket-Protocol: v1.chat", "Sec-WebSocket-Protocol: v2.chat, Other"
        ) as client:
            assert client.answer.get("sec-websocket-protocol") == "v2.chat"
            assert client.answer.get("set-cookie") == "a=b"
        assert answers.sockets[0].exchange.request.head.all("sec-websocket-protocol") == ["v1.chat, v2.chat, Other"]


@pytest.mark.parametrize("listener", ENGINES)
def test_what_comes_with_the_heads_is_not_lost(listener: str, hall: Hall) -> None:
    """Frames right behind the upstream's 101, and frames that a hasty client sends before it."""
    with upgrading(hall, "/hasty", Answers(behind=frame(TEXT, b"first", mask=b""))) as answers:
        with RawClient(hall.proxy.address(listener), hall.mesh.client("billing")) as raw:
            raw.send(handshake("/hasty") + frame(TEXT, b"hasty") + frame(TEXT, b"x" * 100))
            data = b""
            while len(parse(data.partition(b"\r\n\r\n")[2])[0]) < 3:
                data += raw.receive()
            frames = parse(data.partition(b"\r\n\r\n")[2])[0]
        assert [f.payload for f in frames] == [b"first", b"hasty", b"x" * 100]
        assert answers.sockets[0].frames[0].payload == b"hasty"


@pytest.mark.parametrize("listener", ENGINES)
def test_an_upstream_that_does_not_upgrade_answers_as_usual(listener: str, hall: Hall) -> None:
    """The answer passes, and both connections serve on."""
    with RawClient(hall.proxy.address(listener), hall.mesh.client("billing")) as client:
        for _ in range(2):
            answer = client.request(handshake("/plain-answer"))
            assert answer.status == 200
            fields = {name.lower(): value for name, value in answer.json["fields"]}
            assert fields["upgrade"] == "websocket"
        assert client.request(get("/after")).status == 200


def test_routes_and_listeners_say_who_may(hall: Hall) -> None:
    with (
        upgrading(hall, "/quiet/ws"),
        upgrading(hall, "/but"),
        RawClient(hall.proxy.address("default"), hall.mesh.client("billing")) as client,
    ):
        refused = client.request(handshake("/quiet/ws"))
        assert (refused.status, refused.problem["code"]) == (403, "websocket_denied")
        assert hall.proxy.decision(refused.decision_id)["why"]["reason"] == "websocket_denied"
        assert client.request(get("/quiet/plain")).status == 200
        with RawClient(hall.proxy.address("plain-deny")) as other:
            assert other.request(handshake("/elsewhere")).status == 403
        with hall.open("plain-deny", path="/but") as allowed:
            allowed.send(frame(TEXT, b"x"))
            assert allowed.frame().payload == b"x"


# ---- ends -------------------------------------------------------------------------------------------------------------------


def ended(client: WebSocketClient, code: int, since: float, within_s: float = WITHIN_S) -> None:
    frames = client.frames_to_end()
    assert [f.code for f in frames if f.opcode == CLOSE] == [code], frames
    assert time.monotonic() - since < within_s, f"closed after {time.monotonic() - since:.1f} s"


def closes(hall: Hall, answers: Answers, code: int, count: int = 1) -> None:
    """The upstream got a masked Close with this code on each socket, and then the end."""
    hall.mesh.upstream.wait(lambda: sum(s.ended for s in answers.sockets) == count, "the end of the sockets")
    for socket in answers.sockets:
        assert [(f.code, f.masked) for f in socket.frames if f.opcode == CLOSE] == [(code, True)]


@pytest.mark.parametrize("how", ["revoked", "denied", "route", "quarantined"])
def test_a_caller_who_may_no_longer_be_served_is_cut_with_1008(how: str, hall: Hall) -> None:
    """Both sides get the code within a second; another caller's WebSocket goes on."""
    path, name = f"/live/{how}", f"ws-{how}"
    mark = hall.proxy.mark()
    with upgrading(hall, path) as answers, upgrading(hall, "/live/other"), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(hall.open(engine, name, path)) for engine in ENGINES]
        other = stack.enter_context(hall.open("default", "ws-fine", "/live/other"))
        for client in (*clients, other):
            client.send(frame(TEXT, b"hello"))
            assert client.frame().payload == b"hello"
        try:
            if how == "revoked":
                hall.revoke(hall.mesh.service(name))
            elif how == "denied":
                hall.policy({"rules": [{"id": "no", "deny": [SHOP + name], "paths": ["/**"]}, *ALLOW["rules"]]})
            elif how == "route":
                hall.change(
                    lambda ls: [
                        ls[e]["routes"].insert(0, {"id": f"now-{e}", "paths": [path], "to": "app", "websocket": "deny"}) for e in ENGINES
                    ]
                )
            else:
                command = [sys.executable, "-m", "meshguard", "quarantine", "add", SHOP + name, "--config", str(hall.proxy.config_path)]
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            since = time.monotonic()
            for client in clients:
                ended(client, 1008, since)
            closes(hall, answers, 1008, len(clients))
            other.send(frame(TEXT, b"still"))
            assert other.frame().payload == b"still"
        finally:
            hall.policy(ALLOW)
            if how == "route":
                hall.change(lambda ls: [ls[e]["routes"].pop(0) for e in ENGINES])
        record = hall.record(path, mark)
    assert record["outcome"]["aborted"] == "revoked"
    assert record["outcome"]["websocket"] == {"close": 1008, "by": "meshguard"}


def test_a_listener_that_goes_says_1001_between_messages(hall: Hall) -> None:
    """Removed from the configuration: a message under way is finished first, then both sides hear that we go."""
    with upgrading(hall, "/goes") as answers, hall.open("gone", path="/goes") as client:
        client.send(frame(TEXT, b"half of", fin=False))
        hall.mesh.upstream.wait(lambda: answers.sockets and answers.sockets[0].seen, "the first half")
        hall.change(lambda listeners: listeners.pop("gone"))
        client.send(frame(0, b" a message"))
        frames = client.frames_to_end()
        assert [f.code for f in frames if f.opcode == CLOSE] == [1001]
        closes(hall, answers, 1001)
        assert b"".join(f.payload for f in answers.sockets[0].frames if f.opcode != CLOSE) == b"half of a message"


def test_silence_ends_with_1001(hall: Hall) -> None:
    mark = hall.proxy.mark()
    with upgrading(hall, "/silent", Answers(swallow)) as answers, hall.open("plain-brief", path="/silent") as client:
        assert [f.code for f in client.frames_to_end()] == [1001]
        closes(hall, answers, 1001)
        record = hall.record("/silent", mark)
    assert (record["outcome"]["aborted"], record["why"]["detail"]) == ("deadline", "idle")


def test_who_answers_pings_may_be_silent(hall: Hall) -> None:
    """Both sides are pinged; an upstream that does not answer ends the WebSocket, one that does keeps it."""

    async def answering(socket: Socket) -> None:
        while await socket.read():
            pings = [f for f in socket.frames if f.opcode == PING]
            await socket.send(frame(10, pings[-1].payload, mask=b""))

    async def deaf(socket: Socket) -> None:
        await swallow(socket)

    for serve, lasts in ((answering, True), (deaf, False)):
        with upgrading(hall, "/pinged", Answers(serve)) as answers, hall.open("plain-pinging", path="/pinged") as client:
            pings = 0
            while pings < 3:
                got = client.frame()
                if got.opcode == CLOSE:
                    break
                if got.opcode == PING:
                    pings += 1
                    client.send(frame(10, got.payload))
            assert (pings == 3) is lasts
            assert [f for f in answers.sockets[0].frames if f.opcode == PING and f.masked]


@pytest.mark.parametrize("listener", ["default", "plain"])
def test_an_end_without_a_close_stays_one(listener: str, hall: Hall) -> None:
    """What broke looks broken on the other side too: the end, and no Close that would make it look whole."""

    async def breaks(socket: Socket) -> None:
        await socket.read()
        await socket.send(frame(TEXT, b"last", mask=b""))
        socket.end()

    path = f"/breaks/{listener}"
    mark = hall.proxy.mark()
    with upgrading(hall, path, Answers(breaks)), hall.open(listener, path=path) as client:
        client.send(frame(TEXT, b"go"))
        assert [f.payload for f in client.frames_to_end()] == [b"last"]
        assert hall.record(path, mark)["outcome"]["aborted"] == "upstream"
    mark = hall.proxy.mark()
    with upgrading(hall, path, Answers(swallow)) as answers:
        with hall.open(listener, path=path) as client:
            client.send(frame(TEXT, b"go"))
            hall.mesh.upstream.wait(lambda: answers.sockets and answers.sockets[0].seen, "the message")
            client.reset()
        hall.mesh.upstream.wait(lambda: answers.sockets[0].ended, "the end")
        assert [f.opcode for f in answers.sockets[0].frames] == [TEXT]
        assert hall.record(path, mark)["outcome"]["aborted"] == "client"


def test_a_close_that_is_not_answered_has_a_deadline(hall: Hall) -> None:
    mark = hall.proxy.mark()
    with upgrading(hall, "/mute", Answers(swallow)), hall.open("plain-brief", path="/mute") as client:
        client.send(close(1000))
        client.frames_to_end()
        record = hall.record("/mute", mark)
    assert record["outcome"]["aborted"] == "deadline"
    assert record["outcome"]["websocket"] == {"close": 1000, "by": "client"}


@pytest.mark.parametrize("listener", ["default", "plain"])
def test_a_slow_reader_holds_the_writer(listener: str, hall: Hall) -> None:
    """Both directions: the writer stops after what buffers hold, and memory stays bounded; then everything arrives."""
    piece = frame(BINARY, bytes(60_000), mask=b"")
    count = 400  # 24 MB
    state = {"sent": 0}

    async def floods(socket: Socket) -> None:
        await socket.read()
        for _ in range(count):
            await socket.send(piece)
            state["sent"] += 1
            hall.mesh.upstream.changed()
        await swallow(socket)

    with upgrading(hall, "/flood", Answers(floods)), hall.open(listener, path="/flood", receive_buffer=65536) as client:
        before = hall.proxy.rss_bytes()
        client.send(frame(TEXT, b"go"))
        hall.mesh.upstream.wait(lambda: state["sent"] > 3, "the beginning of the flood")
        stuck = eventually(steady(lambda: state["sent"]), "the writer's standstill")
        assert stuck
        assert state["sent"] < count
        assert hall.proxy.rss_bytes() - before < 8 << 20
        received = 0
        while received < count:
            received += client.frame().opcode == BINARY


def test_a_drain_says_1001(hall: Hall) -> None:
    """Last in this module: it ends the process."""
    mark = hall.proxy.mark()
    with upgrading(hall, "/drained") as answers, hall.open("default", path="/drained") as client:
        client.send(frame(TEXT, b"x"))
        assert client.frame().payload == b"x"
        since = time.monotonic()
        hall.proxy.signal(signal.SIGTERM)
        ended(client, 1001, since)
        closes(hall, answers, 1001)
        assert hall.proxy.process is not None
        assert hall.proxy.process.wait(5) == 0
        assert time.monotonic() - since < 3.5, "an orderly end does not take the whole grace"
    record = hall.record("/drained", mark)
    assert (record["outcome"]["aborted"], record["outcome"]["websocket"]) == ("shutdown", {"close": 1001, "by": "meshguard"})
