"""A node that takes its policy from signed bundles only: through the real process and the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from meshguard.integrity.bundle import Bundle, encode
from meshguard.integrity.dsse import load_private_key, sign
from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import ROOT, Proxy, eventually


def command(*arguments: Any, expect: int = 0) -> str:
    line = [sys.executable, "-m", "meshguard", "bundle", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


class Release:
    """A place where bundles are made: three keys, the first two of which a node trusts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("release", "security", "stranger"):
            key = ed25519.Ed25519PrivateKey.generate()
            pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            (directory / f"{name}.key").write_bytes(pem)
            spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            (directory / f"{name}.pub").write_bytes(key.public_key().public_bytes(*spki))

    def make(self, version: int, path: str, *signers: str, lasts_s: float = 3600.0, glass_s: float = 0.0) -> bytes:
        """A bundle that allows everyone `path` and nothing else; with `glass_s` a break-glass one."""
        text = yaml.safe_dump({"rules": [{"id": f"v{version}", "allow": "anyone", "paths": [path]}]})
        now = time.time()
        bundle = Bundle("shop", version, now, now + lasts_s, {"p.yaml": text})
        if glass_s:
            bundle = replace(bundle, reason="outage 4711", until=now + glass_s)
        envelope = encode(bundle)
        for signer in signers:
            envelope = sign(envelope, load_private_key((self.directory / f"{signer}.key").read_bytes()))
        return envelope.encode()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    (tmp_path / "release").mkdir()
    return Release(tmp_path / "release")


@pytest.fixture
def start(mesh: Mesh, tmp_path: Path, release: Release) -> Iterator[Callable[..., Proxy]]:
    running: list[Proxy] = []

    def make(**bundle: Any) -> Proxy:
        keys = ["release/release.pub", "release/security.pub"]
        config = {
            "identity": mesh.identity(tmp_path),
            "listeners": {"plain": {"to": "app", "tls": "none"}},
            "clusters": {"app": mesh.endpoints()},
            "bundle": {"keys": keys, "state": "state", **bundle},
            "drain_s": 1,
        }
        running.append(Proxy(tmp_path, config))
        return running[-1]

    yield make
    for proxy in running:
        proxy.stop()


def status(proxy: Proxy, path: str) -> int:
    with RawClient(proxy.address("plain")) as client:
        return client.request(get(path)).status


def put(proxy: Proxy, data: bytes) -> str:
    """Replaces the watched bundle; the line that tells what came of it."""
    since = len(proxy.stderr.items)
    fresh = proxy.directory / "bundle.new"
    fresh.write_bytes(data)
    fresh.replace(proxy.directory / "bundle.json")
    return proxy.wait_reloaded(since)


def test_only_signed_newer_whole_bundles_are_taken(start: Callable[..., Proxy], release: Release, tmp_path: Path) -> None:
    first = release.make(7, "/seven", "release")
    (tmp_path / "bundle.json").write_bytes(first)
    proxy = start(path="bundle.json").start()
    assert (status(proxy, "/seven"), status(proxy, "/eight")) == (200, 403)
    eighth = release.make(8, "/eight", "security")
    put(proxy, eighth)
    assert (status(proxy, "/seven"), status(proxy, "/eight")) == (403, 200)
    refused = {
        "rollback": first,
        "unsigned": release.make(9, "/nine"),
        "too_few": release.make(9, "/nine", "stranger"),
        "changed": release.make(8, "/nine", "release"),
        "malformed": release.make(9, "/nine", "release")[:-100],
        "expired": release.make(9, "/nine", "release", lasts_s=-1.0),
        "no bundle": b"rules: [{id: all, allow: anyone}]",
    }
    for why, data in refused.items():
        put(proxy, data)
        assert (status(proxy, "/nine"), status(proxy, "/eight")) == (403, 200), why
        assert "bundle" in json.loads(proxy.admin("/readyz")[1])["policy"]["reload_error"], why
    proxy.stop()
    (tmp_path / "bundle.json").write_bytes(first)
    proxy.start()
    assert (status(proxy, "/seven"), status(proxy, "/eight")) == (403, 200), "a restart does not go back"


def test_a_signed_bundle_whose_policy_is_wrong_keeps_the_last_one(start: Callable[..., Proxy], release: Release, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(release.make(1, "/one", "release"))
    proxy = start(path="bundle.json").start()
    key = load_private_key((tmp_path / "release/release.key").read_bytes())
    for text in ("rules: [{id: a, allow: nobody-known}]", "rules: [{id: a, allow: anyone, paths: ['${HOME}']}]", "rules: ["):
        broken = sign(encode(Bundle("shop", 2, 1.0, 4e9, {"a.yaml": text})), key)
        put(proxy, broken.encode())
        assert status(proxy, "/one") == 200
    proxy.stop()
    proxy.start()
    assert status(proxy, "/one") == 200


def test_break_glass_takes_two_and_ends_by_itself(start: Callable[..., Proxy], release: Release, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(release.make(5, "/five", "release"))
    proxy = start(path="bundle.json").start()
    put(proxy, release.make(1, "/glass", "release", glass_s=600))
    assert status(proxy, "/glass") == 403
    put(proxy, release.make(1, "/glass", "release", "security", glass_s=3))
    assert (status(proxy, "/glass"), status(proxy, "/five")) == (200, 403)
    assert "outage 4711" in proxy.stderr_text
    proxy.stderr.wait(lambda line: "break-glass ended" in line, "the end", deadline_s=10)
    assert (status(proxy, "/glass"), status(proxy, "/five")) == (403, 200)


def test_over_http_with_etags(start: Callable[..., Proxy], release: Release, tmp_path: Path) -> None:
    served: dict[str, Any] = {"data": release.make(1, "/one", "release", "security"), "asked": [], "status": 200}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            etag = f'"{hash(served["data"])}"'
            served["asked"].append(self.headers.get("if-none-match"))
            same = self.headers.get("if-none-match") == etag
            self.send_response(served["status"] if served["status"] != 200 else 304 if same else 200)
            self.send_header("etag", etag)
            self.end_headers()
            if not same and served["status"] == 200:
                self.wfile.write(served["data"])

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        proxy = start(url=f"http://127.0.0.1:{server.server_port}/shop.json", interval_s=0.2, threshold=2).start()
        assert status(proxy, "/one") == 200
        eventually(lambda: served["asked"][-1] is not None, "a conditional request")
        served["data"] = release.make(2, "/two", "release")
        eventually(lambda: b"unsigned" in proxy.admin("/readyz")[1], "the refusal")
        assert status(proxy, "/one") == 200
        served["data"] = release.make(2, "/two", "release", "security")
        eventually(lambda: status(proxy, "/two") == 200, "the second version", deadline_s=10)
        served["status"] = 500
        proxy.stop()
        proxy.start()
        assert (status(proxy, "/one"), status(proxy, "/two")) == (403, 200), "with the store away, what was kept"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_without_any_bundle_nothing_starts(start: Callable[..., Proxy]) -> None:
    proxy = start(path="bundle.json").start(ready=False)
    assert proxy.process is not None
    assert proxy.process.wait(15) == 1
    proxy.stderr.join()
    assert "bundle.json" in proxy.stderr_text


def test_what_is_built_has_passed_its_tests(release: Release, tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text("rules: [{id: a, allow: anyone, paths: [/a]}]\ntests: [{as: anyone, call: GET /b, expect: allow}]\n")
    assert "1 of 1 tests fail" in command("build", policy, "--name", "x", "--version", 1, "--out", tmp_path / "o.json", expect=1)
    assert not (tmp_path / "o.json").exists()
    policy.write_text("rules: [{id: a, allow: anyone, paths: [/a]}]\ntests: [{as: anyone, call: GET /a, expect: allow}]\n")
    out, key = tmp_path / "out.json", release.directory / "release.pub"
    command("build", policy, "--name", "shop", "--version", 3, "--out", out)
    command("sign", out, "--key", release.directory / "release.key")
    assert json.loads(command("verify", out, "--key", key, "--json"))["version"] == 3
    older = tmp_path / "older.json"
    older.write_bytes(release.make(2, "/x", "release"))
    assert "rollback" in command("verify", older, "--key", key, "--after", out, expect=1)
    command("push", out, tmp_path / "pushed.json")
    assert (tmp_path / "pushed.json").read_bytes() == out.read_bytes()
