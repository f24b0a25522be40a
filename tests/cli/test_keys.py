"""`meshguard keys`, as users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshguard.cli.main import main


def test_the_life_of_a_keyset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "orders-pii.json")
    assert main(["keys", "create", path]) == 0
    assert main(["keys", "create", path]) == 1
    assert main(["keys", "rotate", path]) == 0
    assert main(["keys", "destroy", path, "--version", "1", "--yes"]) == 1
    assert main(["keys", "disable", path, "--version", "1"]) == 0
    assert main(["keys", "destroy", path, "--version", "1"]) == 2
    secrets = [key["k"] for key in json.loads(Path(path).read_text())["keys"]]
    assert main(["keys", "destroy", path, "--version", "1", "--yes"]) == 0
    capsys.readouterr()
    assert main(["keys", "list", path, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in shown["versions"]] == ["destroyed", "primary"]
    assert shown["name"] == "orders-pii"
    assert main(["keys", "list", path]) == 0
    out = capsys.readouterr()
    assert not any(secret in out.out + out.err for secret in secrets)


def test_wrong_use(tmp_path: Path) -> None:
    assert main(["keys", "list", str(tmp_path / "none.json")]) == 2
    assert main(["keys", "disable", str(tmp_path / "none.json")]) == 2
    assert main(["keys"]) == 2
    assert main(["keys", "create", str(tmp_path / "a b.json")]) == 1


def test_a_due_rotation_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "k.json"
    assert main(["keys", "create", str(path), "--name", "other"]) == 0
    uses = Path(f"{path}.uses")
    uses.write_text(uses.read_text().replace('"1": 0', f'"1": {1 << 30}'))
    assert main(["keys", "list", str(path)]) == 1
    assert "rotate now" in capsys.readouterr().out
