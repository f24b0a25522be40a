"""A gRPC call that is ended by policy while it runs: its client is told which status, also when the answer had begun. Both engines."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import h2.settings
import pytest

from tests.e2e.test_grpc import ENGINES, OPTIONS, Echo, S, engines, served
from tests.e2e.test_quarantine import quarantine
from tests.harness.http2 import Call, H2Client, H2Server
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import Certificate, now
from tests.harness.proxy import Proxy, eventually

ALL = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}
NO_CHAT = {"rules": [{"id": "no", "deny": "anyone", "paths": ["/shop.Orders/Chat", "/shop.Orders/Slow"]}, *ALL["rules"]]}
GRPC = [("content-type", "application/grpc"), ("te", "trailers")]


class Place:
    def __init__(self, proxy: Proxy, mesh: Mesh, server: H2Server) -> None:
        self.proxy = proxy
        self.mesh = mesh
        self.server = server

    @contextlib.contextmanager
    def channel(self, engine: str, leaf: Certificate) -> Iterator[grpc.Channel]:
        credentials = grpc.ssl_channel_credentials(self.mesh.ca.pem, leaf.key_pem, leaf.chain_pem)
        with grpc.secure_channel(f"localhost:{self.proxy.ports[engine]}", credentials, OPTIONS) as channel:
            yield channel

    def dial(self, listener: str, **options: Any) -> H2Client:
        return H2Client(self.proxy.address(listener), self.mesh.client("billing", ("h2",)), **options)

    def policy(self, document: dict[str, Any]) -> None:
        self.proxy.write_policy("p.yaml", document)
        assert "reloaded" in self.proxy.reload()


@pytest.fixture(scope="module")
def place(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("grpc-ended")
    identity = mesh.identity(directory)
    mesh.ca.issue(SHOP + "meshguard", dns=["localhost"]).write(directory, "svid")
    listeners: dict[str, Any] = {}
    for engine in ENGINES:
        listeners[engine] = {"tls": "mutual", "engine": engine, "to": "app"}
        listeners[f"raw-{engine}"] = {"tls": "mutual", "engine": engine, "to": "raw", "limits": {"head_bytes": 4096, "fields": 30}}
    with served([Echo()]) as (_, port, _), H2Server() as server:
        config = {
            "identity": identity,
            "listeners": listeners,
            "clusters": {
                "app": {"endpoints": [f"127.0.0.1:{port}"], "protocol": "h2", "timeouts": {"connect_s": 3}},
                "raw": {"endpoints": [f"127.0.0.1:{server.port}"], "protocol": "h2", "timeouts": {"connect_s": 3}},
            },
            "quarantine": {"path": "quarantine.json"},
            "drain_s": 1,
        }
        proxy = Proxy(directory, config, policies={"p.yaml": ALL})
        config["admin"]["token_file"] = "admin.token"
        proxy.write_config()
        with proxy.start():
            yield Place(proxy, mesh, server)


class Chat:
    """A conversation whose first answer has come."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._end = threading.Event()
        self.answers = channel.stream_stream("/shop.Orders/Chat")(self._questions(), timeout=20)
        assert next(self.answers) == b"begun"

    def _questions(self) -> Iterator[bytes]:
        yield b"begun"
        self._end.wait(20)

    def end(self) -> grpc.RpcError:
        try:
            with pytest.raises(grpc.RpcError) as caught:
                next(self.answers)
        finally:
            self._end.set()
        return caught.value


def test_a_rule_that_changes_ends_calls_with_status_7(place: Place) -> None:
    """Before and behind the head of the answer; the connection goes on, and so do other calls on it."""
    mark = place.proxy.mark()
    with contextlib.ExitStack() as stack:
        leaf = place.mesh.service("billing")
        channels = {engine: stack.enter_context(place.channel(engine, leaf)) for engine in ENGINES}
        chats = {engine: Chat(channel) for engine, channel in channels.items()}
        slow = {engine: channel.unary_unary("/shop.Orders/Slow").future(b"", timeout=20) for engine, channel in channels.items()}
        threading.Event().wait(1.2)  # what is shorter than a second ends as it began
        place.policy(NO_CHAT)
        try:
            for engine in ENGINES:
                for error in (chats[engine].end(), slow[engine].exception(10)):
                    assert error.code() is S.PERMISSION_DENIED, (engine, error)
                    assert "policy_denied" in error.details()
                assert channels[engine].unary_unary("/shop.Orders/Get")(b"a", timeout=5) == b"aa"
        finally:
            place.policy(ALL)
    for path in ("/shop.Orders/Chat", "/shop.Orders/Slow"):
        record = place.proxy.decision_where(lambda r: r["what"]["path"] == path, "its record", mark)  # noqa: B023
        assert (record["outcome"]["grpc_status"], record["outcome"]["aborted"]) == (7, "revoked")


def test_quarantine_is_told_as_7_and_expiry_as_16(place: Place) -> None:
    ends: list[tuple[str, Certificate, Callable[[], object], grpc.StatusCode, str]] = [
        ("quarantine", place.mesh.service("leaker"), lambda: quarantine(place.proxy, "add", SHOP + "leaker", "--ttl", "1h"),
         S.PERMISSION_DENIED, "quarantined"),
        ("expiry", place.mesh.ca.service("short", not_after=now() + dt.timedelta(seconds=6)), lambda: None,
         S.UNAUTHENTICATED, "identity_expired"),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        begun = [
            (Chat(stack.enter_context(place.channel(engine, leaf))), act, code, why)
            for _, leaf, act, code, why in reversed(ends)
            for engine in ENGINES
        ]
        ends[0][2]()
        for chat, _, code, why in reversed(begun):
            error = chat.end()
            assert error.code() is code, error
            assert why in error.details()


@engines
def test_trailers_come_behind_what_was_allowed(engine: str, place: Place) -> None:
    """The upstream is left at once; octets that came before wait for the client's window, and the trailers behind them."""

    def begin(call: Call) -> None:
        with call.peer.lock:
            if not call.peer.h2.streams[call.stream].state_machine.headers_sent:
                call.peer.h2.send_headers(call.stream, [(":status", "200"), ("content-type", "application/grpc")])
                call.peer.h2.send_data(call.stream, b"\0\0\0\0\x0a" + b"0123456789")
        call.peer.flush()

    place.server.scripts["/shop.Orders/Chat"] = begin
    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 8}
    with place.dial(f"raw-{engine}", settings=settings, frozen=True) as shut, place.dial(f"raw-{engine}") as open_:
        streams = {client: client.request("/shop.Orders/Chat", "POST", GRPC, end=False) for client in (shut, open_)}
        for client, stream in streams.items():
            client.until(lambda c=client, s=stream: len(c.streams[s].body) >= 8, "the beginning")  # type: ignore[misc]
        threading.Event().wait(1.2)
        place.policy(NO_CHAT)
        try:
            answer = open_.answer(streams[open_])
            assert answer.trailers is not None
            assert (answer.trailers["grpc-status"], answer.ended, bytes(answer.body[5:])) == ("7", True, b"0123456789")
            calls = [call for call in place.server.calls if call.path == "/shop.Orders/Chat"][-2:]
            for call in calls:
                place.server.wait(lambda c=call: c.reset == 8, "RST_STREAM")  # type: ignore[misc]
            shut.h2.increment_flow_control_window(100, streams[shut])
            shut.flush()
            answer = shut.answer(streams[shut])
            if answer.trailers is None:  # it has not come in time for the second that last words have
                assert answer.reset == 8
            else:
                assert (answer.trailers["grpc-status"], bytes(answer.body[5:])) == ("7", b"0123456789")
        finally:
            place.policy(ALL)


@engines
def test_an_upstream_that_dies_in_a_call_is_told_as_14(engine: str, place: Place) -> None:
    def half(call: Call) -> None:
        with call.peer.lock:
            call.peer.h2.send_headers(call.stream, [(":status", "200"), ("content-type", "application/grpc")])
            call.peer.h2.send_data(call.stream, b"\0\0\0\0\x0ahalf")
        call.peer.flush()
        call.peer.kill()

    place.server.scripts["/shop.Orders/Half"] = half
    with place.dial(f"raw-{engine}") as client:
        answer = client.get("/shop.Orders/Half", method="POST", fields=GRPC)
        assert answer.trailers is not None, answer
        assert (answer.trailers["grpc-status"], bytes(answer.body[5:])) == ("14", b"half")
        ordinary = client.get("/shop.Orders/Half", method="POST")
        assert (ordinary.trailers, ordinary.ended) == (None, False)
        assert ordinary.reset == 2  # any other answer is cut so that it cannot look whole


@engines
def test_a_head_above_the_limits_is_refused_in_the_words_of_grpc(engine: str, place: Place) -> None:
    with place.dial(f"raw-{engine}") as client:
        for fields in ([("x-large", "v" * 5000)], [(f"x-{n}", "1") for n in range(40)]):
            answer = client.get("/shop.Orders/Get", method="POST", fields=[*GRPC, *fields])
            assert answer.head is not None
            assert (answer.status, answer.head["grpc-status"], answer.head["content-type"]) == (200, "8", "application/grpc")
            assert "head_too_large" in answer.head["grpc-message"]
            assert (answer.trailers, bytes(answer.body), answer.ended) == (None, b"", True)
            decision = answer.head["grpc-message"].rpartition("decision ")[2].rstrip(")")
            assert place.proxy.decision(decision)["outcome"]["grpc_status"] == 8
            plain = client.get("/shop.Orders/Get", method="POST", fields=fields)
            assert plain.status == 431
        long = client.get("/" + "p" * 9000, method="POST", fields=GRPC)
        assert long.head is not None
        assert (long.status, long.head["grpc-status"]) == (200, "8")
        assert eventually(lambda: client.get("/shop.Orders/Get", method="POST", fields=GRPC).status == 200, "that the connection goes on")
