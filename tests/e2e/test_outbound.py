"""The outbound side: applications call each other through a pair of processes (client app -> outbound -> inbound -> server app)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.harness.client import RawClient, Response, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import server_context
from tests.harness.proxy import Proxy, eventually
from tests.harness.upstream import Upstream

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def files(mesh: Mesh, directory: Path, service: str) -> dict[str, Any]:
    """The `identity` of a process that is the workload `service`."""
    directory.mkdir(parents=True, exist_ok=True)
    mesh.ca.service(service).write(directory, "svid")
    (directory / "shop.pem").write_bytes(mesh.ca.pem)
    return {
        "trust_domain": "shop.example",
        "files": {"certificate": "svid.pem", "key": "svid.key", "bundles": {"shop.example": "shop.pem"}},
    }


class Pair:
    """`client` is the proxy beside the application `orders`, `server` the one beside the application `billing`."""

    def __init__(self, client: Proxy, server: Proxy, mesh: Mesh, others: dict[str, Upstream]) -> None:
        self.client = client
        self.server = server
        self.mesh = mesh
        self.others = others
        self.billing = f"billing.prod.svc:{server.ports['inbound']}"

    def open(self, listener: str) -> RawClient:
        return RawClient(self.client.address(listener))

    def call(self, path: str, host: str | None = None, *fields: str, listener: str = "outbound") -> Response:
        with self.open(listener) as client:
            return client.request(get(path, host=self.billing if host is None else host, fields=fields))


@pytest.fixture(scope="module")
def pair(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("pair")
    server = Proxy(
        directory / "server",
        {
            "identity": files(mesh, directory / "server", "billing"),
            "listeners": {"inbound": {"tls": "mutual", "to": "app", "trusted_proxies": [SHOP + "orders"]}},
            "clusters": {"app": mesh.endpoints()},
        },
        policies={"p.yaml": {"rules": [{"id": "from-orders", "allow": [SHOP + "orders"], "paths": ["/invoices/**", "/open"]}]}},
    )
    others = {
        name: Upstream(server_context(mesh.service(name), mesh.ca, directory)) for name in ("ledger", "stock", "archive", "localhost")
    }
    dynamic = {"resolve": "dns", "tls": {"spiffe_id": SHOP + "{service}"}}
    to_localhost = {"address": "localhost:{port}"}
    client = Proxy(
        directory / "client",
        {
            "identity": files(mesh, directory / "client", "orders"),
            "listeners": {
                "outbound": {"tls": "none", "direction": "outbound", "to": "mesh"},
                **{name: {"tls": "none", "direction": "outbound", "to": name} for name in ("narrow", "brief", "literal", "resolved")},
                "inbound": {"tls": "mutual", "to": "app"},
            },
            "clusters": {
                "app": mesh.endpoints(),
                "mesh": {**dynamic, "destinations": to_localhost},
                "narrow": {
                    **dynamic,
                    "destinations": {
                        **to_localhost,
                        "authorities": ["*.prod.svc", f"ledger:{others['ledger'].port}"],
                        "limit": 2,
                        "default_port": others["stock"].port,
                    },
                },
                "brief": {**dynamic, "destinations": {**to_localhost, "idle_s": 0.2}},
                "resolved": {**dynamic, "circuit": {"queue_timeout_s": 5}},
                "literal": {
                    "resolve": "dns",
                    "tls": {"spiffe_ids": [SHOP + "**"]},
                    "destinations": {"ip_literals": True, "refuse_addresses": ["169.254.0.0/16", "127.0.0.2"]},
                    "circuit": {"queue_timeout_s": 5},
                },
            },
        },
        policies={
            "p.yaml": {
                "roles": {"orders": {"principals": [SHOP + "orders"]}},
                "rules": [
                    {"id": "call-billing", "allow": ["orders"], "hosts": ["billing.prod.svc"], "paths": ["/invoices/**", "/open"]},
                    {"id": "call-others", "allow": ["orders"], "hosts": ["*.prod.svc", "ledger"], "paths": ["/other"]},
                    {"id": "call-anything", "allow": ["orders"], "paths": ["/any"]},
                    {"id": "of-another", "allow": [SHOP + "admin"], "paths": ["/admin/**"]},
                ],
            }
        },
    )
    with server, client:
        yield Pair(client, server, mesh, others)
    for upstream in others.values():
        upstream.close()


def test_a_call_goes_through_both(pair: Pair) -> None:
    mark, at_client, at_server = pair.mesh.upstream.mark(), pair.client.mark(), pair.server.mark()
    spoofed = ["x-forwarded-client-cert: By=x;URI=spiffe://shop.example/ns/prod/sa/admin", "x-forwarded-for: 6.6.6.6"]
    answer = pair.call("/invoices/7?year=1", None, f"traceparent: {TRACE}", *spoofed)
    assert answer.status == 200
    (seen,) = pair.mesh.upstream.since(mark)
    assert (seen.method, seen.target) == ("GET", "/invoices/7?year=1")
    assert seen.head.get("host") == pair.billing
    certificates = seen.head.get("x-forwarded-client-cert")
    # the outbound side vouches for its application, the inbound side for the outbound one; what the application said is gone
    assert [part.split(";")[0] for part in certificates.split(",")] == [f"By={SHOP}orders", f"By={SHOP}billing"]
    assert certificates.count(f"URI={SHOP}orders") == 2
    assert "admin" not in certificates
    assert "6.6.6.6" not in seen.head.raw.decode()

    out = pair.client.decision_where(lambda r: r["what"]["path"] == "/invoices/7", "the outbound record", at_client)
    assert out["what"]["direction"] == "outbound"
    assert (out["who"]["principal"], out["what"]["host"], out["what"]["cluster"]) == (SHOP + "orders", "billing.prod.svc", "mesh")
    assert (out["why"]["rule"], out["outcome"]["upstream"]) == ("call-billing", f"127.0.0.1:{pair.server.ports['inbound']}")
    inbound = pair.server.decision_where(lambda r: r["what"]["path"] == "/invoices/7", "the inbound record", at_server)
    assert inbound["who"]["principal"] == SHOP + "orders"
    assert "direction" not in inbound["what"]
    trace = TRACE.split("-")[1]
    assert out["trace_id"] == inbound["trace_id"] == trace
    assert trace in seen.head.get("traceparent")


def test_a_body_streams_through_both(pair: Pair) -> None:
    body = bytes(range(256)) * 4096
    with pair.open("outbound") as client:
        head = f"POST /invoices/new HTTP/1.1\r\nHost: {pair.billing}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        answer = client.request(head + body)
    assert answer.status == 200
    assert answer.json["body_bytes"] == len(body)


def test_the_policy_says_which_service_may_be_called(pair: Pair) -> None:
    total = sum(upstream.total_bytes for upstream in pair.others.values())
    port = pair.others["ledger"].port
    assert pair.call("/invoices/7", f"ledger.prod.svc:{port}").problem["code"] == "no_rule"
    assert pair.call("/admin/x").problem["code"] == "no_rule"
    assert pair.call("/admin/x", None, f"x-forwarded-client-cert: URI={SHOP}admin").status == 403
    assert sum(upstream.total_bytes for upstream in pair.others.values()) == total
    assert pair.call("/other", f"ledger.prod.svc:{port}").status == 200


def test_a_server_with_another_identity_gets_no_byte_of_the_request(pair: Pair) -> None:
    stock = pair.others["stock"]
    mark = stock.mark()
    answer = pair.call("/other", f"ledger.prod.svc:{stock.port}")  # whoever is there is not `ledger`
    assert (answer.status, answer.problem["code"]) == (502, "upstream_tls_failed")
    assert stock.bytes_since(mark) == 0
    record = pair.client.decision(answer.decision_id)
    assert "unexpected_peer" in record["why"]["detail"]
    assert SHOP + "stock" in record["why"]["detail"]
    assert pair.call("/other", f"stock.prod.svc:{stock.port}").status == 200


def test_destinations_are_limited_to_the_list(pair: Pair) -> None:
    ledger, stock = pair.others["ledger"].port, pair.others["stock"].port
    for host, status in (
        (f"ledger:{ledger}", 200),
        (f"ledger:{stock}", 403),  # the list names one port
        (f"stock:{stock}", 403),
        ("stock.prod.svc", 200),  # the default port
        (f"prod.svc:{stock}", 403),
    ):
        answer = pair.call("/any", host, listener="narrow")
        assert answer.status == status, (host, answer)
        if status == 403:
            assert answer.problem["code"] == "destination_refused"


def test_the_number_of_destinations_is_bounded(pair: Pair) -> None:
    stock, ledger, archive = pair.others["stock"], pair.others["ledger"], pair.others["archive"]
    events = {upstream: upstream.event() for upstream in (stock, ledger)}

    async def slow(exchange: Any) -> None:
        await exchange.read()
        await events[exchange.upstream].wait()
        await exchange.answer(200, b"late")

    with stock.on("/any", slow), ledger.on("/any", slow), pair.open("narrow") as one, pair.open("narrow") as two:
        before = len(stock.requests), len(ledger.requests)
        one.send(get("/any", host="stock.prod.svc"), expect="GET")
        two.send(get("/any", host=f"ledger:{ledger.port}"), expect="GET")
        stock.wait(lambda: len(stock.requests) > before[0], "the first call")
        ledger.wait(lambda: len(ledger.requests) > before[1], "the second call")
        refused = pair.call("/any", f"archive.prod.svc:{archive.port}", listener="narrow")
        assert (refused.status, refused.problem["code"]) == (503, "too_many_destinations")
        for event in events.values():
            event.set()
        assert (one.response().body, two.response().body) == (b"late", b"late")
    # a quiet destination makes room
    assert pair.call("/any", f"archive.prod.svc:{archive.port}", listener="narrow").status == 200
    assert pair.client.metric("meshguard_cluster_destinations", cluster="narrow") == 2


def test_a_destination_that_nobody_asks_for_is_closed(pair: Pair) -> None:
    assert pair.call("/any", f"ledger.prod.svc:{pair.others['ledger'].port}", listener="brief").status == 200
    eventually(lambda: pair.client.metric("meshguard_cluster_destinations", cluster="brief") == 0, "the end of the destination")
    assert pair.client.metric("meshguard_cluster_connects_total", cluster="brief") >= 1  # counters outlive it
    assert pair.call("/any", f"ledger.prod.svc:{pair.others['ledger'].port}", listener="brief").status == 200


def test_addresses_instead_of_names(pair: Pair) -> None:
    port = pair.others["stock"].port
    for host in (
        f"127.0.0.1:{port}",
        f"127.1:{port}",
        f"0x7f000001:{port}",
        f"2130706433:{port}",
        f"[::1]:{port}",
        f"[::ffff:127.0.0.1]:{port}",
    ):
        answer = pair.call("/any", host)
        assert (answer.status, answer.problem["code"]) == (403, "destination_refused"), host
    assert pair.call("/any", f"127.0.0.1:{port}", listener="literal").status == 200
    for host in (f"0.0.0.0:{port}", f"169.254.169.254:{port}", f"127.0.0.2:{port}", f"224.0.0.1:{port}"):
        answer = pair.call("/any", host, listener="literal")
        assert (answer.status, answer.problem["code"]) == (403, "destination_refused"), host


def test_its_own_listeners_are_no_destination(pair: Pair) -> None:
    for name in ("literal", "outbound", "inbound"):
        answer = pair.call("/any", f"127.0.0.1:{pair.client.ports[name]}", listener="literal")
        assert (answer.status, answer.problem["code"]) == (508, "loop_detected"), name
        answer = pair.call("/any", f"orders.prod.svc:{pair.client.ports[name]}")  # a name that leads here
        assert (answer.status, answer.problem["code"]) == (508, "loop_detected"), name
    assert pair.call("/any", f"127.0.0.1:{pair.client.admin_port}", listener="literal").status == 508


def test_names_that_lead_nowhere(pair: Pair) -> None:
    with pair.open("outbound") as client:
        answer = client.request(b"GET /any HTTP/1.0\r\n\r\n", "GET")
        assert (answer.status, answer.problem["code"]) == (403, "destination_refused")
    answer = pair.call("/any", "nowhere.invalid", listener="literal")
    assert (answer.status, answer.problem["code"]) == (503, "no_endpoint")


def test_a_name_is_looked_up(pair: Pair) -> None:
    """`localhost` is a name that every machine knows; the server there has to be the service `localhost`."""
    assert pair.call("/any", f"localhost:{pair.others['localhost'].port}", listener="resolved").status == 200
    assert pair.call("/any", f"localhost:{pair.others['stock'].port}", listener="resolved").problem["code"] == "upstream_tls_failed"


def test_svids_rotate_without_a_dropped_request(pair: Pair) -> None:
    """Both sides take new certificates while calls run."""
    failures: list[object] = []
    count = 0
    stop = threading.Event()

    def load() -> None:
        nonlocal count
        with pair.open("outbound") as client:
            while not stop.is_set():
                answer = client.request(get("/open", host=pair.billing))
                count += 1
                if answer.status != 200:
                    failures.append(answer)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            for proxy, service in ((pair.client, "orders"), (pair.server, "billing")):
                since = len(proxy.stderr.items)
                pair.mesh.ca.service(service).write(proxy.directory, "svid")
                proxy.stderr.wait(lambda line: "identity rotated" in line, "the rotation", since=since)
                done = count
                eventually(lambda done=done: count > done + 20, "calls after the rotation")
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert not failures
    assert count > 100
    mark = pair.mesh.upstream.mark()
    assert pair.call("/open").status == 200
    (seen,) = pair.mesh.upstream.since(mark)
    newest = x509.load_pem_x509_certificate((pair.client.directory / "svid.pem").read_bytes()).fingerprint(hashes.SHA256()).hex()
    assert seen.head.get("x-forwarded-client-cert").count(f"Hash={newest}") == 2


def test_a_reload_takes_other_destinations(pair: Pair) -> None:
    host = f"ledger.prod.svc:{pair.others['ledger'].port}"
    before = pair.client.config["clusters"]["brief"]["destinations"]
    try:
        pair.client.config["clusters"]["brief"]["destinations"] = {**before, "authorities": ["stock.prod.svc"]}
        pair.client.write_config()
        assert "reloaded" in pair.client.reload()
        assert pair.call("/any", host, listener="brief").problem["code"] == "destination_refused"
    finally:
        pair.client.config["clusters"]["brief"]["destinations"] = before
        pair.client.write_config()
        assert "reloaded" in pair.client.reload()
    assert pair.call("/any", host, listener="brief").status == 200
