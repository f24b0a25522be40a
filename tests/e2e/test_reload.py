"""Change while running: validated, atomic, last good kept, nothing dropped; rotation of SVIDs under load; drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.strict import Truncated
from tests.harness.upstream import Exchange

ALLOW = {"rules": [{"id": "allow-a", "allow": "authenticated", "paths": ["/a/**", "/innocent/**"]}]}
ALLOW_B = {"rules": [{"id": "allow-b", "allow": "authenticated", "paths": ["/b/**", "/innocent/**"]}]}
BAD = {
    "not-yaml": "rules: [",
    "unknown-key": "rules:\n  - {id: x, alow: anyone, paths: ['/**']}\n",
    "unknown-role": "rules:\n  - {id: x, allow: [nobody-knows], paths: ['/**']}\n",
    "both": "rules:\n  - {id: x, allow: anyone, deny: anyone}\n",
    "twice": "rules:\n  - {id: x, allow: anyone}\n  - {id: x, deny: anyone}\n",
    "binary": "\0\1\2",
}


@pytest.fixture
def proxy(mesh: Mesh, tmp_path: Path) -> Iterator[Proxy]:
    config: dict[str, Any] = {
        "identity": mesh.identity(tmp_path),
        "listeners": {e: {"tls": "mutual", "to": "app", "engine": e} for e in ("default", "reference")},
        "clusters": {"app": mesh.endpoints()},
        "drain_s": 3,
    }
    with Proxy(tmp_path, config, policies={"p.yaml": ALLOW}) as made:
        yield made


def _status(proxy: Proxy, mesh: Mesh, path: str) -> int:
    with RawClient(proxy.address("default"), mesh.client("billing")) as client:
        return client.request(get(path)).status


@pytest.mark.parametrize("how", ["file", "sighup"])
def test_policy_changes_on_open_connections(how: str, proxy: Proxy, mesh: Mesh) -> None:
    """The next request on a kept-alive connection meets the new policy; both engines at the same moment."""
    with (
        RawClient(proxy.address("default"), mesh.client("billing")) as client,
        RawClient(proxy.address("reference"), mesh.client("billing")) as second,
    ):
        assert [c.request(get(p)).status for c in (client, second) for p in ("/a/x", "/b/x")] == [200, 403, 200, 403]
        first_digest = proxy.decision_where(lambda r: r["what"]["path"] == "/a/x", "a record")["why"]["policy_digest"]
        since = len(proxy.stderr.items)
        proxy.write_policy("p.yaml", ALLOW_B)
        if how == "sighup":
            proxy.signal(signal.SIGHUP)
        assert "reloaded" in proxy.wait_reloaded(since)
        mark = proxy.mark()
        assert [c.request(get(p)).status for c in (client, second) for p in ("/a/x", "/b/x")] == [403, 200, 403, 200]
        record = proxy.decision_where(lambda r: r["what"]["path"] == "/b/x", "a record of the new policy", mark)
        assert record["why"]["policy_digest"] != first_digest
        assert record["why"]["rule"] == "allow-b"


def test_a_new_file_counts_and_a_removed_one_does_not(proxy: Proxy, mesh: Mesh) -> None:
    extra = proxy.write_policy("q.yaml", {"rules": [{"id": "deny-x", "deny": "anyone", "paths": ["/a/x/**", "/a/x"]}]})
    eventually(lambda: _status(proxy, mesh, "/a/x") == 403, "the added rule")
    assert _status(proxy, mesh, "/a/y") == 200
    extra.unlink()
    eventually(lambda: _status(proxy, mesh, "/a/x") == 200, "the end of the removed rule")


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_document_keeps_the_last_good_policy(kind: str, proxy: Proxy, mesh: Mesh) -> None:
    """Said in the log with the file, in readyz (still ready) and in a metric; a good document afterwards is taken over."""
    since = len(proxy.stderr.items)
    proxy.write_policy("p.yaml", BAD[kind])
    line = proxy.stderr.wait(lambda text: "refused" in text, "a report of the refusal", since=since)
    assert "p.yaml" in line
    assert [_status(proxy, mesh, p) for p in ("/a/x", "/b/x", "/zzz")] == [200, 403, 403]
    status, body = proxy.admin("/readyz")
    assert status == 200
    assert b"p.yaml" in body
    assert any(
        float(line.rsplit(" ", 1)[1]) >= 1
        for line in proxy.metrics().splitlines()
        if "reload" in line and "fail" in line and not line.startswith("#")
    )
    since = len(proxy.stderr.items)
    proxy.write_policy("p.yaml", ALLOW_B)
    proxy.stderr.wait(lambda text: "reloaded" in text, "the reload of the good document", since=since)
    assert _status(proxy, mesh, "/b/x") == 200
    assert b"p.yaml" not in proxy.admin("/readyz")[1]


HOSTILE = {
    "deep-flow": "rules: " + "[" * 20_000,
    "deep-closed": "rules: " + "[" * 5000 + "]" * 5000,
    "deep-block": "".join("  " * n + "a:\n" for n in range(3000)),
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "rules: *i\n",
    "loop": "rules: &r [*r]\n",
    "merge-loop": "rules: &r\n  <<: *r\n",
    "python-object": "rules: !!python/object/apply:os.system ['true']\n",
    "mapping-key": "? {a: b}\n: c\n",
    "list-key": "? [a, b]\n: c\n",
    "duplicate-key": "rules: []\nrules: []\n",
    "two-documents": "rules: []\n---\nrules: []\n",
    "huge-number": "rules: [{id: x, allow: anyone, ports: [" + "9" * 10_000 + "]}]\n",
    "bad-date": "rules: [{id: x, allow: anyone, times: [{after: 2026-99-99T99:99:99Z}]}]\n",
    "surrogate": 'rules: [{id: "\\ud800", allow: anyone}]\n',
    "nul-escape": 'rules: [{id: "a\\0b", allow: anyone}]\n',
    "scalar": "5\n",
    "list": "- rules\n",
    "null-rules": "rules: null\n",
    "nan": "rules: .nan\n",
    "long-line": "rules: [{id: " + "x" * 3_000_000 + ", allow: anyone}]\n",
    "tab": "rules:\n\t- {id: x, allow: anyone}\n",
    "bom-utf16": "\ufeffrules: []\n\ufffe",
}


def test_hostile_documents_neither_end_nor_stall_the_process(proxy: Proxy, mesh: Mesh) -> None:
    """Whatever a policy file holds: a refusal that names it within seconds, and traffic goes on under the last good policy."""
    for kind, text in HOSTILE.items():
        since = len(proxy.stderr.items)
        proxy.write_policy("p.yaml", text)
        line = proxy.stderr.wait(lambda item: "refused" in item, f"{kind}: a refusal", 8, since)
        assert "p.yaml" in line, kind
        assert len(line) < 20_000, f"{kind}: the whole document is in the log"
        assert [_status(proxy, mesh, path) for path in ("/a/x", "/b/x")] == [200, 403], kind
        assert proxy.rss_bytes() < 400 << 20, kind
        since = len(proxy.stderr.items)
        proxy.write_policy("p.yaml", ALLOW)
        proxy.stderr.wait(lambda item: "reloaded" in item, f"the good document after {kind}", since=since)


def test_policy_files_of_odd_kinds(proxy: Proxy, mesh: Mesh) -> None:
    """A directory, a dangling link, a link to itself, an unreadable name, a pipe: never taken for an empty policy, never waited for."""
    directory = proxy.directory / "policies"
    makers: dict[str, Callable[[Path], object]] = {
        "a directory": Path.mkdir,
        "a dangling link": lambda path: path.symlink_to("/nonexistent"),
        "a loop": lambda path: path.symlink_to(path),
        "a pipe": os.mkfifo,
        "an editor's file": lambda path: path.with_name(".odd.yaml.swp").write_bytes(b"\0"),
    }
    for kind, make in makers.items():
        make(directory / "odd.yaml")
        since = len(proxy.stderr.items)
        proxy.signal(signal.SIGHUP)
        proxy.wait_reloaded(since)
        assert [_status(proxy, mesh, path) for path in ("/a/x", "/b/x")] == [200, 403], kind
        for left in (directory / "odd.yaml", directory / ".odd.yaml.swp"):
            with contextlib.suppress(FileNotFoundError):
                left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()
    (directory / "p.yaml").unlink()
    proxy.signal(signal.SIGHUP)
    eventually(lambda: "refused" in proxy.stderr_text or _status(proxy, mesh, "/a/x") == 403, "no policy is no permission")
    assert proxy.process is not None
    assert proxy.process.poll() is None


def test_a_bad_configuration_keeps_the_last_good_one(proxy: Proxy, mesh: Mesh) -> None:
    good = proxy.config_path.read_bytes()
    for bad in (b"listeners: 5\n", good + b"\nunknown_section: {}\n", b"", good.replace(b"to: app", b"to: nowhere")):
        since = len(proxy.stderr.items)
        proxy.config_path.write_bytes(bad)
        proxy.signal(signal.SIGHUP)
        proxy.stderr.wait(lambda text: "refused" in text, "a refusal", since=since)
        assert _status(proxy, mesh, "/a/x") == 200
    since = len(proxy.stderr.items)
    proxy.config_path.write_bytes(good)
    proxy.signal(signal.SIGHUP)
    proxy.stderr.wait(lambda text: "reloaded" in text, "the good one", since=since)


def test_upstreams_change_while_running(proxy: Proxy, mesh: Mesh) -> None:
    from tests.harness.upstream import Upstream

    with Upstream() as second:
        since = len(proxy.stderr.items)
        proxy.config["clusters"]["app"] = mesh.endpoints(second)
        proxy.write_config()
        proxy.signal(signal.SIGHUP)
        proxy.stderr.wait(lambda text: "reloaded" in text, "the reload", since=since)
        assert _status(proxy, mesh, "/a/moved") == 200
        assert [s.target for s in second.requests] == ["/a/moved"]
        since = len(proxy.stderr.items)
        proxy.config["clusters"]["app"] = mesh.endpoints()
        proxy.write_config()
        proxy.signal(signal.SIGHUP)
        proxy.stderr.wait(lambda text: "reloaded" in text, "the reload", since=since)


class Load:
    """Threads that send requests on kept-alive and fresh connections until told to stop; every failure is kept."""

    def __init__(self, proxy: Proxy, mesh: Mesh, *, fresh: bool) -> None:
        self.failures: list[str] = []
        self.statuses: set[int] = set()
        self.count = 0
        self._stop = threading.Event()
        self._proxy, self._mesh, self._fresh = proxy, mesh, fresh
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _work(self, number: int) -> None:
        listener = ("default", "reference")[number % 2]
        while not self._stop.is_set():
            try:
                with RawClient(self._proxy.address(listener), self._mesh.client("billing")) as client:
                    for _ in range(1 if self._fresh else 40):
                        self.statuses.add(client.request(get("/innocent/load")).status)
                        self.count += 1
            except Exception as exc:
                self.failures.append(repr(exc))
                return


@pytest.mark.parametrize("fresh", [False, True], ids=["kept-alive", "fresh"])
def test_rotation_of_the_svid_under_load_drops_nothing(fresh: bool, proxy: Proxy, mesh: Mesh) -> None:
    with Load(proxy, mesh, fresh=fresh) as load:
        for _ in range(4):
            leaf = mesh.ca.service("meshguard")
            since = len(proxy.stderr.items)
            leaf.write(proxy.directory, "svid")
            proxy.stderr.wait(lambda text: "rotated" in text, "the rotation", since=since)
            eventually(lambda: _presented(proxy, mesh) == leaf.der, "the new certificate on new connections")  # noqa: B023
        before = load.count
        eventually(lambda: load.count > before + 40, "load after the last rotation")
    assert load.failures == []
    assert load.statuses == {200}


def _presented(proxy: Proxy, mesh: Mesh) -> bytes | None:
    with RawClient(proxy.address("default"), mesh.client("billing")) as client:
        return client.sock.getpeercert(True)  # type: ignore[attr-defined, no-any-return]


def test_reloads_under_load_drop_nothing(proxy: Proxy, mesh: Mesh) -> None:
    """Every answer is by the old or the new policy, both of which allow this path; none fails."""
    with Load(proxy, mesh, fresh=False) as load:
        for i in range(6):
            since = len(proxy.stderr.items)
            proxy.write_policy("p.yaml", ALLOW_B if i % 2 == 0 else ALLOW)
            proxy.stderr.wait(lambda text: "reloaded" in text, "a reload", since=since)
    assert load.failures == []
    assert load.statuses == {200}


def test_drain(proxy: Proxy, mesh: Mesh) -> None:
    """SIGTERM: not ready, no new connection, what is in flight finishes (its connection then closes), exit status 0 at once after it."""
    go = mesh.upstream.event()

    async def held(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await go.wait()
        await exchange.send(b"again")

    with mesh.upstream.on("/a/held", held), contextlib.ExitStack() as stack:
        busy = stack.enter_context(RawClient(proxy.address("default"), mesh.client("billing")))
        idle = stack.enter_context(RawClient(proxy.address("reference"), mesh.client("billing")))
        assert idle.request(get("/a/idle")).status == 200
        busy.send(get("/a/held"), expect="GET")
        assert busy.head().status == 200
        pieces = busy.body()
        assert next(pieces) == b"first"
        proxy.signal(signal.SIGTERM)
        idle.assert_closed()

        def refused() -> bool:
            try:
                with RawClient(proxy.address("default"), mesh.client("billing"), deadline_s=2) as late:
                    return late.request(get("/a/late")).status == 503
            except (OSError, Truncated):
                return True

        eventually(refused, "the refusal of new connections")
        assert proxy.process is not None
        assert proxy.process.poll() is None
        go.set()
        assert b"".join(pieces) == b"again"
        busy.assert_closed()
        assert proxy.process.wait(4) == 0
    record = proxy.stdout.wait(lambda r: r["what"]["path"] == "/a/held", "the record of the last request")
    assert record["outcome"]["status"] == 200


def test_drain_has_an_end(proxy: Proxy, mesh: Mesh) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.gone()

    with mesh.upstream.on("/a/endless", endless), RawClient(proxy.address("default"), mesh.client("billing")) as client:
        client.send(get("/a/endless"), expect="GET")
        mesh.upstream.wait(lambda: any(s.target == "/a/endless" for s in mesh.upstream.requests), "the request")
        proxy.signal(signal.SIGTERM)
        assert proxy.process is not None
        assert proxy.process.wait(6) == 0
        with contextlib.suppress(Truncated):
            assert client.response().status == 503


def test_readiness_and_health(proxy: Proxy) -> None:
    assert proxy.admin("/healthz")[0] == 200
    assert proxy.admin("/readyz")[0] == 200
    assert proxy.admin("/nothing")[0] == 404
    assert proxy.admin("/readyz", "POST")[0] in (404, 405)
    body = proxy.admin("/readyz")[1]
    assert "sha256:" in body.decode() or "digest" in orjson.loads(body), "the digest of the policy in force"
    assert SHOP.encode() + b"x" not in body


def test_start_without_a_good_document_fails_with_words(mesh: Mesh, tmp_path: Path) -> None:
    config = {
        "identity": mesh.identity(tmp_path),
        "listeners": {"in": {"tls": "mutual", "to": "app"}},
        "clusters": {"app": mesh.endpoints()},
    }
    for name, document in BAD.items():
        proxy = Proxy(
            tmp_path / name,
            {**config, "identity": mesh.identity(_made(tmp_path / name)), "listeners": {"in": {"tls": "mutual", "to": "app"}}},
            policies={"p.yaml": document},
        )
        proxy.start(ready=False)
        try:
            assert proxy.process is not None
            assert proxy.process.wait(10) != 0, name
        finally:
            proxy.stop()
        assert "p.yaml" in proxy.stderr_text, name
        assert "Traceback" not in proxy.stderr_text, name


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


BY_BODY = {
    "rules": [
        {"id": "small", "allow": "authenticated", "methods": ["POST"], "paths": ["/a/**"], "body": {"json": {"$.n": {"max": 5}}}},
        {"id": "reads", "allow": "authenticated", "methods": ["GET"], "paths": ["/a/**"]},
    ]
}
OTHER_PATHS = {"rules": [*BY_BODY["rules"], {"id": "more", "allow": "anyone", "paths": ["/c"]}]}
STRICTER = {"rules": [{**BY_BODY["rules"][0], "body": {"json": {"$.n": {"max": 4}}}}, BY_BODY["rules"][1]]}


def test_a_body_is_judged_by_the_policy_in_force_when_it_is_whole(proxy: Proxy, mesh: Mesh) -> None:
    proxy.write_policy("p.yaml", BY_BODY)
    assert "reloaded" in proxy.reload()
    fields = ["Content-Type: application/json", "Content-Length: 7"]
    for policy, status in ((OTHER_PATHS, 200), (STRICTER, 403)):
        mark = mesh.upstream.mark()
        with RawClient(proxy.address("default"), mesh.client("billing")) as client:
            client.send(get("/a/x", method="POST", fields=fields) + b'{"n"', expect="POST")
            eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 4, "the first half of the body")
            proxy.write_policy("p.yaml", policy)
            assert "reloaded" in proxy.reload()
            assert mesh.upstream.since(mark) == []
            client.send(b":5}")
            assert client.response().status == status


def test_a_drain_lets_a_body_that_decides_come(proxy: Proxy, mesh: Mesh) -> None:
    proxy.write_policy("p.yaml", BY_BODY)
    assert "reloaded" in proxy.reload()
    with RawClient(proxy.address("default"), mesh.client("billing")) as client:
        client.send(get("/a/x", method="POST", fields=["Content-Type: application/json", "Content-Length: 7"]) + b'{"n"', expect="POST")
        eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 4, "the first half of the body")
        proxy.signal(signal.SIGTERM)
        eventually(lambda: proxy.admin("/readyz")[0] != 200, "the drain")
        client.send(b":5}")
        assert client.response().status == 200


def test_a_long_call_stays_while_the_conditions_on_its_body_do(proxy: Proxy, mesh: Mesh) -> None:
    proxy.write_policy("p.yaml", BY_BODY)
    assert "reloaded" in proxy.reload()

    async def endless(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(0.1)
                await exchange.send(b"1\r\nb\r\n")

    with mesh.upstream.on("/a/endless", endless), RawClient(proxy.address("default"), mesh.client("billing")) as client:
        client.send(get("/a/endless", method="POST", fields=["Content-Type: application/json"], body=b'{"n":5}'), expect="POST")
        assert client.head().status == 200
        for _ in range(14):  # ten a second: after one it is a stream that a change of policy may end
            assert client.receive()
        proxy.write_policy("p.yaml", OTHER_PATHS)
        assert "reloaded" in proxy.reload()
        for _ in range(5):
            assert client.receive()
        proxy.write_policy("p.yaml", STRICTER)
        assert "reloaded" in proxy.reload()
        with contextlib.suppress(ConnectionError):
            while client.receive():
                pass
