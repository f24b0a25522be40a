"""What runs is judged again: a stream ends when its caller is denied or revoked, on a removed listener too, and the record says why."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import Certificate
from tests.harness.proxy import Proxy
from tests.harness.strict import Truncated
from tests.harness.upstream import Exchange, LoopEvent

ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
AT_ONCE_S = 1.5  # within a second, on a machine that does other things as well
DENIED_S = 2.2  # a request that is shorter than a second ends as it began; what lasts longer is judged again within half a second
ALLOW = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}


class Living:
    """A process with revocation lists, and what can be changed about it."""

    def __init__(self, proxy: Proxy, mesh: Mesh, directory: Path) -> None:
        self.proxy = proxy
        self.mesh = mesh
        self._directory = directory
        self._revoked: list[Certificate] = []

    def dial(self, listener: str, who: Certificate) -> RawClient:
        return RawClient(self.proxy.address(listener), self.mesh.context(who), deadline_s=3)

    def revoke(self, who: Certificate) -> None:
        self._revoked.append(who)
        fresh = self._directory / "fresh.crl"
        fresh.write_bytes(self.mesh.ca.crl(*self._revoked, number=1 + len(self._revoked)))
        fresh.replace(self._directory / "shop.crl")

    def policy(self, document: Any) -> None:
        self.proxy.write_policy("p.yaml", document)
        assert "reloaded" in self.proxy.reload()

    def listeners(self, change: Callable[[dict[str, Any]], object]) -> None:
        change(self.proxy.config["listeners"])
        self.proxy.write_config()
        assert "reloaded" in self.proxy.reload()


@pytest.fixture(scope="module")
def living(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    directory = tmp_path_factory.mktemp("living")
    (directory / "shop.crl").write_bytes(mesh.ca.crl())
    (directory / "partner.crl").write_bytes(mesh.partner.crl())
    listeners: dict[str, Any] = {}
    for engine in ENGINES:
        for name in (engine, f"gone-{engine}"):
            listeners[name] = {"tls": "mutual", "to": "app", "engine": engine}
    config = {
        "identity": mesh.identity(directory, crls=["shop.crl", "partner.crl"]),
        "listeners": listeners,
        "clusters": {"app": mesh.endpoints()},
        "drain_s": 1.5,
    }
    with Proxy(directory, config, policies={"p.yaml": ALLOW}) as proxy:
        yield Living(proxy, mesh, directory)
    assert "Traceback" not in proxy.stderr_text


class Streams:
    """Downloads that have begun: `/long/NAME` sends a first piece, then waits for `go`."""

    def __init__(self, living: Living, stack: contextlib.ExitStack) -> None:
        self.living = living
        self.stack = stack
        self.go: LoopEvent = living.mesh.upstream.event()

    async def _serve(self, exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await self.go.wait()
        await exchange.send(b"4\r\nlast\r\n0\r\n\r\n")

    def begin(self, listener: str, who: Certificate, path: str, *, upload: bool = False) -> tuple[RawClient, Iterator[bytes]]:
        self.stack.enter_context(self.living.mesh.upstream.on(path, self._serve))
        client = self.stack.enter_context(self.living.dial(listener, who))
        if upload:
            client.send(get(path, method="POST", fields=["Content-Length: 10", "X-Team: blue"]) + b"half", expect="POST")
        else:
            client.send(get(path, fields=["X-Team: blue"]), expect="GET")
        assert client.head().status == 200
        pieces = client.body()
        assert next(pieces) == b"first"
        return client, pieces


def _cut(pieces: Iterator[bytes], since: float, within_s: float = AT_ONCE_S) -> None:
    with pytest.raises(Truncated):
        for _ in pieces:
            pass
    assert time.monotonic() - since < within_s, f"cut after {time.monotonic() - since:.1f} s"


def _record(living: Living, path: str, since: int) -> dict[str, Any]:
    return living.proxy.decision_where(lambda r: r["what"]["path"] == path, f"the record of {path}", since)


DENIALS = {
    "no-rule": {"rules": [{"id": "stayers", "allow": [SHOP + "stayer"], "paths": ["/**"]}]},
    "by-header": {
        "roles": {"leavers": {"principals": [SHOP + "leaver-*"]}},
        "rules": [{"id": "no-leavers", "deny": ["leavers"], "paths": ["/**"], "headers": {"x-team": "blue"}}, *ALLOW["rules"]],
    },
}


@pytest.mark.parametrize("kind", DENIALS)
def test_a_stream_ends_when_its_caller_is_denied(kind: str, living: Living, mesh: Mesh) -> None:
    """Downloads and uploads that were allowed end soon after the change; those of others, and this caller's connections without a request,
    go on. Both engines side by side."""
    leaver, stayer = mesh.service(f"leaver-{kind}"), mesh.service("stayer")
    mark = living.proxy.mark()
    with contextlib.ExitStack() as stack:
        streams = Streams(living, stack)
        leaving = [
            streams.begin(engine, leaver, f"/{way}/{kind}/{engine}", upload=way == "up")[1] for engine in ENGINES for way in ("down", "up")
        ]
        others = [streams.begin(engine, stayer, f"/other/{kind}/{engine}") for engine in ENGINES]
        idle = [stack.enter_context(living.dial(engine, leaver)) for engine in ENGINES]
        for client in idle:
            assert client.request(get("/idle")).status == 200
        living.policy(DENIALS[kind])
        changed = time.monotonic()
        try:
            for pieces in leaving:
                _cut(pieces, changed, DENIED_S)
            for client in idle:
                assert client.request(get("/idle", fields=["X-Team: blue"])).status == 403
            streams.go.set()
            for client, pieces in others:
                assert list(pieces) == [b"last"]
                assert client.request(get("/after")).status == 200
        finally:
            living.policy(ALLOW)
        for engine in ENGINES:
            for way in ("down", "up"):
                record = _record(living, f"/{way}/{kind}/{engine}", mark)
                assert record["who"]["principal"] == SHOP + f"leaver-{kind}"
                assert record["outcome"].get("aborted") not in (None, "client"), record["outcome"]
            assert "aborted" not in _record(living, f"/other/{kind}/{engine}", mark)["outcome"]
        mesh.upstream.wait(
            lambda: all(s.aborted for s in mesh.upstream.requests if s.path.startswith(f"/up/{kind}/")), "the uploads' end upstream"
        )


@engines
def test_a_change_that_still_allows_cuts_nothing(engine: str, living: Living, mesh: Mesh) -> None:
    """Another rule, a new listener, changed limits: a stream that is still allowed does not notice."""
    with contextlib.ExitStack() as stack:
        streams = Streams(living, stack)
        client, pieces = streams.begin(engine, mesh.service("stayer"), f"/kept/{engine}")
        living.policy({"rules": [{"id": "kept", "allow": [SHOP + "stayer"], "paths": ["/kept/**", "/after"]}]})
        try:
            living.listeners(lambda listeners: listeners[engine].update(limits={"head_bytes": 4096}, strip_headers=["x-role"]))
            streams.go.set()
            assert list(pieces) == [b"last"]
            assert client.request(get("/after", fields=["X: " + "y" * 5000])).status == 431
        finally:
            living.policy(ALLOW)


@pytest.mark.parametrize(("end", "rounds"), [("revoked", 1), ("revoked", 2), ("denied", 2)])
def test_a_removed_listener_still_judges(end: str, rounds: int, living: Living, mesh: Mesh) -> None:
    """The listener is gone (for good, or after it came and went again), its streams run on: revocation or a denial cuts that caller's soon,
    the others finish. The record names the caller and not the client as the one who ended it."""
    story = f"{end}/{rounds}"
    name = f"victim-{end}-{rounds}"
    victim, fine = mesh.service(name), mesh.service("fine")
    gone = {engine: f"gone-{engine}" for engine in ENGINES}
    mark = living.proxy.mark()
    kept: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        streams = Streams(living, stack)
        victims = [streams.begin(gone[engine], victim, f"/victim/{story}/{engine}")[1] for engine in ENGINES]
        others = [streams.begin(gone[engine], fine, f"/fine/{story}/{engine}") for engine in ENGINES]
        idle = [stack.enter_context(living.dial(gone[engine], fine)) for engine in ENGINES]
        for client in idle:
            assert client.request(get("/idle")).status == 200
        try:
            living.listeners(lambda listeners: kept.update({listener: listeners.pop(listener) for listener in gone.values()}))
            if rounds == 2:
                living.listeners(lambda listeners: listeners.update(kept))
                for listener in gone.values():
                    with living.dial(listener, fine) as fresh:
                        assert fresh.request(get("/fresh")).status == 200
                living.listeners(lambda listeners: [listeners.pop(listener) for listener in gone.values()])
            for client, listener in zip(idle, gone.values(), strict=True):
                client.assert_closed()
                with pytest.raises(OSError):  # noqa: PT011
                    living.dial(listener, fine)
            if end == "revoked":
                living.revoke(victim)
            else:
                living.policy({"rules": [{"id": "no", "deny": [SHOP + name], "paths": ["/**"]}, *ALLOW["rules"]]})
            changed = time.monotonic()
            for pieces in victims:
                _cut(pieces, changed, AT_ONCE_S if end == "revoked" else DENIED_S)
            streams.go.set()
            for client, pieces in others:
                assert list(pieces) == [b"last"]
                client.assert_closed()
        finally:
            living.policy(ALLOW)
            living.listeners(lambda listeners: listeners.update(kept))
        for engine in ENGINES:
            record = _record(living, f"/victim/{story}/{engine}", mark)
            assert record["who"]["principal"] == SHOP + name
            assert record["outcome"].get("aborted") not in (None, "client"), record["outcome"]
            assert "aborted" not in _record(living, f"/fine/{story}/{engine}", mark)["outcome"]


@engines
def test_a_revoked_stream_is_on_record(engine: str, living: Living, mesh: Mesh) -> None:
    victim = mesh.service(f"revoked-{engine}")
    mark = living.proxy.mark()
    with contextlib.ExitStack() as stack:
        streams = Streams(living, stack)
        _, pieces = streams.begin(engine, victim, f"/revoked/{engine}")
        living.revoke(victim)
        _cut(pieces, time.monotonic())
        record = _record(living, f"/revoked/{engine}", mark)
    assert record["who"]["principal"] == SHOP + f"revoked-{engine}"
    assert record["who"]["svid"]["serial"]
    assert record["outcome"]["aborted"] == "revoked"
    assert record["why"]["verdict"] == "allow"
    assert record["what"]["response_bytes"] == 5


def test_what_a_drain_cuts_is_on_record(living: Living, mesh: Mesh) -> None:
    """Last in this module: it ends the process. Streams outlive the grace, also one on a listener that was just removed; a caller that is
    revoked meanwhile is cut as at any other time."""
    mark = living.proxy.mark()
    victim = mesh.service("drained-victim")
    with contextlib.ExitStack() as stack:
        streams = Streams(living, stack)
        names = (*ENGINES, "gone-default")
        all_pieces = [streams.begin(name, mesh.service("stayer"), f"/drain/{name}")[1] for name in names]
        victims = [streams.begin(name, victim, f"/drain-victim/{name}")[1] for name in names]
        living.listeners(lambda listeners: listeners.pop("gone-default"))
        living.proxy.signal(signal.SIGTERM)
        living.proxy.stderr.wait(lambda line: '"draining"' in line, "the beginning of the drain")
        living.revoke(victim)
        for pieces in (*victims, *all_pieces):
            with pytest.raises(Truncated):
                list(pieces)
        assert living.proxy.process is not None
        assert living.proxy.process.wait(5) == 0
    for path, who, ended in (("/drain", "stayer", "shutdown"), ("/drain-victim", "drained-victim", "revoked")):
        records = {name: _record(living, f"{path}/{name}", mark) for name in names}
        assert {record["who"].get("principal") for record in records.values()} == {SHOP + who}
        assert {name: record["outcome"].get("aborted") for name, record in records.items()} == dict.fromkeys(names, ended)
