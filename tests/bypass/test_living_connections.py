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
        "drain_s": 1,
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


def _cut(pieces: Iterator[bytes], since: float) -> None:
    with pytest.raises(Truncated):
        for _ in pieces:
            pass
    assert time.monotonic() - since < AT_ONCE_S, f"cut after {time.monotonic() - since:.1f} s"


def _record(living: Living, path: str, since: int) -> dict[str, Any]:
    return living.proxy.decision_where(lambda r: r["what"]["path"] == path, f"the record of {path}", since)


DENIALS = {
    "deny-rule": {
        "roles": {"leavers": {"principals": [SHOP + "leaver-*"]}},
        "rules": [{"id": "no-leavers", "deny": ["leavers"], "paths": ["/**"]}, *ALLOW["rules"]],
    },
    "no-rule": {"rules": [{"id": "stayers", "allow": [SHOP + "stayer"], "paths": ["/**"]}]},
    "by-header": {
        "roles": {"leavers": {"principals": [SHOP + "leaver-*"]}},
        "rules": [{"id": "no-leavers", "deny": ["leavers"], "paths": ["/**"], "headers": {"x-team": "blue"}}, *ALLOW["rules"]],
    },
}


@pytest.mark.parametrize("kind", DENIALS)
@engines
def test_a_stream_ends_when_its_caller_is_denied(kind: str, engine: str, living: Living, mesh: Mesh) -> None:
    """Downloads and uploads that were allowed end within a second of the change; those of others, and this caller's other connections
    without a request, go on."""
    leaver, stayer = mesh.service(f"leaver-{kind}-{engine}"), mesh.service("stayer")
    mark = living.proxy.mark()
    with contextlib.ExitStack() as stack:
        streams = Streams(living, stack)
        _, down = streams.begin(engine, leaver, f"/down/{kind}/{engine}")
        _, up = streams.begin(engine, leaver, f"/up/{kind}/{engine}", upload=True)
        other, theirs = streams.begin(engine, stayer, f"/other/{kind}/{engine}")
        idle = stack.enter_context(living.dial(engine, leaver))
        assert idle.request(get("/idle")).status == 200
        living.policy(DENIALS[kind])
        changed = time.monotonic()
        try:
            _cut(down, changed)
            _cut(up, changed)
            assert idle.request(get("/idle", fields=["X-Team: blue"])).status == 403
            streams.go.set()
            assert list(theirs) == [b"last"]
            assert other.request(get("/after")).status == 200
            for path in (f"/down/{kind}/{engine}", f"/up/{kind}/{engine}"):
                record = _record(living, path, mark)
                assert record["who"]["principal"] == SHOP + f"leaver-{kind}-{engine}"
                assert record["outcome"].get("aborted") not in (None, "client"), record["outcome"]
            assert "aborted" not in _record(living, f"/other/{kind}/{engine}", mark)["outcome"]
            mesh.upstream.wait(
                lambda: all(s.aborted for s in mesh.upstream.requests if s.path == f"/up/{kind}/{engine}"), "the upload's end upstream"
            )
        finally:
            living.policy(ALLOW)


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


@pytest.mark.parametrize("rounds", [1, 2], ids=["removed", "removed-twice"])
@pytest.mark.parametrize("end", ["revoked", "denied"])
@engines
def test_a_removed_listener_still_judges(end: str, rounds: int, engine: str, living: Living, mesh: Mesh) -> None:
    """The listener is gone (for good, or after it came and went again), its streams run on: revocation or a denial cuts that caller's
    within a second, the others finish. The record names the caller and not the client as the one who ended it."""
    name, story = f"gone-{engine}", f"{end}/{rounds}/{engine}"
    victim, fine = (mesh.service(f"{who}-{story.replace('/', '-')}") for who in ("victim", "fine"))
    mark = living.proxy.mark()
    kept: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        streams = Streams(living, stack)
        _, cut = streams.begin(name, victim, f"/victim/{story}")
        client, pieces = streams.begin(name, fine, f"/fine/{story}")
        idle = stack.enter_context(living.dial(name, fine))
        assert idle.request(get("/idle")).status == 200
        try:
            living.listeners(lambda listeners: kept.update({name: listeners.pop(name)}))
            if rounds == 2:
                living.listeners(lambda listeners: listeners.update(kept))
                with living.dial(name, fine) as fresh:
                    assert fresh.request(get("/fresh")).status == 200
                living.listeners(lambda listeners: listeners.pop(name))
            idle.assert_closed()
            with pytest.raises(OSError):  # noqa: PT011
                living.dial(name, fine)
            if end == "revoked":
                living.revoke(victim)
            else:
                who = SHOP + f"victim-{story.replace('/', '-')}"
                living.policy({"rules": [{"id": "no", "deny": [who], "paths": ["/**"]}, *ALLOW["rules"]]})
            _cut(cut, time.monotonic())
            streams.go.set()
            assert list(pieces) == [b"last"]
            client.assert_closed()
        finally:
            living.policy(ALLOW)
            living.listeners(lambda listeners: listeners.update(kept))
        record = _record(living, f"/victim/{story}", mark)
        assert record["who"]["principal"] == SHOP + f"victim-{story.replace('/', '-')}"
        assert record["outcome"].get("aborted") not in (None, "client"), record["outcome"]
        assert "aborted" not in _record(living, f"/fine/{story}", mark)["outcome"]


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


def test_what_the_drain_cuts_is_on_record(living: Living, mesh: Mesh) -> None:
    """Last in this module: it ends the process. Streams outlive the grace of a second, also one on a listener that was just removed."""
    mark = living.proxy.mark()
    with contextlib.ExitStack() as stack:
        streams = Streams(living, stack)
        names = (*ENGINES, "gone-default")
        all_pieces = [streams.begin(name, mesh.service("stayer"), f"/drain/{name}")[1] for name in names]
        living.listeners(lambda listeners: listeners.pop("gone-default"))
        living.proxy.signal(signal.SIGTERM)
        assert living.proxy.process is not None
        assert living.proxy.process.wait(5) == 0
        for pieces in all_pieces:
            with pytest.raises(Truncated):
                list(pieces)
        records = {name: _record(living, f"/drain/{name}", mark) for name in names}
    assert {record["who"].get("principal") for record in records.values()} == {SHOP + "stayer"}
    assert {name: record["outcome"].get("aborted") for name, record in records.items()} == dict.fromkeys(names, "shutdown")
