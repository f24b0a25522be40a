"""A TLS upstream that sends more than it was asked for, in one segment: nothing of it is ever another request's answer."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import server_context
from tests.harness.proxy import Proxy, eventually
from tests.harness.strict import Head, Parser

ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)


def _answer(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\nX-Answer-To: {text}\r\n\r\n{text}".encode()


EVIL = _answer("nobody")


class Records:
    """A TLS server that decides itself which records lie in which segment. `/twin...` is answered whole and followed by an answer that
    nobody asked for, each in a record of its own, both in one segment; `/wait...` does the same after `go`."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.seen: list[list[str]] = []  # targets by connection
        self.go = threading.Event()
        self.waiting = threading.Event()
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(20)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = self.context.wrap_bio(incoming, outgoing, server_side=True)
            targets: list[str] = []
            self.seen.append(targets)
            parser = Parser("request")
            shaken = False
            with contextlib.suppress(OSError, ssl.SSLError):
                while True:
                    try:
                        if not shaken:
                            tls.do_handshake()
                            shaken = True
                        data = tls.read(65536)
                    except ssl.SSLWantReadError:
                        sock.sendall(outgoing.read())
                        data = sock.recv(65536)
                        if not data:
                            return
                        incoming.write(data)
                        continue
                    if not data:
                        return
                    for head in parser.feed(data):
                        if isinstance(head, Head):
                            targets.append(head.target)
                            self._reply(head.target, tls)
                    sock.sendall(outgoing.read())  # all records of the answers in one segment

    def _reply(self, target: str, tls: ssl.SSLObject) -> None:
        if target.startswith("/wait"):
            self.waiting.set()
            self.go.wait(10)
        tls.write(_answer(target))
        if target.startswith(("/twin", "/wait")):
            tls.write(EVIL)


@pytest.fixture(scope="module")
def records(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Records]:
    made = Records(server_context(mesh.service("orders"), mesh.ca, tmp_path_factory.mktemp("records")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, records: Records, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("upstream-answers")
    cluster = {"endpoints": [f"127.0.0.1:{records.port}"], "tls": {"spiffe_id": SHOP + "orders"}}
    listeners = {}
    for engine in ENGINES:
        listeners[engine] = {"tls": "none", "to": "orders", "engine": engine}
        listeners[f"single-{engine}"] = {"tls": "none", "to": "single", "engine": engine}
    config = {
        "identity": mesh.identity(directory),
        "listeners": listeners,
        "clusters": {"orders": cluster, "single": {**cluster, "circuit": {"max_in_flight": 1, "max_connections": 1, "queue": 8}}},
    }
    policies = {"p.yaml": {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}}
    with Proxy(directory, config, policies=policies) as made:
        yield made
    assert "Traceback" not in made.stderr_text


@engines
def test_an_extra_record_is_not_the_next_answer(engine: str, proxy: Proxy, records: Records) -> None:
    """The next request is pipelined: it begins in the very moment in which the first answer is whole."""
    since = len(records.seen)
    with RawClient(proxy.address(engine)) as client:
        for n in range(10):
            first, second = f"/twin/{engine}/{n}", f"/next/{engine}/{n}"
            client.send(get(first) + get(second), expect=["GET", "GET"])
            for target in (first, second):
                answer = client.response()
                assert answer.status in (200, 502), answer  # a refusal is right too, another's answer is not
                assert answer.status == 502 or answer.body.decode() == target
    for targets in records.seen[since:]:
        twins = [index for index, target in enumerate(targets) if target.startswith("/twin")]
        assert twins in ([], [len(targets) - 1]), f"used again after an answer that nobody asked for: {targets}"


@engines
def test_an_extra_record_is_not_the_answer_of_who_waits(engine: str, proxy: Proxy, records: Records) -> None:
    """Another client's request waits for the only connection and gets one as soon as the first answer is whole."""
    records.go.clear()
    records.waiting.clear()
    address = proxy.address(f"single-{engine}")
    with RawClient(address) as first, RawClient(address) as second:
        first.send(get("/wait"), expect="GET")
        assert records.waiting.wait(5)
        second.send(get("/victim"), expect="GET")
        eventually(lambda: proxy.metric("meshguard_cluster_queued", cluster="single") == 1, "the waiting request")
        records.go.set()
        assert first.response().body == b"/wait"
        answer = second.response()
        assert answer.status in (200, 502)
        assert answer.status == 502 or answer.body == b"/victim"
        assert second.request(get("/later")).body == b"/later"
    for targets in records.seen:
        assert "/wait" not in targets[:-1], f"used again after an answer that nobody asked for: {targets}"
