"""Handshakes that are not one, from either side: no upgrade reaches the upstream, and without a valid 101 there is no tunnel."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.upstream import Exchange, raw
from tests.harness.websocket import KEY, TEXT, Answers, accept_of, frame, handshake

GOOD = ["Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13"]


def without(name: str, *more: str) -> list[str]:
    return [line for line in GOOD if not line.startswith(name)] + list(more)


REQUESTS = {
    "no-connection": without("Connection"),
    "connection-close": without("Connection", "Connection: close"),
    "no-key": without("Sec-WebSocket-Key"),
    "two-keys": [*GOOD, "Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA=="],
    "key-short": without("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhl"),
    "key-long": without("Sec-WebSocket-Key", "Sec-WebSocket-Key: " + "A" * 44),
    "key-no-base64": without("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!=="),
    "key-loose-bits": without("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR=="),
    "no-version": without("Sec-WebSocket-Version"),
    "version-8": without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"),
    "version-list": without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 13, 8"),
    "version-twice": [*GOOD, "Sec-WebSocket-Version: 13"],
    "version-013": without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 013"),
    "two-upgrades": without("Upgrade", "Upgrade: websocket, h2c"),
    "two-upgrade-lines": [*GOOD, "Upgrade: h2c"],
    "upgrade-version": without("Upgrade", "Upgrade: websocket/13"),
    "upgrade-in-a-word": without("Upgrade", "Upgrade: xwebsocket"),
    "accept": [*GOOD, f"Sec-WebSocket-Accept: {accept_of(KEY)}"],
    "protocol-empty": [*GOOD, "Sec-WebSocket-Protocol: a,,b"],
    "protocol-twice": [*GOOD, "Sec-WebSocket-Protocol: a, a"],
    "protocol-many": [*GOOD, "Sec-WebSocket-Protocol: " + ", ".join(f"p{i}" for i in range(17))],
    "protocol-space": [*GOOD, "Sec-WebSocket-Protocol: a b"],
    "extension-broken": [*GOOD, 'Sec-WebSocket-Extensions: permessage-deflate; x="'],
    "extension-many": [*GOOD, "Sec-WebSocket-Extensions: " + ", ".join("x" for _ in range(17))],
    "body": [*GOOD, "Content-Length: 5"],
    "chunked": [*GOOD, "Transfer-Encoding: chunked"],
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_malformed_handshake_is_refused(kind: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """400 with the version that we speak; what stands behind it is a request of its own or nothing."""
    body = {"body": b"hello", "chunked": b"0\r\n\r\n"}.get(kind, b"")
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        client.send(get("/ws", fields=REQUESTS[kind]) + body, expect="GET")
        answer = client.response()
        assert (answer.status, answer.problem["code"]) == (400, "websocket_handshake")
        assert answer.get("sec-websocket-version") == "13"
    assert mesh.upstream.since(mark) == []


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS", "get"])
def test_only_get_upgrades(method: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        assert client.request(get("/ws", method=method, fields=GOOD), method).status in (400, 403, 405)
    assert mesh.upstream.since(mark) == []


def test_http10_does_not_upgrade(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        assert client.request(handshake("/ws").replace(b"HTTP/1.1", b"HTTP/1.0")).status == 400
    assert mesh.upstream.since(mark) == []


def answering(
    *fields: str, status: bytes = b"101 Switching Protocols", proof: bool = True, body: bytes = b""
) -> Callable[[Exchange], object]:
    async def script(exchange: Exchange) -> None:
        await exchange.read()
        key = exchange.request.head.get("sec-websocket-key")
        lines = [*fields, *([f"Sec-WebSocket-Accept: {accept_of(key)}"] if proof else [])]
        await exchange.send(b"HTTP/1.1 " + status + b"\r\n" + "".join(line + "\r\n" for line in lines).encode() + b"\r\n" + body)
        await exchange.gone()

    return script


UP = ["Upgrade: websocket", "Connection: Upgrade"]
ANSWERS = {
    "no-proof": answering(*UP, proof=False),
    "wrong-proof": answering(*UP, f"Sec-WebSocket-Accept: {accept_of('AAAAAAAAAAAAAAAAAAAAAA==')}", proof=False),
    "proof-of-the-clients-key": answering(*UP, f"Sec-WebSocket-Accept: {accept_of(KEY)}", proof=False),
    "two-proofs": answering(*UP, "Sec-WebSocket-Accept: x"),
    "no-upgrade": answering("Connection: Upgrade"),
    "other-upgrade": answering("Upgrade: h2c", "Connection: Upgrade"),
    "two-upgrades": answering(*UP, "Upgrade: h2c"),
    "no-connection": answering("Upgrade: websocket"),
    "protocol": answering(*UP, "Sec-WebSocket-Protocol: other"),
    "protocol-case": answering(*UP, "Sec-WebSocket-Protocol: Chat"),
    "two-protocols": answering(*UP, "Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"),
    "extension": answering(*UP, "Sec-WebSocket-Extensions: x-other"),
    "extension-twice": answering(*UP, "Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate"),
    "extension-parameter": answering(*UP, "Sec-WebSocket-Extensions: permessage-deflate; x=1"),
    "extension-window": answering(*UP, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=10"),
    "extension-window-16": answering(*UP, "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=16"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_does_not_fit_opens_no_tunnel(kind: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """502, nothing of what follows it is passed on, and its connection is not used again."""
    stolen = frame(TEXT, b"stolen", mask=b"")

    async def script(exchange: Exchange) -> None:
        exchange.connection.writer.write(b"")
        await ANSWERS[kind](exchange)  # type: ignore[misc]

    with mesh.upstream.on("/ws", script), dial(engine) as client:
        client.send(handshake("/ws", "Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Extensions: permessage-deflate"), expect="GET")
        answer = client.response()
        assert answer.status == 502, answer
        assert stolen not in answer.body
        assert client.request(get("/after")).status == 200
    number = mesh.upstream.requests[-2].connection
    assert mesh.upstream.requests[-1].connection != number


@pytest.mark.parametrize("status", [b"200 OK", b"403 Forbidden", b"426 Upgrade Required", b"503 Busy"])
def test_another_answer_is_an_answer(status: bytes, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    with (
        mesh.upstream.on("/ws", raw(b"HTTP/1.1 " + status + b"\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno")),
        dial(engine) as client,
    ):
        answer = client.request(handshake("/ws"))
        assert (answer.status, answer.body) == (int(status[:3]), b"no")
        assert answer.head.all("upgrade") == []
        assert client.request(get("/after")).status == 200


def test_spoofed_fields_of_the_handshake_do_not_pass(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Ours are the only Sec-WebSocket fields, on both sides; a request without an upgrade keeps its own."""
    answers = Answers()
    with mesh.upstream.on("/ws", answers.as_script), dial(engine) as client:
        client.send(handshake("/ws", "Sec-WebSocket-Extra: 1", "Sec-WebSocket-Protocol: chat"))
        mesh.upstream.wait(lambda: answers.sockets, "the socket")
        head = answers.sockets[0].exchange.request.head
        assert sorted(name.lower() for name, _ in head.fields if name.lower().startswith("sec-websocket")) == [
            "sec-websocket-key",
            "sec-websocket-protocol",
            "sec-websocket-version",
        ]
        assert head.get("sec-websocket-key") != KEY
