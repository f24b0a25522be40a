"""Bodies that a field rule has to read: who announces one and does not send it holds neither the exchange nor the budget."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshguard.keys.lifecycle import create
from tests.harness.client import NoAnswer, RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.strict import Truncated
from tests.harness.upstream import Exchange

ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
JSON = "Content-Type: application/json"
BODY_IDLE_S, BODY_TOTAL_S = 1.0, 1.5
LATE_S = 1.5  # looks at deadlines come four times a second, and the machine does other things as well


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory: Path = tmp_path_factory.mktemp("gathered")
    (directory / "keys").mkdir(mode=0o700)
    create(directory / "keys" / "pii.json", "pii", time.time())
    limits = {"body_idle_s": BODY_IDLE_S, "body_total_s": BODY_TOTAL_S}
    config = {
        "identity": mesh.identity(directory),
        "listeners": {engine: {"tls": "mutual", "to": "app", "engine": engine, "limits": limits} for engine in ENGINES},
        "clusters": {"app": {**mesh.endpoints(), "timeouts": {"response_s": 1}}},
        "keys": {"pii": {"provider": "file", "path": "keys/pii.json"}},
    }
    policy = {
        "roles": {"billing": {"principals": [SHOP + "billing"]}},
        "rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}],
        "fields": [
            {"id": "card", "paths": ["/orders/{id}"], "on": "both", "select": "$.card", "seal": "pii", "readers": {"billing": "open"}}
        ],
    }
    with Proxy(directory, config, policies={"p.yaml": policy}) as made:
        yield made
    assert "Traceback" not in made.stderr_text


def _free(proxy: Proxy) -> None:
    """Nothing is held and nothing runs any more."""
    eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 0, "an empty inspection budget", 2)
    assert proxy.metric("http_server_active_requests") == 0


BEGINNINGS = {
    "length": get("/orders/7", method="POST", fields=[JSON, "Content-Length: 1000"]) + b"{",
    "length-only": get("/orders/7", method="POST", fields=[JSON, "Content-Length: 1000"]),
    "chunked": get("/orders/7", method="POST", fields=[JSON, "Transfer-Encoding: chunked"]) + b"5\r\n{",
    "expect": get("/orders/7", method="POST", fields=[JSON, "Content-Length: 1000", "Expect: 100-continue"]),
    "drip": get("/orders/7", method="POST", fields=[JSON, "Content-Length: 1000"]) + b"{",
}


def test_a_body_that_does_not_come_ends_in_time(proxy: Proxy, mesh: Mesh) -> None:
    """408 (or the end) within `body_idle_s`, and for one octet now and then within `body_total_s`; the upstream hears nothing of it."""
    mark = mesh.upstream.mark()
    cases = [(engine, name) for engine in ENGINES for name in BEGINNINGS]
    clients = {case: RawClient(proxy.address(case[0]), mesh.client("billing"), deadline_s=3) for case in cases}
    try:
        started = time.monotonic()
        for (_, name), client in clients.items():
            client.send(BEGINNINGS[name], expect="POST")
        eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 6, "the octets that came")
        drips = [clients[engine, "drip"] for engine in ENGINES]
        while drips:
            assert time.monotonic() - started < BODY_TOTAL_S + LATE_S, "a body of single octets goes on for ever"
            for drip in list(drips):
                drip.send(b" ")
                drip.sock.settimeout(0.1)
                with contextlib.suppress(NoAnswer):
                    drip.receive()
                    drips.remove(drip)
        for (_, name), client in clients.items():
            if name == "drip":
                continue
            try:
                answer = client.response()
            except Truncated:
                continue
            assert (answer.status, answer.problem["code"]) == (408, "request_timeout")
            client.assert_closed()
        assert time.monotonic() - started < BODY_TOTAL_S + LATE_S
    finally:
        for client in clients.values():
            client.close()
    _free(proxy)
    assert mesh.upstream.since(mark) == []


@engines
def test_a_client_that_leaves_in_its_body_gives_the_budget_back(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    for name, beginning in BEGINNINGS.items():
        with RawClient(proxy.address(engine), mesh.client("billing")) as client:
            client.send(beginning, expect="POST")
            if name in ("length", "chunked"):
                eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 1, "the octet that came")
        _free(proxy)


@engines
def test_an_answer_that_does_not_end_is_given_up(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    """The same for the upstream's side: a gathered answer that stops half-way ends with the client's 5xx and with nothing held."""

    async def half(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n" + b" " * 50)
        exchange.close()

    with mesh.upstream.on("/orders/8", half), RawClient(proxy.address(engine), mesh.client("billing")) as client:
        answer = client.request(get("/orders/8"))
        assert answer.status in (502, 504), answer
        assert b" " * 50 not in answer.body
    _free(proxy)
