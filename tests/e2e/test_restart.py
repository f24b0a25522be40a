"""A rolling restart under load: another process takes over the addresses, and not one request fails. For one process and for several."""

from __future__ import annotations

import argparse
import os
import signal
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


@pytest.mark.parametrize("workers", [1, 2])
def test_new_processes_that_do_not_become_ready_change_nothing(workers: int, mesh: Mesh, tmp_path: Path) -> None:
    proxy = started(mesh, tmp_path, workers)
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
