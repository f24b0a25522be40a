"""Active health over real sockets: thresholds, statuses, silence, rubbish, and what it does to requests."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from meshguard.model.reasons import NO_ENDPOINT
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.endpoint import Endpoint
from meshguard.net.cluster.probe import HEAD_BYTES
from meshguard.net.cluster.settings import ClusterSettings, HealthSettings
from tests.net.cluster_parts import Asking, Network, run, turns

QUICK = HealthSettings(path="/ready", interval_s=0.01, timeout_s=0.1, healthy=2, unhealthy=3)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Workload:
    """A server whose next answers the test writes; None is silence."""

    def __init__(self) -> None:
        self.answer: bytes | None = OK
        self.requests: list[bytes] = []
        self.port = 0
        self.open = 0
        self._asked = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if self.answer is None:
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._asked.set()
            writer.close()

    async def asked(self, times: int) -> None:
        """Wait for `times` more checks to be over."""
        target = len(self.requests) + times
        async with asyncio.timeout(5):
            while len(self.requests) < target:
                self._asked.clear()
                await self._asked.wait()
        await turns(10)


async def opener(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(endpoint.address.host, endpoint.address.port)


async def until(condition: Callable[[], bool]) -> None:
    """The verdicts come from tasks of the cluster; wait for them with a deadline."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (the cluster has no event to wait for)
            await asyncio.sleep(0.002)


def check(story: Callable[[Workload, Cluster], Awaitable[None]], health: HealthSettings = QUICK, *, up: bool = True) -> None:
    async def whole() -> None:
        workload = Workload()
        await workload.start()
        if not up:
            await workload.stop()
        network = Network()
        wanted = ClusterSettings(endpoints=(f"127.0.0.1:{workload.port}",), health=health)
        cluster = Cluster("app", wanted, network.connect, opener=opener)
        network.cluster = cluster
        cluster.start()
        try:
            await story(workload, cluster)
        finally:
            await cluster.close()
            await workload.stop()
            await until(lambda: workload.open == 0)  # no check is left hanging

    run(whole())


def state(cluster: Cluster) -> str:
    (endpoint,) = cluster.snapshot().endpoints
    return endpoint.state


def test_the_first_check_comes_at_once_and_decides() -> None:
    async def story(workload: Workload, cluster: Cluster) -> None:
        assert state(cluster) == "unknown"
        assert not cluster.snapshot().ready
        await until(lambda: state(cluster) == "healthy")
        assert cluster.snapshot().ready
        assert len(workload.requests) == 1
        head = workload.requests[0].decode().splitlines()
        assert head[0] == "GET /ready HTTP/1.1"
        assert f"Host: 127.0.0.1:{workload.port}" in head
        assert "Connection: close" in head

    check(story, dataclasses.replace(QUICK, interval_s=60))


def test_unknown_is_usable_and_a_failed_first_check_is_not() -> None:
    async def story(workload: Workload, cluster: Cluster) -> None:
        early = Asking()
        cluster.submit(early)
        await until(lambda: state(cluster) == "unhealthy")
        assert early.conn
        call = Asking()
        cluster.submit(call)
        assert call.reason is NO_ENDPOINT
        assert not cluster.snapshot().ready

    check(story, dataclasses.replace(QUICK, interval_s=60), up=False)


def test_thresholds_both_ways() -> None:
    async def story(workload: Workload, cluster: Cluster) -> None:
        verdicts: list[tuple[int, bool]] = []
        original = cluster._verdict

        def note(endpoint: Endpoint, healthy: bool) -> None:
            verdicts.append((len(workload.requests), healthy))
            original(endpoint, healthy)

        assert cluster._checks is not None
        cluster._checks._verdict = note
        await until(lambda: state(cluster) == "healthy")
        await workload.asked(1)
        workload.answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        turned = len(workload.requests)
        await until(lambda: state(cluster) == "unhealthy")
        assert verdicts[-1][1] is False
        assert verdicts[-1][0] - turned >= QUICK.unhealthy - 1
        assert cluster.snapshot().endpoints[0].checks_failed == QUICK.unhealthy
        workload.answer = OK
        turned = len(workload.requests)
        await until(lambda: state(cluster) == "healthy")
        assert verdicts[-1][0] - turned >= QUICK.healthy - 1
        assert [healthy for _, healthy in verdicts] == [True, False, True]

    check(story)


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (OK, True),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\n\r\nunbounded", True),
        (b"HTTP/1.1 301 Moved Permanently\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", False),
        (b"", False),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (2 * HEAD_BYTES) + b"\r\n\r\n", False),
        (b"HTTP/1.1 200", False),
        (None, False),
    ],
)
def test_answers(answer: bytes | None, good: bool) -> None:
    async def story(workload: Workload, cluster: Cluster) -> None:
        workload.answer = answer
        await until(lambda: state(cluster) != "unknown")
        assert state(cluster) == ("healthy" if good else "unhealthy")

    check(story, dataclasses.replace(QUICK, interval_s=60))


def test_statuses_and_host_are_configurable() -> None:
    async def story(workload: Workload, cluster: Cluster) -> None:
        workload.answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
        await until(lambda: state(cluster) == "healthy")
        assert b"\r\nHost: orders.shop\r\n" in workload.requests[0]

    check(story, dataclasses.replace(QUICK, interval_s=60, statuses=((200, 299), (401, 401)), host="orders.shop"))


def test_a_flapping_result_below_the_threshold_changes_nothing() -> None:
    async def story(workload: Workload, cluster: Cluster) -> None:
        await until(lambda: state(cluster) == "healthy")
        bad = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
        seen: set[str] = set()
        for number in range(40):
            workload.answer = OK if number % 2 else bad
            await workload.asked(1)
            seen.add(state(cluster))
        assert seen == {"healthy"}

    # a long row is needed, so that two checks under one answer cannot add up to it
    check(story, dataclasses.replace(QUICK, unhealthy=10))


def test_idle_connections_of_an_unhealthy_endpoint_are_closed() -> None:
    async def story(workload: Workload, cluster: Cluster) -> None:
        call = Asking()
        cluster.submit(call)
        await until(lambda: state(cluster) == "healthy" and call.answers == 1)
        cluster.release(call.conn)
        await workload.stop()
        await until(lambda: state(cluster) == "unhealthy")
        assert call.conn.closed
        assert cluster.checkout() is None

    check(story)


def test_checks_follow_the_endpoints_and_the_settings() -> None:
    async def story(workload: Workload, cluster: Cluster) -> None:
        await until(lambda: state(cluster) == "healthy")
        other = Workload()
        await other.start()
        wanted = dataclasses.replace(cluster.settings, endpoints=(f"127.0.0.1:{other.port}",))
        cluster.reconfigure(wanted)
        await until(lambda: state(cluster) == "healthy")
        await turns(20)
        before = len(workload.requests)
        await other.asked(3)
        assert len(workload.requests) == before
        cluster.reconfigure(dataclasses.replace(wanted, health=None))
        assert state(cluster) == "unknown"
        assert cluster.snapshot().ready
        await turns(20)
        tasks = [task for task in asyncio.all_tasks() if "health" in task.get_name()]
        assert not tasks
        await other.stop()

    check(story)


def test_checks_need_a_way_to_open_a_stream() -> None:
    with pytest.raises(ValueError, match="opener"):
        Cluster("app", ClusterSettings(endpoints=("127.0.0.1:80",), health=QUICK), Network().connect)


@pytest.mark.parametrize("path", ["", "ready", "/a b", "/a\r\nX: y", "/ä"])
def test_paths_that_would_break_the_request_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        HealthSettings(path=path)
