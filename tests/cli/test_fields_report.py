"""The evidence report: complete, cites only what the configuration bears out, shows no key and no value."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshguard.cli.fields_clauses import CLAUSES
from meshguard.cli.main import main
from meshguard.fields.keyset import Tenancy
from meshguard.keys.keyset_file import read_keyset
from meshguard.keys.local import LocalKek
from meshguard.keys.wrapped import add_tenant, create_wrapped, destroy_tenant, rotate_wrapped
from tests.cli.test_fields import CARD, CONFIG, POLICY


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "kek").write_bytes(os.urandom(32))
    (tmp_path / "kek").chmod(0o600)
    section = {"provider": "file", "path": "orders-pii.json", "kek": "kek", "rotate_after": "90d", "retire_after": "1000d"}
    (tmp_path / "meshguard.yaml").write_text(yaml.safe_dump(CONFIG | {"keys": {"orders-pii": section, "spare": section}}))
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    return tmp_path


def make(place: Path, now: float) -> None:
    async def go() -> None:
        path, kek = place / "orders-pii.json", LocalKek(place / "kek")
        await create_wrapped(path, "orders-pii", "file", kek, now, Tenancy.OWN)
        await add_tenant(path, kek, "acme", now)
        await add_tenant(path, kek, "globex", now)
        destroy_tenant(path, "acme")
        await rotate_wrapped(path, kek, now + 60, 0.0)

    asyncio.run(go())


def report(place: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any], str]:
    arguments = ["fields", "report", "--config", str(place / "meshguard.yaml"), *more]
    status = main([*arguments, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert main(arguments) == status
    return status, told, capsys.readouterr().out


def test_the_report_lists_fields_readers_keys_and_counts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import time

    make(place, time.time() - 3600)
    record = {
        "time": "2026-01-31T12:00:00Z",
        "who": {"principal": "spiffe://shop.example/billing", "subject": "alice|x"},
        "fields": [{"operation": "open", "field": "card", "keyset": "orders-pii", "version": 1, "count": 3}],
    }
    decisions = place / "decisions.log"
    decisions.write_text("\n".join([json.dumps(record), json.dumps(record | {"time": "2026-02-01T00:00:00Z"}), '{"cut off', "[]"]))
    status, told, text = report(place, capsys, "--decisions", str(decisions))
    assert status == 0
    card, holder = told["fields"]
    assert card["readers"] == [
        {"role": "billing", "sees": "open", "principals": ["spiffe://shop.example/billing"], "claims": {}},
        {"role": "support", "sees": "mask last4", "principals": ["spiffe://shop.example/support"], "claims": {}},
    ]
    assert (card["others"], holder["others"], card["keyset"]) == ("remove", "ciphertext", "orders-pii")
    assert card["counts"]["operations"] == {"open": 6}
    assert card["counts"]["opened_by"] == {"spiffe://shop.example/billing for alice|x": 6}
    assert card["counts"]["opened_with"] == {"orders-pii:1": 6}
    assert told["period"] == {"from": "2026-01-31T12:00:00Z", "to": "2026-02-01T00:00:00Z"}
    keyset = told["keysets"]["orders-pii"]
    assert [version["state"] for version in keyset["versions"]] == ["enabled", "primary"]
    assert keyset["last_rotation"] == keyset["versions"][1]["created"]
    assert keyset["tenants"] == {"enabled": 1, "destroyed": 1}
    assert told["unused_keysets"] == ["spare"]
    assert {clause["fact"] for clause in told["clauses"]} == {clause.fact for clause in CLAUSES}
    for part in ("alice\\|x", "| card |", "Evidence, not certification", "Art. 17", "3.5.1", "90 days", "164.312(a)(2)(iv)"):
        assert part in text
    wrapped = [key.wrapped for key in read_keyset(place / "orders-pii.json").keys]
    assert not any(secret in text + json.dumps(told) for secret in (*wrapped, CARD))


def test_a_clause_is_not_cited_where_its_fact_is_missing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "meshguard.yaml").write_text(yaml.safe_dump(CONFIG))
    (place / "orders-pii.json").unlink(missing_ok=True)
    policy = POLICY | {"fields": [POLICY["fields"][1]]}
    (place / "policy.yaml").write_text(yaml.safe_dump(policy))
    assert main(["keys", "create", str(place / "orders-pii.json")]) == 0
    capsys.readouterr()
    status, told, text = report(place, capsys)
    assert status == 1
    assert "in the clear" in told["attention"][0]
    assert {clause["fact"] for clause in told["clauses"]} == {"sealed", "records"}
    assert "Needs attention" in text


def test_what_is_overdue_or_missing_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told, _ = report(place, capsys)
    assert status == 1
    assert "orders-pii.json" in told["attention"][0]
    make(place, 0.0)
    status, told, _ = report(place, capsys)
    assert status == 1
    assert "due since" in told["attention"][0]


def test_counts_come_from_metrics_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import time

    make(place, time.time())
    scrape = place / "metrics.txt"
    scrape.write_text(
        "# TYPE meshguard_field_operations_total counter\n"
        'meshguard_field_operations_total{field="card",operation="open",keyset="orders-pii"} 12\n'
        'meshguard_field_operations_total{field="card",operation="seal",keyset="orders-pii"} 3.0\n'
    )
    _, told, _ = report(place, capsys, "--metrics", str(scrape))
    assert told["fields"][0]["counts"]["operations"] == {"open": 12, "seal": 3}
