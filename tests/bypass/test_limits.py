"""The limits of security.md 6, on listeners with small ones. Slow clients of all kinds run side by side: the module waits once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness.arena import SMALL_LIMITS
from tests.harness.cases import Broken, Case, Forwarded, Refused, innocent, run
from tests.harness.client import NoAnswer, RawClient, chunked, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy
from tests.harness.strict import Truncated

HEAD, LINE, BODY = SMALL_LIMITS["head_bytes"], SMALL_LIMITS["request_line_bytes"], SMALL_LIMITS["body_bytes"]
TE = ["Transfer-Encoding: chunked"]


def _padded(total: int) -> bytes:
    """A request whose head has exactly `total` octets."""
    bare = len(get("/s", fields=["X: "]))
    return get("/s", fields=["X: " + "y" * (total - bare)])


def _line(total: int) -> bytes:
    return get("/s?" + "q" * (total - len("GET /s? HTTP/1.1")))


CASES = [
    Case("head-at-limit", _padded(HEAD), Forwarded(("/s",))),
    Case("head-over", _padded(HEAD + 1), Refused(frozenset({431}))),
    Case("head-far-over", _padded(HEAD * 8), Refused(frozenset({431}))),
    Case("head-unfinished", _padded(HEAD * 2)[:-4], Refused(frozenset({431}))),
    Case("name-unfinished", b"GET /s HTTP/1.1\r\nHost: shop.example\r\n" + b"n" * HEAD * 2, Refused(frozenset({400, 431}))),
    Case("fields-at-limit", get("/s", fields=[f"X{i}: y" for i in range(19)]), Forwarded(("/s",))),
    Case("fields-over", get("/s", fields=[f"X{i}: y" for i in range(20)]), Refused(frozenset({431}))),
    Case("fields-same-name", get("/s", fields=["X: y"] * 30), Refused(frozenset({431}))),
    Case("fields-dropped-count", get("/s", fields=["X-Forwarded-For: y"] * 30), Refused(frozenset({400, 431}))),
    Case("line-at-limit", _line(LINE), Forwarded(("/s?" + "q" * (LINE - 16),))),
    Case("line-over", _line(LINE + 1), Refused(frozenset({414}))),
    Case("line-endless", b"GET /" + b"a" * HEAD * 2, Refused(frozenset({414, 431}))),
    Case("method-endless", b"M" * HEAD * 2, Refused(frozenset({400, 414, 431, 501}))),
    Case("body-at-limit", get("/s", method="POST", body=b"x" * BODY), Forwarded(("/s",), bodies=(b"x" * BODY,))),
    Case("body-over", get("/s", method="POST", body=b"x" * (BODY + 1)), Refused(frozenset({413}))),
    Case("chunked-at-limit", get("/s", method="POST", fields=TE) + chunked(b"x" * BODY), Forwarded(("/s",), bodies=(b"x" * BODY,))),
    Case("chunked-over", get("/s", method="POST", fields=TE) + chunked(b"x" * BODY, b"x"), Broken(frozenset({413}))),
    Case("chunk-announced-over", get("/s", method="POST", fields=TE) + b"fffffff\r\nxx", Broken(frozenset({400, 408, 413}))),
    Case(
        "chunk-line-over",
        get("/s", method="POST", fields=TE) + b"1;" + b"e" * 5000 + b"\r\nx\r\n0\r\n\r\n",
        Broken(frozenset({400, 413, 431})),
    ),
    Case("chunk-line-endless", get("/s", method="POST", fields=TE) + b"1;" + b"e" * 100_000, Broken(frozenset({400, 413, 431}))),
    Case("chunk-size-endless", get("/s", method="POST", fields=TE) + b"0" * 100_000, Broken(frozenset({400, 413, 431}))),
    Case(
        "trailers-over", get("/s", method="POST", fields=TE) + b"0\r\n" + b"X: " + b"y" * 9000 + b"\r\n\r\n", Broken(frozenset({400, 431}))
    ),
    Case("trailers-endless", get("/s", method="POST", fields=TE) + b"0\r\n" + b"X: y\r\n" * 5000, Broken(frozenset({400, 431}))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_size(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    for how in ("whole", "halves"):
        run(case, how, lambda: dial(f"small-{engine}", deadline_s=4.0), mesh.upstream, lambda: dial(f"plain-{engine}"))


def test_announced_body_over_the_limit_is_refused_before_it_is_sent(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    for fields in ([], ["Expect: 100-continue"]):
        mark = mesh.upstream.mark()
        with dial(f"small-{engine}") as client:
            client.send(get("/s", method="POST", fields=[*fields, f"Content-Length: {BODY + 1}"]))
            answer = client.response()
            assert (answer.problem["status"], answer.interim) == (413, [])
            client.assert_closed()
        assert mesh.upstream.since(mark) == []


def test_default_limits(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """32 KiB of head, 100 fields, 8 KiB of request line where nothing was configured."""
    good = [get("/d", fields=["X: " + "y" * 31_000]), get("/d", fields=[f"X{i}: y" for i in range(99)]), get("/d?" + "q" * 8000)]
    bad = [
        (get("/d", fields=["X: " + "y" * 33_000]), 431),
        (get("/d", fields=[f"X{i}: y" for i in range(101)]), 431),
        (get("/d?" + "q" * 8300), 414),
    ]
    for data in good:
        run(Case("within", data, Forwarded((data.split(b" ")[1].decode(),))), "halves", lambda: dial(engine), mesh.upstream)
    for data, status in bad:
        run(Case("beyond", data, Refused(frozenset({status}))), "halves", lambda: dial(engine), mesh.upstream)


# ---- slow clients


@dataclass
class Slow:
    """`first` is sent at once, then one byte of `drip` every 50 ms; the connection must end within `within_s`."""

    id: str
    first: bytes
    within_s: float
    drip: bytes = b""
    statuses: tuple[int, ...] = (408,)
    path: str = ""
    handshake: bool = True
    seconds: float = field(default=-1.0, init=False)
    answers: list[int] = field(default_factory=list, init=False)
    problem: str = field(default="", init=False)


def slow_clients() -> list[Slow]:
    return [
        Slow("handshake-silent", b"", 3, handshake=False),
        Slow("handshake-half", b"\x16\x03\x01\x02\x00\x01\x00", 3, handshake=False),
        Slow("handshake-drip", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 3, drip=b"x" * 500, handshake=False),
        Slow("head-silent", b"GET /slow/head HTTP/1.1\r\nHos", 3, path="/slow/head"),
        Slow("head-one-byte", b"G", 3),
        Slow("head-drip", b"GET /slow/drip HTTP/1.1\r\nX: ", 3, drip=b"y" * 500, path="/slow/drip"),
        Slow("head-second", get("/slow/first") + b"GET /slow/second HTTP/1.1\r\n", 4, path="/slow/second"),
        Slow("crlf-drip", b"\r\n", 3.5, drip=b"\r\n" * 250, statuses=(400,)),
        Slow("body-silent", b"POST /slow/body HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 100\r\n\r\nabc", 3.5, path="/slow/body"),
        Slow("body-none", b"POST /slow/none HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 100\r\n\r\n", 3.5, path="/slow/none"),
        Slow(
            "body-drip",
            b"POST /slow/total HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1000\r\n\r\n",
            4.5,
            drip=b"z" * 500,
            path="/slow/total",
        ),
        Slow(
            "chunk-silent",
            b"POST /slow/chunk HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
            3.5,
            path="/slow/chunk",
        ),
        Slow(
            "chunk-drip",
            b"POST /slow/cdrip HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n",
            4.5,
            drip=b"1\r\nx\r\n" * 100,
            path="/slow/cdrip",
        ),
        Slow(
            "expect-silent",
            b"POST /slow/expect HTTP/1.1\r\nHost: shop.example\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
            3.5,
            path="/slow/expect",
        ),
        Slow("denied-body-silent", b"POST /admin/slow HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 100\r\n\r\n", 5, statuses=(403,)),
        Slow("idle-new", b"", 4, statuses=()),
        Slow("idle-used", get("/slow/idle"), 4.5, statuses=()),
    ]


def _torment(slow: Slow, dial: Callable[..., RawClient], listener: str, address: tuple[str, int]) -> None:
    started = time.monotonic()
    try:
        with dial(listener, deadline_s=0.05) if slow.handshake else RawClient(address, deadline_s=0.05) as client:
            client.send(slow.first)
            drip = iter(slow.drip)
            while not client.eof and time.monotonic() - started < slow.within_s + 2:
                byte = next(drip, None)
                if byte is not None:
                    client.send(bytes([byte]))
                try:
                    if slow.handshake:
                        slow.answers.append(client.response().status)
                    elif client.receive() == b"":
                        break
                except NoAnswer:
                    continue
                except Truncated:
                    break
            slow.seconds = time.monotonic() - started if client.eof else -1.0
    except Exception as exc:
        slow.problem = repr(exc)


@pytest.fixture(scope="module")
def tormented(arena: Proxy, mesh: Mesh) -> dict[tuple[str, str], Slow]:
    """All slow clients against both engines at once."""
    out: dict[tuple[str, str], Slow] = {}
    threads = []

    def open_client(listener: str, **options: Any) -> RawClient:
        deadline = options.pop("deadline_s")
        client = RawClient(arena.address(listener), mesh.client("billing"), **options)
        client.deadline_s = deadline
        client.sock.settimeout(deadline)
        return client

    for name in ("default", "reference"):
        for slow in slow_clients():
            out[name, slow.id] = slow
            listener = f"small-{name}"
            threads.append(threading.Thread(target=_torment, args=(slow, open_client, listener, arena.address(listener))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    return out


@pytest.mark.parametrize("name", [s.id for s in slow_clients()])
def test_slow_client_is_ended(
    name: str, engine: str, tormented: dict[tuple[str, str], Slow], mesh: Mesh, dial: Callable[..., RawClient]
) -> None:
    slow = tormented[engine, name]
    assert slow.problem == ""
    assert 0 <= slow.seconds <= slow.within_s, f"ended after {slow.seconds} s (-1: not at all), answers {slow.answers}"
    refusals = [s for s in slow.answers if s != 200]
    assert refusals in ([], list(slow.statuses)), slow.answers
    if slow.path:
        assert not [s for s in mesh.upstream.requests if s.path == slow.path and s.complete], (
            "an unfinished request looked complete upstream"
        )
    innocent(lambda: dial(f"plain-{engine}"), mesh.upstream)


def test_unfinished_requests_end_upstream_too(engine: str, tormented: dict[tuple[str, str], Slow], mesh: Mesh) -> None:
    for seen in mesh.upstream.requests:
        if seen.path.startswith("/slow/") and not seen.complete:
            assert seen.aborted, f"{seen} still hangs at the upstream"


def test_idle_connections_are_cheap(arena: Proxy, mesh: Mesh, dial: Callable[..., RawClient]) -> None:
    """300 connections that sent half a head: at most 64 KiB each over the base, and a good client is served meanwhile."""
    before = arena.rss_bytes()
    clients: list[RawClient] = []
    try:
        for _ in range(300):
            client = dial("plain-default")
            clients.append(client)
            client.send(b"GET /x HTTP/1.1\r\nX: " + b"y" * 8000)
        innocent(lambda: dial("default"), mesh.upstream)
        grown = arena.rss_bytes() - before
        assert grown <= 300 * 64 * 1024, f"{grown / 300 / 1024:.0f} KiB a connection"
    finally:
        for client in clients:
            client.close()


def test_slow_drip_of_a_large_head_costs_linear_time(arena: Proxy, dial: Callable[..., RawClient]) -> None:
    """A head of 30 KiB in segments of 16 bytes: the parser must not start over at each segment."""

    def cpu_s() -> float:
        parts = Path(f"/proc/{arena.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(parts[11]) + int(parts[12])) / 100

    data = get("/drip", fields=["X: " + "y" * 30_000])
    before = cpu_s()
    with dial("plain-default") as client:
        client.send([data[i : i + 16] for i in range(0, len(data), 16)])
        assert client.response().status in (200, 403)
    assert cpu_s() - before < 0.6
