"""How connections end, and when they must not: half-closed clients, refusals with a body still to come, the last free place."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.client import NoAnswer, RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.pki import now
from tests.harness.proxy import Proxy, eventually
from tests.harness.strict import Data, End, Head, Parser, Truncated
from tests.harness.upstream import Exchange

BODY_TOTAL_S = 1.0
ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)  # side by side: one process for all tests here


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("ends")
    listeners: dict[str, Any] = {}
    for engine in ENGINES:
        listeners[engine] = {"tls": "mutual", "to": "app", "engine": engine}
        listeners[f"plain-{engine}"] = {"tls": "none", "to": "app", "engine": engine}
        listeners[f"brief-{engine}"] = {"tls": "mutual", "to": "app", "engine": engine, "limits": {"body_total_s": BODY_TOTAL_S}}
        listeners[f"permissive-{engine}"] = {
            "tls": "permissive",
            "permissive_until": (now() + dt.timedelta(days=2)).date().isoformat(),
            "to": "app",
            "engine": engine,
            "limits": {"handshake_s": 1, "idle_s": 0.5},
        }
        listeners[f"one-{engine}"] = {"tls": "mutual", "to": "app", "engine": engine, "limits": {"connections": 1}}
    policies = {
        "p.yaml": {
            "rules": [
                {"id": "no-admin", "deny": "anyone", "paths": ["/admin/**"]},
                {"id": "all", "allow": "anyone", "paths": ["/**"]},
            ]
        }
    }
    config = {"profile": "migration", "identity": mesh.identity(directory), "listeners": listeners, "clusters": {"app": mesh.endpoints()}}
    with Proxy(directory, config, policies=policies) as made:
        yield made
    assert "Traceback" not in made.stderr_text


class HalfClosed:
    """A TLS client over memory that ends its side in order, by close_notify and FIN, and goes on reading."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(address, 4)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                self.incoming.write(self.sock.recv(65536))
        self.sock.sendall(self.outgoing.read())

    def __enter__(self) -> HalfClosed:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes, *, notify: bool, apart: bool) -> None:
        """`data`, the close_notify in the same segment or `apart`, then FIN."""
        self.tls.write(data)
        if apart:
            self.sock.sendall(self.outgoing.read())
        if notify:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
        self.sock.sendall(self.outgoing.read())
        self.sock.shutdown(socket.SHUT_WR)

    def read(self) -> bytes:
        """Everything until the peer's end; `Truncated` where that is not an orderly one."""
        out = b""
        while True:
            try:
                piece = self.tls.read(65536)
                if not piece:
                    return out
                out += piece
            except ssl.SSLZeroReturnError:
                return out
            except ssl.SSLWantReadError:
                try:
                    data = self.sock.recv(65536)
                except ConnectionError:
                    data = b""
                if not data:
                    raise Truncated(f"after {out!r}") from None
                self.incoming.write(data)


def _turn(proxy: Proxy) -> None:
    """What the process had received before this is handled after it: the answer to a scrape took turns of its loop."""
    proxy.metrics()


@pytest.mark.parametrize("apart", [False, True], ids=["one-segment", "apart"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@engines
def test_a_half_closed_tls_client_gets_its_answer(method: str, apart: bool, engine: str, proxy: Proxy, mesh: Mesh) -> None:
    go = mesh.upstream.event()

    async def later(exchange: Exchange) -> None:
        body = await exchange.read()
        await go.wait()
        await exchange.answer(200, b"answer to " + body)

    data = get("/half", method="POST", body=b"question") if method == "POST" else get("/half")
    with mesh.upstream.on("/half", later):
        mark = mesh.upstream.mark()
        with HalfClosed(proxy.address(engine), mesh.client("billing")) as client:
            client.send(data, notify=True, apart=apart)
            mesh.upstream.wait(lambda: [s for s in mesh.upstream.requests[mark[0] :] if s.complete or s.method == "GET"], "the request")
            _turn(proxy)
            go.set()
            head, *rest = Parser("response").feed(client.read())
    assert isinstance(head, Head)
    assert head.status == 200
    assert rest == [Data(b"answer to " + (b"question" if method == "POST" else b"")), End([])]
    assert mesh.upstream.violations_since(mark) == []


@pytest.mark.parametrize("end", ["close-notify", "truncated", "plaintext"])
@engines
def test_half_a_body_and_the_end_is_no_request(end: str, engine: str, proxy: Proxy, mesh: Mesh) -> None:
    """An end in the middle of a body never looks like its end, in order or not, and nobody waits then for a rest that cannot come."""
    mark = mesh.upstream.mark()
    data = get("/half-body", method="POST", fields=["Content-Length: 100"]) + b"half"
    with contextlib.ExitStack() as stack:
        if end == "plaintext":
            plain = stack.enter_context(RawClient(proxy.address(f"plain-{engine}"), deadline_s=4))
            plain.send(data, expect="POST")
            plain.half_close()
            read = plain.receive
        else:
            client = stack.enter_context(HalfClosed(proxy.address(engine), mesh.client("billing")))
            client.send(data, notify=end == "close-notify", apart=True)
            read = client.read
        try:
            answer = Parser("response").feed(read())
        except Truncated:
            answer = []
        assert answer == [] or (isinstance(answer[0], Head) and answer[0].status in (400, 408)), answer
        mesh.upstream.wait(lambda: all(s.aborted for s in mesh.upstream.requests[mark[0] :]), "the end of the half request", 4)
    assert not any(s.complete for s in mesh.upstream.since(mark))


def test_a_refusal_leaves_time_for_the_rest_of_the_body(proxy: Proxy, mesh: Mesh) -> None:
    """The time for a body begins with its request, however long the connection was idle before: the 403 arrives whole, and after the rest
    of the body the connection goes on. Both engines wait side by side."""
    mark = mesh.upstream.mark()
    begun = get("/admin/x", method="POST", fields=["Content-Length: 4"]) + b"b"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(proxy.address(f"brief-{engine}"), mesh.client("billing"))) for engine in ENGINES]
        for client in clients:
            assert client.request(get("/before")).status == 200
        _silence(clients, BODY_TOTAL_S + 0.1)  # idle for longer than a body may take
        for client in clients:
            client.send(begun, expect="POST")
            assert client.response().problem["code"] == "policy_denied"
        _silence(clients, 0.4)  # at least one look at deadlines
        for client in clients:
            client.send(b"ody" + get("/after"), expect="GET")
            assert client.response().get("x-seen-target") == "/after"
            client.send(begun, expect="POST")
            assert client.response().status == 403
        for client in clients:
            client.assert_closed()  # and it has an end
    assert [s.target for s in mesh.upstream.since(mark)] == ["/before", "/before", "/after", "/after"]


def _silence(clients: list[RawClient], seconds: float) -> None:
    """Nothing comes on any of them, and none is ended, for so long."""
    for client, wait in zip(clients, (seconds, *[0.01] * len(clients)), strict=False):
        client.sock.settimeout(wait)
        with pytest.raises(NoAnswer):
            client.receive()
        client.sock.settimeout(client.deadline_s)


@engines
def test_the_only_connection_is_served(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    """`connections: 1`: shares of a limit are shares of what else is there; the first connection is no overload."""
    listener = f"one-{engine}"

    def refused() -> bool:
        try:
            with RawClient(proxy.address(listener), mesh.client("billing"), deadline_s=4) as other:
                other.request(get("/second"))
        except (OSError, Truncated):
            return True
        return False

    for _ in range(2):  # its place is free again afterwards
        with RawClient(proxy.address(listener), mesh.client("billing")) as client:
            assert client.request(get("/first")).status == 200
            assert refused()
            with contextlib.suppress(Truncated):  # kept alive or closed after its answer, never refused
                assert client.request(get("/first")).status == 200
        eventually(lambda: proxy.metric("meshguard_connections", listener=listener) == 0, "the end of the connection")


def test_a_silent_connection_where_tls_is_optional(proxy: Proxy, mesh: Mesh) -> None:
    """`permissive`: before the first octet nothing is known of a connection. It has the time of a handshake, not more and not less."""
    addresses = [proxy.address(f"permissive-{engine}") for engine in ENGINES]
    with contextlib.ExitStack() as stack:
        silent, slow = ([stack.enter_context(RawClient(address, deadline_s=4)) for address in addresses] for _ in range(2))
        idle = [stack.enter_context(RawClient(address, mesh.client("billing"), deadline_s=4)) for address in addresses]
        for client in idle:
            assert client.request(get("/before")).status == 200
        _silence(slow, 0.6)  # more than two looks at deadlines
        for client in slow:
            assert client.request(get("/slow")).status == 200
        for client in (*silent, *idle):
            client.assert_closed()
        assert "Traceback" not in proxy.stderr_text
        for address in addresses:
            stack.enter_context(RawClient(address, mesh.client("billing"))).request(get("/after"))
