"""Keys that OpenBao wraps, through the real process: traffic through a rotation, an outage, an expired login, a late start (F4, F8)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.harness.client import RawClient, Response, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.openbao import OpenBao, needs_openbao
from tests.harness.proxy import ROOT, Proxy, eventually
from tests.harness.upstream import Exchange

pytestmark = needs_openbao

CARD = "4111111111111111"
ORDER = b'{"payment":{"card":"' + CARD.encode() + b'"}}'
POLICY = {
    "p.yaml": {
        "roles": {"billing": {"principals": [SHOP + "billing"]}},
        "rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}],
        "fields": [
            {
                "id": "card",
                "paths": ["/orders/{id}"],
                "on": "both",
                "select": "$.payment.card",
                "seal": "orders-pii",
                "readers": {"billing": "open"},
            }
        ],
    }
}


class Store:
    """The application behind the proxy: answers with what it was sent."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def serve(self, exchange: Exchange) -> None:
        body = await exchange.read()
        if exchange.request.method == "PUT":
            self.kept[exchange.request.path] = body
            await exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            await exchange.answer(200, self.kept.get(exchange.request.path, b"{}"), "Content-Type: application/json")


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("bao"), tls=True) as server:
        server.policy("fields")
        yield server


@pytest.fixture
def store(mesh: Mesh) -> Iterator[Store]:
    made = Store()
    before, mesh.upstream.default = mesh.upstream.default, made.serve
    yield made
    mesh.upstream.default = before


class Node:
    """One process on the keyset of `directory`."""

    def __init__(self, mesh: Mesh, directory: Path, vault: OpenBao, token: str, keyset: Path, **settings: Any) -> None:
        self.mesh = mesh
        directory.mkdir()
        section = {"provider": "vault", "address": vault.address, "key": "orders", "path": str(keyset), "ca": str(vault.ca)}
        section |= {"timeout_s": 2, "retry_max_s": 0.5, "start_s": 5, **settings}
        config = {
            "identity": mesh.identity(directory),
            "listeners": {"inbound": {"tls": "mutual", "to": "app"}},
            "clusters": {"app": mesh.endpoints()},
            "keys": {"orders-pii": section},
        }
        self.proxy = Proxy(directory, config, policies=POLICY, environment={"VAULT_TOKEN": token})
        self.token = token

    def cli(self, *arguments: str, status: int = 0) -> str:
        """`meshguard keys ...` with this node's configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "meshguard", "keys", *arguments, "--config", str(self.proxy.config_path), "--json"],
            cwd=ROOT, capture_output=True, text=True, timeout=30, env={**os.environ, "VAULT_TOKEN": self.token},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout

    def ask(self, data: bytes, who: str = "billing") -> Response:
        with RawClient(self.proxy.address("inbound"), self.mesh.client(who)) as client:
            return client.request(data)

    def put(self, path: str) -> Response:
        return self.ask(get(path, method="PUT", fields=["Content-Type: application/json"], body=ORDER))

    def keys(self) -> dict[str, Any]:
        told: dict[str, Any] = orjson.loads(self.proxy.admin("/readyz")[1])["keys"]["orders-pii"]
        return told


@pytest.fixture
def node(mesh: Mesh, vault: OpenBao, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(token: str = "", name: str = "one", **settings: Any) -> Node:
        one = Node(mesh, tmp_path / name, vault, token or vault.token("1h"), tmp_path / "orders-pii.json", **settings)
        made.append(one)
        return one

    yield make
    for one in made:
        one.proxy.stop()


def sealed_version(body: bytes) -> int:
    from tests.e2e.test_fields import _card
    from tests.keys.jose import header_of

    return int(header_of(_card(body))["kid"].split(":")[1])


def test_no_failed_read_while_two_nodes_rotate(node: Callable[..., Node], store: Store, vault: OpenBao) -> None:
    """Two processes on one keyset, one reads what the other has sealed, while the keyset is rotated twice (F4)."""
    one, two = node(settle_s=0.4), node(name="two", settle_s=0.4)
    one.cli("create", "orders-pii")
    assert CARD not in one.proxy.config_path.read_text()
    with one.proxy, two.proxy:
        failed: list[tuple[int, bytes]] = []
        stop = threading.Event()
        versions: set[int] = set()
        rounds = 0

        def traffic() -> None:
            nonlocal rounds
            while not stop.is_set():
                path = f"/orders/{rounds % 7}"
                for writer, reader in ((one, two), (two, one)):
                    put = writer.put(path)
                    versions.add(sealed_version(store.kept[path]))
                    read = reader.ask(get(path))
                    if put.status != 204 or read.body != ORDER:
                        failed.append((put.status, read.body))
                rounds += 1

        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            for version in (2, 3):
                one.cli("rotate", "orders-pii")
                eventually(lambda v=version: v in versions, f"values under version {version}")
                eventually(lambda v=version: two.keys()["seals_with"] == v, f"version {version} on the other node")
        finally:
            stop.set()
            thread.join(30)
        assert failed == []
        assert versions == {1, 2, 3}
        # what was written first still opens, and not any more once its version is disabled: without a reload
        store.kept["/orders/old"] = store.kept["/orders/0"]
        one.put("/orders/new")
        one.cli("disable", "orders-pii", "--version", "3", status=1)
        one.cli("disable", "orders-pii", "--version", "1")
        eventually(lambda: two.keys()["opens"] == [2, 3], "the disabled version on the other node")
        assert two.ask(get("/orders/new")).body == ORDER
        assert "reloaded" not in one.proxy.stderr_text


def test_an_outage_is_bridged_then_refused_then_over(node: Callable[..., Node], store: Store, vault: OpenBao) -> None:
    """F8: the cached keys until their time to live, then KEY_UNAVAILABLE and never plaintext, no stampede, recovery without restart."""
    one = node(cache_s=2)
    one.cli("create", "orders-pii")
    with one.proxy:
        assert one.put("/orders/1").status == 204
        vault.seal()
        try:
            eventually(lambda: one.keys()["state"] == "outage", "the outage")
            assert one.put("/orders/2").status == 204
            assert one.ask(get("/orders/1")).body == ORDER
            eventually(lambda: one.keys()["state"] == "stale", "the end of the cached keys")
            before = one.proxy.metric("meshguard_keys_failures_total", keyset="orders-pii")
            kept = dict(store.kept)
            for number in range(100):
                write, read = one.put(f"/orders/w{number}"), one.ask(get("/orders/1"))
                assert (write.status, read.status) == (503, 503)
                assert b"key_unavailable" in read.body
                assert CARD.encode() not in write.body + read.body
            assert store.kept == kept
            # 200 requests cause no call at all: only the back-off does
            assert one.proxy.metric("meshguard_keys_failures_total", keyset="orders-pii") - before < 60
            assert one.proxy.metric("meshguard_keys_available", keyset="orders-pii", version="1") == 0
            assert one.proxy.admin("/readyz")[0] == 200
            assert one.keys()["missing"] == [1]
            assert "503" in one.keys()["problem"]
        finally:
            vault.unseal()
        eventually(lambda: one.ask(get("/orders/1")).body == ORDER, "the recovery")
        assert one.put("/orders/3").status == 204
        assert one.keys()["state"] == "fresh"


def test_a_policy_change_is_taken_over_in_an_outage(node: Callable[..., Node], store: Store, vault: OpenBao) -> None:
    one = node()
    one.cli("create", "orders-pii")
    with one.proxy:
        vault.seal()
        try:
            policy = yaml.safe_load((one.proxy.directory / "policies" / "p.yaml").read_text())
            policy["fields"][0]["readers"] = {}
            since = len(one.proxy.stderr.items)
            one.proxy.write_policy("p.yaml", policy)
            one.proxy.wait_reloaded(since)
            assert one.put("/orders/1").status == 204
            assert CARD.encode() not in one.ask(get("/orders/1")).body
        finally:
            vault.unseal()


def test_a_login_is_renewed_and_replaced(node: Callable[..., Node], store: Store, vault: OpenBao) -> None:
    """A short-lived AppRole token: renewed at two thirds of its life; when it is revoked, a new login is made."""
    if "approle/" not in vault.call("GET", "sys/auth")["data"]:
        vault.call("POST", "sys/auth/approle", {"type": "approle"})
    vault.call("POST", "auth/approle/role/fields", {"token_ttl": "2s", "token_max_ttl": "1h", "token_policies": "fields"})
    role_id = vault.call("GET", "auth/approle/role/fields/role-id")["data"]["role_id"]
    one = node()
    secret_id = one.proxy.directory / "secret-id"
    secret_id.write_text(vault.call("POST", "auth/approle/role/fields/secret-id", {})["data"]["secret_id"])
    one.proxy.config["keys"]["orders-pii"] |= {"login": {"approle": {"role_id": role_id, "secret_id_file": "secret-id"}}, "cache_s": 3}
    one.proxy.write_config()
    one.cli("create", "orders-pii")
    with one.proxy:
        unwraps = one.proxy.metric("meshguard_keys_unwraps_total", keyset="orders-pii")
        eventually(lambda: one.proxy.metric("meshguard_keys_unwraps_total", keyset="orders-pii") >= unwraps + 3, "three more rounds", 12)
        assert one.proxy.metric("meshguard_keys_failures_total", keyset="orders-pii") == 0
        accessors = vault.call("LIST", "auth/token/accessors")["data"]["keys"]
        mine = [vault.request("POST", "auth/token/lookup-accessor", {"accessor": a})[1].get("data", {}) for a in accessors]
        live = [item for item in mine if item.get("path") == "auth/approle/login" and "last_renewal_time" in item]
        assert live, "the token was renewed, not replaced"
        for item in live:
            vault.call("POST", "auth/token/revoke-accessor", {"accessor": item["accessor"]})
        unwraps = one.proxy.metric("meshguard_keys_unwraps_total", keyset="orders-pii")
        eventually(lambda: one.proxy.metric("meshguard_keys_unwraps_total", keyset="orders-pii") >= unwraps + 2, "a new login", 12)
        assert one.keys()["state"] == "fresh"
        assert secret_id.read_text() not in one.proxy.stderr_text


def test_a_start_without_the_provider(node: Callable[..., Node], store: Store, vault: OpenBao) -> None:
    one, two = node(on_start="refuse", start_s=0.5), node(name="two", on_start="serve")
    one.cli("create", "orders-pii")
    vault.seal()
    try:
        one.proxy.start(ready=False)
        assert one.proxy.process is not None
        assert one.proxy.process.wait(15) == 1
        one.proxy.stderr.join()
        assert "keyset orders-pii has no keys" in one.proxy.stderr_text
        assert "Traceback" not in one.proxy.stderr_text
        two.proxy.start()
        assert two.put("/orders/1").status == 503
        assert two.ask(get("/elsewhere")).status == 200
    finally:
        vault.unseal()
    eventually(lambda: two.put("/orders/1").status == 204, "keys after the start")


def test_a_rotation_by_schedule_is_made_once(node: Callable[..., Node], store: Store, vault: OpenBao) -> None:
    """Two nodes can write the keyset: one rotates, both seal with the new version."""
    one, two = node(rotate_after=3, settle_s=0), node(name="two", rotate_after=3, settle_s=0)
    one.cli("create", "orders-pii")
    with one.proxy, two.proxy:
        eventually(lambda: one.keys()["seals_with"] == two.keys()["seals_with"] > 1, "a rotation", 15)
        assert one.put("/orders/1").status == 204
        assert two.ask(get("/orders/1")).body == ORDER
        assert sum(proxy.metric("meshguard_keys_rotations_total") for proxy in (one.proxy, two.proxy)) >= 1
        listed = orjson.loads((one.proxy.directory.parent / "orders-pii.json").read_bytes())
        created = [datetime.fromisoformat(key["created"]) for key in listed["keys"]]
        assert all((later - earlier).total_seconds() >= 3 for earlier, later in pairwise(created)), "two nodes made a version at once"


def test_no_data_key_is_on_disk_or_in_what_is_told(node: Callable[..., Node], store: Store, vault: OpenBao, tmp_path: Path) -> None:
    one = node()
    one.cli("create", "orders-pii")
    wrapped = orjson.loads((tmp_path / "orders-pii.json").read_bytes())["keys"][0]["wrapped"]
    key = vault.decrypt(wrapped, "meshguard/keyset/orders-pii/1")
    from base64 import b64encode, urlsafe_b64encode

    with one.proxy:
        assert one.put("/orders/1").status == 204
        one.proxy.metrics()
        one.proxy.admin("/readyz")
        spellings = (key, key.hex().encode(), b64encode(key), urlsafe_b64encode(key).rstrip(b"="))
        places = [one.proxy.log_bytes, one.proxy.metrics().encode(), one.proxy.admin("/readyz")[1]]
        places += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(spelling in place for spelling in spellings for place in places)
        # an independent library opens the value, given the key: the subkey by HKDF as documented
        from tests.e2e.test_fields import _card
        from tests.keys.jose import open_value

        assert open_value(_card(store.kept["/orders/1"]), key) == orjson.dumps(CARD)
