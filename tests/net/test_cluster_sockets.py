"""The cluster over real sockets on loopback, on uvloop: peers that are down, flap, reset, stall or refuse by a full backlog.

The protocol is a line with a number, answered by the same line: an answer with another number would be a crossed one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import socket
import struct
from collections.abc import Coroutine
from typing import Any, ClassVar, cast

import pytest
import uvloop

from meshguard.model.reasons import CONNECT_FAILED, CONNECT_TIMEOUT, UPSTREAM_RESET, UPSTREAM_TIMEOUT, Reason
from meshguard.net.cluster.calls import Call
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.clusters import Clusters, Transport
from meshguard.net.cluster.endpoint import Connection, Endpoint
from meshguard.net.cluster.pool import MAX_DIALS
from meshguard.net.cluster.settings import CircuitSettings, ClusterSettings, EjectionSettings, RetrySettings, TimeoutSettings
from tests.net.cluster_parts import balanced


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            try:
                await test
            finally:
                for server in Echo.running:
                    server.cut()
                Echo.running.clear()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


class Wire(asyncio.Protocol):
    """The upstream connection of these tests: one line out, one line back."""

    def __init__(self, endpoint: Endpoint, owner: Client) -> None:
        self.endpoint = endpoint
        self.idle_since = 0.0
        self.owner = owner
        self.closed = False
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self._line = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def send(self, exchange: Exchange) -> None:
        assert self.exchange is None
        assert self.transport is not None
        self.exchange = exchange
        self.transport.write(b"%d\n" % exchange.number)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self.close()  # nobody asked
            return
        self._line += data
        if self._line.endswith(b"\n"):
            line, self._line = self._line, b""
            exchange, self.exchange = self.exchange, None
            exchange.answered(self, int(line))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.broken(self)
        else:
            self.owner.cluster.lost(self)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            assert self.transport is not None
            self.transport.abort()
            self.owner.cluster.lost(self)


class Exchange(Call):
    """One request, as the journey makes it: pooled first, else submitted, retried when its connection breaks."""

    def __init__(self, client: Client, number: int) -> None:
        super().__init__()
        self.client = client
        self.number = number
        self.conn: Connection | None = None
        self.outcome: asyncio.Future[int | Reason] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        conn = self.client.cluster.checkout()
        if conn is None:
            self.client.cluster.submit(self)
        else:
            self.connected(conn)

    def connected(self, conn: Connection) -> None:
        assert isinstance(conn, Wire)
        self.conn = conn
        if conn.closed:
            self.broken(conn)
        else:
            conn.send(self)

    def failed(self, reason: Reason, detail: str) -> None:
        self.outcome.set_result(reason)

    def answered(self, conn: Wire, number: int) -> None:
        if conn.endpoint.failures:
            self.client.cluster.succeeded(conn.endpoint)
        self.client.cluster.release(conn)
        self.outcome.set_result(number)

    def broken(self, conn: Wire) -> None:
        self.client.cluster.discard(conn)
        if self.client.cluster.may_retry(self):
            self.client.cluster.submit(self)
        else:
            self.outcome.set_result(UPSTREAM_RESET)


class Client:
    """A cluster with real dials; `widest` is the largest number of dials at once."""

    def __init__(self, *ports: int, **changes: Any) -> None:
        self.dialling = 0
        self.widest = 0
        wanted = dataclasses.replace(ClusterSettings(endpoints=tuple(f"127.0.0.1:{port}" for port in ports)), **changes)
        self.cluster = Cluster("app", wanted, self.connect)
        self.numbers = iter(range(1, 1_000_000))

    async def connect(self, endpoint: Endpoint) -> Connection:
        self.dialling += 1
        self.widest = max(self.widest, self.dialling)
        try:
            address = endpoint.address
            _, wire = await asyncio.get_running_loop().create_connection(lambda: Wire(endpoint, self), address.host, address.port)
        finally:
            self.dialling -= 1
        return wire

    def ask(self) -> Exchange:
        exchange = Exchange(self, next(self.numbers))
        exchange.begin()
        return exchange

    async def outcome(self) -> int | Reason:
        return await self.ask().outcome


class Echo:
    """Answers each line after up to `delay_s`; can be cut off and brought back on the same port. Those `running` are cut at the end of
    a test, also of a failed one: closing a uvloop with a listening server in it never returns."""

    running: ClassVar[list[Echo]] = []

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.port = 0
        self.accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        self.running.append(self)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                if self.delay_s:
                    await asyncio.sleep(random.random() * self.delay_s)
                writer.write(line)
        except (OSError, RuntimeError):
            pass  # cut: uvloop raises RuntimeError when an aborted transport is written to
        finally:
            self._writers.discard(writer)
            writer.close()

    def cut(self) -> None:
        """End the server and every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_answers_belong_to_their_requests_and_connections_are_reused() -> None:
    async def story() -> None:
        servers = [Echo(0.002) for _ in range(3)]
        for server in servers:
            await server.start()
        client = Client(*(server.port for server in servers))
        for _ in range(20):
            exchanges = [client.ask() for _ in range(30)]
            for exchange in exchanges:
                assert await exchange.outcome == exchange.number
        assert sum(server.accepted for server in servers) == client.cluster.snapshot().connects <= 60
        balanced(client.cluster)
        await client.cluster.close()

    run(story())


def test_an_endpoint_that_is_down_costs_nobody_an_answer_and_is_ejected() -> None:
    async def story() -> None:
        server = Echo()
        await server.start()
        client = Client(closed_port(), server.port, ejection=EjectionSettings(consecutive_failures=3, eject_s=30))
        for _ in range(20):
            number = await client.outcome()
            assert isinstance(number, int)
            client.cluster.recycle()  # each request has to dial
        snapshot = client.cluster.snapshot()
        assert [endpoint.state for endpoint in snapshot.endpoints] == ["ejected", "unknown"]
        assert snapshot.connect_failures == 3
        balanced(client.cluster)
        await client.cluster.close()

    run(story())


def test_everything_down_is_an_answer_at_once() -> None:
    async def story() -> None:
        client = Client(closed_port())
        outcomes = await asyncio.gather(*(client.outcome() for _ in range(100)))
        assert set(outcomes) == {CONNECT_FAILED}
        balanced(client.cluster)
        await client.cluster.close()

    run(story())


def test_a_flapping_upstream_gives_no_crossed_answer_no_hang_no_leak() -> None:
    async def story() -> None:
        servers = [Echo(0.002) for _ in range(2)]
        for server in servers:
            await server.start()
        client = Client(*(server.port for server in servers), ejection=EjectionSettings(consecutive_failures=5, eject_s=0.05))
        good = refused = 0

        async def load() -> None:
            nonlocal good, refused
            for _ in range(60):
                exchange = client.ask()
                outcome = await exchange.outcome
                if isinstance(outcome, int):
                    assert outcome == exchange.number
                    good += 1
                else:
                    refused += 1

        async def flap() -> None:
            for number in range(12):
                server = servers[number % 2]
                await asyncio.sleep(0.01)
                server.cut()
                await asyncio.sleep(0.005)
                await server.start()
                client.cluster.sweep(asyncio.get_running_loop().time())

        await asyncio.gather(flap(), *(load() for _ in range(20)))
        assert good + refused == 20 * 60
        assert good > refused
        balanced(client.cluster)
        assert client.cluster.books().in_flight == client.cluster.books().queued == 0
        await client.cluster.close()

    run(story())


def test_a_peer_that_accepts_and_never_answers_is_ejected_by_its_timeouts() -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
            server = Echo()
            await server.start()
            client = Client(silent.getsockname()[1], server.port, ejection=EjectionSettings(consecutive_failures=3, eject_s=30))
            hung = 0
            for _ in range(12):
                exchange = client.ask()
                try:
                    async with asyncio.timeout(0.05):
                        await asyncio.shield(exchange.outcome)
                except TimeoutError:
                    hung += 1
                    assert isinstance(exchange.conn, Wire)
                    exchange.conn.exchange = None
                    client.cluster.discard(exchange.conn, UPSTREAM_TIMEOUT)
            assert hung == 3
            assert not client.cluster.snapshot().endpoints[0].usable
            balanced(client.cluster)
            await client.cluster.close()

    run(story())


def test_connections_reset_after_accept_are_never_handed_out_from_the_pool() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0), backlog=64) as resetting:
            resetting.setblocking(False)

            async def reset_all() -> None:
                while True:
                    peer, _ = await loop.sock_accept(resetting)
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    peer.close()

            resetter = asyncio.ensure_future(reset_all())
            client = Client(resetting.getsockname()[1], retries=RetrySettings(attempts=2))
            outcomes = await asyncio.gather(*(client.outcome() for _ in range(20)))
            assert set(outcomes) <= {UPSTREAM_RESET, CONNECT_FAILED}
            # an idle connection that is reset leaves the pool by itself
            assert client.cluster.checkout() is None
            balanced(client.cluster)
            assert client.cluster.books()[:4] == (0, 0, 0, 0)
            # amplification is bounded: twenty calls, two retries each at the very most
            assert client.cluster.snapshot().connects <= 60
            resetter.cancel()
            await asyncio.gather(resetter, return_exceptions=True)
            await client.cluster.close()

    run(story())


def test_an_idle_connection_that_is_reset_leaves_the_pool() -> None:
    async def story() -> None:
        server = Echo()
        await server.start()
        client = Client(server.port)
        await asyncio.gather(*(client.outcome() for _ in range(5)))
        assert client.cluster.snapshot().idle == 5
        server.cut()
        async with asyncio.timeout(5):
            while client.cluster.books().connections:  # noqa: ASYNC110 (the loss of an idle connection is not announced)
                await asyncio.sleep(0.001)
        assert client.cluster.checkout() is None
        balanced(client.cluster)
        await client.cluster.close()

    run(story())


def test_a_full_backlog_is_a_connect_timeout_and_another_endpoint_serves() -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            fillers = []
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(address)
                fillers.append(filler)
            client = Client(address[1], timeouts=TimeoutSettings(connect_s=0.2))
            outcomes = await asyncio.gather(*(client.outcome() for _ in range(10)))
            assert set(outcomes) == {CONNECT_TIMEOUT}
            balanced(client.cluster)
            assert client.cluster.books()[:4] == (0, 0, 0, 0)
            await client.cluster.close()

            server = Echo()
            await server.start()
            both = Client(address[1], server.port, timeouts=TimeoutSettings(connect_s=0.2))
            for exchange in [both.ask() for _ in range(6)]:
                assert await exchange.outcome == exchange.number
            balanced(both.cluster)
            await both.cluster.close()
            server.cut()
            for filler in fillers:
                filler.close()

    run(story())


@pytest.mark.parametrize("clients", [300])
def test_a_restarted_upstream_is_not_met_by_a_thundering_herd(clients: int) -> None:
    async def story() -> None:
        server = Echo(0.005)
        await server.start()
        client = Client(server.port, circuit=CircuitSettings(queue_timeout_s=10), retries=RetrySettings(attempts=3, budget_percent=100))
        exchanges = [client.ask() for _ in range(clients)]
        await asyncio.gather(*(exchange.outcome for exchange in exchanges))
        server.cut()
        await server.start()
        client.widest = 0
        server.accepted = 0
        exchanges = [client.ask() for _ in range(clients)]
        for exchange in exchanges:
            assert await exchange.outcome == exchange.number
        assert 0 < client.widest <= MAX_DIALS
        assert server.accepted <= clients
        balanced(client.cluster)
        await client.cluster.close()

    run(story())


def test_a_limit_of_connections_holds_under_load() -> None:
    async def story() -> None:
        server = Echo(0.002)
        await server.start()
        client = Client(server.port, circuit=CircuitSettings(max_connections=5, queue=500, queue_timeout_s=10))
        exchanges = [client.ask() for _ in range(300)]
        for exchange in exchanges:
            assert await exchange.outcome == exchange.number
        assert server.accepted == 5
        balanced(client.cluster)
        await client.cluster.close()

    run(story())


def test_reload_under_load_breaks_nothing() -> None:
    async def story() -> None:
        servers = [Echo(0.003) for _ in range(3)]
        for server in servers:
            await server.start()
        ports = [server.port for server in servers]
        client = Client(*ports[:2])
        loop = asyncio.get_running_loop()

        async def load() -> None:
            for _ in range(50):
                exchange = client.ask()
                assert await exchange.outcome == exchange.number

        async def reload() -> None:
            for number in range(30):
                chosen = [ports[number % 3], ports[(number + 1) % 3]]
                endpoints = tuple(f"127.0.0.1:{port}" for port in chosen)
                client.cluster.reconfigure(dataclasses.replace(client.cluster.settings, endpoints=endpoints))
                if number % 5 == 0:
                    client.cluster.recycle()
                client.cluster.sweep(loop.time())
                await asyncio.sleep(0.004)

        await asyncio.gather(reload(), *(load() for _ in range(15)))
        balanced(client.cluster)
        snapshot = client.cluster.snapshot()
        assert snapshot.connect_failures == snapshot.retries == snapshot.strays == 0
        assert not client.cluster.members.leaving
        await client.cluster.close()

    run(story())


class TestClusters:
    def test_reload_adds_keeps_and_retires(self) -> None:
        async def story() -> None:
            server = Echo(0.01)
            await server.start()
            client = Client(server.port)
            clusters = Clusters()
            wanted = client.cluster.settings
            transport = Transport(client.connect)
            clusters.apply({"app": wanted, "other": wanted}, {"app": transport, "other": transport}, 5)
            app, other = clusters["app"], clusters["other"]
            client.cluster = other
            busy = client.ask()
            clusters.apply({"app": dataclasses.replace(wanted, balance="round_robin"), "third": wanted}, {"third": transport}, 5)
            assert clusters["app"] is app
            assert [state.name for state in clusters.snapshot()] == ["app", "third"]
            with pytest.raises(KeyError):
                clusters["other"]
            assert await busy.outcome == busy.number  # the retired cluster finishes what it carries
            async with asyncio.timeout(5):
                while not other.closed:  # noqa: ASYNC110 (retiring is background work)
                    await asyncio.sleep(0.001)
            assert other.books().connections == 0
            await clusters.drain()
            await clusters.close()
            assert app.closed
            with pytest.raises(RuntimeError, match="closed"):
                clusters.apply({}, {}, 1)

        run(story())

    def test_a_bad_reload_changes_nothing(self) -> None:
        async def story() -> None:
            client = Client(closed_port())
            clusters = Clusters()
            wanted = client.cluster.settings
            clusters.apply({"app": wanted}, {"app": Transport(client.connect)}, 5)
            with pytest.raises(KeyError):
                clusters.apply({"app": dataclasses.replace(wanted, endpoints=()), "new": wanted}, {}, 5)
            assert len(clusters["app"].members.endpoints) == 1
            assert len(clusters) == 1
            await clusters.close()

        run(story())

    def test_one_sweep_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def story() -> None:
            server = Echo()
            await server.start()
            client = Client(server.port)
            wanted = dataclasses.replace(client.cluster.settings, timeouts=TimeoutSettings(idle_s=0.05))
            clusters = Clusters()
            clusters.apply({"app": wanted}, {"app": Transport(client.connect)}, 5)
            client.cluster = clusters["app"]
            assert isinstance(await client.outcome(), int)
            assert clusters["app"].books().connections == 1
            async with asyncio.timeout(5):
                while clusters["app"].books().connections:  # noqa: ASYNC110 (the sweep announces nothing)
                    await asyncio.sleep(0.005)
            await clusters.close()
            server.cut()

        monkeypatch.setattr("meshguard.net.cluster.clusters.SWEEP_S", 0.02)
        run(story())

    def test_a_retired_cluster_is_cut_at_its_deadline(self) -> None:
        async def story() -> None:
            with socket.create_server(("127.0.0.1", 0)) as silent:
                client = Client(silent.getsockname()[1])
                clusters = Clusters()
                clusters.apply({"app": client.cluster.settings}, {"app": Transport(client.connect)}, 5)
                client.cluster = clusters["app"]
                stuck = client.ask()
                clusters.apply({}, {}, 0.05)
                assert await stuck.outcome is UPSTREAM_RESET or stuck.outcome.done()
                assert client.cluster.books().in_flight == 0
                await clusters.close()

        run(story())
