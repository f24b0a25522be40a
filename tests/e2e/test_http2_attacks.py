"""HTTP/2 by somebody who means no good, or is only slow: what hangs, what leaks, what is counted twice. Both engines."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import h2.settings
import pytest

from tests.harness.http2 import Call, H2Client, H2Server
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.upstream import Exchange

MIB = 1 << 20
ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
LIMITS = {"body_idle_s": 1, "head_s": 1, "idle_s": 3, "reset_burst": 400}
RULES = [
    {"id": "no-admin", "deny": "anyone", "paths": ["/admin/**"]},
    {"id": "all", "allow": "anyone", "paths": ["/**"]},
]


class Place:
    def __init__(self, proxy: Proxy, mesh: Mesh, server: H2Server) -> None:
        self.proxy = proxy
        self.upstream = mesh.upstream
        self.server = server

    def dial(self, listener: str, **options: Any) -> H2Client:
        return H2Client(self.proxy.address(listener), None, **options)

    def quiet(self) -> None:
        eventually(lambda: self.proxy.metric("http_server_active_requests") == 0, "no request under way")


@pytest.fixture(scope="module")
def place(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("attacks")
    server = H2Server(streams=8)
    listeners: dict[str, Any] = {}
    for engine in ENGINES:
        for name, cluster in (("", "app"), ("two-", "h2")):
            listeners[name + engine] = {"tls": "none", "to": cluster, "engine": engine, "protocols": ["h2", "http/1.1"], "limits": LIMITS}
        listeners[f"patient-{engine}"] = {
            "tls": "none", "to": "app", "engine": engine, "protocols": ["h2"], "limits": {"head_s": 1, "idle_s": 300, "body_idle_s": 1},
        }  # fmt: skip
    config = {
        "identity": mesh.identity(directory),
        "listeners": listeners,
        "clusters": {
            "app": {**mesh.endpoints(), "timeouts": {"connect_s": 5, "response_s": 6}},
            "h2": {
                "endpoints": [f"127.0.0.1:{server.port}"],
                "protocol": "h2",
                "timeouts": {"connect_s": 1, "response_s": 6},
                "circuit": {"max_connections": 1, "queue_timeout_s": 4},
            },
        },
        "drain_s": 4,
    }
    with Proxy(directory, config, policies={"p.yaml": {"rules": RULES}}) as proxy:
        yield Place(proxy, mesh, server)


@engines
@pytest.mark.parametrize("kind", ["", "two-"])
def test_a_head_reaches_the_upstream_before_its_body(engine: str, kind: str, place: Place) -> None:
    place.dial(kind + engine).get("/warm")
    with place.dial(kind + engine) as client:
        client.get("/warm")
        at = len(place.server.calls)
        mark = place.upstream.mark()
        stream = client.request("/head-first", "POST", end=False)
        eventually(
            lambda: (
                any(call.path == "/head-first" for call in place.server.calls[at:])
                or any(seen.path == "/head-first" for seen in place.upstream.since(mark))
            ),
            "the head",
            0.9,  # within `body_idle_s`
        )
        client.data(stream, b"x", end=True)
        assert client.answer(stream).status == 200


@engines
def test_bodiless_answers_that_do_not_end_their_stream(engine: str, place: Place) -> None:
    """They would use up the connection's streams, with one long call on it that keeps it from being replaced."""

    def lazy(call: Call) -> None:
        if call.ended:
            with call.peer.lock:
                call.peer.h2.send_headers(call.stream, [(":status", "204")], end_stream=False)
            call.peer.flush()

    held: list[Call] = []
    place.server.scripts["/lazy"] = lazy
    place.server.scripts["/held"] = lambda call: None if call.ended else held.append(call)
    with place.dial("two-" + engine) as client:
        long = client.request("/held")
        eventually(lambda: held, "the long call")
        for n in range(12):
            assert client.get("/lazy").status == 204, n
        held[0].answer(200, b"ok")
        assert client.answer(long).status == 200
    place.quiet()


def pour(place: Place, client: H2Client, streams: int) -> int:
    """Asks for answers that the client will not take; the first stream."""
    first, *_ = [client.request("/h2/slow", flush=False) for _ in range(streams)]
    client.flush()
    return first


async def slow(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * MIB))
    for _ in range(64):
        await exchange.send(bytes(65536))


@engines
def test_a_client_that_does_not_read_is_cut(engine: str, place: Place) -> None:
    """What it had asked for, also what had to wait for its turn, is on record."""
    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}
    mark = place.proxy.mark()
    seen = place.upstream.mark()
    with place.upstream.on("/h2/slow", slow):
        client = place.dial(engine, settings=settings, frozen=True)
        client.h2.increment_flow_control_window(2**30)
        pour(place, client, 30)
        place.upstream.wait(lambda: len(place.upstream.requests) - seen[0] >= 30, "thirty requests")
        for _ in range(30):
            client.request("/late", flush=False)
        client.flush()

        def paths() -> list[str]:
            return [record["what"]["path"] for record in place.proxy.stdout.items[mark:]]

        eventually(lambda: (paths().count("/h2/slow"), paths().count("/late")) == (30, 30), "a record of each", 12)
        with contextlib.suppress(ConnectionError):
            client.until_closed()
    place.quiet()


@engines
def test_requests_that_wait_for_their_turn_and_are_reset(engine: str, place: Place) -> None:
    """Each is on record."""
    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}
    mark = place.proxy.mark()
    with place.upstream.on("/h2/slow", slow), place.dial(engine, settings=settings, frozen=True) as client:
        first = pour(place, client, 40)
        for stream in range(first, first + 80, 2):
            client.until(lambda s=stream: client.streams[s].head, "the heads")  # type: ignore[misc]
        for _ in range(300):
            stream = client.request("/late", flush=False)
            client.h2.reset_stream(stream, 8)
        client.flush()

        def late() -> int:
            return sum(record["what"]["path"] == "/late" for record in place.proxy.stdout.items[mark:])

        eventually(lambda: late() == 300, "a record of each")
    place.quiet()


# -- the first request, and heads that do not end -----------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PINGED = b"\0\0\x08\6\0\0\0\0\0" + bytes(8)
SLOW = {
    "nothing": [],
    "the preface": [PREFACE[n : n + 1] for n in range(len(PREFACE))],
    "SETTINGS": [PREFACE, *(SETTINGS[n : n + 1] for n in range(len(SETTINGS) - 1))],
    "a frame of SETTINGS": [PREFACE + b"\0\x06\x00\4\0\0\0\0\0", *(bytes(6) for _ in range(200))],
    "no request": [PREFACE + SETTINGS, *(PINGED for _ in range(200))],
}


@engines
@pytest.mark.parametrize("name", SLOW)
def test_the_first_request_is_waited_for_as_long_as_a_head(name: str, engine: str, place: Place) -> None:
    """`head_s: 1, idle_s: 300`: whatever a client does instead, octet by octet, it does not get longer."""
    with socket.create_connection(place.proxy.address(f"patient-{engine}"), timeout=10) as sock:
        sock.settimeout(0.1)
        pieces = iter(SLOW[name])
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                sock.sendall(next(pieces, b""))
                while sock.recv(4096):
                    pass
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it is still open after ten times `head_s`")
    place.quiet()


@engines
def test_a_connection_that_had_a_request_may_idle(engine: str, place: Place) -> None:
    with place.dial(f"patient-{engine}") as client:
        assert client.get("/x").status == 200
        while True:  # nothing is said, far beyond `head_s`
            try:
                client.read(2.5)
            except TimeoutError:
                break
            assert not client.closed
        assert client.get("/y").status == 200
        assert (client.closed, client.goaways) == (False, [])


@engines
@pytest.mark.parametrize("rest", [b"\0\0\x04\x01\0\0\0\0\x03\x82\x86\x84\x87", b"\0\0\x40\x01\x05\0\0\0\x03\x82"], ids=["block", "frame"])
def test_a_head_that_does_not_end_ends_the_connection(rest: bytes, engine: str, place: Place) -> None:
    mark = place.proxy.mark()
    with place.dial(f"patient-{engine}") as client:
        assert client.get("/x").status == 200
        client.raw(rest)
        client.until_closed()
        assert client.goaways[-1][1] == 0xB
    record = place.proxy.decision_where(lambda r: r["why"].get("reason") == "request_timeout", "its record", mark)
    assert record["outcome"]["status"] == 408
    place.quiet()


# -- turns on a full connection -----------------------------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("unread", [7, 24])
def test_streams_that_are_not_read_hold_no_other_up_for_ever(unread: int, engine: str, place: Place) -> None:
    """What the client does not read fills the connection (7 streams), or more than that (24: then those that it has not read for
    `body_idle_s` are ended, one after the other). Each of the others, far more than are tried at once, is served in the end."""
    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}
    before = place.proxy.rss_bytes()
    with place.upstream.on("/h2/slow", slow), place.dial(f"patient-{engine}", settings=settings, deadline_s=45) as client:
        client.h2.increment_flow_control_window(2**30)
        first = pour(place, client, unread)
        client.until(lambda: client.streams[first].head, "the first head")
        good = [client.request(f"/good/{n}", flush=False) for n in range(20)]
        for stream in good:
            client.h2.increment_flow_control_window(65536, stream)
        client.flush()
        for stream in good:
            answer = client.answer(stream)
            assert (answer.status, answer.ended) == (200, True)
        assert place.proxy.rss_bytes() - before < 16 * MIB
    place.quiet()
