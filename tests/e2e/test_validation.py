"""Requests that break their contract never reach the upstream, in the real process."""

from __future__ import annotations

import copy
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from meshguard.keys.lifecycle import create
from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import ROOT, Proxy
from tests.validation.documents import SHOP as DOCUMENT

JSON = "Content-Type: application/json"
TENANT = "X-Tenant: t-1"
GOOD = b'{"items":[{"sku":"a","qty":1}]}'
BAD = b'{"items":[{"sku":"a","qty":0}]}'
OPENAPI: dict[str, Any] = {"openapi": "shop.yaml", "report": "path"}


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("validation")
    (directory / "keys").mkdir(mode=0o700)
    create(directory / "keys" / "pii.json", "pii", time.time())
    (directory / "shop.yaml").write_text(yaml.safe_dump(DOCUMENT))
    (directory / "body.json").write_text(json.dumps({"type": "object", "required": ["card"], "properties": {"card": {"type": "string"}}}))
    listeners: dict[str, Any] = {
        "api": {"tls": "mutual", "to": "app", "validation": OPENAPI},
        "reference": {"tls": "mutual", "engine": "reference", "to": "app", "validation": OPENAPI},
        "plain": {
            "tls": "none",
            "routes": [
                {"id": "quiet", "paths": ["/v1/**"], "to": "app", "validation": {"openapi": "shop.yaml", "unknown_operations": "allow"}},
                {"id": "cards", "paths": ["/cards"], "to": "app", "validation": {"json_schema": "body.json", "report": "path"}},
                {"id": "free", "to": "app"},
            ],
        },
        "small": {"tls": "mutual", "to": "app", "validation": OPENAPI, "limits": {"inspect_body_bytes": 100}},
    }
    config = {
        "identity": mesh.identity(directory),
        "listeners": listeners,
        "clusters": {"app": mesh.endpoints()},
        "keys": {"pii": {"provider": "file", "path": "keys/pii.json"}},
    }
    policy = {
        "rules": [{"id": "no", "deny": "anyone", "paths": ["/v1/denied"]}, {"id": "all", "allow": "anyone"}],
        "roles": {"x": {"principals": [SHOP + "meshguard"]}},
        "fields": [{"id": "f", "paths": ["/cards"], "on": "request", "select": "$.card", "seal": "pii", "readers": {"x": "open"}}],
    }
    with Proxy(directory, config, policies={"p.yaml": policy}) as made:
        yield made


def _send(proxy: Proxy, mesh: Mesh, listener: str, target: str, method: str, fields: list[str], body: bytes = b"") -> tuple[int, Any, bool]:
    """(status, problem details, whether the upstream has seen anything)."""
    before = len(mesh.upstream.requests)
    with RawClient(proxy.address(listener), None if listener == "plain" else mesh.client("billing")) as client:
        answer = client.request(get(target, method=method, fields=fields, body=body))
    problem = json.loads(answer.body) if answer.status >= 400 else None
    return answer.status, problem, len(mesh.upstream.requests) > before


@pytest.mark.parametrize("listener", ["api", "reference"])
def test_only_what_the_contract_describes_reaches_the_upstream(proxy: Proxy, mesh: Mesh, listener: str) -> None:
    assert _send(proxy, mesh, listener, "/v1/orders", "POST", [JSON, TENANT], GOOD) == (200, None, True)
    assert mesh.upstream.requests[-1].body == GOOD
    for target, method, fields, body, place in (
        ("/v1/orders", "POST", [JSON, TENANT], BAD, "body/items/0/qty"),
        ("/v1/orders", "POST", [JSON], GOOD, "header/x-tenant"),
        ("/v1/orders", "POST", [JSON, TENANT], b"", "body"),
        ("/v1/orders", "POST", [TENANT, "Content-Type: text/html"], GOOD, "header/content-type"),
        ("/v1/orders?limit=0", "GET", [TENANT], b"", "query/limit"),
        ("/v1/orders/x", "GET", [], b"", "path/id"),
        ("/v1/nothing", "GET", [], b"", "path"),
    ):
        status, problem, seen = _send(proxy, mesh, listener, target, method, fields, body)
        assert (status, problem["code"], problem["violation"], seen) == (400, "request_invalid", place, False)


def test_the_record_names_the_rule_and_policy_comes_first(proxy: Proxy, mesh: Mesh) -> None:
    _, problem, _ = _send(proxy, mesh, "api", "/v1/orders", "POST", [JSON, TENANT], BAD)
    record = proxy.decision(problem["instance"].rpartition(":")[2])
    assert "minimum at /components/schemas/Item/properties/qty/minimum" in json.dumps(record)
    status, problem, _ = _send(proxy, mesh, "api", "/v1/denied", "GET", [])
    assert (status, problem["code"]) == (403, "policy_denied")  # who may not call learns nothing of the contract


def test_bodies_in_pieces_and_in_codings(proxy: Proxy, mesh: Mesh) -> None:
    head = get("/v1/orders", method="POST", fields=[JSON, TENANT, "Transfer-Encoding: chunked"])
    for body, status in ((GOOD, 200), (BAD, 400)):
        chunks = b"".join(b"1\r\n%c\r\n" % octet for octet in body) + b"0\r\n\r\n"
        with RawClient(proxy.address("api"), mesh.client("billing")) as client:
            assert client.request(head + chunks).status == status
        fields = [JSON, TENANT, "Content-Encoding: gzip"]
        assert _send(proxy, mesh, "api", "/v1/orders", "POST", fields, gzip.compress(body))[0] == status
    assert gzip.decompress(mesh.upstream.requests[-1].body) == GOOD
    fields = [JSON, TENANT, "Content-Encoding: gzip"]
    assert _send(proxy, mesh, "small", "/v1/orders", "POST", fields, gzip.compress(b" " * 101 + GOOD))[0] == 413
    assert _send(proxy, mesh, "small", "/v1/orders", "POST", [JSON, TENANT], GOOD + b" " * 100)[0] == 413
    assert _send(proxy, mesh, "api", "/v1/orders", "POST", [*fields, "Content-Encoding: gzip"], gzip.compress(GOOD))[0] == 415
    assert _send(proxy, mesh, "api", "/v1/orders", "POST", fields, GOOD)[0] == 400


def test_expect_and_upgrade(proxy: Proxy, mesh: Mesh) -> None:
    with RawClient(proxy.address("api"), mesh.client("billing")) as client:
        fields = [JSON, TENANT, "Expect: 100-continue", f"Content-Length: {len(GOOD)}"]
        client.send(get("/v1/orders", method="POST", fields=fields), expect="POST")
        assert client.head().status == 100
        client.send(GOOD)
        client._pull()
        answer = client.response()
        assert (answer.status, answer.interim) == (200, [])  # told to go on once
    upgrade = ["Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    assert _send(proxy, mesh, "api", "/v1/orders/1", "GET", upgrade)[0] == 415


def test_http2(proxy: Proxy, mesh: Mesh) -> None:
    host, port = proxy.address("api")
    with httpx.Client(http2=True, verify=mesh.client("billing", ("h2",))) as client:
        url = f"https://{host}:{port}/v1/orders"
        headers = {"content-type": "application/json", "x-tenant": "t-1"}
        assert client.post(url, content=GOOD, headers=headers).status_code == 200
        answer = client.post(url, content=BAD, headers=headers)
        assert answer.http_version == "HTTP/2"
        assert (answer.status_code, answer.json()["violation"]) == (400, "body/items/0/qty")
        assert client.get(url, headers=headers).status_code == 200


def test_routes_of_their_own_and_field_rules(proxy: Proxy, mesh: Mesh) -> None:
    status, problem, _ = _send(proxy, mesh, "plain", "/v1/orders", "POST", [JSON, TENANT], BAD)
    assert status == 400
    assert "violation" not in problem
    assert _send(proxy, mesh, "plain", "/v1/nothing", "GET", [])[0] == 200
    assert _send(proxy, mesh, "plain", "/else", "POST", ["Content-Type: text/plain"], b"{")[0] == 200
    assert _send(proxy, mesh, "plain", "/cards", "GET", [])[0] == 200
    assert _send(proxy, mesh, "plain", "/cards", "POST", [JSON], b"")[0] == 400
    assert _send(proxy, mesh, "plain", "/cards", "POST", [JSON], b'{"card":"4111"}') == (200, None, True)
    assert _send(proxy, mesh, "plain", "/cards", "POST", [JSON], b'{"card":4111}')[1]["violation"] == "body/card"


def test_reload_and_check(proxy: Proxy, mesh: Mesh) -> None:
    file = proxy.directory / "shop.yaml"
    changed: Any = copy.deepcopy(DOCUMENT)
    changed["components"]["schemas"]["Item"]["properties"]["qty"]["minimum"] = 0
    since = len(proxy.stderr.items)
    file.write_text(yaml.safe_dump(changed))
    proxy.wait_reloaded(since)
    assert _send(proxy, mesh, "api", "/v1/orders", "POST", [JSON, TENANT], BAD)[0] == 200
    changed["components"]["schemas"]["Item"]["properties"]["qty"]["minimum"] = "none"
    since = len(proxy.stderr.items)
    file.write_text(yaml.safe_dump(changed))
    assert "refused" in proxy.wait_reloaded(since)
    assert _send(proxy, mesh, "api", "/v1/orders", "POST", [JSON, TENANT], BAD)[0] == 200  # the last good one goes on
    assert _check(proxy.config_path) == (1, f"{file}:")
    file.write_text(yaml.safe_dump(DOCUMENT))
    assert _check(proxy.config_path)[0] == 0


def _check(config: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "meshguard", "check", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=30)
    return done.returncode, done.stderr.partition(":")[0] + ":"
