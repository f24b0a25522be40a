"""Clients that send and do not read: what is held for them is bounded, answers keep their order, and nobody keeps a connection for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.upstream import Exchange, Upstream

MIB = 1 << 20
SMALL = 40_000  # comes from the upstream in one piece: there is nothing of it to stop half-way
MANY = 150  # small answers fill every buffer of the sockets on the way (4 MiB), and the proxy's own
LARGE, HUGE = 512 * 1024, 24 * MIB
QUIET_S = 0.3
ENGINES = ("default", "reference")


class Source(Upstream):
    """Answers `/small?n`, `/large?n` and `/huge` with bodies of these sizes and counts what it could send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        for path, size in (("/small", SMALL), ("/large", LARGE), ("/huge", HUGE)):
            self.scripts[path] = lambda exchange, size=size: self._give(exchange, size)

    async def _give(self, exchange: Exchange, size: int) -> None:
        await exchange.read()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nX-Seen-Target: {exchange.request.target}\r\n\r\n".encode()
        piece = b"x" * min(size, 65536)
        await exchange.send(head + piece)
        for _ in range(size // len(piece) - 1):
            await exchange.send(piece)
            self.sent += len(piece)
            self.changed()

    def settle_down(self) -> None:
        """Returns when nothing has been asked for or taken for a while: the proxy waits for its client."""
        while True:
            before = (self.total_bytes, self.sent)
            try:
                self.wait(lambda: (self.total_bytes, self.sent) != before, "more", QUIET_S)  # noqa: B023
            except AssertionError:
                return


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    with Source() as made:
        yield made


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("slow-readers")
    listeners = {}
    for engine in ENGINES:
        listeners[engine] = {"tls": "mutual", "to": "app", "engine": engine}
        listeners[f"brief-{engine}"] = {"tls": "mutual", "to": "app", "engine": engine, "limits": {"idle_s": 1}}
        listeners[f"plain-{engine}"] = {"tls": "none", "to": "app", "engine": engine, "limits": {"idle_s": 1}}
    config = {"identity": mesh.identity(directory), "listeners": listeners, "clusters": {"app": mesh.endpoints(source)}}
    policies = {"p.yaml": {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}}
    with Proxy(directory, config, policies=policies) as made:
        for engine in ENGINES:
            with RawClient(made.address(engine), mesh.client("billing")) as client:  # pages that any traffic touches
                for path in ("/huge", "/large", "/small"):
                    assert client.request(get(path)).status == 200
        yield made
    assert "Traceback" not in made.stderr_text, made.stderr_text[-3000:]


@pytest.fixture(scope="module")
def base(proxy: Proxy) -> int:
    """Resident octets before anybody was slow."""
    return proxy.rss_bytes()


@pytest.mark.parametrize("rest", [[f"/large?{n}" for n in range(HUGE // LARGE)], ["/huge"]], ids=["many", "one"])
@pytest.mark.parametrize("engine", ENGINES)
def test_unread_answers_do_not_pile_up(rest: list[str], engine: str, proxy: Proxy, base: int, source: Source, mesh: Mesh) -> None:
    """Small pipelined answers fill all buffers; what comes behind them may not pass those limits by, be it many answers or a large one."""
    targets = [f"/small?{n}" for n in range(MANY)] + rest
    with RawClient(proxy.address(engine), mesh.client("billing"), receive_buffer=4096, deadline_s=20) as client:
        client.send(b"".join(get(target) for target in targets), expect=["GET"] * len(targets))
        source.settle_down()
        grown = proxy.rss_bytes() - base
        assert grown < 10 * MIB, f"{grown / MIB:.1f} MiB are held for a client that does not read"
        for target in targets:
            head = client.head()
            size = sum(len(piece) for piece in client.body())
            assert (head.status, head.get("x-seen-target")) == (200, target)
            assert size == {"/small": SMALL, "/large": LARGE, "/huge": HUGE}[target.split("?")[0]]
        assert client.request(get("/after")).get("x-seen-target") == "/after"
    assert proxy.rss_bytes() - base < 12 * MIB


ENDS = {
    "idle": get("/small?last"),
    "close": get("/small?last", fields=["Connection: close"]),
    "denied": get("/%2F", fields=["Connection: close"]),
    "malformed": b"GET /small HTTP/1.1\nHost: x\r\n\r\n",
    "under-way": get("/huge"),
}


def test_a_client_that_never_reads_is_let_go(proxy: Proxy, source: Source, mesh: Mesh) -> None:
    """`idle_s: 1`: whatever its last request was, such a connection and all that it holds are gone some seconds later."""
    listeners = [f"{door}-{engine}" for door in ("brief", "plain") for engine in ENGINES]
    clients = []
    try:
        for listener in listeners:
            for last in ENDS.values():
                tls = mesh.client("billing") if listener.startswith("brief") else None
                clients.append(RawClient(proxy.address(listener), tls, receive_buffer=4096))
                clients[-1].send(b"".join(get(f"/small?{n}") for n in range(MANY)) + last)
        source.settle_down()
        for listener in listeners:
            eventually(
                lambda: proxy.metric("meshguard_connections", listener=listener) == 0,  # noqa: B023
                f"{listener}: the end of {len(ENDS)} connections that are not read",
                5,
            )
            assert proxy.metric("http_server_active_requests", meshguard_listener=listener) == 0
        assert proxy.metric("meshguard_cluster_in_flight", cluster="app") == 0
        for client in clients:
            while client.receive():  # the rest of what the kernel had; no error: the end
                pass
    finally:
        for client in clients:
            client.close()
