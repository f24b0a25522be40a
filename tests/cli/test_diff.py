"""`meshguard diff` and `meshguard reach` as people and pipelines use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshguard.cli.main import main

CALLER = "spiffe://shop.example/ns/prod/sa/billing"
RULE: dict[str, Any] = {"id": "read", "allow": [CALLER], "methods": ["GET"], "paths": ["/orders/{id}"]}


def write(path: Path, *rules: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump({"rules": list(rules)}))
    return str(path)


@pytest.fixture
def log(tmp_path: Path) -> str:
    records = [
        {"who": {"principal": CALLER}, "what": {"method": "GET", "path": "/orders/1", "host": "h", "port": 8443}},
        {"who": {"principal": CALLER}, "what": {"method": "DELETE", "path": "/orders/1", "host": "h", "port": 8443}},
        {"who": {}, "what": {"method": "GET", "path": "/orders/1", "host": "h", "port": 8443}},
        {"schema": "meshguard.decision/1", "gap": 3},
    ]
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_the_exit_status_gates_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.yaml", RULE)
    looser = write(tmp_path / "looser.yaml", {**RULE, "methods": ["GET", "DELETE"]})
    assert main(["diff", old, old]) == 0
    assert main(["diff", old, looser]) == 1
    assert f"loosened: {CALLER}: DELETE /orders/x: deny (no_rule) -> allow by read" in capsys.readouterr().out
    assert main(["diff", looser, old]) == 0
    assert main(["diff", looser, old, "--fail-on", "any"]) == 1
    assert main(["diff", old, looser, "--fail-on", "nothing"]) == 0


def test_recorded_calls_are_replayed(tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.yaml", RULE)
    new = write(tmp_path / "new.yaml", {**RULE, "methods": ["DELETE"]})
    assert main(["diff", old, new, "--traffic", log, "--json"]) == 1
    traffic = json.loads(capsys.readouterr().out)["traffic"]
    assert traffic["newly_allowed"] == [{"caller": CALLER, "call": "DELETE /orders/1", "count": 1}]
    assert traffic["newly_denied"] == [{"caller": CALLER, "call": "GET /orders/1", "count": 1}]
    assert (traffic["calls"], traffic["not_replayable"]) == (3, 0)


def test_what_is_no_log_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.yaml", RULE)
    (tmp_path / "bad").write_text("not json\n")
    assert main(["diff", old, old, "--traffic", str(tmp_path / "bad")]) == 1
    assert "bad:1" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["table", "json", "dot", "mermaid"])
def test_reach_in_every_form(tmp_path: Path, log: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path / "p.yaml", RULE, {"id": "idle", "allow": "anyone", "paths": ['/a"b'.replace('"', "_")]})
    assert main(["reach", files, "--observed", log, "--format", form, "--fail-unused"]) == 1
    out = capsys.readouterr().out
    assert CALLER in out
    assert "/orders/{id}" in out
    if form == "json":
        assert {edge["path"]: edge["seen"] for edge in json.loads(out)} == {"/orders/{id}": 1, "/a_b": 0}
    assert main(["reach", files, "--observed", log, "--unused"]) == 0
    assert CALLER not in capsys.readouterr().out
