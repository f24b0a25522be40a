"""Redirected traffic, inside network namespaces: an application that knows nothing of the proxies calls another one.

namespace `client`: application (uid 65534) --> [rules] --> outbound proxy (uid 0, exempt) --> wire
namespace `server`: wire --> [rules] --> inbound proxy --> application
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_outbound import files
from tests.harness.client import RawClient, Response, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import ROOT, Proxy
from tests.harness.upstream import Upstream

NEW_NETWORK = 0x40000000  # CLONE_NEWNET, linux/sched.h
NOBODY = 65534
HERE, THERE = ("10.77.0.1", "fd77::1"), ("10.77.0.2", "fd77::2")
PORT = 8080

libc = ctypes.CDLL(None, use_errno=True)


def _can_capture() -> str:
    """Why these tests cannot run here; empty when they can."""
    missing = [name for name in ("nft", "ip", "unshare") if shutil.which(name) is None]
    if sys.platform != "linux" or missing:
        return f"{', '.join(missing) or 'Linux'} is missing"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    rules = """table inet probe {
        chain c { type nat hook output priority -100; tcp dport 1 redirect to :2; }
        chain d { type filter hook prerouting priority -150; tcp dport 1 tproxy ip to :2 meta mark set 1 accept; }
    }
    """
    done = subprocess.run(["unshare", "-n", "nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False, timeout=30)
    return f"the kernel does not take the rules: {done.stderr.strip()[:200]}" if done.returncode else ""


REASON = _can_capture()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


class Space:
    """A network namespace. Namespaces belong to threads: entering one moves this thread, and what it starts meanwhile."""

    def __init__(self) -> None:
        with _here() as back:
            if libc.unshare(NEW_NETWORK) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.holder = subprocess.Popen(["sleep", "600"])
            run("ip", "link", "set", "lo", "up")
            _enter(back)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        with _here() as back:
            _enter(self.descriptor)
            try:
                yield
            finally:
                _enter(back)

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()
        os.close(self.descriptor)


@contextlib.contextmanager
def _here() -> Iterator[int]:
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int) -> None:
    if libc.setns(descriptor, NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def user(number: int) -> Iterator[None]:
    """Sockets that this thread makes meanwhile belong to this user."""
    libc.setfsuid(number)
    try:
        yield
    finally:
        libc.setfsuid(0)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def capture(action: str, *arguments: str) -> str:
    return run(sys.executable, "-m", "meshguard", "capture", action, *arguments)


class Village:
    """Two machines on one wire, with their proxies and one application behind the server's."""

    def __init__(self, mode: str, mesh: Mesh, directory: Path) -> None:
        self.mode = mode
        self.client, self.server = Space(), Space()
        with self.client.inside():
            run("ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", str(self.server.holder.pid))
        for space, (v4, v6) in ((self.client, HERE), (self.server, THERE)):
            with space.inside():
                run("ip", "addr", "add", f"{v4}/24", "dev", "wire")
                run("ip", "addr", "add", f"{v6}/64", "dev", "wire", "nodad")
                run("ip", "link", "set", "wire", "up")
        with self.server.inside():
            self.application = Upstream()
            self.inbound = self._inbound(mesh, directory / "server")
        with self.client.inside():
            self.outbound = self._outbound(mesh, directory / "client")
        self.capture_client = ["--config", str(self.outbound.config_path), "--uid", "0", "--exclude-ports", "9999"]
        self.capture_server = ["--config", str(self.inbound.config_path), "--inbound-ports", str(PORT)]

    def _inbound(self, mesh: Mesh, directory: Path) -> Proxy:
        config: dict[str, Any] = {
            "identity": files(mesh, directory, "billing"),
            "listeners": {
                name: {"tls": "mutual", "to": "app", "capture": self.mode, "trusted_proxies": [SHOP + "orders"]} for name in ("v4", "v6")
            },
            "clusters": {"app": {"endpoints": [f"127.0.0.1:{self.application.port}"]}},
        }
        rules = [{"id": "from-orders", "allow": [SHOP + "orders"], "paths": ["/invoices/**"]}]
        proxy = Proxy(directory, config, policies={"p.yaml": {"rules": rules}})
        return self._readdress(proxy, "0.0.0.0", "[::]")

    def _outbound(self, mesh: Mesh, directory: Path) -> Proxy:
        config: dict[str, Any] = {
            "identity": files(mesh, directory, "orders"),
            "listeners": {name: {"tls": "none", "direction": "outbound", "to": "mesh", "capture": self.mode} for name in ("v4", "v6")},
            "clusters": {"mesh": {"resolve": "dns", "tls": {"spiffe_id": SHOP + "{service}"}, "destinations": {"original": True}}},
        }
        rules = [{"id": "call-billing", "allow": [SHOP + "orders"], "hosts": ["billing", "ledger"], "paths": ["/invoices/**"]}]
        proxy = Proxy(directory, config, policies={"p.yaml": {"rules": rules}})
        return self._readdress(proxy, "127.0.0.1", "[::1]")

    @staticmethod
    def _readdress(proxy: Proxy, v4: str, v6: str) -> Proxy:
        for name, host in (("v4", v4), ("v6", v6)):
            proxy.config["listeners"][name]["address"] = f"{host}:{proxy.ports[name]}"
        proxy.write_config()
        return proxy.start()

    def call(self, host: str, address: str = THERE[0], port: int = PORT, uid: int = NOBODY) -> Response:
        with self.client.inside(), user(uid), RawClient((address, port)) as client:
            return client.request(get("/invoices/7", host=host))

    def close(self) -> None:
        self.outbound.stop()
        self.inbound.stop()
        self.application.close()
        self.client.close()
        self.server.close()


@pytest.fixture(scope="module", params=["redirect", "tproxy"])
def village(request: pytest.FixtureRequest, mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Village]:
    made = Village(request.param, mesh, tmp_path_factory.mktemp(request.param))
    try:
        with made.client.inside():
            capture("apply", *made.capture_client)
        with made.server.inside():
            capture("apply", *made.capture_server)
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_a_call_of_an_application_that_knows_nothing(family: int, village: Village) -> None:
    mark, since = village.application.mark(), village.outbound.mark()
    assert village.call("billing", THERE[family]).status == 200
    (seen,) = village.application.since(mark)
    assert [part.split(";")[-1] for part in seen.head.get("x-forwarded-client-cert").split(",")] == [f"URI={SHOP}orders"] * 2
    record = village.outbound.decision_where(lambda r: r["what"]["path"] == "/invoices/7", "the record", since)
    address = f"[{THERE[1]}]" if family else THERE[0]
    assert record["outcome"]["upstream"] == f"{address}:{PORT}"  # where the application had connected to
    assert record["what"]["port"] == village.outbound.ports["v6" if family else "v4"]  # what rules name is the listener's port
    assert (record["who"]["address"], record["who"]["principal"]) == (HERE[family], SHOP + "orders")


def test_a_name_that_is_not_the_server_s(village: Village) -> None:
    """An application may send any Host to any address; what it gets is the service it names, or nothing."""
    mark = village.application.mark()
    answer = village.call("ledger")
    assert (answer.status, answer.problem["code"]) == (502, "upstream_tls_failed")
    assert village.call("admin").problem["code"] == "no_rule"
    assert village.application.since(mark) == []


def test_what_was_not_redirected_has_no_destination(village: Village) -> None:
    answer = village.call("billing", "127.0.0.1", village.outbound.ports["v4"])
    assert (answer.status, answer.problem["code"]) == (403, "destination_refused")


def test_the_proxy_itself_is_exempt_and_plaintext_does_not_get_in(village: Village) -> None:
    answer = village.call("billing", uid=0)  # goes past the outbound side, and is captured by the inbound one
    assert (answer.status, answer.problem["code"]) == (400, "plaintext_refused")


def test_what_is_left_alone_is_not_captured(village: Village) -> None:
    since = village.outbound.mark()
    with pytest.raises(ConnectionRefusedError):
        village.call("billing", port=9999)
    assert village.outbound.stdout.items[since:] == []


def test_rules_are_applied_once_and_removed_whole(village: Village) -> None:
    with village.client.inside():
        run("nft", "add", "table", "inet", "foreign")
        before = run("nft", "list", "table", "inet", "meshguard"), run("ip", "rule")
        capture("apply", *village.capture_client)
        assert (run("nft", "list", "table", "inet", "meshguard"), run("ip", "rule")) == before
        try:
            capture("remove")
            capture("remove")
            assert "meshguard" not in run("nft", "list", "ruleset")
            assert "foreign" in run("nft", "list", "ruleset")
            assert "fwmark" not in run("ip", "rule") + run("ip", "-6", "rule")
            assert village.call("billing").problem["code"] == "plaintext_refused"  # straight to the server's side
        finally:
            capture("apply", *village.capture_client)
            run("nft", "delete", "table", "inet", "foreign")
    assert village.call("billing").status == 200


def test_print_changes_nothing(village: Village) -> None:
    with village.client.inside():
        before = run("nft", "list", "ruleset")
        text = capture("print", *village.capture_client)
        assert run("nft", "list", "ruleset") == before
    assert "table inet meshguard {" in text
    assert f":{village.outbound.ports['v4']}" in text


def test_rules_without_an_exempt_proxy_are_refused(village: Village) -> None:
    for arguments in (["--config", str(village.outbound.config_path)], ["--config", str(village.inbound.config_path)]):
        done = subprocess.run(
            [sys.executable, "-m", "meshguard", "capture", "print", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 1
        assert "expected" in done.stderr
