"""Wrapped keys through the real process: traffic through a rotation, an outage, an expired login, a late start (F4, F8).

The provider is OpenBao where it is installed, and a KEK in a file, whose outage is that the file is gone; two tests run on both.
"""

from __future__ import annotations

import asyncio
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

from meshguard.keys.local import LocalKek
from meshguard.keys.provider import Binding
from tests.e2e.test_fields import _card
from tests.harness.client import RawClient, Response, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.openbao import OpenBao, binary, needs_openbao
from tests.harness.proxy import ROOT, Proxy, eventually
from tests.harness.upstream import Exchange
from tests.keys.jose import header_of, open_value

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


class Local:
    """A KEK in a file: away while the file is."""

    def __init__(self, directory: Path) -> None:
        self.kek = directory / "kek"
        self.kek.write_bytes(os.urandom(32))
        self.kek.chmod(0o600)

    def section(self) -> dict[str, Any]:
        return {"provider": "file", "kek": str(self.kek)}

    def token(self) -> str:
        return ""

    def seal(self) -> None:
        self.kek.rename(self.kek.with_name("hidden"))

    def unseal(self) -> None:
        self.kek.with_name("hidden").rename(self.kek)

    def unwrap(self, wrapped: str, binding: Binding) -> bytes:
        return asyncio.run(LocalKek(self.kek).unwrap(wrapped, binding))


class Bao:
    """OpenBao: away while it is sealed."""

    def __init__(self, server: OpenBao) -> None:
        self.server = server
        self.seal, self.unseal = server.seal, server.unseal

    def section(self) -> dict[str, Any]:
        return {"provider": "vault", "address": self.server.address, "key": "orders", "ca": str(self.server.ca)}

    def token(self) -> str:
        return self.server.token("1h")

    def unwrap(self, wrapped: str, binding: Binding) -> bytes:
        return self.server.decrypt(wrapped, binding.text)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("bao"), tls=True) as server:
        server.policy("fields")
        yield server


@pytest.fixture
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Local | Bao:
    """The provider: OpenBao where there is one, or what the test names."""
    wanted = getattr(request, "param", "vault" if binary() else "file")
    return Bao(request.getfixturevalue("vault")) if wanted == "vault" else Local(tmp_path)


both = pytest.mark.parametrize("service", ["file", pytest.param("vault", marks=needs_openbao)], indirect=True)


@pytest.fixture
def store(mesh: Mesh) -> Iterator[Store]:
    made = Store()
    before, mesh.upstream.default = mesh.upstream.default, made.serve
    yield made
    mesh.upstream.default = before


class Node:
    """One process on the keyset of `directory`."""

    def __init__(self, mesh: Mesh, directory: Path, service: Local | Bao, keyset: Path, **settings: Any) -> None:
        self.mesh = mesh
        directory.mkdir()
        section = service.section() | {"path": str(keyset), "timeout_s": 2, "retry_max_s": 0.5, "start_s": 5, **settings}
        token = service.token()
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
def node(mesh: Mesh, service: Local | Bao, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(name: str = "one", **settings: Any) -> Node:
        one = Node(mesh, tmp_path / name, service, tmp_path / "orders-pii.json", **settings)
        made.append(one)
        return one

    yield make
    for one in made:
        one.proxy.stop()


def sealed_version(body: bytes) -> int:
    return int(header_of(_card(body))["kid"].split(":")[1])


@both
def test_no_failed_read_while_two_nodes_rotate(node: Callable[..., Node], store: Store, service: Local | Bao) -> None:
    """Two processes on one keyset, one reads what the other has sealed, while the keyset is rotated twice (F4)."""
    one, two = node(settle_s=2.5), node(name="two", settle_s=2.5)
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
                eventually(lambda v=version: v in versions, f"values under version {version}", 15)
                eventually(lambda v=version: two.keys()["seals_with"] == v, f"version {version} on the other node", 15)
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


@both
def test_an_outage_is_bridged_then_refused_then_over(node: Callable[..., Node], store: Store, service: Local | Bao) -> None:
    """F8: the cached keys until their time to live, then KEY_UNAVAILABLE and never plaintext, no stampede, recovery without restart."""
    one = node(cache_s=2)
    one.cli("create", "orders-pii")
    with one.proxy:
        assert one.put("/orders/1").status == 204
        service.seal()
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
            assert one.keys()["problem"]
        finally:
            service.unseal()
        eventually(lambda: one.ask(get("/orders/1")).body == ORDER, "the recovery")
        assert one.put("/orders/3").status == 204
        assert one.keys()["state"] == "fresh"


def test_a_policy_change_is_taken_over_in_an_outage(node: Callable[..., Node], store: Store, service: Local | Bao) -> None:
    one = node()
    one.cli("create", "orders-pii")
    with one.proxy:
        service.seal()
        try:
            policy = yaml.safe_load((one.proxy.directory / "policies" / "p.yaml").read_text())
            policy["fields"][0]["readers"] = {}
            since = len(one.proxy.stderr.items)
            one.proxy.write_policy("p.yaml", policy)
            one.proxy.wait_reloaded(since)
            assert one.put("/orders/1").status == 204
            assert CARD.encode() not in one.ask(get("/orders/1")).body
        finally:
            service.unseal()


@needs_openbao
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


def test_a_start_without_the_provider(node: Callable[..., Node], store: Store, service: Local | Bao) -> None:
    one, two = node(on_start="refuse", start_s=0.5), node(name="two", on_start="serve")
    one.cli("create", "orders-pii")
    service.seal()
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
        service.unseal()
    eventually(lambda: two.put("/orders/1").status == 204, "keys after the start")


def test_a_rotation_by_schedule_is_made_once(node: Callable[..., Node], store: Store, service: Local | Bao) -> None:
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


def test_no_data_key_is_on_disk_or_in_what_is_told(node: Callable[..., Node], store: Store, service: Local | Bao, tmp_path: Path) -> None:
    one = node()
    one.cli("create", "orders-pii")
    wrapped = orjson.loads((tmp_path / "orders-pii.json").read_bytes())["keys"][0]["wrapped"]
    key = service.unwrap(wrapped, Binding("orders-pii", 1))
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
        assert open_value(_card(store.kept["/orders/1"]), key) == orjson.dumps(CARD)


def test_stored_values_move_on_while_they_pass(node: Callable[..., Node], store: Store, service: Local | Bao) -> None:
    """`rewrap: passing`: one who may not read carries an old value through, and it comes out under the primary version."""
    one = node(settle_s=0, rewrap="passing")
    one.cli("create", "orders-pii")
    with one.proxy:
        one.put("/orders/1")
        old = store.kept["/orders/1"]
        assert one.ask(get("/orders/1"), "audit").body == old
        one.cli("rotate", "orders-pii")
        eventually(lambda: one.keys()["seals_with"] == 2, "the rotation")
        mark = one.proxy.mark()
        passed = one.ask(get("/orders/1"), "audit").body
        assert (sealed_version(old), sealed_version(passed)) == (1, 2)
        record = one.proxy.decision_where(lambda record: record.get("fields"), "the record", mark)
        assert [(act["operation"], act["version"]) for act in record["fields"]] == [("rewrap", 2)]
        store.kept["/orders/1"] = passed
        one.cli("disable", "orders-pii", "--version", "1")
        eventually(lambda: one.keys()["opens"] == [2], "the disabled version")
        assert one.ask(get("/orders/1")).body == ORDER


def test_a_tenants_key_is_destroyed_while_others_go_on(node: Callable[..., Node], store: Store, service: Local | Bao) -> None:
    """F11, F12: a secret for each tenant; the destroyed one seals and opens nothing from now on, without a reload."""
    one = node()
    policy = one.proxy.directory / "policies" / "p.yaml"
    rules = yaml.safe_load(policy.read_text())
    acme = rules["fields"][0] | {"tenant": "acme"}
    globex = acme | {"id": "card-2", "paths": ["/globex/{id}"], "tenant": "globex"}
    policy.write_text(yaml.safe_dump(rules | {"fields": [acme, globex]}))
    one.cli("create", "orders-pii", "--tenancy", "own")
    for tenant in ("acme", "globex"):
        one.cli("create", "orders-pii", "--tenant", tenant)
    with one.proxy:
        for path in ("/orders/1", "/globex/1"):
            assert one.put(path).status == 204
            assert one.ask(get(path)).body == ORDER
        one.cli("destroy", "orders-pii", "--tenant", "acme", "--yes")
        eventually(lambda: one.ask(get("/orders/1")).status == 502, "the end of the tenant's key")
        assert one.put("/orders/2").status == 503
        assert one.ask(get("/globex/1")).body == ORDER


def test_a_read_only_keyset_seals_under_subkeys(mesh: Mesh, store: Store, tmp_path: Path) -> None:
    """A keyset in the clear on a mount that cannot be written: nothing is written beside it, and every start has a key of its own."""
    keys = tmp_path / "keys"
    keys.mkdir()
    subprocess.run(
        [sys.executable, "-m", "meshguard", "keys", "create", str(keys / "k.json"), "--name", "orders-pii"], check=True, cwd=ROOT
    )
    for name in ("k.json.uses", "k.json.lock"):
        (keys / name).unlink()
    salts = set()
    for number in range(2):
        (directory := tmp_path / str(number)).mkdir()
        config = {
            "identity": mesh.identity(directory),
            "listeners": {"inbound": {"tls": "mutual", "to": "app"}},
            "clusters": {"app": mesh.endpoints()},
            "keys": {"orders-pii": {"provider": "file", "path": str(keys / "k.json"), "subkeys": True}},
        }
        with Proxy(directory, config, policies=POLICY) as proxy:

            def ask(data: bytes, to: Proxy = proxy) -> Response:
                with RawClient(to.address("inbound"), mesh.client("billing")) as client:
                    return client.request(data)

            assert ask(get("/orders/1", method="PUT", fields=["Content-Type: application/json"], body=ORDER)).status == 204
            store.kept.setdefault("/orders/first", store.kept["/orders/1"])
            assert ask(get("/orders/first")).body == ORDER
            salts.add(header_of(_card(store.kept["/orders/1"]))["kid"])
    assert len(salts) == 2
    assert [path.name for path in keys.iterdir()] == ["k.json"]
