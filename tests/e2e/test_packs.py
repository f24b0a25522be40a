"""Control packs through the real command line and the real process: findings with places, and controls cited in decision records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.client import RawClient, get
from tests.harness.commands import meshguard
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy

SOUND = {
    "roles": {"billing": {"principals": [f"{SHOP}billing"]}},
    "rules": [{"id": "read", "allow": ["billing"], "methods": ["GET"], "paths": ["/orders/{id}"]}],
}
WIDE = {
    "roles": {"shop": {"principals": ["spiffe://shop.example/**"]}},
    "rules": [
        {"id": "read", "allow": ["shop"], "methods": ["GET"], "paths": ["/orders/{id}"]},
        {"id": "public", "allow": "anyone", "paths": ["/public/**"]},
    ],
}


def check(*arguments: str | Path, expect: int) -> str:
    return meshguard("check", *arguments, expect=expect)[0]


def statuses(text: str) -> dict[str, str]:
    return {control["control"]: control["status"] for control in json.loads(text)["controls"]}


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("packs")
    config = {
        "profile": "development",
        "identity": mesh.identity(directory),
        "listeners": {"inbound": {"to": "app", "tls": "mutual"}, "plain": {"to": "app", "tls": "none"}},
        "clusters": {"app": mesh.endpoints()},
        "ledger": {"directory": "ledger"},
        "packs": ["pci-dss-4.0", "mesh-hardening"],
        "drain_s": 1,
    }
    with Proxy(directory, config, policies={"p.yaml": WIDE}) as running:
        yield running


def test_a_sound_policy_and_a_wide_one_differ_in_the_findings_and_their_places(tmp_path: Path) -> None:
    sound, wide = tmp_path / "sound.yaml", tmp_path / "wide.yaml"
    sound.write_text(yaml.safe_dump(SOUND))
    wide.write_text(yaml.safe_dump(WIDE))
    assert "violated" not in statuses(check("--pack", "pci-dss-4.0", "--format", "json", sound, expect=0)).values()
    found = check("--pack", "pci-dss-4.0", "--format", "json", wide, expect=1)
    status = statuses(found)
    violated = {"7.2.1", "7.2.2", "7.2.5", "8.2.1", "8.2.2"}
    assert {control for control, state in status.items() if state == "violated"} == {f"pci-dss-4.0/{each}" for each in violated}
    assert status["pci-dss-4.0/7.3.3"] == "satisfied", "an open path is wide, but the default is still to deny"
    assert status["pci-dss-4.0/10.2.1"] == "not_assessed", "of a policy alone nothing is said about the ledger"
    (anonymous,) = next(each["findings"] for each in json.loads(found)["controls"] if each["control"].endswith("/8.2.1"))
    line = next(number for number, text in enumerate(wide.read_text().split("\n"), 1) if "anyone" in text)
    assert (anonymous["line"], anonymous["path"]) == (line, "rules[1].allow")


def test_a_rule_that_allows_everything_undoes_the_default(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}))
    assert statuses(check("--pack", "nist-sp-800-207", "--format", "json", path, expect=1))["nist-sp-800-207/tenet-6"] == "violated"


def test_findings_as_sarif_and_annotations(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(WIDE))
    sarif = json.loads(check("--pack", "mesh-hardening", "--format", "sarif", path, expect=1))
    (run,) = sarif["runs"]
    assert sarif["version"] == "2.1.0"
    failed = [result for result in run["results"] if result["kind"] == "fail"]
    assert {result["ruleId"] for result in failed} == {"mesh-hardening/3.2", "mesh-hardening/3.3", "mesh-hardening/3.4"}
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert (result["level"] == "error") is (result["kind"] == "fail")
    place = failed[0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == path.as_uri()
    assert place["region"]["startLine"] > 1
    assert f"::error file={path},line=" in check("--pack", "mesh-hardening", "--format", "github", path, expect=1)


def test_packs_are_listed_and_unknown_ones_refused(tmp_path: Path) -> None:
    listed = check("--pack", "list", expect=0)
    assert all(name in listed for name in ("pci-dss-4.0", "nist-sp-800-207", "mesh-hardening", "7.3.3", "tenet-2"))
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(SOUND))
    check("--pack", "pci-dss-3", path, expect=2)


def test_unused_permissions_are_found_in_recorded_calls(tmp_path: Path) -> None:
    path, log = tmp_path / "p.yaml", tmp_path / "decisions.jsonl"
    rules = [*SOUND["rules"], {"id": "write", "allow": ["billing"], "methods": ["POST"], "paths": ["/orders"]}]
    path.write_text(yaml.safe_dump({**SOUND, "rules": rules}))
    call = {"who": {"principal": f"{SHOP}billing"}, "what": {"method": "GET", "path": "/orders/7", "host": "x"}}
    log.write_text(json.dumps(call) + "\n")
    found = check("--pack", "mesh-hardening", "--observed", log, "--format", "json", path, expect=1)
    (finding,) = next(each["findings"] for each in json.loads(found)["controls"] if each["control"] == "mesh-hardening/3.5")
    assert (finding["path"], finding["value"]) == ("rules[1]", f"{SHOP}billing POST /orders")


def test_account_numbers_in_a_contract_need_a_field_rule(tmp_path: Path, mesh: Mesh) -> None:
    schema = {"type": "object", "properties": {"cardNumber": {"type": "string"}}}
    body = {"content": {"application/json": {"schema": schema}}}
    operation = {"requestBody": body, "responses": {"200": {"description": "ok"}}}
    api = {"openapi": "3.1.0", "info": {"title": "x", "version": "1"}, "paths": {"/orders": {"post": operation}}}
    (tmp_path / "api.yaml").write_text(yaml.safe_dump(api))
    listener = {"to": "app", "tls": "mutual", "address": "127.0.0.1:18443", "validation": {"openapi": "api.yaml"}}
    config = {
        "identity": mesh.identity(tmp_path),
        "listeners": {"in": listener},
        "clusters": {"app": mesh.endpoints()},
        "policies": ["p.yaml"],
    }
    (tmp_path / "meshguard.yaml").write_text(yaml.safe_dump(config))

    def judged(*fields: dict[str, Any]) -> tuple[str, str]:
        (tmp_path / "p.yaml").write_text(yaml.safe_dump({**SOUND, "fields": list(fields)}))
        status = statuses(check("--pack", "pci-dss-4.0", "--format", "json", tmp_path / "meshguard.yaml", expect=1))
        return status["pci-dss-4.0/3.5.1"], status["pci-dss-4.0/3.4.1"]

    rule = {"id": "card_number", "paths": ["/orders"], "on": "request", "select": "$.cardNumber", "mask": "card"}
    assert judged() == ("violated", "not_assessed")
    assert judged(rule) == ("satisfied", "satisfied")
    assert judged({**rule, "mask": "name"}) == ("satisfied", "violated")
    assert judged({**rule, "mode": "shadow"}) == ("violated", "satisfied")


def cited(proxy: Proxy, listener: str, context: Any, target: str) -> tuple[set[str], set[str]]:
    with RawClient(proxy.address(listener), context) as client:
        client.request(get(target))
    path = target.partition("?")[0]
    record = proxy.decision_where(lambda entry: entry.get("what", {}).get("path") == path, "the decision")
    controls = record["controls"]
    return set(controls.get("satisfied", ())), set(controls.get("violated", ()))


def test_each_decision_cites_the_controls_it_was_judged_by(proxy: Proxy, mesh: Mesh) -> None:
    satisfied, violated = cited(proxy, "inbound", mesh.client("billing"), "/orders/1")
    assert {"pci-dss-4.0/4.2.1", "pci-dss-4.0/7.3.3", "pci-dss-4.0/8.2.1", "pci-dss-4.0/10.2.1"} <= satisfied
    assert {"pci-dss-4.0/7.2.5", "pci-dss-4.0/8.2.2", "mesh-hardening/3.3"} <= violated, "the rule names everybody of the domain"
    assert "pci-dss-4.0/7.2.2" in satisfied, "and it names methods and paths"
    satisfied, violated = cited(proxy, "plain", None, "/public/1")
    assert {"pci-dss-4.0/8.2.1", "pci-dss-4.0/4.2.1", "pci-dss-4.0/7.2.2", "mesh-hardening/3.2"} <= violated
    satisfied, violated = cited(proxy, "inbound", mesh.client("billing"), "/secret")
    assert {"pci-dss-4.0/7.3.3", "pci-dss-4.0/8.2.1"} <= satisfied
    assert not violated, "what was denied violates nothing"
    assert proxy.metric("meshguard_control_violations_total", control="pci-dss-4.0/8.2.1") == 1


def test_packs_follow_a_reload_and_cost_a_record_nothing_without(proxy: Proxy, mesh: Mesh) -> None:
    packs = proxy.config["packs"]
    try:
        proxy.write_policy("p.yaml", SOUND)
        proxy.reload()
        _, violated = cited(proxy, "inbound", mesh.client("billing"), "/orders/2")
        assert not violated
        proxy.config["packs"] = []
        proxy.write_config()
        proxy.reload()
        with RawClient(proxy.address("inbound"), mesh.client("billing")) as client:
            assert client.request(get("/orders/3")).status == 200
        assert "controls" not in proxy.decision_where(lambda entry: entry.get("what", {}).get("path") == "/orders/3", "the decision")
    finally:
        proxy.config["packs"] = packs
        proxy.write_config()
        proxy.write_policy("p.yaml", WIDE)
        proxy.reload()


def test_the_ledger_holds_how_the_configuration_stands_and_explain_tells_the_controls(proxy: Proxy, mesh: Mesh) -> None:
    with RawClient(proxy.address("inbound"), mesh.client("billing")) as client:
        client.request(get("/orders/4"))
    record = proxy.decision_where(lambda entry: entry.get("what", {}).get("path") == "/orders/4", "the decision")
    told, _ = meshguard("explain", record["id"], "--config", proxy.config_path)
    assert "controls violated: " in told
    assert "pci-dss-4.0/8.2.2" in told
    listed, _ = meshguard("audit", "query", "--event", "controls", "--format", "json", "--config", proxy.config_path)
    newest = json.loads(listed.splitlines()[0])["data"]
    assert {"7.2.5", "8.2.1"} <= set(newest["pci-dss-4.0"]["violated"])


def test_a_check_without_a_pack_notes_what_violates_the_configured_ones(proxy: Proxy) -> None:
    _, noted = meshguard("check", proxy.config_path)
    assert "note: pci-dss-4.0/8.2.1: " in noted
