"""A rolling restart under load: another process takes over the addresses, and not one request fails. For one process and for several."""

from __future__ import annotations

import argparse
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from meshguard.cli.node import call, node_of
from tests.e2e.test_quarantine import quarantine
from tests.e2e.test_workers import alive
from tests.harness.client import RawClient, get
from tests.harness.http2 import H2Client
from tests.harness.load import Load
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually

ALLOW = {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}
ALLOW_B = {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}, {"id": "no-b", "deny": "anyone", "paths": ["/b"]}]}


def configuration(mesh: Mesh, directory: Path, workers: int) -> dict[str, Any]:
    limits = [{"id": "few", "key": ["client_address"], "requests": 3, "per_s": 3600}]
    return {
        "workers": workers,
        "identity": mesh.identity(directory),
        "listeners": {
            "plain": {"tls": "none", "to": "app"},
            "inbound": {"tls": "mutual", "to": "app"},
            "limited": {"tls": "none", "to": "app", "rate_limits": limits},
        },
        "clusters": {"app": mesh.endpoints()},
        "drain_s": 10,
        "restart_s": 20,
    }


def started(mesh: Mesh, directory: Path, workers: int) -> Proxy:
    proxy = Proxy(directory, configuration(mesh, directory, workers), policies={"p.yaml": ALLOW})
    proxy.config["admin"]["token_file"] = "admin.token"
    proxy.write_config()
    return proxy.start()


def told(proxy: Proxy) -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads(proxy.admin("/readyz")[1])
    return value


@contextmanager
def generations(proxy: Proxy) -> Iterator[None]:
    """Ends whatever process serves at the end of the test, by its id."""
    try:
        yield
    finally:
        pid = told(proxy)["pid"]
        if pid != proxy.pid:
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: not alive(pid), "the end of the last generation", 15)
        proxy.stop()


def limited(proxy: Proxy) -> int:
    with RawClient(proxy.address("limited")) as client:
        return client.request(get("/x")).status


class Http2Load:
    """Requests on one HTTP/2 connection, and on another once that one was told to go (GOAWAY)."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext) -> None:
        self._address, self._tls = address, tls
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.statuses: list[int] = []
        self.failures: list[str] = []
        self.connections = 0

    def __enter__(self) -> Http2Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(15)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.connections += 1
            with H2Client(self._address, self._tls) as client:
                while not self._stop.is_set() and not client.goaways and not client.closed:
                    try:
                        self.statuses.append(client.get("/load").status)
                    except Exception as exc:
                        self.failures.append(repr(exc))
                        return


@pytest.mark.parametrize("workers", [1, 2])
def test_not_one_request_fails(workers: int, mesh: Mesh, tmp_path: Path) -> None:
    proxy = started(mesh, tmp_path, workers)
    with generations(proxy):
        first = told(proxy)["pid"]
        assert [limited(proxy) for _ in range(2)] == [200, 200]
        quarantine(proxy, "add", SHOP + "support")
        since = len(proxy.stderr.items)
        with (
            Load(proxy.address("plain"), kept=3, fresh=2) as plain,
            Load(proxy.address("inbound"), mesh.client("billing"), kept=2, fresh=1) as mutual,
            Http2Load(proxy.address("inbound"), mesh.client("billing", ("h2",))) as http2,
        ):
            proxy.write_policy("p.yaml", ALLOW_B)
            if workers == 1:
                proxy.signal(signal.SIGUSR2)
            else:
                assert proxy.admin("/restart", "POST")[0] == 401, "not without the token"
                call(node_of(argparse.Namespace(config=proxy.config_path, admin=None, token_file=None)), "POST", "/restart", {})
            proxy.stderr.wait(lambda text: "serve" in text and "the new process" in text, "the hand-over", 25, since)
            plain.more(100)
            mutual.more(50)
            assert proxy.process is not None
            assert proxy.process.wait(20) == 0, "the old process ends in order"
            plain.more(100)
            mutual.more(50)
        assert http2.failures == []
        assert set(http2.statuses) == {200}
        assert http2.connections > 1, "the old process has told its client to go"
        assert plain.failures == []
        assert mutual.failures == []
        assert set(plain.statuses) | set(mutual.statuses) == {200}
        second = told(proxy)
        assert second["pid"] != first
        assert second["ready"]
        assert [limited(proxy) for _ in range(3)] == [200, 429, 429], "limits hold over the restart"
        with RawClient(proxy.address("inbound"), mesh.client("support")) as client:
            assert client.request(get("/x")).problem["code"] == "quarantined"
        with RawClient(proxy.address("plain")) as client:
            assert client.request(get("/b")).status == 403, "the new process has read everything anew"
        os.kill(second["pid"], signal.SIGUSR2)
        eventually(lambda: told(proxy)["pid"] not in (first, second["pid"]), "the third generation", 25)


def test_new_processes_that_do_not_become_ready_change_nothing(mesh: Mesh, tmp_path: Path) -> None:
    proxy = started(mesh, tmp_path, 2)
    with generations(proxy), Load(proxy.address("plain"), kept=2, fresh=1) as load:
        first = told(proxy)["pid"]
        since = len(proxy.stderr.items)
        proxy.write_policy("p.yaml", "rules: [")
        proxy.signal(signal.SIGUSR2)
        line = proxy.stderr.wait(lambda text: "RESTART FAILED" in text, "the report", 25, since)
        assert "before it was ready" in line
        load.more(50)
        assert load.failures == []
        assert set(load.statuses) == {200}
        assert told(proxy)["pid"] == first
        assert proxy.metric("meshguard_restart_failures_total") == 1
        proxy.write_policy("p.yaml", ALLOW_B)
        since = len(proxy.stderr.items)
        proxy.signal(signal.SIGUSR2)
        proxy.stderr.wait(lambda text: "serve" in text and "the new process" in text, "the hand-over", 25, since)
        load.more(50)
        assert load.failures == []
