"""Identities of servers are judged while connections to them are open, as those of callers are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.e2e.test_outbound import files
from tests.harness.client import NoAnswer, RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import Authority, now, server_context
from tests.harness.proxy import Proxy, eventually
from tests.harness.strict import Truncated
from tests.harness.upstream import Exchange, Upstream


@pytest.fixture
def server(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with Upstream(server_context(mesh.service("ledger"), mesh.ca, tmp_path_factory.mktemp("ledger"))) as upstream:
        yield upstream


def start(mesh: Mesh, server: Upstream, directory: Any, crl: bytes, **more: Any) -> Proxy:
    identity = files(mesh, directory, "orders")
    (directory / "shop.crl").write_bytes(crl)
    identity["files"]["crls"] = ["shop.crl"]
    tls = {"spiffe_id": SHOP + "ledger"}
    config = {
        "identity": identity,
        "listeners": {name: {"tls": "none", "direction": "outbound", "to": name} for name in ("static", "dynamic")},
        "clusters": {
            "static": {"endpoints": [f"127.0.0.1:{server.port}"], "tls": tls},
            "dynamic": {
                "resolve": "dns",
                "tls": {"spiffe_id": SHOP + "{service}"},
                "destinations": {"address": f"127.0.0.1:{server.port}"},
            },
        },
        **more,
    }
    return Proxy(directory, config, policies={"p.yaml": {"rules": [{"id": "all", "allow": [SHOP + "orders"]}]}}).start()


async def endless(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun")
    await exchange.gone()


def _cut(client: RawClient) -> bool:
    """The answer under way ends before it is whole."""
    try:
        for _ in client.body():
            pass
    except Truncated:
        return True
    except NoAnswer:
        return False
    return False


@pytest.mark.parametrize("change", ["the revocation list grows too old", "the bundle changes"])
def test_what_is_open_ends_when_the_server_is_no_longer_trusted(change: str, mesh: Mesh, server: Upstream, directory: Any) -> None:
    old = change.startswith("the revocation")
    proxy = start(mesh, server, directory, mesh.ca.crl(next_update=now() + dt.timedelta(seconds=600)))
    try:
        with server.on("/stream", endless), RawClient(proxy.address("static")) as one, RawClient(proxy.address("dynamic")) as two:
            for client in (one, two):
                assert client.request(get("/whole", host="ledger")).status == 200  # its connection is idle afterwards
            streams = [RawClient(proxy.address(name)) for name in ("static", "dynamic")]
            for stream in streams:
                stream.send(get("/stream", host="ledger"), expect="GET")
                assert stream.head().status == 200
            # a look at what is trusted ends nothing, and leaves what is idle to the next request
            kept = [one.request(get("/whole", host="ledger")).json["connection"] for _ in range(2)]
            assert kept[0] == kept[1]
            assert "no longer good" not in proxy.stderr_text
            if old:
                (directory / "shop.crl").write_bytes(mesh.ca.crl(next_update=now() + dt.timedelta(seconds=3)))
            else:
                other = Authority("another root")
                (directory / "shop.crl").write_bytes(other.crl())
                (directory / "shop.pem").write_bytes(other.pem)
                other.service("orders").write(directory, "svid")
            for stream in streams:
                assert _cut(stream), change
                stream.close()
            eventually(lambda: proxy.metric("meshguard_cluster_connections") == 0, "the end of every connection")
            assert one.request(get("/whole", host="ledger")).problem["code"] == "upstream_tls_failed"
            assert "an upstream's identity is no longer good" in proxy.stderr_text
    finally:
        proxy.stop()


def test_a_quarantined_server_is_cut_off_and_comes_back(mesh: Mesh, server: Upstream, directory: Any) -> None:
    target = SHOP + "ledger"
    file = directory / "quarantine.json"

    def put(entries: list[dict[str, Any]]) -> None:
        fresh = directory / "quarantine.new"
        fresh.write_bytes(orjson.dumps({"quarantine": entries}))
        fresh.replace(file)

    put([])
    proxy = start(mesh, server, directory, mesh.ca.crl(), quarantine={"path": "quarantine.json"})
    try:
        with server.on("/stream", endless), RawClient(proxy.address("static")) as one, RawClient(proxy.address("dynamic")) as two:
            for client in (one, two):
                client.send(get("/stream", host="ledger"), expect="GET")
                assert client.head().status == 200
            put([{"target": target, "reason": "leak", "by": "test", "since": 1.0, "until": 0.0}])
            assert _cut(one)
            assert _cut(two)
        for name in ("static", "dynamic"):
            mark = server.mark()
            with RawClient(proxy.address(name)) as client:
                refused = client.request(get("/whole", host="ledger"))
            assert (refused.status, refused.problem["code"]) == (503, "upstream_quarantined")
            assert not server.since(mark)
        put([])

        def served() -> bool:
            with RawClient(proxy.address("static")) as client:
                return client.request(get("/whole", host="ledger")).status == 200

        eventually(served, "the way back")
    finally:
        proxy.stop()
