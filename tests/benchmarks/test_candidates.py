"""What the candidates are given: the same rules in each one's own words, and rows that name known contestants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import envoy, pki, rules, subject
from benchmarks.__main__ import parse
from benchmarks.peers import PEERS
from benchmarks.rows import ROWS, Contestant, contestants, play
from benchmarks.targets import TARGETS


def test_rules_hold_those_of_the_load_in_the_middle() -> None:
    made = rules.make(1000)
    mine = [index for index, rule in enumerate(made) if rule.principal == pki.CLIENT]
    assert mine == [499, 500]
    assert {(made[index].method, made[index].prefix) for index in mine} == {("GET", rules.ORDERS), ("POST", rules.GRPC)}
    assert len({rule.id for rule in made}) == 1000


def test_mine_first_only_reorders() -> None:
    made = rules.make(50)
    ordered = rules.mine_first(made)
    assert [rule.principal for rule in ordered[:2]] == [pki.CLIENT] * 2
    assert {(rule.principal, rule.method, rule.prefix) for rule in ordered} == {(rule.principal, rule.method, rule.prefix) for rule in made}
    assert sorted(rule.id for rule in ordered) == [rule.id for rule in ordered]


@pytest.mark.parametrize(("count", "name", "parser"), [(10, "bench.yaml", yaml.safe_load), (2000, "bench.json", json.loads)])
def test_policy_says_every_rule_once(count: int, name: str, parser: Any) -> None:
    file, text = subject.policy_text(subject.policy(rules.make(count), 8080))
    assert file == name
    document = parser(text)["rules"]
    assert len(document) == count + 1
    for rule, entry in zip(rules.make(count), document, strict=False):
        assert entry == {"id": rule.id, "allow": [rule.principal], "methods": [rule.method], "paths": [rule.prefix + "/**"]}
    assert document[-1]["allow"] == "anyone"
    assert document[-1]["ports"] == [8080]


def test_configuration_differs_by_variant() -> None:
    ports = {"inbound": 1, "plain": 2, "admin": 3, "upstream": 4, "http2": 5}
    usual = subject.configuration(subject.Variant(), Path("/certs"), ports, Path("/log"))
    routes = [{"id": "calls", "paths": ["/orders.v1.Orders/**"], "to": "calls"}, {"id": "app", "to": "app"}]
    assert usual["listeners"]["inbound"] == {"address": "127.0.0.1:1", "tls": "mutual", "routes": routes, "engine": "default"}
    assert usual["clusters"]["calls"] == {"endpoints": ["127.0.0.1:5"], "protocol": "h2"}
    assert usual["telemetry"]["otlp"] == "http://127.0.0.1:4"
    other = subject.configuration(subject.Variant(engine="reference", traces=False), Path("/certs"), ports, None)
    assert other["listeners"]["plain"]["engine"] == "reference"
    assert other["decision_log"] == {"path": "/dev/null"}
    assert "telemetry" not in other


def test_envoy_has_the_same_rules_both_ways() -> None:
    made = rules.make(20)
    linear = envoy._linear(made)["typed_config"]["rules"]["policies"]
    assert list(linear) == [rule.id for rule in made]
    first = linear[made[0].id]
    assert first["principals"] == [{"authenticated": {"principal_name": {"exact": made[0].principal}}}]
    callers = envoy._matching_tree(made)["typed_config"]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    assert set(callers) == {rule.principal for rule in made}


def test_every_contestant_and_anchor_is_known() -> None:
    labels = {row.name: {each.name for each in contestants(row, "meshguard", PEERS)} for row in ROWS}
    for row in ROWS:
        assert {each.candidate for each in row.ours} <= {*subject.SUBJECTS, *PEERS}
    for target in TARGETS:
        assert target.anchor or target.kind == "absolute", target.name
        assert {target.ours, target.anchor or target.ours, target.per or target.ours} <= labels[target.row], target.name


def test_another_proxy_stands_in_for_ours_once() -> None:
    row = ROWS[0]
    assert [each.name for each in contestants(row, "nginx", ["envoy", "nginx"])] == ["nginx", "envoy"]


def test_rounds_are_interleaved_after_a_warm_up() -> None:
    calls: list[tuple[str, float, dict[str, object]]] = []

    def measure(candidate: Any, kind: str, seconds: float, warm: float = 0.3, **settings: object) -> dict[str, Any]:
        calls.append((candidate, seconds, settings))
        return {"n": len(calls)}

    row = ROWS[0].__class__("x", "h1-mtls", "us", "cpu_us", measure, ())
    field: list[Any] = [(Contestant("a"), "A"), (Contestant("b", "bee", (("trace", 1),)), "B")]
    samples = play(row, field, 2, 3.0, 1.0)
    assert [(name, seconds) for name, seconds, _ in calls] == [("A", 1.0), ("B", 1.0), ("A", 3.0), ("B", 3.0), ("A", 3.0), ("B", 3.0)]
    assert calls[1][2] == {"trace": 1}
    assert {name: len(values) for name, values in samples.items()} == {"a": 2, "bee": 2}


def test_quick_is_small_and_unknown_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    quick = parse(["--quick"])
    assert (quick.rounds, quick.seconds, quick.peers) == (3, 1.0, ["envoy", "nginx"])
    assert parse(["--quick", "--peers", "haproxy"]).peers == ["haproxy"]
    with pytest.raises(SystemExit):
        parse(["--rows", "h3"])
    assert "h3" in capsys.readouterr().err
