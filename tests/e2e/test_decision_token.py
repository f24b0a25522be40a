"""The decision travels: three real proxies in a row, and everything that a thief or a liar in between may try."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from meshguard.identity.decision_token import Delegation, issue
from meshguard.identity.material import load_material
from meshguard.identity.signer import Signer
from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import now
from tests.harness.proxy import ROOT, Proxy

FIELD = "x-meshguard-decision"
ORDERS, BILLING, LEDGER = (SHOP + name for name in ("orders", "billing", "ledger"))
EVERYTHING = {"rules": [{"id": "all", "allow": "authenticated"}]}
LEDGER_RULES = {
    "rules": [
        {"id": "booked", "allow": "authenticated", "paths": ["/booked"], "chain": {"through": BILLING, "on_behalf_of": [ORDERS]}},
        {"id": "no-billing", "allow": "authenticated", "paths": ["/direct"], "chain": {"never_through": [BILLING]}},
        {"id": "open", "allow": "authenticated", "paths": ["/open"]},
    ]
}


def _identity(mesh: Mesh, directory: Path, service: str) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)
    mesh.service(service).write(directory, "svid")
    (directory / "shop.pem").write_bytes(mesh.ca.pem)
    return {
        "trust_domain": "shop.example",
        "files": {"certificate": "svid.pem", "key": "svid.key", "bundles": {"shop.example": "shop.pem"}},
    }


class Row:
    """orders -> billing -> ledger; the test is the application in each of them."""

    def __init__(self, orders: Proxy, billing: Proxy, ledger: Proxy, mesh: Mesh) -> None:
        self.orders, self.billing, self.ledger = orders, billing, ledger
        self.mesh = mesh

    def token(self) -> str:
        """What the upstream was given with the last request."""
        values: list[str] = [value for name, value in self.mesh.upstream.requests[-1].head.fields if name.lower() == FIELD]
        assert len(values) <= 1
        return values[0] if values else ""


@pytest.fixture(scope="module")
def row(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Row]:
    directory = tmp_path_factory.mktemp("row")
    app = {"app": mesh.endpoints()}

    def proxy(service: str, listeners: dict[str, Any], clusters: dict[str, Any], policy: dict[str, Any]) -> Proxy:
        here = directory / service
        config = {"identity": _identity(mesh, here, service), "listeners": listeners, "clusters": app | clusters}
        return Proxy(here, config, policies={"p.yaml": policy})

    def route(name: str, to: str, token: str) -> list[dict[str, Any]]:
        return [{"id": name, "to": to, "decision_token": token}]

    def to(other: Proxy, service: str, listener: str = "inbound") -> dict[str, Any]:
        return {"endpoints": [f"127.0.0.1:{other.ports[listener]}"], "tls": {"spiffe_id": SHOP + service}}

    outbound = {"tls": "none", "direction": "outbound"}
    ledger = proxy(
        "ledger",
        {
            "inbound": {"tls": "mutual", "decision_token": "accept", "routes": route("in", "app", "pass")},
            "strict": {"tls": "mutual", "engine": "reference", "decision_token": "require", "routes": route("strict", "app", "none")},
            "deaf": {"tls": "mutual", "to": "app"},
        },
        {},
        LEDGER_RULES,
    )
    billing = proxy(
        "billing",
        {
            "inbound": {"tls": "mutual", "decision_token": "require", "routes": route("in", "app", "pass")},
            "outbound": {**outbound, "decision_token": "accept", "routes": route("out", "ledger", "send")},
            "gateway": {"tls": "mutual", "decision_token": "accept", "routes": route("through", "ledger", "send")},
        },
        {"ledger": to(ledger, "ledger")},
        EVERYTHING,
    )
    orders = proxy(
        "orders",
        {
            "to-billing": {**outbound, "routes": route("out", "billing", "send")},
            "to-gateway": {**outbound, "routes": route("gate", "gateway", "send")},
            "to-ledger": {**outbound, "routes": route("direct", "ledger", "send")},
            "silent": {**outbound, "to": "billing"},
        },
        {"billing": to(billing, "billing"), "gateway": to(billing, "billing", "gateway"), "ledger": to(ledger, "ledger")},
        EVERYTHING,
    )
    with ExitStack() as stack:
        for each in (ledger, billing, orders):
            stack.enter_context(each)
        yield Row(orders, billing, ledger, mesh)


def _ask(proxy: Proxy, listener: str, path: str, *fields: str, who: Any = None) -> tuple[int, str]:
    """(status, code of the refusal)."""
    with RawClient(proxy.address(listener), who) as client:
        answer = client.request(get(path, fields=list(fields)))
    return answer.status, json.loads(answer.body)["code"] if answer.status >= 400 else ""


def test_the_chain_decides_at_the_end_of_it(row: Row) -> None:
    assert _ask(row.orders, "to-billing", "/open") == (200, "")
    received = row.token()  # the application of billing hands it on with its own call
    assert received
    since, before = row.ledger.mark(), row.billing.mark()
    assert _ask(row.billing, "outbound", "/booked", f"{FIELD}: {received}") == (200, "")
    assert row.token().count("~") == 1
    record = row.ledger.decision_where(lambda line: line.get("what", {}).get("path") == "/booked", "the record of /booked", since)
    assert record["who"]["chain"] == [ORDERS, BILLING]
    record = row.billing.decision_where(lambda line: line.get("what", {}).get("path") == "/booked", "the record of the call", before)
    assert record["who"]["chain"] == [ORDERS, BILLING]
    assert _ask(row.billing, "outbound", "/booked") == (403, "no_rule")  # without it billing calls for itself
    assert _ask(row.billing, "outbound", "/direct", f"{FIELD}: {received}") == (403, "no_rule")
    assert _ask(row.orders, "to-ledger", "/direct") == (200, "")
    assert _ask(row.orders, "to-ledger", "/booked") == (403, "no_rule")


def test_a_proxy_in_the_middle_adds_itself(row: Row) -> None:
    assert _ask(row.orders, "to-gateway", "/booked") == (200, "")
    assert row.token().count("~") == 1


def test_what_clients_say_is_cut(row: Row) -> None:
    for spelling in (FIELD, "X-Meshguard-Decision"):
        assert _ask(row.ledger, "deaf", "/open", f"{spelling}: forged", who=row.mesh.client("orders")) == (200, "")
        assert row.token() == ""
    assert _ask(row.orders, "silent", "/open", f"{FIELD}: forged") == (403, "decision_token_required")
    assert _ask(row.orders, "to-billing", "/open", f"{FIELD}: forged") == (200, "")  # this listener reads none: it signs its own
    assert "forged" not in row.token()


def _signer(mesh: Mesh, service: str) -> Signer:
    leaf = mesh.service(service)
    return Signer(load_material([leaf.der], leaf.key_pem))


def _made(mesh: Mesh, service: str, to: str, received: Delegation | None = None, at: float = 0.0) -> str:
    when = at or now().timestamp()
    return issue(_signer(mesh, service), audience=to, received=received, policy="p", decision="d", jti="j", now=when)


@pytest.mark.parametrize("listener", ["inbound", "strict"])
def test_attacks(row: Row, listener: str) -> None:
    mesh = row.mesh
    good = _made(mesh, "orders", LEDGER)

    def ask(value: str, who: str = "orders", path: str = "/open", *more: str) -> tuple[int, str]:
        return _ask(row.ledger, listener, path, f"{FIELD}: {value}", *more, who=mesh.client(who))

    assert ask(good) == (200, "")
    assert ask(good) == (200, "")  # remembered
    invalid = (403, "decision_token_invalid")
    assert ask(good, "billing") == invalid  # stolen: another workload's connection, also when it was seen before
    assert ask(good[:-4] + ("AAAA" if not good.endswith("AAAA") else "BBBB")) == invalid
    assert ask(_made(mesh, "orders", BILLING)) == invalid
    assert ask(_made(mesh, "orders", "spiffe://partner.example")) == invalid
    assert ask(_made(mesh, "orders", LEDGER, at=now().timestamp() - 70)) == invalid
    assert ask(_made(mesh, "orders", LEDGER, at=now().timestamp() + 70)) == invalid
    assert ask("") == invalid
    assert ask(good, "orders", "/open", f"{FIELD}: {good}") == invalid
    forged = Delegation((ORDERS,), 0.0, {}, _made(mesh, "billing", BILLING))  # billing says that orders had called it
    assert ask(_made(mesh, "billing", LEDGER, forged), "billing", "/booked") == invalid
    stripped = _made(mesh, "billing", LEDGER, Delegation((ORDERS,), 0.0, {}, _made(mesh, "orders", BILLING))).partition("~")[0]
    assert ask(stripped, "billing", "/booked") == invalid
    bare = _ask(row.ledger, listener, "/open", who=mesh.client("orders"))
    assert bare == ((200, "") if listener == "inbound" else (403, "decision_token_required"))


def test_configurations_that_promise_too_much_are_refused(row: Row, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "listeners": {
            "plain": {"address": "127.0.0.1:1", "tls": "none", "decision_token": "accept", "to": "app"},
            "other": {
                "address": "127.0.0.1:2",
                "tls": "none",
                "routes": [{"id": "a", "to": "app", "decision_token": "send"}, {"id": "b", "to": "app", "decision_token": "pass"}],
            },
        },
        "clusters": {"app": {"endpoints": ["127.0.0.1:3"]}},
        "policies": ["p.yaml"],
    }
    (tmp_path / "p.yaml").write_text(json.dumps(EVERYTHING))
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "meshguard", "check", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    for place in ("plain.decision_token", "routes[0].decision_token", "routes[1].decision_token"):
        assert place in done.stderr
