"""Destroyed keys on record: the proof of the command and the ledger of the node that let go of the key belong together (F12)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from meshguard.storage.shard_reader import ShardReader
from tests.harness.mesh import Mesh
from tests.harness.proxy import ROOT, Proxy, eventually

POLICY = {"p.yaml": {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}}


class Node:
    def __init__(self, directory: Path, mesh: Mesh) -> None:
        self.directory = directory
        (directory / "kek").write_bytes(os.urandom(32))
        (directory / "kek").chmod(0o600)
        (directory / "keys").mkdir(mode=0o700)
        keys = {
            "wrapped": {"provider": "file", "path": "keys/wrapped.json", "kek": "kek", "settle_s": 0},
            "clear": {"provider": "file", "path": "keys/clear.json"},
        }
        config = {
            "profile": "development",
            "identity": mesh.identity(directory),
            "listeners": {"default": {"tls": "mutual", "to": "app"}},
            "clusters": {"app": mesh.endpoints()},
            "ledger": {"directory": "ledger"},
            "keys": keys,
        }
        self.config = directory / "keys.yaml"
        self.config.write_text(
            yaml.safe_dump({**config, "listeners": {"default": {"address": "127.0.0.1:1", "to": "app"}}, "policies": ["p.yaml"]})
        )
        (directory / "p.yaml").write_text(yaml.safe_dump(POLICY["p.yaml"]))
        self.keys("create", "wrapped", "--tenancy", "own")
        self.keys("create", "wrapped", "--tenant", "acme")
        self.keys("create", "clear")
        self.proxy = Proxy(directory, config, policies=POLICY)

    def keys(self, command: str, name: str, *more: str) -> str:
        words = [sys.executable, "-m", "meshguard", "keys", command, name, "--config", str(self.config), *more]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def events(self, keyset: str) -> list[dict[str, Any]]:
        entries = [orjson.loads(entry) for _, entry in ShardReader(0, self.directory / "ledger" / "shard-0").entries()]
        return [entry["data"] for entry in entries if entry.get("event") == "keys" and entry["data"]["keyset"] == keyset]


@pytest.fixture(scope="module")
def node(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("record"), mesh)
    with made.proxy:
        yield made


def test_the_start_says_which_versions_there_are(node: Node) -> None:
    assert [event["versions"] for event in node.events("clear")] == [{"1": "primary"}]
    assert [event["versions"] for event in node.events("wrapped")] == [{"1": "primary"}]


def test_a_destroyed_version_and_tenant_are_on_record_with_the_digest_of_the_proof(node: Node) -> None:
    node.keys("rotate", "wrapped")
    node.keys("rewrap", "wrapped")
    node.keys("disable", "wrapped", "--version", "1")
    proofs = []
    for what in (("--version", "1"), ("--tenant", "acme")):
        path = node.directory / f"proof-{len(proofs)}.json"
        node.keys("destroy", "wrapped", *what, "--yes", "--proof", str(path))
        proofs.append(orjson.loads(path.read_bytes()))
        eventually(lambda: node.events("wrapped")[-1]["file_sha256"] == proofs[-1]["after_sha256"], "the event of the node")
        event = node.events("wrapped")[-1]
        assert event.get("destroyed", []) == proofs[-1].get("versions", [])
        assert event.get("tenants_destroyed", []) == proofs[-1].get("tenants", [])
    assert node.events("wrapped")[-1]["versions"] == {"1": "destroyed", "2": "primary"}


def test_a_keyset_in_the_clear_is_on_record_after_the_reload(node: Node) -> None:
    for command in (["rotate"], ["disable", "--version", "1"], ["destroy", "--version", "1", "--yes"]):
        node.keys(command[0], "clear", *command[1:])
    process = node.proxy.process
    assert process is not None
    os.kill(process.pid, signal.SIGHUP)
    eventually(lambda: node.events("clear")[-1].get("destroyed") == [1], "the event of the node")
