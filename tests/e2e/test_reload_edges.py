"""The edges of change: open connections under new settings, changes refused as a whole, certificates renewed or broken, the last moment."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.harness.client import NoAnswer, RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.ports import free_port
from tests.harness.proxy import Proxy, eventually
from tests.harness.strict import Truncated
from tests.harness.upstream import Exchange, Upstream

ENGINES = ("default", "reference")
ALLOW = {"rules": [{"id": "allow-a", "allow": "anyone", "paths": ["/a/**"]}]}
ALLOW_B = {"rules": [{"id": "allow-b", "allow": "anyone", "paths": ["/b/**"]}]}
TLS12_SESSIONS = 256
"""So many sessions of TLS 1.2 wear a listener's context out (net/tls.py)."""


@pytest.fixture
def start(mesh: Mesh, tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """`start(listeners, **more)` runs a process with these listeners, which serve cluster `app` where they name no other."""
    running: list[Proxy] = []

    def make(listeners: dict[str, Any], **more: Any) -> Proxy:
        config = {
            "identity": mesh.identity(tmp_path),
            "listeners": {name: {"to": "app", **listener} for name, listener in listeners.items()},
            "clusters": {"app": mesh.endpoints()},
            "drain_s": 3,
            **more,
        }
        running.append(Proxy(tmp_path, config, policies={"p.yaml": ALLOW}))
        return running[-1].start()

    yield make
    for proxy in running:
        proxy.stop()


def _both(**options: Any) -> dict[str, Any]:
    return {engine: {"tls": "mutual", "engine": engine, **options} for engine in ENGINES}


def _change(proxy: Proxy, change: Callable[[dict[str, Any]], object]) -> str:
    """Writes a changed configuration and asks for it; the line that reports what came of it."""
    change(proxy.config)
    proxy.write_config()
    return proxy.reload()


def _snapshot(proxy: Proxy) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(proxy.admin("/snapshot")[1])
    return document


def _gone(proxy: Proxy) -> int:
    """The exit status, once the process has ended by itself."""
    assert proxy.process is not None
    status = proxy.process.wait(6)
    proxy.stderr._thread.join(5)
    assert "Traceback" not in proxy.stderr_text, proxy.stderr_text[-3000:]
    return status


# ---- settings of a listener


def test_open_connections_obey_new_settings(start: Callable[..., Proxy], mesh: Mesh) -> None:
    """The next request on a kept-alive connection meets what the listener now strips, refuses and limits; nothing is dropped for it.
    One request is under way meanwhile, and the one behind it has arrived before the change: it is a next one, too."""
    proxy = start(_both(underscores="allow"))
    go = mesh.upstream.event()

    async def held(exchange: Exchange) -> None:
        await exchange.read()
        await go.wait()
        await exchange.answer(200, b"held", "X-Seen-Target: /a/held")

    spoof = ["X-Internal-Role: admin", "X-Kept: yes"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mesh.upstream.on("/a/held", held))
        idle, busy = (
            {e: stack.enter_context(RawClient(proxy.address(e), mesh.client("billing"))) for e in ENGINES} for _ in ("idle", "busy")
        )
        mark = mesh.upstream.mark()
        for engine in ENGINES:
            assert idle[engine].request(get("/a/before", fields=[*spoof, "X_Internal_Role: admin"])).status == 200
            busy[engine].send(get("/a/held", fields=spoof) + get("/a/behind", fields=spoof), expect=["GET", "GET"])
        mesh.upstream.wait(lambda: len(mesh.upstream.requests) == mark[0] + 4, "all first requests")
        assert all(s.head.get("x-internal-role") == "admin" for s in mesh.upstream.since(mark)), "nothing was stripped before"
        settings = {"underscores": "refuse", "strip_headers": ["x-internal-role"], "limits": {"head_bytes": 2048}}
        assert "reloaded" in _change(proxy, lambda c: [c["listeners"][e].update(settings) for e in ENGINES])
        mark = mesh.upstream.mark()
        go.set()
        for engine in ENGINES:
            assert busy[engine].response().body == b"held"
            assert busy[engine].response().get("x-seen-target") == "/a/behind"
            assert idle[engine].request(get("/a/after", fields=spoof)).status == 200
            assert idle[engine].request(get("/a/after", fields=["X_Internal_Role: admin"])).problem["code"] == "ambiguous_field"
            assert busy[engine].request(get("/a/after", fields=["X: " + "y" * 2048])).status == 431
        seen = mesh.upstream.since(mark)
        assert sorted(s.target for s in seen) == ["/a/after", "/a/after", "/a/behind", "/a/behind"]
        for request in seen:
            assert request.head.all("x-internal-role") == []
            assert request.head.get("x-kept") == "yes"


# ---- refused as a whole


def test_a_taken_port_refuses_the_whole_change(start: Callable[..., Proxy], mesh: Mesh) -> None:
    """A new listener whose port is taken, together with another policy and other endpoints: nothing of it is in force, and nothing of it
    holds the port's neighbours. Once the port is free, all of it is."""
    proxy = start(_both())
    before = _snapshot(proxy)
    with Upstream() as second, socket.create_server(("127.0.0.1", free_port())) as taken:
        free = free_port()
        fresh = {
            "first": {"address": f"127.0.0.1:{free}", "tls": "none", "to": "app"},
            "second": {"address": f"127.0.0.1:{taken.getsockname()[1]}", "tls": "none", "to": "app"},
        }

        def change(config: dict[str, Any]) -> None:
            config["listeners"].update(fresh)
            config["clusters"]["app"] = mesh.endpoints(second)

        with RawClient(proxy.address("default"), mesh.client("billing")) as client:
            assert client.request(get("/a/x")).status == 200
            assert "refused" in _change(proxy, change)
            proxy.write_policy("p.yaml", ALLOW_B)
            for _ in range(2):
                line = proxy.reload()
                assert "refused" in line
                assert fresh["second"]["address"] in line or "in use" in line, line
            assert _snapshot(proxy) == before
            assert [client.request(get(path)).status for path in ("/a/x", "/b/x")] == [200, 403]
            assert second.requests == []
            with pytest.raises(ConnectionRefusedError):
                RawClient(("127.0.0.1", free), deadline_s=2)
            readiness = orjson.loads(proxy.admin("/readyz")[1])
            assert readiness["ready"] is True
            assert {listener["name"] for listener in readiness["listeners"]} == set(ENGINES)
            taken.close()
            assert "reloaded" in proxy.reload()
            assert [client.request(get(path)).status for path in ("/a/x", "/b/x")] == [403, 200]
        for listener in fresh.values():
            host, _, port = str(listener["address"]).partition(":")
            with RawClient((host, int(port))) as client:
                assert client.request(get("/b/y")).status == 200
        assert [s.target for s in second.requests] == ["/b/x", "/b/y", "/b/y"]
        assert _snapshot(proxy)["revision"] > before["revision"]


# ---- a listener that goes


def test_a_removed_listener_leaves_nothing(start: Callable[..., Proxy], mesh: Mesh) -> None:
    """Listener and cluster go; the request in flight on them finishes, then nothing is left of them; the rest serves as before."""
    with Upstream() as side:
        go = side.event()

        async def held(exchange: Exchange) -> None:
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
            await go.wait()
            await exchange.send(b"again")

        listeners = {**_both(), **{f"gone-{e}": {"tls": "mutual", "engine": e, "to": "side"} for e in ENGINES}}
        proxy = start(listeners, clusters={"app": mesh.endpoints(), "side": mesh.endpoints(side)})
        with RawClient(proxy.address("default"), mesh.client("billing")) as client:
            assert client.request(get("/a/warm")).status == 200
            without = _gauges(proxy)
            with side.on("/a/held", held), contextlib.ExitStack() as stack:
                busy, idle = (
                    [stack.enter_context(RawClient(proxy.address(f"gone-{e}"), mesh.client("billing"))) for e in ENGINES] for _ in range(2)
                )
                for each in idle:
                    assert each.request(get("/a/idle")).status == 200
                bodies = []
                for each in busy:
                    each.send(get("/a/held"), expect="GET")
                    assert each.head().status == 200
                    bodies.append(each.body())
                    assert next(bodies[-1]) == b"first"
                assert "reloaded" in _change(
                    proxy, lambda c: [*(c["listeners"].pop(f"gone-{e}") for e in ENGINES), c["clusters"].pop("side")]
                )
                for each in idle:
                    each.assert_closed()
                for engine in ENGINES:
                    with pytest.raises(ConnectionRefusedError):
                        RawClient(proxy.address(f"gone-{engine}"), deadline_s=2)
                go.set()
                for each, body in zip(busy, bodies, strict=True):
                    assert b"".join(body) == b"again"
                    each.assert_closed()
            # two listening sockets fewer; idle connections to the upstream of before are allowed
            eventually(lambda: all(a <= b for a, b in zip(_gauges(proxy), without, strict=True)), f"no more than {without}")
            side.wait(lambda: all(c.ended for c in side.connections), "the end of the connections to a cluster that is gone")
            assert client.request(get("/a/after")).status == 200
        proxy.signal(signal.SIGTERM)
        assert _gone(proxy) == 0


def _gauges(proxy: Proxy) -> tuple[float, float, float]:
    """Tasks, descriptors, requests under way."""
    return (
        proxy.metric("meshguard_process_tasks"),
        proxy.metric("meshguard_process_descriptors"),
        proxy.metric("http_server_active_requests"),
    )


# ---- certificates of an edge


@pytest.fixture(scope="module")
def edge(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """`tls: server` with a certificate of its own, beside its configuration."""
    directory = tmp_path_factory.mktemp("edge")
    mesh.ca.service("edge-0").write(directory, "edge")
    config = {
        "identity": mesh.identity(directory),
        "listeners": {"edge": {"tls": "server", "to": "app", "certificate": "edge.pem", "key": "edge.key", "limits": {"idle_s": 1}}},
        "clusters": {"app": {**mesh.endpoints(), "timeouts": {"idle_s": 0.5}}},
    }
    with Proxy(directory, config, policies={"p.yaml": ALLOW}) as made:
        yield made


def _presented(proxy: Proxy, context: ssl.SSLContext) -> bytes | None:
    with RawClient(proxy.address("edge"), context) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.request(get("/a/x")).status == 200
        return client.sock.getpeercert(True)


def test_a_renewed_edge_certificate_is_served(edge: Proxy, mesh: Mesh) -> None:
    """As a certificate manager does it: the files are replaced, nobody sends a signal; two seconds later new handshakes see it."""
    context = mesh.client(None)
    with RawClient(edge.address("edge"), context) as open_before:
        assert open_before.request(get("/a/x")).status == 200
        renewed = mesh.ca.service("edge-1")
        assert _presented(edge, context) != renewed.der
        renewed.write(edge.directory, "edge")
        eventually(lambda: _presented(edge, context) == renewed.der, "the renewed certificate in new handshakes", 2)
        with contextlib.suppress(Truncated):  # it may have been idle for a second by now
            assert open_before.request(get("/a/y")).status == 200
    assert "Traceback" not in edge.stderr_text


def test_a_broken_edge_certificate_ends_nothing(edge: Proxy, mesh: Mesh) -> None:
    """Garbage in the file while the context is worn out and wants to be built anew: the last good one is served, the process lives, and
    what else is looked after periodically still is: idle clients, idle upstream connections."""
    last_good = _presented(edge, mesh.client(None))
    context = mesh.context(None)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    since = len(edge.stderr.items)
    garbage = edge.directory / "garbage"
    garbage.write_bytes(b"-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    garbage.replace(edge.directory / "edge.pem")
    assert "refused" in edge.reload()
    assert any("edge.pem" in line or "certificate" in line.lower() for line in edge.stderr.items[since:])
    for _ in range(TLS12_SESSIONS):
        with RawClient(edge.address("edge"), context) as client, contextlib.suppress(OSError):
            assert isinstance(client.sock, ssl.SSLSocket)
            client.sock.unwrap()  # a session is kept only if its connection ends in order
    with RawClient(edge.address("edge"), mesh.client(None)) as idle:
        pooled = mesh.upstream.connections[idle.request(get("/a/x")).json["connection"]]
        idle.assert_closed()  # after `idle_s`: more than two periodic looks
    mesh.upstream.wait(lambda: pooled.ended, "the end of an idle upstream connection", 3)
    assert edge.process is not None
    assert edge.process.poll() is None
    assert edge.admin("/readyz")[0] == 200
    assert _presented(edge, mesh.client(None)) == last_good
    assert sum("periodic" in line or "Traceback" in line for line in edge.stderr.items) <= 1, "the same trouble again and again"
    good = mesh.ca.service("edge-2")
    good.write(edge.directory, "edge")
    eventually(lambda: _presented(edge, mesh.client(None)) == good.der, "the good certificate", 3)
    edge.signal(signal.SIGTERM)
    assert edge.process.wait(6) == 0


# ---- the last moment


class Knocking:
    """Threads that connect to listeners again and again and leave, until told to stop."""

    def __init__(self, addresses: list[tuple[str, int]]) -> None:
        self.count = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._knock, args=(address,)) for address in addresses]

    def _knock(self, address: tuple[str, int]) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                socket.create_connection(address, 2).close()
                self.count += 1

    def __enter__(self) -> Knocking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)


def _kinds() -> dict[str, Any]:
    return {**_both(), "plain": {"tls": "none"}, "edge": {"tls": "server"}}


def test_connections_in_the_moment_of_the_end(start: Callable[..., Proxy], mesh: Mesh) -> None:
    """Hundreds of connections that are accepted in the same turn of the loop as SIGTERM, with others that come all the time."""
    proxy = start(_kinds())
    addresses = [proxy.address(name) for name in proxy.ports]
    with contextlib.ExitStack() as stack:
        for last in (False, False, True):
            proxy.signal(signal.SIGSTOP)  # what comes now waits in the backlog, and is all there at once afterwards
            for address in addresses:
                for _ in range(60):
                    stack.enter_context(socket.create_connection(address, 2))
            if last:
                proxy.signal(signal.SIGTERM)
            proxy.signal(signal.SIGCONT)
        stack.enter_context(Knocking(addresses))
        assert _gone(proxy) == 0


def test_connections_in_the_moment_a_listener_goes(start: Callable[..., Proxy], mesh: Mesh) -> None:
    proxy = start(_kinds(), drain_s=1)
    names = [name for name in proxy.ports if name != "default"]
    kept = {name: proxy.config["listeners"][name] for name in names}
    with Knocking([proxy.address(name) for name in names]) as knocking:
        for _ in range(4):
            assert "reloaded" in _change(proxy, lambda c: [c["listeners"].pop(name) for name in names])
            assert "reloaded" in _change(proxy, lambda c: c["listeners"].update(kept))
        before = knocking.count
        eventually(lambda: knocking.count > before, "connections to the listeners that are back")
    with RawClient(proxy.address("reference"), mesh.client("billing")) as client:
        assert client.request(get("/a/x")).status == 200
        client.send(b"")
    eventually(lambda: proxy.metric("meshguard_connections") == 0, "the end of all connections")
    proxy.signal(signal.SIGTERM)
    assert _gone(proxy) == 0


def test_drain_by_the_admin_api(start: Callable[..., Proxy], mesh: Mesh) -> None:
    """What a preStop hook does: POST /drain?wait answers when the streaming answers are through, and they are through whole. The last of
    them is on a listener that was removed a moment before."""
    proxy = start({**_both(), "gone": {"tls": "mutual"}})
    go = {name: mesh.upstream.event() for name in proxy.ports}

    async def held(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await go[exchange.request.path.rpartition("/")[2]].wait()
        await exchange.send(b"4\r\nlast\r\n0\r\n\r\n")

    told: list[tuple[int, bytes]] = []
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(RawClient(proxy.address("default"), mesh.client("billing")))
        assert idle.request(get("/a/idle")).status == 200
        busy = {}
        for name in proxy.ports:
            stack.enter_context(mesh.upstream.on(f"/a/{name}", held))
            client = stack.enter_context(RawClient(proxy.address(name), mesh.client("billing")))
            client.send(get(f"/a/{name}"), expect="GET")
            assert client.head().status == 200
            busy[name] = (client, client.body())
            assert next(busy[name][1]) == b"first"
        assert "reloaded" in _change(proxy, lambda c: c["listeners"].pop("gone"))
        assert proxy.admin("/drain", "GET")[0] == 405
        hook = threading.Thread(target=lambda: told.append(proxy.admin("/drain?wait=5", "POST")))
        hook.start()
        idle.assert_closed()
        status, body = proxy.admin("/readyz")
        assert status == 503
        assert "draining" in orjson.loads(body)["reasons"]
        with pytest.raises((OSError, NoAnswer)):
            RawClient(proxy.address("default"), mesh.client("billing"), deadline_s=2)
        for name in (*ENGINES, "gone"):
            hook.join(0.1)
            assert told == [], "the hook was told before the end"
            go[name].set()
            client, pieces = busy[name]
            assert b"".join(pieces) == b"last", name
            client.assert_closed()
        hook.join(6)
    assert _gone(proxy) == 0
    assert [status for status, _ in told] == [200]
    assert orjson.loads(told[0][1]) == {"draining": True, "drained": True, "active": 0}
