"""The ledger of HTTP/2 connections, of several workers, and over a rolling restart: each process writes its own shard, nothing is lost."""

from __future__ import annotations

import http.client
import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from meshguard.cli.audit_integrity import verifiers
from meshguard.storage.audit import verify_ledger
from meshguard.storage.segments import shard_directories
from meshguard.storage.shard_reader import ShardReader
from tests.e2e.test_restart import generations
from tests.harness.client import RawClient, get
from tests.harness.http2 import H2Client
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.upstream import raw


def started(mesh: Mesh, directory: Path, *, start: bool = True, **more: Any) -> Proxy:
    config = {
        "profile": "development",
        "identity": mesh.identity(directory),
        "listeners": {"default": {"tls": "mutual", "to": "app"}, "plain": {"tls": "none", "to": "app"}},
        "clusters": {"app": mesh.endpoints()},
        "decision_log": {"path": "/dev/null"},
        "drain_s": 5,
        **more,
    }
    proxy = Proxy(directory, config, policies={"p.yaml": {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}})
    return proxy.start() if start else proxy


def on_record(directory: Path) -> dict[int, list[dict[str, Any]]]:
    return {
        number: [orjson.loads(entry) for _, entry in ShardReader(number, place).entries()] for number, place in shard_directories(directory)
    }


def paths(directory: Path) -> list[str]:
    found = [entry for entries in on_record(directory).values() for entry in entries if "what" in entry and "begun" not in entry]
    return sorted(entry["what"]["path"] for entry in found)


def good(directory: Path) -> None:
    report = verify_ledger(directory, verifiers([], directory))
    assert report.good, report


@pytest.mark.parametrize("durability", ["batch", "request"])
def test_streams_of_one_connection(mesh: Mesh, tmp_path: Path, durability: str) -> None:
    big = b"x" * 200_000
    streamed = raw([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(big), big])
    proxy = started(mesh, tmp_path, ledger={"directory": "ledger", "durability": durability})
    with mesh.upstream.on("/stream", streamed), proxy:
        with H2Client(proxy.address("default"), mesh.client("billing", ("h2",))) as client:
            streams = [client.request(f"/open/{number}") for number in range(20)]
            large = client.request("/stream")
            assert {client.answer(stream).status for stream in streams} == {200}
            assert len(client.answer(large).body) == len(big)
            recorded = paths(tmp_path / "ledger")
        assert recorded == sorted(["/stream", *(f"/open/{number}" for number in range(20))])
    good(tmp_path / "ledger")


def test_each_worker_has_its_shard_and_a_killed_ones_is_taken_up(mesh: Mesh, tmp_path: Path) -> None:
    proxy = started(mesh, tmp_path, workers=2, ledger={"directory": "ledger"})
    with proxy:

        def serving() -> list[dict[str, Any]]:
            each = orjson.loads(proxy.admin("/readyz")[1])["workers"]["each"]
            return [worker for worker in each if worker["state"] == "serving"]

        eventually(lambda: len(serving()) == 2, "two workers", 20)
        sent = []
        for number in range(40):
            with RawClient(proxy.address("plain")) as client:
                assert client.request(get(f"/a/{number}")).status == 200
            sent.append(f"/a/{number}")
        victim = serving()[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(serving()) == 2 and victim not in [worker["pid"] for worker in serving()], "the replacement", 20)
        for number in range(20):
            with RawClient(proxy.address("plain")) as client:
                assert client.request(get(f"/b/{number}")).status == 200
            sent.append(f"/b/{number}")
        assert paths(tmp_path / "ledger") == sorted(sent)
    shards = on_record(tmp_path / "ledger")
    assert set(shards) == {0, 1}
    assert sorted(sum(entry.get("event") == "start" for entry in entries) for entries in shards.values()) == [1, 2]
    good(tmp_path / "ledger")


def refused(directory: Path, **more: Any) -> str:
    """What the second process says that is started on the same ledger."""
    mesh = Mesh(directory)
    second = started(mesh, directory, start=False, **more)
    try:
        with pytest.raises(AssertionError) as told:
            second.start()
    finally:
        second.stop()
        mesh.close()
    return str(told.value)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (1, 1)])
def test_a_second_one_on_the_same_ledger_is_refused(mesh: Mesh, tmp_path: Path, first: int, second: int) -> None:
    """A supervisor with workers, or a single process; the first goes on."""
    (tmp_path / "second").mkdir()
    ledger = {"directory": str(tmp_path / "ledger")}
    with started(mesh, tmp_path, workers=first, ledger=ledger) as proxy:
        said = refused(tmp_path / "second", workers=second, ledger=ledger)
        assert "has this ledger; a second one needs a directory of its own" in said
        with RawClient(proxy.address("plain")) as client:
            assert client.request(get("/a")).status == 200
    assert set(on_record(tmp_path / "ledger")) == set(range(first))
    good(tmp_path / "ledger")


def test_a_new_supervisor_begins_while_workers_of_a_killed_one_drain(mesh: Mesh, tmp_path: Path) -> None:
    proxy = started(mesh, tmp_path, workers=2, ledger={"directory": "ledger"})
    assert proxy.process is not None
    with RawClient(proxy.address("plain")) as client:
        assert client.request(get("/a")).status == 200
    proxy.signal(signal.SIGKILL)
    proxy.process.wait(5)
    proxy.stop()
    proxy.start()
    with proxy, RawClient(proxy.address("plain")) as client:
        assert client.request(get("/b")).status == 200
    assert paths(tmp_path / "ledger") == ["/a", "/b"]
    good(tmp_path / "ledger")


def test_the_supervisors_admin_port_answers_questions(mesh: Mesh, tmp_path: Path) -> None:
    proxy = started(mesh, tmp_path, start=False, workers=2, ledger={"directory": "ledger"})
    proxy.config["admin"]["token_file"] = "admin.token"
    proxy.write_config()
    with proxy.start():

        def ask(path: str) -> tuple[int, bytes]:
            token = (tmp_path / "admin.token").read_text().strip()
            connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=20)
            try:
                connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()

        for number in range(10):
            with RawClient(proxy.address("plain")) as client:
                assert client.request(get(f"/a/{number}")).status == 200
        status, body = ask("/ledger/query?path=/a/**&limit=6")
        first = orjson.loads(body)
        assert status == 200
        second = orjson.loads(ask(f"/ledger/query?path=/a/**&limit=6&cursor={first['cursor']}")[1])
        told = [entry["what"]["path"] for entry in first["entries"] + second["entries"]]
        assert sorted(told) == [f"/a/{number}" for number in range(10)]
        assert orjson.loads(ask("/ledger/stats")[1])["total"] == 10


def test_a_rolling_restart_loses_nothing(mesh: Mesh, tmp_path: Path) -> None:
    proxy = started(mesh, tmp_path, ledger={"directory": "ledger"}, restart_s=20)
    with generations(proxy):
        sent = []
        with RawClient(proxy.address("plain")) as client:
            for number in range(20):
                assert client.request(get(f"/a/{number}")).status == 200
                sent.append(f"/a/{number}")
            proxy.signal(signal.SIGUSR2)
            eventually(lambda: len(on_record(tmp_path / "ledger")) == 2, "the second shard", 20)
            for number in range(20):
                with RawClient(proxy.address("plain")) as other:
                    assert other.request(get(f"/b/{number}")).status == 200
                sent.append(f"/b/{number}")
        assert paths(tmp_path / "ledger") == sorted(sent)
    good(tmp_path / "ledger")
