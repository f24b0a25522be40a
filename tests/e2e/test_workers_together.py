"""What several workers hold together: limits of connections, circuits, and an even share of the connections that last."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from meshguard.net.census import STALE_S
from tests.e2e.test_workers import ALLOW, configuration, wait_serving
from tests.harness.client import RawClient, get
from tests.harness.http2 import H2Client
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.strict import Truncated
from tests.harness.upstream import Exchange

LIMIT = 12
TOLD_S = 0.6
"""Each worker tells the others of connections that have ended within a quarter of a second."""


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("together")
    listeners = {
        "plain": {"tls": "none", "to": "app", "protocols": ["http/1.1", "h2"]},
        "inbound": {"tls": "mutual", "to": "app"},
        "few": {"tls": "none", "to": "app", "limits": {"connections": LIMIT, "handshake_s": 120, "head_s": 120}},
        "narrow": {"tls": "none", "to": "narrow"},
    }
    clusters = {"app": mesh.endpoints(), "narrow": {**mesh.endpoints(), "circuit": {"max_in_flight": 4, "queue": 0}}}
    config = configuration(mesh, directory, listeners=listeners, clusters=clusters)
    with Proxy(directory, config, policies={"p.yaml": ALLOW}) as running:
        yield running


def connections(proxy: Proxy, listener: str) -> list[int]:
    """Of each worker."""
    wanted = f'listener="{listener}"'
    lines = [line for line in proxy.metrics().splitlines() if line.startswith("meshguard_connections{") and wanted in line]
    return sorted(int(float(line.rsplit(" ", 1)[1])) for line in lines)


@pytest.mark.parametrize("round_", range(3))
def test_long_connections_are_shared_evenly(round_: int, proxy: Proxy, mesh: Mesh) -> None:
    """Whatever the kernel's hash says: eight connections over two workers are four and four. HTTP/1.1 with TLS, and HTTP/2."""
    wait_serving(proxy)
    with contextlib.ExitStack() as stack:
        tls = []
        for _ in range(8):
            tls.append(stack.enter_context(RawClient(proxy.address("inbound"), mesh.client("billing"))))
            assert tls[-1].request(get("/x")).status == 200
        plain = []
        for _ in range(8):
            plain.append(stack.enter_context(H2Client(proxy.address("plain"))))
            assert plain[-1].get("/x").status == 200
        eventually(lambda: (connections(proxy, "inbound"), connections(proxy, "plain")) == ([4, 4], [4, 4]), "an even share")
        for client in tls:
            assert client.request(get("/y")).status == 200
        for other in plain:
            assert other.get("/y").status == 200
    eventually(lambda: sum(connections(proxy, "inbound") + connections(proxy, "plain")) == 0, "the end of all")
    threading.Event().wait(TOLD_S)


def test_a_crowd_at_once_is_shared_and_loses_nobody(proxy: Proxy) -> None:
    """Sixty clients that come in the same moment and speak at once: what they say before they are passed on is not lost."""
    clients: list[RawClient] = []
    lock = threading.Lock()

    def come() -> None:
        client = RawClient(proxy.address("plain"))
        client.send(get("/x"), expect="GET")
        with lock:
            clients.append(client)

    threads = [threading.Thread(target=come) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        for client in clients:
            assert client.head().status == 200
            list(client.body())
        few, many = eventually(lambda: counts if sum(counts := connections(proxy, "plain")) == 60 else None, "all of them")
        assert few >= 22, (few, many)
    finally:
        for client in clients:
            client.close()


class Sockets:
    """Connections that say nothing: those that are refused are closed at once, the others stay."""

    def __init__(self, proxy: Proxy, stack: contextlib.ExitStack) -> None:
        self._address = proxy.address("few")
        self._stack = stack
        self.open: set[socket.socket] = set()

    def more(self, count: int) -> None:
        for _ in range(count):
            sock = self._stack.enter_context(socket.create_connection(self._address, timeout=5))
            sock.setblocking(False)
            self.open.add(sock)

    def left(self) -> int:
        for sock in list(self.open):
            with contextlib.suppress(BlockingIOError):
                try:
                    assert not sock.recv(1)
                except ConnectionError:
                    pass
                self.open.discard(sock)
        return len(self.open)


def test_a_limit_of_connections_holds_over_all_workers(proxy: Proxy) -> None:
    wait_serving(proxy)
    refused = proxy.metric("meshguard_connections_refused_total", listener="few")
    with contextlib.ExitStack() as stack:
        sockets = Sockets(proxy, stack)
        sockets.more(LIMIT + 6)
        eventually(lambda: sockets.left() == LIMIT, "the end of those above the limit")
        assert sum(connections(proxy, "few")) == LIMIT
        assert proxy.metric("meshguard_connections_refused_total", listener="few") == refused + 6
        for sock in list(sockets.open)[:5]:
            sock.close()
            sockets.open.discard(sock)
        eventually(lambda: sum(connections(proxy, "few")) == LIMIT - 5, "the end of five")
        threading.Event().wait(TOLD_S)
        sockets.more(7)
        eventually(lambda: sockets.left() == LIMIT, "the end of two")
    eventually(lambda: sum(connections(proxy, "few")) == 0, "the end of all")
    threading.Event().wait(TOLD_S)


def test_what_a_killed_worker_had_counts_no_more(proxy: Proxy) -> None:
    before = wait_serving(proxy)
    with contextlib.ExitStack() as stack:
        sockets = Sockets(proxy, stack)
        sockets.more(LIMIT)
        eventually(lambda: sum(connections(proxy, "few")) == LIMIT, "as many as there may be")
        os.kill(before[0]["pid"], signal.SIGKILL)
        eventually(lambda: wait_serving(proxy)[0]["pid"] != before[0]["pid"], "the replacement", 20)
        left = sockets.left()
        assert 0 < left < LIMIT
        sockets.more(LIMIT)
        eventually(lambda: sockets.left() == LIMIT, "that its places are given to others, and no more than its places")
    eventually(lambda: sum(connections(proxy, "few")) == 0, "the end of all")


def test_a_circuit_is_shared_out(proxy: Proxy, mesh: Mesh) -> None:
    """`max_in_flight: 4` over two workers: two for each. With connections on both, four requests are let through and no more."""
    go = mesh.upstream.event()

    async def held(exchange: Exchange) -> None:
        await exchange.read()
        await go.wait()
        await exchange.answer(200, b"")

    wait_serving(proxy)
    mark = mesh.upstream.mark()
    with mesh.upstream.on("/held", held), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(proxy.address("narrow"))) for _ in range(8)]
        for client in clients:
            assert client.request(get("/x")).status == 200
        eventually(lambda: connections(proxy, "narrow") == [4, 4], "an even share")
        for client in clients:
            client.send(get("/held"), expect="GET")
        mesh.upstream.wait(lambda: sum(seen.path == "/held" for seen in mesh.upstream.requests[mark[0] :]) >= 4, "four requests")
        eventually(lambda: proxy.metric("meshguard_cluster_circuit_rejections_total", cluster="narrow") >= 4, "the others refused")
        go.set()
        assert sorted(client.head().status for client in clients) == [200] * 4 + [503] * 4


def test_a_worker_that_stands_still_is_given_nothing(proxy: Proxy) -> None:
    """It has the fewest connections and would be given each: after a while without a sign of life it is not."""
    victim = wait_serving(proxy)[0]
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(RawClient(proxy.address("plain")))
            assert client.request(get("/x")).status == 200
        os.kill(victim["pid"], signal.SIGSTOP)
        try:
            threading.Event().wait(STALE_S + 0.5)
            passed = proxy.metric("meshguard_connections_passed_total")
            answered = 0
            for _ in range(12):  # those that the kernel itself deals to it have to wait
                client = stack.enter_context(RawClient(proxy.address("plain"), deadline_s=0.4))
                with contextlib.suppress(AssertionError, OSError, Truncated):
                    answered += client.request(get("/x")).status == 200
            assert answered >= 1
        finally:
            os.kill(victim["pid"], signal.SIGCONT)
        assert proxy.metric("meshguard_connections_passed_total") >= passed
    eventually(lambda: sum(connections(proxy, "plain")) == 0, "the end of all", 10)
