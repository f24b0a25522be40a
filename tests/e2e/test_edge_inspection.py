"""What may be held for a field rule is a limit of each listener, within that of the process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from meshguard.keys.lifecycle import create
from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually

JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("inspection")
    (directory / "keys").mkdir(mode=0o700)
    create(directory / "keys" / "pii.json", "pii", time.time())
    config = {
        "identity": mesh.identity(directory),
        "limits": {"inspect_body_bytes": 1000, "inspect_total_bytes": 3000},
        "listeners": {
            "usual": {"tls": "mutual", "to": "app"},
            "small": {"tls": "mutual", "to": "app", "limits": {"inspect_body_bytes": 100}},
            "large": {"tls": "mutual", "to": "app", "limits": {"inspect_body_bytes": 2500}},
            "few": {"tls": "mutual", "to": "app", "limits": {"inspect_total_bytes": 500}},
        },
        "clusters": {"app": mesh.endpoints()},
        "keys": {"pii": {"provider": "file", "path": "keys/pii.json"}},
    }
    policy = {
        "rules": [{"id": "all", "allow": "authenticated"}],
        "roles": {"x": {"principals": [SHOP + "x"]}},
        "fields": [{"id": "f", "paths": ["/f"], "on": "request", "select": "$.f", "seal": "pii", "readers": {"x": "open"}}],
    }
    with Proxy(directory, config, policies={"p.yaml": policy}) as made:
        yield made


def _status(proxy: Proxy, mesh: Mesh, listener: str, size: int, path: str = "/f") -> int:
    body = b'{"a":"' + b"x" * (size - 8) + b'"}'
    with RawClient(proxy.address(listener), mesh.client("billing")) as client:
        return client.request(get(path, method="POST", fields=[JSON], body=body)).status


def test_a_listener_s_own_limit_holds(proxy: Proxy, mesh: Mesh) -> None:
    for listener, limit in (("usual", 1000), ("small", 100), ("large", 2500)):
        assert [_status(proxy, mesh, listener, size) for size in (limit, limit + 1)] == [200, 413], listener
    assert _status(proxy, mesh, "small", 5000, "/other") == 200  # what no rule reads is not held


def test_what_a_listener_holds_in_all(proxy: Proxy, mesh: Mesh) -> None:
    """Bodies that have not ended yet are held; then there is no room for others, here or in the whole process."""

    def held() -> float:
        return proxy.metric("meshguard_inspection_held_bytes")

    with ExitStack() as clients:

        def hold(listener: str, size: int) -> None:
            before = held()
            client = clients.enter_context(RawClient(proxy.address(listener), mesh.client("billing")))
            client.send(get("/f", method="POST", fields=[JSON, f"Content-Length: {size + 1}"]) + b" " * size, expect="POST")
            eventually(lambda: held() == before + size, "the held body")

        hold("few", 400)
        assert _status(proxy, mesh, "few", 101) == 503
        assert _status(proxy, mesh, "few", 100) == 200
        assert _status(proxy, mesh, "usual", 1000) == 200
        hold("large", 2400)
        assert _status(proxy, mesh, "usual", 201) == 503  # the process is full
        assert _status(proxy, mesh, "usual", 200) == 200
    eventually(lambda: held() == 0, "an empty budget")
    assert _status(proxy, mesh, "few", 500) == 200
    assert _status(proxy, mesh, "usual", 1000) == 200
