"""Quarantine of one identity on a running node: refused, cut, persistent, reversible, guarded; nobody else notices."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.client import RawClient, Truncated, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import ROOT, Proxy, eventually
from tests.harness.upstream import Exchange

POLICY = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}
BAD, GOOD = f"{SHOP}bad", f"{SHOP}good"


@pytest.fixture
def proxy(mesh: Mesh, tmp_path: Path) -> Iterator[Proxy]:
    config = {
        "identity": mesh.identity(tmp_path),
        "listeners": {"inbound": {"to": "app", "tls": "mutual"}},
        "clusters": {"app": mesh.endpoints()},
        "quarantine": {"path": "quarantine.json"},
        "drain_s": 1,
    }
    running = Proxy(tmp_path, config, policies={"p.yaml": POLICY})
    config["admin"]["token_file"] = "admin.token"
    running.write_config()
    with running.start():
        yield running


def quarantine(proxy: Proxy, *arguments: str, expect: int = 0) -> str:
    command = [sys.executable, "-m", "meshguard", "quarantine", *arguments, "--config", str(proxy.config_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def client(proxy: Proxy, mesh: Mesh, name: str) -> RawClient:
    return RawClient(proxy.address("inbound"), mesh.client(name))


def test_the_identity_is_refused_and_its_streams_are_cut_while_others_go_on(proxy: Proxy, mesh: Mesh) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbegun")
        await exchange.gone()

    with mesh.upstream.on("/stream", endless), client(proxy, mesh, "bad") as bad, client(proxy, mesh, "good") as good:
        for each in (bad, good):
            each.send(get("/stream"), expect="GET")
            assert each.head().status == 200
            assert next(each.body()) == b"begun"
        with client(proxy, mesh, "bad") as idle:
            assert idle.request(get("/before")).status == 200
            quarantine(proxy, "add", BAD, "--ttl", "1h", "--reason", "leaked key")
            idle.assert_closed()
        with pytest.raises(Truncated):
            list(bad.body())
        with client(proxy, mesh, "bad") as again:
            mark = mesh.upstream.mark()
            refused = again.request(get("/after"))
            assert (refused.status, refused.problem["code"]) == (403, "quarantined")
            assert 3500 < int(refused.get("retry-after")) <= 3600
            again.assert_closed()
            assert not mesh.upstream.since(mark)
        with client(proxy, mesh, "good") as other:
            assert other.request(get("/after")).status == 200
        record = proxy.decision(refused.decision_id)
        assert record["why"]["reason"] == "quarantined"
        assert good.sock.getpeername(), "the stream of the other identity was not touched"
        listed = quarantine(proxy, "list")
        assert BAD in listed
        assert "leaked key" in listed


def test_it_survives_a_restart_and_is_reversible(proxy: Proxy, mesh: Mesh) -> None:
    quarantine(proxy, "add", f"{SHOP}b*", "--reason", "all of them")
    proxy.stop()
    proxy.start()
    with client(proxy, mesh, "bad") as bad:
        assert bad.request(get("/")).status == 403
    quarantine(proxy, "remove", f"{SHOP}b*")
    with client(proxy, mesh, "bad") as bad:
        assert bad.request(get("/")).status == 200
    assert "not quarantined" in quarantine(proxy, "remove", f"{SHOP}b*", expect=1)


def test_it_ends_by_itself(proxy: Proxy, mesh: Mesh) -> None:
    quarantine(proxy, "add", BAD, "--ttl", "1s")

    def free() -> bool:
        with client(proxy, mesh, "bad") as bad:
            return bad.request(get("/")).status == 200

    eventually(free, "the end of the quarantine")
    file = proxy.directory / "quarantine.json"
    eventually(lambda: json.loads(file.read_text()) == {"quarantine": []}, "the end in the file")


def test_one_certificate_only(proxy: Proxy, mesh: Mesh) -> None:
    serial = f"serial:{mesh.service('bad').certificate.serial_number:x}"
    quarantine(proxy, "add", serial)
    with client(proxy, mesh, "bad") as bad:
        assert bad.request(get("/")).problem["code"] == "quarantined"
    fresh = mesh.context(mesh.ca.service("bad"), name="fresh")
    with RawClient(proxy.address("inbound"), fresh) as other:
        assert other.request(get("/")).status == 200


def test_a_workload_that_is_quarantined_itself_serves_nobody(proxy: Proxy, mesh: Mesh) -> None:
    with client(proxy, mesh, "good") as good:
        assert good.request(get("/")).status == 200
        quarantine(proxy, "add", f"{SHOP}meshguard")
        good.assert_closed()
    with client(proxy, mesh, "good") as good:
        mark = mesh.upstream.mark()
        refused = good.request(get("/"))
        assert (refused.status, refused.problem["code"]) == (503, "upstream_quarantined")
        assert not mesh.upstream.since(mark)


def test_without_the_token_nothing_can_be_changed_or_seen(proxy: Proxy) -> None:
    token = proxy.directory / "admin.token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    for method in ("GET", "POST", "DELETE"):
        assert proxy.admin("/quarantine", method)[0] == 401
    assert proxy.admin("/quarantine", "PUT")[0] == 405
    wrong = proxy.directory / "wrong.token"
    wrong.write_bytes(b"x" * 43)
    wrong.chmod(0o600)
    assert "401" in quarantine(proxy, "add", BAD, "--token-file", str(wrong), expect=1)


@pytest.mark.parametrize("target", ["spiffe://shop.example", "https://x/y", "serial:XYZ", "spiffe://*/x", ""])
def test_what_is_no_target_is_refused(proxy: Proxy, target: str) -> None:
    assert "400" in quarantine(proxy, "add", target, expect=1)


def test_a_file_that_others_write_is_taken_over_and_a_damaged_one_frees_nobody(proxy: Proxy, mesh: Mesh) -> None:
    entry = {"target": BAD, "reason": "", "by": "fleet", "since": 1.0, "until": 0.0}
    file = proxy.directory / "quarantine.json"

    def put(text: str) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(file)

    def refused() -> bool:
        with client(proxy, mesh, "bad") as bad:
            try:
                return bad.request(get("/")).status == 403
            except Truncated:
                return True  # cut before its request

    put(json.dumps({"quarantine": [entry]}))
    eventually(refused, "the quarantine of the file")
    since = len(proxy.stderr.items)
    put('{"quarantine": [{"tar')
    proxy.stderr.wait(lambda line: "cannot be read" in line, "the complaint", since=since)
    assert refused()
    proxy.stop()
    proxy.start(ready=False)
    assert proxy.process is not None
    assert proxy.process.wait(15) == 1, "a damaged quarantine does not start a proxy that lets everybody in"
    proxy.stderr.join()
    assert "quarantine.json" in proxy.stderr_text
