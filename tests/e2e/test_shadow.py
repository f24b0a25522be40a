"""Shadows through the real process: a candidate policy, rules and field rules in shadow change nothing and are all in one report."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.client import RawClient, Response, chunked, get
from tests.harness.commands import meshguard
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually
from tests.harness.upstream import Exchange

CARD = "4111111111111111"
ORDER = b'{"id": 7, "payment": {"card": "' + CARD.encode() + b'"}}'
LINES = (b'{"card": "41111111', b'11111111"}\n{"card": "5500000000000004"}\n', b'{"card": 1')
LIVE = {
    "roles": {"billing": {"principals": [f"{SHOP}billing"]}},
    "rules": [
        {"id": "orders", "allow": "authenticated", "paths": ["/orders/**", "/lines"]},
        {"id": "no-delete", "deny": "anyone", "methods": ["DELETE"], "paths": ["/orders/**"], "shadow": True},
    ],
    "fields": [
        {
            "id": "card-next",
            "paths": ["/orders/{id}"],
            "on": "both",
            "select": "$.payment.card",
            "seal": "pii",
            "readers": {"billing": {"mask": "card"}},
            "mode": "shadow",
        },
        {"id": "trace-id", "paths": ["/orders/{id}"], "on": "response", "headers": "x-customer", "mask": "last4", "mode": "shadow"},
        {
            "id": "lines",
            "paths": ["/lines"],
            "on": "response",
            "select": "$.card",
            "mask": "card",
            "content_types": ["application/x-ndjson"],
            "mode": "shadow",
        },
    ],
}
NEXT = {
    "roles": {"billing": {"principals": [f"{SHOP}billing"]}},
    "rules": [
        {"id": "read", "allow": ["billing"], "methods": ["GET", "PUT"], "paths": ["/orders/{id}"]},
        {"id": "reports", "allow": ["billing"], "paths": ["/reports/**"]},
        {"id": "beta", "allow": ["billing"], "paths": ["/beta"], "headers": {"x-beta": "yes"}},
    ],
}


class Town:
    def __init__(self, proxy: Proxy, mesh: Mesh) -> None:
        self.proxy = proxy
        self.mesh = mesh

    def ask(self, data: bytes, who: str = "billing") -> Response:
        with RawClient(self.proxy.address("inbound"), self.mesh.client(who)) as client:
            return client.request(data, data.partition(b" ")[0].decode())

    def record(self, path: str) -> dict[str, Any]:
        what = f"the decision of {path}"
        record: dict[str, Any] = self.proxy.decision_where(lambda entry: entry.get("what", {}).get("path") == path, what)
        return record

    def report(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        out, _ = meshguard("shadow", "report", "--json", "--config", self.proxy.config_path, *arguments, expect=expect)
        told: dict[str, Any] = json.loads(out)
        return told


def rows(report: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["kind"], row["name"], row["effect"]): row for row in report["rows"]}


@pytest.fixture(scope="module", params=[1])
def town(request: pytest.FixtureRequest, mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    tmp_path = tmp_path_factory.mktemp("shadow")
    (tmp_path / "keys").mkdir(mode=0o700)
    keyset = tmp_path / "keys" / "pii.json"
    meshguard("keys", "create", keyset, "--name", "pii")
    config: dict[str, Any] = {
        "profile": "development",
        "identity": mesh.identity(tmp_path),
        "listeners": {"inbound": {"to": "app", "tls": "mutual"}},
        "clusters": {"app": mesh.endpoints()},
        "keys": {"pii": {"provider": "file", "path": "keys/pii.json"}},
        "ledger": {"directory": "ledger"},
        "shadow": {"policies": ["next/"]},
        "workers": request.param,
        "drain_s": 1,
    }
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "p.json").write_text(json.dumps(NEXT))
    running = Proxy(tmp_path, config, policies={"p.yaml": LIVE})
    config["admin"]["token_file"] = "admin.token"
    running.write_config()

    async def order(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.answer(200, ORDER, "Content-Type: application/json", "X-Customer: 123-45-6789", 'ETag: "7"')

    async def packed(exchange: Exchange) -> None:
        await exchange.answer(200, gzip.compress(ORDER), "Content-Type: application/json", "Content-Encoding: gzip")

    async def words(exchange: Exchange) -> None:
        await exchange.answer(200, b"no json", "Content-Type: text/plain")

    async def lines(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        await exchange.send(chunked(*LINES))

    scripts = {"/lines": lines, "/orders/7": order, "/orders/8": packed, "/orders/9": words}
    with contextlib.ExitStack() as stack:
        for path, script in scripts.items():
            stack.enter_context(mesh.upstream.on(path, script))
        stack.enter_context(running)
        yield Town(running, mesh)


@pytest.mark.parametrize("town", [1, 2], indirect=True, ids=["alone", "workers"])
def test_one_report_of_all_shadows_and_nothing_is_changed(town: Town) -> None:
    mark = town.mesh.upstream.mark()
    answer = town.ask(get("/orders/7", fields=("Accept-Encoding: br",)))
    assert (answer.status, answer.body, answer.get("etag"), answer.get("x-customer")) == (200, ORDER, '"7"', "123-45-6789")
    (seen,) = town.mesh.upstream.since(mark)
    assert seen.head.get("accept-encoding") == "br", "a rule in shadow does not ask for another representation"
    record = town.record("/orders/7")
    assert "candidate" not in record, "both policies allow it"
    told = {(act["operation"], act["field"]): act["count"] for act in record["fields"]}
    assert told == {("would_mask", "card-next"): 1, ("would_mask", "trace-id"): 1}
    assert town.ask(get("/orders/8")).status == 200
    assert {act["operation"] for act in town.record("/orders/8")["fields"]} == {"would_mask"}, "a coded body is looked into"
    assert town.ask(get("/orders/9")).body == b"no json"
    (refused,) = town.record("/orders/9")["fields"]
    assert (refused["operation"], refused["field"]) == ("would_refuse:body_not_inspectable", "card-next")
    assert town.ask(get("/orders/7/parts", method="DELETE")).status == 200
    deleted = town.record("/orders/7/parts")
    assert deleted["why"]["shadow"] == [{"effect": "would_deny", "rule": "no-delete"}]
    assert (deleted["candidate"]["effect"], deleted["candidate"]["reason"]) == ("would_deny", "no_rule")
    assert town.ask(get("/orders/10"), who="support").status == 200
    assert town.record("/orders/10")["candidate"]["effect"] == "would_deny"
    assert town.ask(get("/reports/q1")).status == 403
    assert town.record("/reports/q1")["candidate"]["rule"] == "reports"
    assert town.ask(get("/beta", fields=("X-Beta: yes",))).status == 403
    assert town.record("/beta")["candidate"]["effect"] == "would_allow", "a condition of the candidate is asked at each request"

    expected = {
        ("rule", "no-delete", "would_deny"),
        ("candidate", "no_rule", "would_deny"),
        ("candidate", "reports", "would_allow"),
        ("candidate", "beta", "would_allow"),
        ("field", "card-next", "would_mask"),
    }
    recorded = town.report()
    assert expected <= set(rows(recorded))
    row = rows(recorded)["candidate", "reports", "would_allow"]
    assert (row["count"], row["calls"]) == (1, [[f"{SHOP}billing", "GET", "/reports/q1", 1]])
    assert row["examples"] == [town.record("/reports/q1")["id"]]
    live = eventually(lambda: (told := town.report("--live")) and expected <= set(rows(told)) and told, "the counts of the node")
    assert rows(live)["candidate", "no_rule", "would_deny"]["count"] == 2
    assert live["candidate"]["rules"] == 3
    assert (live["compared"]["would_allow"], live["compared"]["would_deny"]) == (2, 2)
    assert town.proxy.metric("meshguard_shadow_candidate_total", effect="would_allow") == 2
    assert town.proxy.metric("meshguard_shadow_decisions_total", rule="no-delete", effect="would_deny") == 1
    town.report("--fail-on", "would_allow", expect=1)
    town.report("--path", "/orders/9", "--fail-on", "would_allow")


def test_a_request_body_passes_as_it_is(town: Town) -> None:
    for target, body in (("/orders/7", ORDER), ("/orders/7?chunks", chunked(ORDER[:9], ORDER[9:]))):
        mark = town.mesh.upstream.mark()
        framing = "Transfer-Encoding: chunked" if "chunks" in target else f"Content-Length: {len(body)}"
        town.ask(get(target, method="PUT", fields=("Content-Type: application/json", framing)) + body)
        (seen,) = town.mesh.upstream.since(mark)
        assert bytes(seen.body) == ORDER
    record = town.proxy.decision_where(lambda entry: entry.get("what", {}).get("method") == "PUT", "the decision")
    assert {(act["operation"], act.get("keyset")) for act in record["fields"] if act["field"] == "card-next"} >= {("would_seal", "pii")}


def test_a_stream_passes_as_it_comes_and_its_last_record_may_be_broken(town: Town) -> None:
    assert town.ask(get("/lines")).body == b"".join(LINES)
    acts = [(act["operation"], act["count"]) for act in town.record("/lines")["fields"]]
    assert acts == [("would_mask", 2), ("would_refuse:response_not_inspectable", 1)]


def test_a_candidate_that_is_wrong_never_touches_the_live_policy(town: Town) -> None:
    path = town.proxy.directory / "next" / "p.json"
    for text in ("{", json.dumps({"rules": [{"id": "x", "allow": ["nobody-known"]}]})):
        path.write_text(text)
        assert "reloaded" in town.proxy.reload(), "the rest of the change is taken"
        assert town.ask(get("/orders/10")).status == 200
        candidate = town.report("--live")["candidate"]
        assert candidate["policy_digest"] is None
        assert candidate["error"]
    path.unlink()
    assert "reloaded" in town.proxy.reload()
    assert town.ask(get("/orders/10")).status == 200
    path.write_text(json.dumps(NEXT))
    eventually(lambda: town.report("--live")["candidate"]["rules"] == 3, "the candidate that is mended")
    town.proxy.stop()
    path.write_text("{")
    town.proxy.start()
    assert town.ask(get("/orders/10")).status == 200
    assert "next/p.json" in meshguard("check", town.proxy.config_path, expect=1)[1], "check does say it"
