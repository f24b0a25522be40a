"""The ledger through the real process: what is on record, before which octet, and what happens when the disk is full."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from meshguard.ledger.entries import is_canonical
from meshguard.storage.shard_reader import ShardReader
from tests.harness.client import RawClient, Response, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import ROOT, Proxy, eventually
from tests.harness.upstream import Exchange, raw

SECRET = "planted-77aa-4929"
POLICY = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/open/**", "/stream"]}]}


class Town:
    """One process with a ledger."""

    def __init__(self, directory: Path, **ledger: Any) -> None:
        self.mesh = Mesh(directory)
        self.directory = directory / "ledger"
        config = {
            "profile": "development",
            "identity": self.mesh.identity(directory),
            "listeners": {"default": {"tls": "mutual", "to": "app"}},
            "clusters": {"app": self.mesh.endpoints()},
            "ledger": {"directory": "ledger", **ledger},
        }
        self.proxy = Proxy(directory, config, policies={"p.yaml": POLICY})

    def dial(self) -> RawClient:
        return RawClient(self.proxy.address("default"), self.mesh.client("billing"))

    def ask(self, target: str, **more: Any) -> Response:
        with self.dial() as client:
            return client.request(get(target, **more))

    def raw_entries(self) -> list[bytes]:
        return [entry for _, entry in ShardReader(0, self.directory / "shard-0").entries()]

    def entries(self) -> list[dict[str, Any]]:
        return [orjson.loads(entry) for entry in self.raw_entries()]

    def decisions(self, path: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries() if entry.get("what", {}).get("path") == path]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [entry["data"] for entry in self.entries() if entry.get("event") == name]

    def audit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "meshguard", "audit", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    made = Town(tmp_path_factory.mktemp("ledger"))
    with made.proxy:
        yield made
    made.mesh.close()


def test_an_answer_that_was_received_is_in_the_ledger(town: Town) -> None:
    """At once: no waiting here, the entry was written before the answer."""
    with town.dial() as client:
        for number in range(50):
            assert client.request(get(f"/open/at-once/{number}?token={SECRET}")).status == 200
            ((entry),) = town.decisions(f"/open/at-once/{number}")
    assert entry["schema"] == "meshguard.decision/1"
    assert entry["who"]["principal"] == SHOP + "billing"
    assert set(entry["who"]["svid"]) == {"serial", "thumbprint", "trust_domain"}
    assert (entry["why"]["verdict"], entry["why"]["rule"], entry["outcome"]["status"]) == ("allow", "all", 200)
    assert entry["why"]["policy_digest"].startswith("sha256:")
    assert town.proxy.decision(entry["id"]) == {key: value for key, value in entry.items() if key != "at"}


def test_denials_and_broken_requests_are_on_record(town: Town) -> None:
    assert town.ask("/admin/x").status == 403
    (denied,) = town.decisions("/admin/x")
    assert (denied["why"]["reason"], denied["why"]["near_miss"]["rule"]) == ("no_rule", "all")
    before = len(town.entries())
    with town.dial() as client:
        client.send(b"GET /open/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert client.response().status == 400
    assert [entry["outcome"]["status"] for entry in town.entries()[before:]] == [400]


def test_a_streamed_answer_is_on_record_before_its_head_and_at_its_end(town: Town) -> None:
    event = town.mesh.upstream.event()

    async def slow(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await event.wait()
        await exchange.send(b"world")

    with town.mesh.upstream.on("/stream", slow), town.dial() as client:
        client.send(get("/stream"), expect="GET")
        head = client.head()
        assert head.status == 200
        ((begun),) = town.decisions("/stream")
        assert begun["begun"] is True
        assert begun["outcome"]["status"] == 200
        event.set()
        assert b"".join(client.body()) == b"helloworld"
        eventually(lambda: len(town.decisions("/stream")) == 2, "the end of the stream on record")
    whole = town.decisions("/stream")[1]
    assert "begun" not in whole
    assert whole["id"] == begun["id"]
    assert whole["outcome"]["duration_us"] > 0
    assert whole["what"]["response_bytes"] == 10


def test_every_entry_is_canonical_and_tells_no_secret(town: Town) -> None:
    town.ask(f"/open/%22,%22forged%22:1?card={SECRET}", fields=[f"Authorization: Bearer {SECRET}", f"X-A: {SECRET}"])
    town.ask("/open/" + "x" * 5000)
    entries = town.raw_entries()
    assert [entry for entry in entries if not is_canonical(entry)] == []
    assert SECRET.encode() not in b"".join(entries)
    assert b"\n" not in b"".join(entries)
    assert max(map(len, entries)) < 6000
    assert not [entry for entry in town.entries() if "forged" in entry]


def test_a_change_of_policy_is_on_record(town: Town) -> None:
    before = town.events("policy")
    assert len(before) == 1
    town.proxy.write_policy("p.yaml", {"rules": [*POLICY["rules"], {"id": "more", "allow": "authenticated", "paths": ["/more"]}]})
    town.proxy.reload()
    eventually(lambda: len(town.events("policy")) == 2, "the new policy on record")
    assert town.events("policy")[1]["digest"] != before[0]["digest"]
    assert town.events("identity")[0]["spiffe_id"] == SHOP + "meshguard"


def test_a_second_process_is_refused(town: Town) -> None:
    command = [sys.executable, "-m", "meshguard", "serve", "--config", str(town.proxy.config_path)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert f"process {town.proxy.pid} has this ledger" in second.stderr


def test_the_running_ledger_verifies_and_proves(town: Town, tmp_path: Path) -> None:
    town.ask("/open/proved")
    (entry,) = town.decisions("/open/proved")
    directory = str(town.directory)
    checked = town.audit("verify", "--ledger", directory, "--json")
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["good"] is True
    proof = tmp_path / "proof.json"

    def proved() -> bool:
        made = town.audit("prove", entry["id"], "--ledger", directory)
        proof.write_text(made.stdout)
        return made.returncode == 0

    eventually(proved, "a checkpoint over the entry", 10)
    key = str(town.directory / "checkpoint.pub")
    assert town.audit("verify-proof", str(proof), "--key", key).returncode == 0
    document = json.loads(proof.read_text())
    document["entry"] = document["entry"].replace("/open/proved", "/open/forged")
    proof.write_text(json.dumps(document))
    forged = town.audit("verify-proof", str(proof), "--key", key)
    assert forged.returncode == 1
    assert "another root" in forged.stderr


def test_request_durability_through_a_restart(tmp_path: Path) -> None:
    town = Town(tmp_path, durability="request", checkpoints={"publish_file": "published"})
    big = b"x" * 300_000
    with town.mesh.upstream.on("/stream", raw([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(big), big])):
        with town.proxy, town.dial() as client:
            client.send(b"".join(get(f"/open/p/{number}") for number in range(20)), expect=["GET"] * 20)  # pipelined
            assert [client.response().status for _ in range(20)] == [200] * 20
            assert client.request(get("/stream")).body == big
            answer = client.request(get("/open/last", fields=["Connection: close"]))
            assert answer.status == 200
            client.assert_closed()
        held = tmp_path / "published.shard-0"
        assert town.audit("verify", "--ledger", str(town.directory), "--checkpoint", str(held)).returncode == 0
        with town.proxy:
            assert town.ask("/open/again").status == 200
    assert [data["size"] > 20 for data in town.events("start")] == [False, True]
    assert town.entries()[-1]["event"] == "stop"
    assert town.audit("verify", "--ledger", str(town.directory), "--checkpoint", str(held)).returncode == 0
    town.mesh.close()


def test_a_full_disk_lets_no_unlogged_answer_out(tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk's: the same errors, without mounting anything."""
    town = Town(tmp_path, on_failure="refuse", sync_s=0.02)
    with town.proxy, town.dial() as client:
        assert client.request(get("/open/first")).status == 200
        size = (town.directory / "shard-0" / f"{0:020d}.segment").stat().st_size
        resource.prlimit(town.proxy.pid, resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
        answered = 1
        while (answer := client.request(get(f"/open/full/{answered}"))).status == 200:
            answered += 1
            assert answered < 200
        assert answer.status == 503
        assert answer.problem["type"].endswith("ledger_unavailable")
        mark = town.mesh.upstream.mark()
        assert town.ask("/open/refused").status == 503
        assert town.mesh.upstream.since(mark) == []
        assert town.proxy.metric("meshguard_ledger_state") == 2
        resource.prlimit(town.proxy.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        eventually(lambda: town.ask("/open/after").status == 200, "recovery")
    decisions = [entry for entry in town.entries() if entry.get("what", {}).get("path", "").startswith("/open/f")]
    assert len(decisions) == answered
    assert town.events("recovered")[0]["refused"] >= 1
    assert town.audit("verify", "--ledger", str(town.directory)).returncode == 0
    town.mesh.close()


def test_it_starts_on_no_damaged_ledger(tmp_path: Path) -> None:
    town = Town(tmp_path)
    with town.proxy:
        for number in range(10):
            assert town.ask(f"/open/{number}").status == 200
    path = town.directory / "shard-0" / f"{0:020d}.segment"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"/open/5", b"/open/6"))
    command = [sys.executable, "-m", "meshguard", "serve", "--config", str(town.proxy.config_path)]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 1
    assert "is damaged" in refused.stderr
    found = town.audit("verify", "--ledger", str(town.directory))
    assert found.returncode == 1
    assert "edited: entry 8" in found.stdout
    town.mesh.close()


def test_strict_needs_a_key_that_somebody_made(tmp_path: Path) -> None:
    town = Town(tmp_path, checkpoints={"key": "checkpoint.key"})
    made = town.audit("key", str(tmp_path / "checkpoint.key"), "--trust-domain", "shop.example")
    assert made.returncode == 0
    assert made.stdout.startswith("shop.example/meshguard/")
    assert (tmp_path / "checkpoint.key").stat().st_mode & 0o777 == 0o600
    assert town.audit("key", str(tmp_path / "checkpoint.key")).returncode == 1
    with town.proxy:
        assert town.ask("/open/1").status == 200
    assert (town.directory / "checkpoint.pub").read_text().strip() == made.stdout.strip()
    town.proxy.config["profile"] = "strict"
    del town.proxy.config["ledger"]["checkpoints"]
    town.proxy.write_config()
    command = [sys.executable, "-m", "meshguard", "check", str(town.proxy.config_path)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert told.returncode == 1
    assert "ledger.checkpoints.key" in told.stdout + told.stderr
    town.mesh.close()
