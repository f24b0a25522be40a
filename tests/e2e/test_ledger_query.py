"""The ledger's questions through the command line and the admin API of the real process."""

from __future__ import annotations

import csv
import http.client
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import orjson
import pytest

from meshguard.model.errors import MeshguardError
from tests.e2e.test_ledger import Town
from tests.harness.client import get
from tests.harness.mesh import SHOP
from tests.harness.proxy import ROOT

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    made = Town(tmp_path_factory.mktemp("queried"))
    made.proxy.config["admin"]["token_file"] = "admin.token"
    made.proxy.write_config()
    with made.proxy:
        with made.dial() as client:
            for number in range(12):
                assert client.request(get(f"/open/{number}")).status == 200
            client.request(get("/open/traced", fields=[f"Traceparent: 00-{TRACE}-b7ad6b7169203331-01"]))
            for number in range(5):
                assert client.request(get(f"/admin/{number}", method="POST")).status == 403
        yield made
    made.mesh.close()


def ask(town: Town, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "meshguard", *arguments, "--ledger", str(town.directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + (done.stderr if code else "")


def test_a_table_for_people(town: Town) -> None:
    lines = ask(town, "audit", "query", "--verdict", "deny", "--limit", "3").splitlines()
    assert lines[0].split()[:3] == ["time", "verdict", "status"]
    assert [line.split()[1:5] for line in lines[1:4]] == [["deny", "403", "POST", f"/admin/{number}"] for number in (4, 3, 2)]
    assert "no_rule (all: path)" in lines[1]
    cursor = lines[4].removeprefix("more: --cursor ")
    rest = ask(town, "audit", "query", "--verdict", "deny", "--limit", "3", "--cursor", cursor).splitlines()
    assert [line.split()[4] for line in rest[1:]] == ["/admin/1", "/admin/0"]


def test_json_and_csv_for_machines(town: Town) -> None:
    found = [json.loads(line) for line in ask(town, "audit", "query", "--trace", TRACE, "--format", "json").splitlines()]
    assert [entry["what"]["path"] for entry in found] == ["/open/traced"]
    rows = list(csv.DictReader(io.StringIO(ask(town, "audit", "query", "--where", "outcome.status == 403", "--format", "csv"))))
    assert {row["principal"] for row in rows} == {SHOP + "billing"}
    assert len(rows) == 5


def test_explain_in_words_and_under_another_policy(town: Town, tmp_path: Path) -> None:
    denied = json.loads(ask(town, "audit", "query", "--path", "/admin/4", "--format", "json"))
    policy = tmp_path / "other.yaml"
    policy.write_text('rules:\n  - {id: admins, allow: authenticated, paths: ["/admin/**"]}\n')
    text = ask(town, "explain", f"urn:meshguard:decision:{denied['id']}", "--policy", str(policy))
    assert f"{SHOP}billing asked for POST /admin/4" in text
    assert "DENIED: no rule allows this request (no_rule)" in text
    assert "the nearest rule was all: it failed by path" in text
    assert "ALLOWED by rule admins" in text
    assert "ALLOWED by rule all" in ask(town, "explain", TRACE)
    assert "no decision has the id" in ask(town, "explain", "nobody-1", code=1)


def test_replay_lists_what_would_change(town: Town, tmp_path: Path) -> None:
    policy = tmp_path / "other.yaml"
    policy.write_text('rules:\n  - {id: all, allow: authenticated, paths: ["/open/**", "/admin/**"], methods: [GET, POST]}\n')
    told = ask(town, "audit", "replay", "--policy", str(policy), code=1)
    assert "       5  deny by no_rule -> allow by all: " + SHOP + "billing POST" in told
    assert "18 decisions, 5 would change" in told
    assert "0 would change" in ask(town, "audit", "replay", "--policy", str(policy), "--path", "/open/**") + "0 would change"


def test_stats_and_tail(town: Town) -> None:
    text = ask(town, "audit", "stats")
    assert text.startswith("18 decisions")
    assert "denied paths" in text
    lines = ask(town, "audit", "tail", "-n", "2").splitlines()
    assert [line.split()[4] for line in lines[1:]] == ["/admin/3", "/admin/4"]


def test_tail_follows(town: Town) -> None:
    command = [
        sys.executable,
        "-u",
        "-m",
        "meshguard",
        "audit",
        "tail",
        "-f",
        "-n",
        "1",
        "--format",
        "json",
        "--ledger",
        str(town.directory),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        try:
            tail.stdout.readline()
            assert town.ask("/open/followed").status == 200
            assert json.loads(tail.stdout.readline())["what"]["path"] == "/open/followed"
        finally:
            tail.terminate()


def admin(town: Town, path: str) -> tuple[int, bytes]:
    token = (town.proxy.directory / "admin.token").read_text().strip()
    connection = http.client.HTTPConnection("127.0.0.1", town.proxy.admin_port, timeout=20)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_admin_api_pages(town: Town) -> None:
    assert town.proxy.admin("/ledger/query")[0] in (401, 403)
    paths: list[str] = []
    cursor = ""
    for _ in range(4):
        status, body = admin(town, "/ledger/query?verdict=deny&limit=2" + (f"&cursor={cursor}" if cursor else ""))
        assert status == 200, body
        page = json.loads(body)
        paths += [entry["what"]["path"] for entry in page["entries"]]
        cursor = page["cursor"]
        if not cursor:
            break
    assert paths == [f"/admin/{number}" for number in (4, 3, 2, 1, 0)]
    status, body = admin(town, "/ledger/stats?verdict=deny")
    assert (status, json.loads(body)["total"]) == (200, 5)
    for wrong in ("limit=0", "limit=99999", "verdict=perhaps", "output=/etc/x", "where=__import__('os')", "trace=x"):
        assert admin(town, f"/ledger/query?{quote(wrong, safe='=')}")[0] == 400, wrong


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_has_the_same_rows_with_their_types(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    from meshguard.cli import audit_output

    place = ("--ledger", str(town.directory), "--path", "/open/**", "--limit", "1000")
    told = town.audit("query", *place, "--format", "parquet", "--output", str(tmp_path / "x.parquet"))
    assert told.returncode == 0, told.stderr
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    lines = town.audit("query", *place, "--format", "json").stdout.splitlines()
    assert rows == [audit_output.flat(orjson.loads(line)) for line in lines]
    assert {type(row["status"]) for row in rows} == {int}
    monkeypatch.setattr(audit_output, "_ROWS", 3)
    audit_output.write_parquet([orjson.loads(line) for line in lines], str(tmp_path / "small.parquet"))
    assert parquet.read_table(tmp_path / "small.parquet").to_pylist() == rows


def test_parquet_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from meshguard.cli.audit_output import write_parquet

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MeshguardError, match=r"meshguard\[parquet\]"):
        write_parquet([], str(tmp_path / "x.parquet"))
