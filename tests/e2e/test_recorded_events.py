"""What happened to the proxy is in its ledger: containment, changes taken and refused, bundles, break-glass, destroyed keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_bundles import Release, put
from tests.harness.client import RawClient, get
from tests.harness.commands import meshguard
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually

POLICY = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}
BAD = f"{SHOP}bad"


def events(proxy: Proxy, name: str) -> list[dict[str, Any]]:
    """The data of the events of one name, the oldest first."""
    out, _ = meshguard("audit", "query", "--event", name, "--format", "json", "--ledger", proxy.directory / "ledger")
    return [json.loads(line)["data"] for line in reversed(out.splitlines())]


def until(proxy: Proxy, name: str, **wanted: Any) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        return next((data for data in events(proxy, name) if all(data.get(key) == value for key, value in wanted.items())), None)

    data: dict[str, Any] = eventually(found, f"{name} {wanted}", 15)
    return data


def start(mesh: Mesh, directory: Path, **more: Any) -> Proxy:
    config: dict[str, Any] = {
        "profile": "development",
        "identity": mesh.identity(directory),
        "listeners": {"inbound": {"to": "app", "tls": "mutual"}},
        "clusters": {"app": mesh.endpoints()},
        "ledger": {"directory": "ledger"},
        "quarantine": {"path": "quarantine.json"},
        "drain_s": 1,
        **more,
    }
    proxy = Proxy(directory, config, policies=None if "bundle" in more else {"p.yaml": POLICY})
    config["admin"]["token_file"] = "admin.token"
    proxy.write_config()
    return proxy


@pytest.fixture(params=[1, 2], ids=["alone", "workers"])
def proxy(request: pytest.FixtureRequest, mesh: Mesh, tmp_path: Path) -> Iterator[Proxy]:
    with start(mesh, tmp_path, workers=request.param) as running:
        yield running


def test_quarantine_and_changes(proxy: Proxy, mesh: Mesh) -> None:
    def quarantine(*arguments: str) -> None:
        meshguard("quarantine", *arguments, "--config", proxy.config_path)

    quarantine("add", BAD, "--reason", "leaked key", "--ttl", "1h")
    with RawClient(proxy.address("inbound"), mesh.client("bad")) as client:
        refused = client.request(get("/"))
    quarantine("remove", BAD)
    quarantine("add", f"{SHOP}brief", "--ttl", "1s")
    begun = until(proxy, "quarantine", action="add", target=BAD)
    assert (begun["reason"], begun["source"], begun["until"] - begun["since"]) == ("leaked key", "operation", 3600)
    ended = until(proxy, "quarantine", action="remove", target=BAD)
    assert ended["by"] == begun["by"]
    assert until(proxy, "quarantine", action="expire", target=f"{SHOP}brief")["by"] == "time to live"
    told, _ = meshguard("explain", refused.decision_id, "--ledger", proxy.directory / "ledger")
    assert f"quarantine: {BAD} since " in told
    assert "(leaked key)" in told

    before = until(proxy, "policy")["digest"]
    proxy.write_policy("p.yaml", {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/a/**"]}]})
    taken = until(proxy, "reload", outcome="accepted")
    assert taken["policy_digest"] != before
    assert taken["configuration_digest"].startswith("sha256:")
    proxy.write_policy("p.yaml", {"rules": [{"id": "all", "allow": ["nobody-known"]}]})
    refusal = until(proxy, "reload", outcome="refused")
    assert refusal["policy_digest"] == taken["policy_digest"], "what goes on"
    assert "nobody-known" in refusal["error"]
    table, _ = meshguard("audit", "query", "--event", "quarantine", "--ledger", proxy.directory / "ledger")
    assert f"action=add, target={BAD}" in table
    meshguard("audit", "verify", "--ledger", proxy.directory / "ledger")


def test_bundles_rollbacks_and_break_glass(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    release = Release(tmp_path / "release")
    keys = ["release/release.pub", "release/security.pub"]
    (tmp_path / "bundle.json").write_bytes(first := release.make(7, "/seven", "release"))
    with start(mesh, tmp_path, bundle={"keys": keys, "state": "state", "path": "bundle.json"}) as proxy:
        put(proxy, release.make(8, "/eight", "security"))
        assert len(until(proxy, "bundle", outcome="accepted", version=8)["signers"]) == 1
        put(proxy, first)
        refused = until(proxy, "bundle", outcome="refused", code="rollback")
        assert refused["offered"] == "sha256:" + hashlib.sha256(first).hexdigest()
        put(proxy, release.make(9, "/nine"))
        until(proxy, "bundle", outcome="refused", code="unsigned")
        assert [data["version"] for data in events(proxy, "bundle") if data["outcome"] == "accepted"] == [7, 8]
        put(proxy, release.make(1, "/glass", "release", "security", glass_s=5))
        until(proxy, "break_glass", action="end")
        begun, ended = events(proxy, "break_glass")
        assert (begun["action"], begun["version"], len(begun["signers"])) == ("begin", 1, 2)
        assert begun["reason"]
        assert begun["digest"] == ended["digest"]


def test_a_destroyed_key_version(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    kek = tmp_path / "keys" / "kek"
    kek.write_bytes(bytes(range(32)))
    kek.chmod(0o600)
    proxy = start(mesh, tmp_path, keys={"pii": {"provider": "file", "path": "keys/pii.json", "kek": "keys/kek"}})

    def keys(command: str, *arguments: str) -> None:
        meshguard("keys", command, "pii", "--config", proxy.config_path, *arguments)

    keys("create")
    keys("rotate", "--settle", "0s")
    with proxy:
        keys("disable", "--version", "1")
        keys("destroy", "--version", "1", "--yes")
        proof = until(proxy, "key_destroyed", keyset="pii")
        assert (proof["versions"], len(proof["destroyed_sha256"])) == ([1], 1)
