"""`meshguard check` on field rules: every way in which they do not go together is found, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshguard.cli.check import check
from tests.fields.test_protobuf import shop

POLICY = """\
roles:
  billing: {{principals: ["spiffe://shop.example/ns/prod/sa/billing"]}}
rules:
  - {{id: all, allow: [billing], paths: ["/**"]}}
fields:
  - id: card
    paths: ["/shop.v1.Orders/Get"]
    on: response
    protobuf: {{descriptor: {descriptor}, fields: [{field}]}}
    select: {select}
    encrypt: {keyset}
    readers: {{{reader}: open}}
  - id: other
    paths: ["/shop.v1.Orders/Get"]
    on: response
    select: $.card.number
    content_types: [application/json]
    hash: pii
"""
GOOD = {"descriptor": "shop.pb", "field": "payment.card", "select": "$.x", "keyset": "pii", "reader": "billing"}


def _check(directory: Path, **change: str) -> list[tuple[int, str]]:
    (directory / "policies").mkdir()
    (directory / "policies" / "shop.pb").write_bytes(shop().SerializeToString())
    (directory / "policies" / "p.yaml").write_text(POLICY.format(**{**GOOD, **change}))
    (directory / "c.yaml").write_text(
        "identity: {trust_domain: shop.example, workload: /ns/prod/sa/x, development_ca: ca}\nprofile: development\n"
        "listeners: {in: {address: '127.0.0.1:1', tls: mutual, to: app}}\nclusters: {app: {endpoints: ['127.0.0.1:2']}}\n"
        "policies: [policies/]\nkeys: {pii: {provider: file, path: pii.json}}\n"
    )
    report = check([directory / "c.yaml"], files=False)
    return [(problem.line, f"{problem.path}: {problem}") for problem in report.problems]


def test_rules_that_go_together(tmp_path: Path) -> None:
    assert _check(tmp_path) == []


def test_readers_may_be_principals(tmp_path: Path) -> None:
    assert _check(tmp_path, reader='"spiffe://shop.example/ns/prod/sa/b*"') == []


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        ({"select": "$.card"}, 16, "apart from '$.card' of rule 'card'"),
        ({"reader": "biling"}, 12, "did you mean 'billing'"),
        ({"reader": '"spiffe://*/x"'}, 12, "a literal trust domain"),
        ({"keyset": "pi"}, 11, "did you mean 'pii'"),
        ({"descriptor": "none.pb"}, 9, "a file that can be read"),
        ({"descriptor": "p.yaml"}, 9, "a serialised FileDescriptorSet"),
        ({"field": "payment.number"}, 9, "a field of shop.v1.Payment: amount, blob, card"),
    ],
)
def test_what_does_not_go_together_is_named(change: dict[str, str], line: int, words: str, tmp_path: Path) -> None:
    problems = _check(tmp_path, **change)
    assert [number for number, text in problems if words in text] == [line], problems
