"""Frames that break the rules, from either side: none of it passes, the offender gets the right code (RFC 6455 section 7.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.client import segments
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy
from tests.harness.websocket import BINARY, CLOSE, PING, TEXT, Answers, Socket, WebSocketClient, close, frame, swallow

FINE = frame(TEXT, b"fine")


def bad(mask: bytes) -> dict[str, tuple[bytes, int]]:
    def make(opcode: int, payload: bytes = b"", **more: Any) -> bytes:
        return frame(opcode, payload, **{"mask": mask, **more})

    other = b"" if mask else b"abcd"
    return {
        "rsv1": (make(TEXT, b"x", rsv=4), 1002),
        "rsv23": (make(BINARY, b"x", rsv=3), 1002),
        "opcode-3": (make(3, b"x"), 1002),
        "opcode-15": (make(15), 1002),
        "mask": (make(TEXT, b"x", mask=other), 1002),
        "mask-of-a-close": (close(1000, mask=other), 1002),
        "ping-long": (make(PING, b"x" * 126), 1002),
        "ping-fragment": (make(PING, fin=False), 1002),
        "continuation-first": (make(0, b"x"), 1002),
        "text-inside": (make(TEXT, b"a", fin=False) + make(TEXT, b"b"), 1002),
        "length-form": (make(BINARY, b"x", width=8), 1002),
        "length-negative": (bytes([0x82, 0xFF if mask else 0x7F]) + b"\xff" * 8 + mask, 1002),
        "close-1005": (close(1005, mask=mask), 1002),
        "close-one-octet": (make(CLOSE, b"\x03"), 1002),
        "close-reason": (close(1000, b"\xc3\x28", mask=mask), 1007),
        "not-utf8": (make(TEXT, b"\xc0\xaf"), 1007),
        "not-utf8-long": (make(TEXT, b"a" * 3000 + b"\xff" + b"a" * 3000), 1007),
        "not-utf8-in-fragments": (make(TEXT, b"\xc3", fin=False) + make(0, b"\x28"), 1007),
        "frame-too-big": (make(BINARY, bytes(20_001)), 1009),
        "frame-huge": (bytes([0x82, 0xFF if mask else 0x7F]) + (1 << 40).to_bytes(8, "big") + mask, 1009),
        "message-too-big": (make(BINARY, bytes(19_000), fin=False) + make(0, bytes(19_000), fin=False) + make(0, bytes(5_000)), 1009),
        "http": (b"GET /admin HTTP/1.1\r\nHost: shop.example\r\n\r\n", 1002),
    }


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory: Path = tmp_path_factory.mktemp("frames")
    limits = {"websocket_frame_bytes": 20_000, "websocket_message_bytes": 40_000, "websocket_close_s": 1}
    config = {
        "listeners": {"plain": {"tls": "none", "to": "app", "limits": limits}},
        "clusters": {"app": mesh.endpoints()},
        "drain_s": 1,
    }
    policies = {"p.yaml": {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}}
    with Proxy(directory, config, policies=policies) as running:
        yield running
    assert "Traceback" not in running.stderr_text


@contextlib.contextmanager
def opened(proxy: Proxy, mesh: Mesh, answers: Answers, path: str = "/ws") -> Iterator[WebSocketClient]:
    with mesh.upstream.on(path, answers.as_script), WebSocketClient(proxy.address("plain"), None, path) as client:
        mesh.upstream.wait(lambda: answers.sockets, "the socket")
        yield client


@pytest.mark.parametrize("how", ["whole", "threes"])
@pytest.mark.parametrize("kind", bad(b"mask"))
def test_from_the_client(kind: str, how: str, proxy: Proxy, mesh: Mesh) -> None:
    """What came before it is served, the upstream hears that the client goes, and nothing of what is behind it reaches anybody."""
    data, code = bad(b"mask")[kind]
    path = f"/client/{kind}/{how}"
    mark = proxy.mark()
    behind = frame(TEXT, b"behind")
    with opened(proxy, mesh, answers := Answers(), path) as client:
        client.send(segments(FINE + data + behind, how if len(data) < 200 else "whole"))
        frames = client.frames_to_end()
        assert b"".join(f.payload for f in frames if f.opcode in (0, TEXT)).startswith(b"fine")
        assert [f.code for f in frames if f.opcode == CLOSE] == [code]
        socket = answers.sockets[0]
        mesh.upstream.wait(lambda: socket.ended, "the end upstream")
    assert b"behind" not in b"".join(f.payload for f in socket.frames)
    closes = [f.code for f in socket.frames if f.opcode == CLOSE]
    if kind not in ("not-utf8-long",):  # cut in the middle of a frame there is no place for a Close
        assert closes == [1001]
    record = proxy.decision_where(lambda r: r["what"]["path"] == path, "the record", mark)
    assert record["outcome"]["websocket"] == {"close": code, "by": "meshguard"}
    assert record["why"]["detail"].startswith("client: ")


@pytest.mark.parametrize("kind", bad(b""))
def test_from_the_upstream(kind: str, proxy: Proxy, mesh: Mesh) -> None:
    """The client hears of an error of the server and sees nothing of it; the upstream gets its code."""
    data, code = bad(b"")[kind]
    path = f"/upstream/{kind}"

    async def sends(socket: Socket) -> None:
        await socket.send(frame(TEXT, b"fine", mask=b"") + data + frame(TEXT, b"behind", mask=b""))
        await swallow(socket)

    mark = proxy.mark()
    with opened(proxy, mesh, answers := Answers(sends), path) as client:
        assert client.frame().payload == b"fine"
        got = client.frame()
        while got.opcode != CLOSE:
            assert b"behind" not in got.payload
            got = client.frame()
        assert got.code == 1011
        client.send(close(1011))
        client.frames_to_end()
        socket = answers.sockets[0]
        mesh.upstream.wait(lambda: socket.ended, "the end upstream")
        assert [f.code for f in socket.frames if f.opcode == CLOSE] == [code]
    record = proxy.decision_where(lambda r: r["what"]["path"] == path, "the record", mark)
    assert record["why"]["detail"].startswith("upstream: ")


def test_after_a_close_nothing_counts(proxy: Proxy, mesh: Mesh) -> None:
    """Frames behind a Close, in the same piece and later, do not reach the other side, and the Close does once."""

    async def slow(socket: Socket) -> None:
        while not socket.frames:
            await socket.read()
        await socket.send(frame(TEXT, b"still this", mask=b"") + close(1000, mask=b"") + frame(TEXT, b"late", mask=b""))
        await swallow(socket)

    with opened(proxy, mesh, answers := Answers(slow)) as client:
        client.send([close(1000) + frame(TEXT, b"a"), frame(TEXT, b"b"), close(1001), b"\xff\xff\xff"])
        frames = client.frames_to_end()
        assert [(f.opcode, f.payload) for f in frames] == [(TEXT, b"still this"), (CLOSE, b"\x03\xe8")]
        mesh.upstream.wait(lambda: answers.sockets[0].ended, "the end upstream")
        assert [(f.opcode, f.code) for f in answers.sockets[0].frames] == [(CLOSE, 1000)]


def test_a_frame_that_is_cut_is_not_completed(proxy: Proxy, mesh: Mesh) -> None:
    """A long text turns bad in its middle, after its beginning has passed: no Close can follow it, so the upstream sees a cut."""
    with opened(proxy, mesh, answers := Answers(swallow)) as client:
        data = frame(TEXT, b"a" * 5000 + b"\xff" + b"a" * 5000)
        client.send(data[:3000])
        socket = answers.sockets[0]
        mesh.upstream.wait(lambda: len(socket.seen) >= 2000, "the beginning")
        client.send(data[3000:])
        assert client.frames_to_end()[-1].code == 1007
        mesh.upstream.wait(lambda: socket.ended, "the end upstream")
        assert socket.frames == []
        assert len(socket.seen) < len(data)


def test_a_flood_of_tiny_frames_holds_nobody(proxy: Proxy, mesh: Mesh) -> None:
    """Everything arrives, and others are served meanwhile."""
    count = 40_000
    with opened(proxy, mesh, answers := Answers(swallow)) as client:
        client.send(frame(TEXT) * count)
        with WebSocketClient(proxy.address("plain"), None) as other:
            other.send(frame(TEXT, b"x"))
        mesh.upstream.wait(lambda: len(answers.sockets[0].seen) == 6 * count, "all of them")
