"""Header operations of a route may not write what meshguard itself says: framing, the authority, hop-by-hop fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from meshguard.cli.main import main
from meshguard.control.settings.listeners import ListenerConfig

OURS = (
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "Content-Length",
    "HOST",
    "Transfer-Encoding",
)
HEAD = """\
profile: development
listeners:
  inbound:
    address: "127.0.0.1:8443"
    routes:
      - id: all
        to: app
"""
TAIL = """\
clusters: {app: {endpoints: ["127.0.0.1:8080"]}}
policies: [policy.yaml]
"""
CHANGES = {
    "set": lambda name: f"            {name}: x",
    "append": lambda name: f"            {name}: x",
    "remove": lambda name: f"            - {name}",
}


def _problems(path: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    capsys.readouterr()
    code = main(["check", "--json", str(path)])
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["problems"] else 0)
    problems: list[dict[str, object]] = report["problems"]
    return problems


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text("rules: [{id: all, allow: anyone, paths: [/**]}]\n")
    return tmp_path / "meshguard.yaml"


@pytest.mark.parametrize("operation", CHANGES)
@pytest.mark.parametrize("direction", ["request_headers", "response_headers"])
def test_our_own_fields_cannot_be_changed(direction: str, operation: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each one is told, with its file and its line."""
    head = HEAD + f"        {direction}:\n          {operation}:\n"
    first = head.count("\n") + 1
    path.write_text(head + "\n".join(map(CHANGES[operation], OURS)) + "\n" + TAIL)
    problems = _problems(path, capsys)
    assert sorted({problem["line"] for problem in problems}) == list(range(first, first + len(OURS)))
    assert {problem["file"] for problem in problems} == {str(path)}
    assert all(f"routes[0].{direction}.{operation}" in str(problem["path"]) for problem in problems)



@pytest.mark.parametrize("name", ["*", "x-*-id", "**"])
def test_fields_to_strip_are_names_or_beginnings(name: str) -> None:
    with pytest.raises(ValidationError, match="beginning of one"):
        ListenerConfig.model_validate({"address": "127.0.0.1:8443", "to": "app", "strip_headers": [name]})
    ListenerConfig.model_validate({"address": "127.0.0.1:8443", "to": "app", "strip_headers": ["x-internal-*", "x-user-id"]})


@pytest.mark.parametrize("direction", ["request_headers", "response_headers"])
def test_other_fields_can(direction: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("x-app", "strict-transport-security", "server", "cookie", "content-type", "cache-control", "x-host", "content-lengths")
    path.write_text(
        HEAD
        + f"        {direction}:\n"
        + "".join(f"          {operation}:\n" + "\n".join(map(line, names)) + "\n" for operation, line in CHANGES.items())
        + TAIL
    )
    assert _problems(path, capsys) == []
