"""Instances of a fleet over a real NATS server: policy, quarantine and reports; a store that is away, slow, or lies."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import signal
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from meshguard.cli.fleet_store import fleet_of, with_store
from meshguard.cli.main import main
from meshguard.control.fleet.edit import change_set
from meshguard.integrity.bundle import Bundle
from meshguard.integrity.bundle import encode as encode_bundle
from meshguard.integrity.containment import ContainmentSet, Member
from meshguard.integrity.containment import encode as encode_set
from meshguard.integrity.dsse import sign
from meshguard.sources.nats_store import Entry, Store, StoreError
from tests.harness.client import RawClient, Truncated, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.nats import NatsServer, SlowPath, needs_nats
from tests.harness.ports import free_port
from tests.harness.proxy import ROOT, Proxy, eventually
from tests.harness.upstream import Exchange

pytestmark = needs_nats

POLICY = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}
BAD, GOOD = f"{SHOP}bad", f"{SHOP}good"
QUICK = {"retry_s": 0.05, "retry_max_s": 0.3, "check_s": 0.5, "answer_s": 1, "connect_s": 2, "heartbeat_s": 0.5, "stale_after_s": 4}


def run(*arguments: Any, expect: int | None = 0) -> str:
    """The real command line, in this process: what it wrote."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(argument) for argument in arguments])
    assert expect is None or code == expect, (code, out.getvalue())
    return out.getvalue()


class Signer:
    """A key pair in files."""

    def __init__(self, directory: Path, name: str) -> None:
        self.key = ed25519.Ed25519PrivateKey.generate()
        pem = self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.private, self.public = directory / f"{name}.key", directory / f"{name}.pub"
        self.private.write_bytes(pem)
        spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.public.write_bytes(self.key.public_key().public_bytes(*spki))

    def bundle(self, version: int, path: str) -> bytes:
        """Allows `path` to everyone with an identity, and nothing else."""
        text = yaml.safe_dump({"rules": [{"id": f"v{version}", "allow": "authenticated", "paths": [path]}]})
        now = time.time()
        return sign(encode_bundle(Bundle("shop", version, now, now + 3600, {"p.yaml": text})), self.key).encode()

    def quarantine(self, sequence: int, *targets: str, fleet: str = "prod", until: float = 0.0) -> bytes:
        members = tuple(Member(target, "test", "tester", 1.0, until) for target in targets)
        return sign(encode_set(ContainmentSet(fleet, sequence, 1.0, members)), self.key).encode()


class Fleet:
    """A store and the instances that a test starts."""

    def __init__(self, directory: Path, mesh: Mesh, server: NatsServer) -> None:
        self.directory = directory
        self.mesh = mesh
        self.server = server
        self.signer = Signer(directory, "security")
        self.stranger = Signer(directory, "stranger")
        self.nodes: list[Proxy] = []

    def section(self, **more: Any) -> dict[str, Any]:
        signers = {"signers": [str(self.signer.public)]}
        return {"name": "prod", "servers": [self.server.url], "state": "fleet", "quarantine": signers, **QUICK, **more}

    def node(self, name: str, *, start: bool = True, fleet: dict[str, Any] | None = None, **more: Any) -> Proxy:
        directory = self.directory / name
        directory.mkdir()
        config = {
            "identity": self.mesh.identity(directory),
            "listeners": {"inbound": {"to": "app", "tls": "mutual"}},
            "clusters": {"app": self.mesh.endpoints()},
            "fleet": self.section(instance=name, **(fleet or {})),
            "drain_s": 1,
            **more,
        }
        proxy = Proxy(directory, config, policies=None if "bundle" in more else {"p.yaml": POLICY})
        config["admin"]["token_file"] = "admin.token"
        proxy.write_config()
        self.nodes.append(proxy)
        return proxy.start() if start else proxy

    def operator(self, **more: Any) -> Path:
        """A document that an operator has on another machine: the `fleet` section alone."""
        path = self.directory / "operator.yaml"
        path.write_text(yaml.safe_dump({"fleet": self.section(**more)}))
        return path

    def command(self, *arguments: Any, expect: int = 0, config: Path | None = None) -> str:
        return run(*arguments, "--config", config or self.operator(), expect=expect)

    def status(self, *arguments: str, expect: int | None = 0) -> dict[str, Any]:
        return json.loads(run("fleet", "status", "--json", *arguments, "--config", self.operator(), expect=expect))

    def states(self) -> dict[str, str]:
        return {each["instance"]: each["state"] for each in self.status(expect=None)["instances"]}

    def store(self, work: Callable[[Store], Awaitable[Any]]) -> Any:
        return with_store(fleet_of(self.operator()), work)

    def client(self, node: Proxy, who: str) -> RawClient:
        return RawClient(node.address("inbound"), self.mesh.client(who))

    def get(self, node: Proxy, who: str, path: str = "/") -> int:
        with self.client(node, who) as client:
            try:
                return int(client.request(get(path)).status)
            except Truncated:
                return 403  # cut before its request

    def detail(self, node: Proxy) -> dict[str, Any]:
        return json.loads(node.admin("/readyz")[1])["fleet"]

    def until(self, node: Proxy, **wanted: Any) -> None:
        def there() -> bool:
            detail = self.detail(node)
            return all((detail | detail["quarantine"]).get(key) == value for key, value in wanted.items())

        eventually(there, f"{wanted} in the readiness detail", 10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as made:
        yield made


@pytest.fixture
def fleet(tmp_path: Path, mesh: Mesh, server: NatsServer) -> Iterator[Fleet]:
    made = Fleet(tmp_path, mesh, server)
    assert made.command("fleet", "init").count(": made") == 4
    yield made
    for node in made.nodes:
        node.stop()


def test_an_identity_is_cut_out_of_every_instance_by_one_signed_command(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    for node in (one, two):
        fleet.until(node, store="connected")

    async def endless(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbegun")
        await exchange.gone()

    with fleet.mesh.upstream.on("/stream", endless), fleet.client(two, "bad") as bad, fleet.client(two, "good") as good:
        for each in (bad, good):
            each.send(get("/stream"), expect="GET")
            assert each.head().status == 200
            assert next(each.body()) == b"begun"
        assert "signed changes only" in fleet.command("quarantine", "add", BAD, "--fleet", expect=1)
        assert "unsigned" in fleet.command("quarantine", "add", BAD, "--fleet", "--key", fleet.stranger.private, expect=1)
        key = ("--fleet", "--key", str(fleet.signer.private))
        told = fleet.command("quarantine", "add", BAD, *key, "--ttl", "1h", "--reason", "leaked key")
        assert "in force on 2 of 2 living instances" in told
        with pytest.raises(Truncated):
            list(bad.body())
        for node in (one, two):
            assert (fleet.get(node, "bad"), fleet.get(node, "good")) == (403, 200)
        assert good.sock.getpeername()
    assert "leaked key" in fleet.command("quarantine", "list", "--fleet")
    assert f"{BAD} (fleet)" in fleet.command("quarantine", "list", config=one.config_path)
    assert "not quarantined" in fleet.command("quarantine", "remove", BAD, config=one.config_path, expect=1), "a node cannot let it in"
    assert fleet.get(one, "bad") == 403
    fleet.command("quarantine", "remove", BAD, *key)
    assert (fleet.get(one, "bad"), fleet.get(two, "bad")) == (200, 200)
    fleet.command("quarantine", "add", BAD, *key, "--ttl", "2s")
    assert fleet.get(one, "bad") == 403
    eventually(lambda: fleet.get(one, "bad") == 200, "the end of what has an end")
    assert "quarantine of the fleet in force" in one.stderr_text


def test_a_lying_store_lets_nobody_in(fleet: Fleet) -> None:
    node = fleet.node("one", ledger={"directory": "ledger", "checkpoints": {"key": _ledger_key(fleet.directory)}})
    bucket, sign_set = "meshguard-quarantine", fleet.signer.quarantine
    fleet.server.put(bucket, "prod", sign_set(10, BAD))
    fleet.server.put(bucket, "prod", sign_set(20, BAD, f"{SHOP}worse"))
    fleet.until(node, sequence=20)
    lies = {
        "rollback": sign_set(10, BAD),
        "nobody": sign_set(19),
        "changed": sign_set(20),
        "unsigned": encode_set(ContainmentSet("prod", 30, 1.0, ())).encode(),
        "too_few": fleet.stranger.quarantine(30),
        "another fleet": sign_set(30, fleet="test"),
        "malformed": sign_set(30)[:-40],
    }
    for why, data in lies.items():
        refusals = node.metric("meshguard_fleet_quarantine_refused_total")
        fleet.server.put(bucket, "prod", data)
        eventually(lambda before=refusals: node.metric("meshguard_fleet_quarantine_refused_total") > before, f"the refusal of {why}")
        assert (fleet.get(node, "bad"), fleet.get(node, "worse"), fleet.get(node, "good")) == (403, 403, 200), why
        assert fleet.detail(node)["quarantine"]["refused"], why
    fleet.server.delete(bucket, "prod")
    eventually(lambda: "deleted" in fleet.detail(node)["quarantine"]["refused"], "the deletion on record")
    assert fleet.get(node, "bad") == 403
    told = fleet.command("quarantine", "add", GOOD, "--fleet", "--key", fleet.signer.private, expect=1)
    assert "restore" in told, "a new set would let in whoever the lost one held"
    assert fleet.status(expect=1)["problem"]
    kept = node.directory / "fleet" / "quarantine.json"
    assert "in force on 1 of 1" in fleet.command("quarantine", "restore", kept)
    eventually(lambda: fleet.states() == {"one": "current"}, "the end of the refusal in the status")
    assert fleet.status()["quarantine_sequence"] == 20
    node.stop()
    entries = b"".join(path.read_bytes() for path in (node.directory / "ledger").rglob("*.segment"))
    assert entries.count(b"fleet_quarantine_refused") >= len(lies) + 1


def test_without_the_store_the_last_known_set_holds_over_restarts(fleet: Fleet) -> None:
    node = fleet.node("one")
    fleet.server.put("meshguard-quarantine", "prod", fleet.signer.quarantine(5, BAD))
    fleet.until(node, sequence=5)
    kept = node.directory / "fleet" / "quarantine.json"
    eventually(kept.exists, "the set on disk")
    fleet.server.stop()
    fleet.until(node, store="away")
    assert node.admin("/readyz")[0] == 200, "an instance without the store serves"
    assert node.metric("meshguard_fleet_connected") == 0
    assert (fleet.get(node, "bad"), fleet.get(node, "good")) == (403, 200)
    node.stop()
    node.start()
    assert (fleet.get(node, "bad"), fleet.get(node, "good")) == (403, 200)
    node.stderr.wait(lambda line: "STORE IS AWAY" in line, "the warning")
    fleet.server.start()
    fleet.server.put("meshguard-quarantine", "prod", fleet.signer.quarantine(6, GOOD))
    fleet.until(node, store="connected", sequence=6)
    assert (fleet.get(node, "bad"), fleet.get(node, "good")) == (200, 403)
    node.stop()
    kept.write_bytes(kept.read_bytes()[:-30])
    node.start(ready=False)
    assert node.process is not None
    assert node.process.wait(15) == 1, "a damaged set does not start an instance that lets everybody in"


def test_a_store_that_hangs_or_is_slow_holds_nobody_up(fleet: Fleet) -> None:
    with SlowPath(fleet.server.port) as path:
        node = fleet.node("one", fleet={"servers": [f"nats://127.0.0.1:{path.port}"]})
        fleet.server.put("meshguard-quarantine", "prod", fleet.signer.quarantine(5, BAD))
        fleet.until(node, sequence=5)
        path.delay_s = 0.2
        fleet.server.put("meshguard-quarantine", "prod", fleet.signer.quarantine(6, BAD, GOOD))
        fleet.until(node, sequence=6)
        path.delay_s = 0.0
        fleet.server.pause()
        fleet.until(node, store="away")
        assert "slow" in fleet.detail(node)["error"]
        assert (fleet.get(node, "bad"), fleet.get(node, "third")) == (403, 200)
        fleet.server.resume()
        fleet.until(node, store="connected")


def test_policy_comes_from_the_store_and_only_goes_forward(fleet: Fleet) -> None:
    fleet.server.put("meshguard-bundles", "prod", fleet.signer.bundle(7, "/seven"))
    bundle = {"fleet": "prod", "keys": [str(fleet.signer.public)], "state": "state"}
    node = fleet.node("one", bundle=bundle)
    assert (fleet.get(node, "good", "/seven"), fleet.get(node, "good", "/eight")) == (200, 403)
    (fleet.directory / "eight.json").write_bytes(fleet.signer.bundle(8, "/eight"))
    fleet.command("bundle", "push", fleet.directory / "eight.json", "fleet:prod")
    eventually(lambda: fleet.get(node, "good", "/eight") == 200, "version 8")
    eventually(lambda: fleet.server.reports()["prod.one.0"]["bundle"]["version"] == 8, "the report of version 8")
    for why, data in {
        "rollback": fleet.signer.bundle(7, "/seven"),
        "too_few": fleet.stranger.bundle(9, "/nine"),
        "malformed": fleet.signer.bundle(9, "/nine")[:-50],
    }.items():
        since = len(node.stderr.items)
        fleet.server.put("meshguard-bundles", "prod", data)
        node.wait_reloaded(since)
        assert (fleet.get(node, "good", "/eight"), fleet.get(node, "good", "/seven")) == (200, 403), why
        assert fleet.get(node, "good", "/nine") == 403, why
    eventually(lambda: fleet.states() == {"one": "refusing"}, "the refusal in the status")
    fleet.server.delete("meshguard-bundles", "prod")
    node.stderr.wait(lambda line: "deleted from the store" in line, "the deletion on record")
    assert fleet.get(node, "good", "/eight") == 200
    fleet.server.stop()
    node.stop()
    node.start()
    assert (fleet.get(node, "good", "/eight"), fleet.get(node, "good", "/seven")) == (200, 403), "the kept bundle"


def test_the_status_tells_who_enforces_what(fleet: Fleet) -> None:
    one, two = fleet.node("one"), fleet.node("two")
    eventually(lambda: fleet.states() == {"one": "current", "two": "current"}, "both reports")
    seen = fleet.status("--expect", "one,two")
    digest = json.loads(one.admin("/snapshot")[1])["digest"]
    assert {each["enforces"]["policy"]["digest"] for each in seen["instances"]} == {digest}
    assert "absent" in fleet.command("fleet", "status", "--expect", "one,two,three", expect=1)
    two.write_policy("p.yaml", {"rules": [{"id": "other", "allow": "authenticated", "paths": ["/only"]}]})
    eventually(lambda: "differs" in fleet.states().values(), "another policy")
    two.process.kill()
    two.process.wait(5)
    eventually(lambda: fleet.states()["two"] == "stale", "the missing reports", 10)
    assert "stale" in fleet.command("fleet", "status", expect=1)
    fleet.command("fleet", "forget", "two")
    one.stop()
    assert fleet.states() == {"one": "stopped"}


def test_all_workers_of_an_instance_take_part(fleet: Fleet) -> None:
    fleet.server.put("meshguard-bundles", "prod", fleet.signer.bundle(1, "/one"))
    bundle = {"fleet": "prod", "keys": [str(fleet.signer.public)], "state": "state"}
    node = fleet.node("many", workers=2, bundle=bundle)
    eventually(lambda: set(fleet.server.reports()) == {"prod.many.0", "prod.many.1"}, "the reports of both workers", 10)
    fleet.until(node, store="connected")
    told = fleet.command("quarantine", "add", BAD, "--fleet", "--key", fleet.signer.private)
    assert "in force on 2 of 2" in told
    assert fleet.command("fleet", "init").count("there already") == 4
    assert {fleet.get(node, "bad", "/one") for _ in range(12)} == {403}
    fleet.server.put("meshguard-bundles", "prod", fleet.signer.bundle(2, "/two"))
    eventually(lambda: {each["bundle"]["version"] for each in fleet.server.reports().values()} == {2}, "version 2 in both", 10)
    assert {fleet.get(node, "good", "/two") for _ in range(12)} == {200}


def test_operators_at_the_same_moment_lose_nothing(fleet: Fleet) -> None:
    """Each builds on what the one before has written, whoever that is."""

    async def one(store: Store, number: int) -> None:
        config = fleet_of(fleet.operator()).config
        member = Member(f"{SHOP}w{number}", "", "", time.time())
        await change_set(store, config, lambda members: (*members, member), [fleet.signer.key], time.time())

    async def all_at_once(store: Store) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(one(store, number))

    fleet.store(all_at_once)
    listed = json.loads(fleet.command("quarantine", "list", "--fleet", "--json"))
    assert sorted(entry["target"] for entry in listed["quarantine"]) == [f"{SHOP}w{number}" for number in range(6)]


def _ledger_key(directory: Path) -> str:
    path = directory / "ledger.key"
    run("audit", "key", path)
    return str(path)


@pytest.fixture
def secure(tmp_path: Path, mesh: Mesh) -> Iterator[Callable[..., NatsServer]]:
    running: list[NatsServer] = []

    def make(authority: Any, **options: Any) -> NatsServer:
        running.append(NatsServer(tmp_path, authority=authority, **options).start())
        return running[-1]

    yield make
    for server in running:
        server.stop()


def test_mutual_tls_with_the_own_svid(tmp_path: Path, mesh: Mesh, secure: Callable[..., NatsServer]) -> None:
    server = secure(mesh.ca, port=free_port())
    context = mesh.context(mesh.service("operator"), name="operator")
    assert isinstance(context, ssl.SSLContext)
    server.make_buckets(tls=context, tls_hostname="localhost")
    fleet = Fleet(tmp_path, mesh, server)
    try:
        good = fleet.node("good", fleet={"tls": {"svid": True, "spiffe_id": f"{SHOP}nats"}})
        named = fleet.node("named", fleet={"tls": {"svid": True, "ca": "shop.pem"}})
        for node in (good, named):
            fleet.until(node, store="connected")
        wrong = fleet.node("wrong", fleet={"tls": {"svid": True, "spiffe_id": f"{SHOP}other"}})
        eventually(lambda: "was expected" in fleet.detail(wrong).get("error", ""), "the wrong SPIFFE ID refused")
        before = good.metric("meshguard_fleet_failures_total")
        mesh.ca.service("meshguard").write(good.directory, "svid")
        good.stderr.wait(lambda line: "identity rotated" in line, "the rotation")
        eventually(lambda: good.stderr_text.count("connected to the fleet's store") == 2, "a connection with the new certificate")
        assert good.metric("meshguard_fleet_failures_total") == before
        told = fleet.command("quarantine", "add", BAD, "--fleet", "--key", fleet.signer.private, config=good.config_path, expect=0)
        assert "in force on 2 of 2" in told
    finally:
        for node in fleet.nodes:
            node.stop()


def test_credentials_are_not_given_in_plaintext_to_what_was_to_be_tls(fleet: Fleet) -> None:
    password = fleet.directory / "password"
    password.write_text("planted-password-4711\n")
    login = {"user": "node", "password_file": str(password), "servers": [f"tls://localhost:{fleet.server.port}"]}
    node = fleet.node("one", fleet={**login, "tls": {"svid": True, "ca": "shop.pem"}})
    eventually(lambda: "does not speak TLS" in fleet.detail(node).get("error", ""), "the refusal")
    assert b"planted-password-4711" not in node.log_bytes


def test_a_ledger_that_was_cut_short_is_found_against_the_store(fleet: Fleet) -> None:
    checkpoints = {"key": _ledger_key(fleet.directory), "interval_s": 0.05, "publish_fleet": True}
    node = fleet.node("one", ledger={"directory": "ledger", "checkpoints": checkpoints}, fleet={"checkpoint_s": 0.05})
    assert fleet.get(node, "good") == 200

    def published() -> int:
        with contextlib.suppress(StoreError):
            _, (entry,) = fleet.store(lambda store: _checkpoints(store))
            return int(entry.value.decode().split("\n")[1])
        return 0

    eventually(lambda: published() >= 2, "a checkpoint in the store")
    ledger = node.directory / "ledger"
    shutil.copytree(ledger, fleet.directory / "early")
    early = published()
    for _ in range(3):
        assert fleet.get(node, "good") == 200
    eventually(lambda: published() >= early + 3, "newer checkpoints")
    node.stop()
    verify = ("audit", "verify", "--config", node.config_path, "--ledger", ledger)
    assert "good" in run(*verify, "--fleet")
    shutil.rmtree(ledger)
    shutil.copytree(fleet.directory / "early", ledger)
    assert "good" in run(*verify), "alone it looks whole"
    assert "NOT GOOD" in run(*verify, "--fleet", expect=1)
    held = published()
    node.start()
    node.stderr.wait(lambda line: "SMALLER THAN" in line, "the alarm")
    assert node.metric("meshguard_fleet_ledger_cut_short") == 1
    assert published() == held, "what proves it stays in the store"


async def _checkpoints(store: Store) -> tuple[str, list[Entry]]:
    bucket = await store.bucket("meshguard-checkpoints")
    found = await bucket.all("prod.>")
    if len(found) != 1:
        raise StoreError("missing", "not there yet")
    return bucket.name, found


def test_the_permissions_of_the_documentation_are_enough_and_no_more(tmp_path: Path, mesh: Mesh) -> None:
    text = (ROOT / "docs" / "fleet.md").read_text("utf-8")
    block = re.search(r"```nats\n(.*?)```", text, re.DOTALL)
    assert block is not None
    server = NatsServer(tmp_path, options=block[1])
    server.start(NODE_PASSWORD="node-secret", OPERATOR_PASSWORD="operator-secret")
    fleet = Fleet(tmp_path, mesh, server)
    for name in ("node", "operator"):
        (tmp_path / f"{name}.password").write_text(f"{name}-secret\n")
    as_node = {"user": "node-7", "password_file": str(tmp_path / "node.password")}
    as_operator = {"user": "operator", "password_file": str(tmp_path / "operator.password")}
    try:
        operator = fleet.operator(**as_operator)
        fleet.command("fleet", "init", config=operator)
        run_bundle = fleet.signer.bundle(1, "/one")
        (tmp_path / "one.json").write_bytes(run_bundle)
        fleet.command("bundle", "push", tmp_path / "one.json", "fleet:prod", config=operator)
        checkpoints = {"key": _ledger_key(tmp_path), "interval_s": 0.05, "publish_fleet": True}
        node = fleet.node(
            "node-7",
            bundle={"fleet": "prod", "keys": [str(fleet.signer.public)], "state": "state"},
            fleet={**as_node, "checkpoint_s": 0.05},
            ledger={"directory": "ledger", "checkpoints": checkpoints},
        )
        assert fleet.get(node, "good", "/one") == 200
        told = fleet.command("quarantine", "add", BAD, "--fleet", "--key", fleet.signer.private, config=operator)
        assert "in force on 1 of 1" in told
        verify = ("audit", "verify", "--fleet", "--config", node.config_path, "--ledger", node.directory / "ledger", "--json")
        eventually(lambda: '"good": true' in run(*verify, expect=None), "a checkpoint in the store")
        for bucket, key in (("meshguard-quarantine", "prod"), ("meshguard-bundles", "prod"), ("meshguard-instances", "prod.node-8.0")):
            at = f"$KV.{bucket}.{key}"
            with pytest.raises(TimeoutError):  # the server says nothing to who may not
                server.run(lambda stream, at=at: stream.publish(at, b"x", timeout=0.5), user="node-7", password="node-secret")
        assert fleet.detail(node)["store"] == "connected"
        told = fleet.command("quarantine", "remove", BAD, "--fleet", "--key", fleet.signer.private, expect=1, config=node.config_path)
        assert "refused" in told, "a node's own login changes nothing"
        assert fleet.get(node, "bad", "/one") == 403
        wrong = fleet.operator(user="node-7", password_file=str(tmp_path / "operator.password"))
        assert "refused" in fleet.command("fleet", "status", expect=1, config=wrong)
    finally:
        for node in fleet.nodes:
            node.stop()
        server.stop()


def test_a_rolling_restart_and_many_outages_leave_nothing_behind(fleet: Fleet) -> None:
    node = fleet.node("one")
    fleet.server.put("meshguard-quarantine", "prod", fleet.signer.quarantine(5, BAD))
    fleet.until(node, sequence=5)
    descriptors, tasks = node.descriptors(), node.metric("meshguard_process_tasks")
    for _ in range(6):
        connected = node.stderr_text.count("connected to the fleet's store")
        fleet.server.stop()
        fleet.until(node, store="away")
        fleet.server.start()
        eventually(lambda before=connected: node.stderr_text.count("connected to the fleet's store") > before, "the connection", 10)
    eventually(lambda: node.descriptors() <= descriptors + 2 and node.metric("meshguard_process_tasks") <= tasks + 2, "the end of the rest")
    old, boot = node.pid, fleet.server.reports()["prod.one.0"]["boot"]
    node.signal(signal.SIGUSR2)
    eventually(lambda: fleet.server.reports()["prod.one.0"]["boot"] != boot, "the report of the successor", 15)
    node.stderr.wait(lambda line: "draining" in line, "the end of the old process", 15)
    successor = int(re.search(r'"the new process serves".*?"pid":(\d+)', node.stderr_text)[1])  # type: ignore[index]
    try:
        assert node.process is not None
        node.process.wait(15)
        assert successor != old
        assert fleet.get(node, "bad") == 403
        assert fleet.states() == {"one": "current"}, "the last word of the old process does not hide the new one"
    finally:
        os.kill(successor, signal.SIGTERM)
