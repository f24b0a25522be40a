"""The admin API over real sockets: answers, refusals, limits, draining."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from meshguard.control import admin
from meshguard.control.admin import AdminServer, EndpointStatus, ListenerStatus, Providers, Status
from meshguard.telemetry.metrics import Family, Registry
from tests.telemetry.exposition import parse

NOW = 1_700_000_000.0
READY = Status(
    policy_digest="sha256:abc",
    policy_revision=3,
    policy_since=NOW - 60,
    identity="spiffe://shop.example/ns/prod/sa/orders",
    identity_not_after=NOW + 300,
    listeners=(ListenerStatus("inbound", "0.0.0.0:8443", True),),
    clusters={"app": (EndpointStatus("127.0.0.1:8080", True), EndpointStatus("127.0.0.1:8081", False, "refused"))},
)


class World:
    """What the admin API shows: the test changes it."""

    def __init__(self) -> None:
        self.status = READY
        self.registry = Registry()
        self.idle = asyncio.Event()
        self.drains = 0
        self.families: Callable[[], Iterable[Family]] = self.registry.families

    def start_drain(self) -> None:
        self.drains += 1
        self.status = replace(self.status, draining=True)

    async def drained(self) -> None:
        await self.idle.wait()
        self.status = replace(self.status, active=0)


@asynccontextmanager
async def serving(world: World, **options: Any) -> AsyncIterator[int]:
    providers = Providers(lambda: world.status, lambda: world.families(), world.start_drain, world.drained)
    server = AdminServer(providers, now=lambda: NOW, **options)
    _, port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.close()


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def ask(port: int, path: str, method: str = "GET", **fields: str) -> tuple[int, dict[str, str], bytes]:
    lines = [f"{method} {path} HTTP/1.1", f"host: {fields.pop('host', f'127.0.0.1:{port}')}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    answer = await raw(port, "\r\n".join([*lines, "", ""]).encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, *header_lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in header_lines)}
    if headers.get("transfer-encoding") == "chunked":
        whole, rest = b"", body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            whole += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        body = whole
    elif method != "HEAD":
        assert len(body) == int(headers["content-length"])
    return int(status_line.split(" ")[1]), headers, body


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_probes_and_facts(run: Callable[..., None]) -> None:
    async def scenario() -> None:
        world = World()
        async with serving(world) as port:
            status, headers, body = await ask(port, "/healthz")
            assert (status, json.loads(body)) == (200, {"status": "ok"})
            assert headers["cache-control"] == "no-store"
            assert headers["connection"] == "close"
            status, _, body = await ask(port, "/readyz")
            assert status == 200
            assert json.loads(body) == {
                "ready": True,
                "reasons": [],
                "policy": {"digest": "sha256:abc", "revision": 3, "since": "2023-11-14T22:12:20Z", "reload_error": None},
                "identity": {
                    "spiffe_id": "spiffe://shop.example/ns/prod/sa/orders",
                    "not_after": "2023-11-14T22:18:20Z",
                    "expires_in_s": 300,
                },
                "listeners": [{"name": "inbound", "address": "0.0.0.0:8443", "listening": True}],
                "clusters": {
                    "app": [
                        {"address": "127.0.0.1:8080", "healthy": True},
                        {"address": "127.0.0.1:8081", "healthy": False, "reason": "refused"},
                    ]
                },
                "draining": False,
                "active": 0,
                "pid": os.getpid(),
            }
            status, _, body = await ask(port, "/snapshot")
            assert (status, json.loads(body)) == (200, {"digest": "sha256:abc", "revision": 3, "since": "2023-11-14T22:12:20Z"})
            status, _, body = await ask(port, "/version")
            assert (status, set(json.loads(body))) == (200, {"meshguard", "python", "implementation"})

    run(scenario())


@pytest.mark.parametrize(
    ("status", "reasons"),
    [
        (Status(), ["no_policy"]),
        (replace(READY, identity_not_after=NOW), ["identity_expired"]),
        (replace(READY, listeners=(ListenerStatus("inbound", "x", False), ListenerStatus("out", "y", True))), ["listener_down:inbound"]),
        (replace(READY, draining=True), ["draining"]),
        (replace(READY, reload_error="policies/a.yaml:3: expected a list"), []),
        (replace(READY, clusters={"app": (EndpointStatus("127.0.0.1:1", False),)}), []),
        (replace(READY, identity="", identity_not_after=None), []),
    ],
)
def test_readiness(status: Status, reasons: list[str]) -> None:
    async def scenario() -> None:
        world = World()
        world.status = status
        async with serving(world) as port:
            code, _, body = await ask(port, "/readyz")
            told = json.loads(body)
            assert (code, told["ready"], told["reasons"]) == (503 if reasons else 200, not reasons, reasons)
            assert told["policy"]["reload_error"] == (status.reload_error or None)

    asyncio.run(scenario())


def test_reload_errors_are_redacted() -> None:
    async def scenario() -> None:
        world = World()
        world.status = replace(READY, reload_error="config.yaml:7: keys.vault: expected a URL, got https://u:hunter2@vault")
        async with serving(world) as port:
            _, _, body = await ask(port, "/readyz")
            assert b"hunter2" not in body
            assert b"config.yaml:7" in body

    asyncio.run(scenario())


def test_only_this_machine_sees_the_detail_and_may_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        world = World()
        monkeypatch.setattr(admin, "_is_loopback", lambda writer: False)
        async with serving(world) as port:
            status, _, body = await ask(port, "/readyz")
            assert (status, json.loads(body)) == (200, {"ready": True, "reasons": []})
            status, _, _ = await ask(port, "/drain", "POST")
            assert (status, world.drains) == (403, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("10.0.0.1", 1), False),
        (("::ffff:10.0.0.1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        ("", False),
        (None, False),
    ],
)
def test_what_is_this_machine(peer: object, expected: bool) -> None:
    class Writer:
        def get_extra_info(self, name: str) -> object:
            return peer

    assert admin._is_loopback(Writer()) is expected  # type: ignore[arg-type]  # all that it looks at


def test_metrics_in_both_formats() -> None:
    async def scenario() -> None:
        world = World()
        world.registry.counter("meshguard.test", "a test").labels().value = 5
        async with serving(world) as port:
            status, headers, body = await ask(port, "/metrics")
            assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
            assert parse(body.decode())[("meshguard_test_total", ())] == 5
            status, headers, body = await ask(port, "/metrics", accept="application/openmetrics-text; version=1.0.0")
            assert headers["content-type"].startswith("application/openmetrics-text")
            assert parse(body.decode(), openmetrics=True)[("meshguard_test_total", ())] == 5

    asyncio.run(scenario())


def test_a_large_scrape_lets_others_run() -> None:
    async def scenario() -> None:
        world = World()
        counter = world.registry.counter("m", "many", "", ("n",))
        for number in range(2000):
            counter.labels(number)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with serving(world) as port, asyncio.TaskGroup() as group:
            other = group.create_task(count())
            _, _, body = await ask(port, "/metrics")
            other.cancel()
        assert len(parse(body.decode())) == 2001
        assert turns > 20

    asyncio.run(scenario())


def test_head_has_no_body() -> None:
    async def scenario() -> None:
        async with serving(World()) as port:
            for path in ("/healthz", "/metrics"):
                answer = await raw(port, f"HEAD {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert answer.endswith(b"\r\n\r\n")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/healthz", 405),
        ("DELETE", "/metrics", 405),
        ("PUT", "/snapshot", 405),
        ("GET", "/drain", 405),  # a link or an image must not drain
        ("HEAD", "/drain", 405),
        ("OPTIONS", "/drain", 405),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "//metrics", 404),
        ("GET", "/%6detrics", 404),
        ("GET", "/x/../metrics", 404),
        ("GET", "http://127.0.0.1/metrics", 404),
        ("GET", "*", 404),
    ],
)
def test_everything_else_is_refused(method: str, path: str, status: int) -> None:
    async def scenario() -> None:
        world = World()
        async with serving(world) as port:
            code, headers, _ = await ask(port, path, method)
            assert code == status
            assert ("allow" in headers) == (status == 405)
            assert world.drains == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:9901", True),
        ("127.0.0.1:1", True),
        ("10.1.2.3:9901", True),  # a probe uses the pod's address; an address cannot be rebound
        ("[::1]:9901", True),
        ("[::1]", True),
        ("admin.shop.example:9901", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:9901", False),
        ("", False),
        ("localhost:x", False),
        ("[::1", False),
        ("[::1]x", False),
        ("localhost, evil.example", False),
        ("user@localhost", False),
    ],
)
def test_names_in_host_are_those_expected(host: str, allowed: bool) -> None:
    async def scenario() -> None:
        async with serving(World(), hosts=["admin.shop.example"]) as port:
            code, _, _ = await ask(port, "/healthz", host=host)
            assert code == (200 if allowed else 421)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "none"}, 200),
        ({"content_length": "5"}, 413),
        ({"content_length": "0"}, 200),
        ({"transfer_encoding": "chunked"}, 413),
    ],
)
def test_web_pages_and_bodies_are_refused(fields: dict[str, str], status: int) -> None:
    async def scenario() -> None:
        world = World()
        async with serving(world) as port:
            code, _, _ = await ask(port, "/drain", "POST", **fields)
            assert (code, world.drains) == (status, int(status == 200))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",  # no Host
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    ],
)
def test_malformed_requests_get_a_plain_no(data: bytes) -> None:
    async def scenario() -> None:
        async with serving(World()) as port:
            answer = await raw(port, data)
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
            assert (await ask(port, "/healthz"))[0] == 200

    asyncio.run(scenario())


def test_a_provider_that_fails_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()

        def broken() -> Iterable[Family]:
            raise RuntimeError("inner detail")

        world.families = broken
        async with serving(world) as port:
            status, _, body = await ask(port, "/metrics")
            assert status == 500
            assert b"inner detail" not in body

    asyncio.run(scenario())
    assert any("/metrics" in entry.getMessage() for entry in caplog.records)


def test_draining_can_be_started_and_waited_for() -> None:
    async def scenario() -> None:
        world = World()
        world.status = replace(READY, active=2)
        async with serving(world) as port:
            status, _, body = await ask(port, "/drain", "POST")
            assert (status, json.loads(body)) == (200, {"draining": True, "drained": False, "active": 2})
            assert (await ask(port, "/readyz"))[0] == 503
            _, _, body = await ask(port, "/drain?wait=0.05", "POST")
            assert json.loads(body) == {"draining": True, "drained": False, "active": 2}
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(ask(port, "/drain?wait=30", "POST"))
                assert (await ask(port, "/healthz"))[0] == 200  # a waiting hook holds up no probe
                world.idle.set()
            assert json.loads(waiting.result()[2]) == {"draining": True, "drained": True, "active": 0}
            assert world.drains == 3

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "query", ["wait=", "wait=-1", "wait=nan", "wait=1e9", "wait=x", "other=1", "wait=1&wait=2", "wait=12345678901", "wait=1_0"]
)
def test_a_wrong_wait_is_refused_before_anything_happens(query: str) -> None:
    async def scenario() -> None:
        world = World()
        async with serving(world) as port:
            assert (await ask(port, f"/drain?{query}", "POST"))[0] == 400
            assert world.drains == 0

    asyncio.run(scenario())


def test_slow_clients_are_cut_and_connections_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(admin, "HEAD_S", 2.0)
        async with serving(World()) as port:
            slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(admin.MAX_CONNECTIONS)]
            for _, writer in slow:
                writer.write(b"GET /healthz HTTP/1.1\r\n")
            await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await asyncio.wait_for(reader.read(), 1) == b""  # the bound is reached: cut at once
            writer.close()
            for reader, _ in slow:
                assert await asyncio.wait_for(reader.read(), 5) == b""
            assert (await ask(port, "/healthz"))[0] == 200
            for _, writer in slow:
                writer.close()
                await writer.wait_closed()

    asyncio.run(scenario())


def test_a_client_that_reads_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(admin, "WRITE_S", 0.3)
        world = World()
        counter = world.registry.counter("m" * 2000, "wide", "", ("n",))
        for number in range(2000):
            counter.labels("x" * 2000 + str(number))  # 8 MB: more than the sockets take
        async with serving(world) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await asyncio.sleep(1.2)  # nothing to wait for: the client does nothing, and is cut meanwhile
            received = 0
            try:
                while data := await asyncio.wait_for(reader.read(65536), 5):
                    received += len(data)
            except ConnectionResetError:
                pass
            assert received < 8_000_000
            writer.close()

    asyncio.run(scenario())


def test_closing_ends_open_connections_and_tasks() -> None:
    async def scenario() -> None:
        async with serving(World()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /hea")
            await asyncio.sleep(0.05)  # lets the server accept it
        try:
            assert await asyncio.wait_for(reader.read(), 5) == b""
        except ConnectionResetError:
            pass
        writer.close()
        await asyncio.sleep(0)
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others, timeout=5)
        assert all(task.done() for task in others)

    asyncio.run(scenario())
