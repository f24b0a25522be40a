"""A signed bundle that carries what its documents name: descriptor sets, and contracts that the node validates requests by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshguard.integrity.bundle import encode, open_bundle
from meshguard.integrity.dsse import load_private_key, public_key_of, sign
from tests.e2e.test_bundles import Release, command, put
from tests.fields.orders_proto import descriptor_set, types
from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy

MESSAGE = "Content-Type: application/protobuf"


@pytest.fixture
def place(mesh: Mesh, tmp_path: Path) -> Iterator[Proxy]:
    (tmp_path / "release").mkdir()
    Release(tmp_path / "release")
    sets = tmp_path / "policies" / "pay" / "sets"
    sets.mkdir(parents=True)
    (sets / "bank.pb").write_bytes(descriptor_set().SerializeToString())
    write(tmp_path, 5000, {"type": "object", "required": ["sku"]})
    config: dict[str, Any] = {
        "identity": mesh.identity(tmp_path),
        "listeners": {
            "plain": {
                "tls": "none",
                "routes": [
                    {"id": "orders", "paths": ["/orders"], "to": "app", "validation": {"json_schema": "bundle:contract.json"}},
                    {"id": "rest", "to": "app"},
                ],
            }
        },
        "clusters": {"app": mesh.endpoints()},
        "bundle": {"keys": ["release/release.pub"], "state": "state", "path": "bundle.json"},
        "drain_s": 1,
    }
    proxy = Proxy(tmp_path, config)
    yield proxy
    proxy.stop()


def write(directory: Path, most: int, schema: dict[str, Any]) -> None:
    body = {"protobuf": {"descriptor": "sets/bank.pb", "request": "bank.v1.Payment", "fields": {"amount": {"max": most}}}}
    rules = [
        {"id": "pay", "allow": "anyone", "methods": ["POST"], "paths": ["/pay"], "body": body},
        {"id": "orders", "allow": "anyone", "paths": ["/orders"]},
    ]
    (directory / "policies" / "pay" / "pay.yaml").write_text(yaml.safe_dump({"rules": rules}))
    (directory / "contract.json").write_text(json.dumps(schema))


def build(directory: Path, version: int, *more: str) -> bytes:
    """What the command line makes of the directory."""
    out = directory / "made.json"
    command("build", directory / "policies", "--name", "shop", "--version", version, "--out", out, *more)
    command("sign", out, "--key", directory / "release" / "release.key")
    return out.read_bytes()


def send(proxy: Proxy, path: str, field: str, body: bytes) -> int:
    with RawClient(proxy.address("plain")) as client:
        return client.request(get(path, method="POST", fields=[field], body=body)).status


def test_a_policy_from_a_bundle_finds_its_files(place: Proxy, tmp_path: Path) -> None:
    include = ("--include", str(tmp_path / "contract.json"))
    first = build(tmp_path, 1, *include)
    told = json.loads(command("verify", tmp_path / "made.json", "--key", tmp_path / "release" / "release.pub", "--json"))
    assert sorted(told["files"]) == ["contract.json", "pay/sets/bank.pb"]
    (tmp_path / "bundle.json").write_bytes(first)
    # what lies on the node is never read instead
    (tmp_path / "policies" / "pay" / "sets" / "bank.pb").write_bytes(b"")
    (tmp_path / "contract.json").write_text("false")
    payment = types()["bank.v1.Payment"]
    few, many = (payment(amount=amount).SerializeToString() for amount in (5000, 5001))
    with place as proxy:
        assert (send(proxy, "/pay", MESSAGE, few), send(proxy, "/pay", MESSAGE, many)) == (200, 403)
        orders = [send(proxy, "/orders", "Content-Type: application/json", body) for body in (b'{"sku":1}', b"{}")]
        assert orders == [200, 400]
        key = (tmp_path / "release" / "release.key").read_bytes()
        held = open_bundle(first, [public_key_of(load_private_key(key))], 1)
        looser = {name: text.replace("5000", "6000") for name, text in held.documents.items()}
        second = replace(held, version=2, documents=looser)
        for missing in ("contract.json", "pay/sets/bank.pb"):
            broken = replace(second, files={name: data for name, data in held.files.items() if name != missing})
            put(proxy, sign(encode(broken), load_private_key(key)).encode())
            assert send(proxy, "/pay", MESSAGE, many) == 403
            assert missing.rpartition("/")[2] in json.loads(proxy.admin("/readyz")[1])["policy"]["reload_error"]
        whole = replace(second, files={**held.files, "contract.json": b'{"type":"object"}'})
        put(proxy, sign(encode(whole), load_private_key(key)).encode())
        assert send(proxy, "/pay", MESSAGE, many) == 200
        assert send(proxy, "/orders", "Content-Type: application/json", b"{}") == 200


def test_a_file_outside_is_not_carried(place: Proxy, tmp_path: Path) -> None:
    body = {"protobuf": {"descriptor": "../../bank.pb", "request": "bank.v1.Payment"}}
    rules = [{"id": "pay", "allow": "anyone", "methods": ["POST"], "body": body}]
    (tmp_path / "bank.pb").write_bytes(descriptor_set().SerializeToString())
    (tmp_path / "policies" / "pay" / "pay.yaml").write_text(yaml.safe_dump({"rules": rules}))
    out = command("build", tmp_path / "policies", "--name", "shop", "--version", 1, "--out", tmp_path / "made.json", expect=1)
    assert "leads out of the bundle" in out
