"""`meshguard fields`, as users call it: values at rest sealed, opened and rewrapped, in files and streams."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshguard.cli import at_rest
from meshguard.cli.main import main
from meshguard.keys.lifecycle import change, rotate
from tests.harness.proxy import ROOT

CARD = "4111111111111111"
CONFIG: dict[str, Any] = {
    "profile": "development",
    "listeners": {"inbound": {"address": "127.0.0.1:8443", "to": "app"}},
    "clusters": {"app": {"endpoints": ["127.0.0.1:8080"]}},
    "policies": ["policy.yaml"],
    "keys": {"orders-pii": {"provider": "file", "path": "orders-pii.json"}},
}
POLICY: dict[str, Any] = {
    "roles": {"billing": {"principals": ["spiffe://shop.example/billing"]}, "support": {"principals": ["spiffe://shop.example/support"]}},
    "rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}],
    "fields": [
        {
            "id": "card",
            "paths": ["/orders/{id}"],
            "on": "response",
            "select": "$..card",
            "seal": "orders-pii",
            "readers": {"billing": "open", "support": {"mask": "last4"}},
            "others": "remove",
        },
        {
            "id": "holder",
            "paths": ["/orders/{id}"],
            "methods": ["GET"],
            "on": "response",
            "select": "$.holder",
            "seal": "orders-pii",
        },
    ],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "meshguard.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    assert main(["keys", "create", str(tmp_path / "orders-pii.json")]) == 0
    return tmp_path


def lines(count: int) -> bytes:
    made = [
        b'{ "id":%d,"amount":1.0, "payment": {"card": "%d"},\t"holder":"caf\\u00e9 %d", "none":null }' % (n, n, n) for n in range(count)
    ]
    return b"\n".join([*made[: count // 2], b"", *made[count // 2 :]]) + b"\n"


def call(place: Path, operation: str, name: str, *more: str) -> int:
    return main(["fields", operation, str(place / name) if name != "-" else "-", "--config", str(place / "meshguard.yaml"), *more])


def test_seal_rewrap_and_open_give_the_same_octets(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = lines(50)
    (place / "a.ndjson").write_bytes(original)
    assert call(place, "seal", "a.ndjson", "-o", str(place / "b.ndjson")) == 0
    sealed = (place / "b.ndjson").read_bytes()
    assert b"caf\\u00e9" not in sealed  # "caf" alone can come up in base64
    assert "café".encode() not in sealed
    assert sealed.count(b"eyJ") == 100
    assert b'"amount":1.0, ' in sealed
    assert call(place, "seal", "b.ndjson", "--in-place") == 0
    assert (place / "b.ndjson").read_bytes() == sealed, "what is sealed is not sealed twice"
    assert call(place, "rewrap", "b.ndjson", "--in-place") == 0
    assert (place / "b.ndjson").read_bytes() == sealed, "nothing is old yet"
    rotate(place / "orders-pii.json", 0.0)
    assert call(place, "rewrap", "b.ndjson", "--in-place") == 0
    moved = (place / "b.ndjson").read_bytes()
    assert moved != sealed
    change(place / "orders-pii.json", "disable", 1)
    told = capsys.readouterr()
    assert "caf" not in told.out + told.err
    assert call(place, "open", "b.ndjson") == 0
    assert capsys.readouterr().out.encode() == original
    (place / "c.ndjson").write_bytes(sealed)
    assert call(place, "open", "c.ndjson", "-o", str(place / "d.ndjson")) == 1
    assert not (place / "d.ndjson").exists()
    assert not (place / "d.ndjson.partial").exists()


def test_the_account_says_what_was_done_and_shows_no_value(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a.json").write_bytes(b'{"payment":{"card":"%s"}}' % CARD.encode())
    assert call(place, "seal", "a.json", "--in-place", "--rule", "card") == 0
    assert call(place, "open", "a.json", "-o", str(place / "o.json")) == 0
    err = capsys.readouterr().err
    accounts = [json.loads(line.partition(": ")[2]) for line in err.splitlines()]
    assert [account["event"] for account in accounts] == ["fields.seal", "fields.open"]
    assert accounts[1]["fields"] == [{"operation": "open", "field": "card", "keyset": "orders-pii", "version": 1, "count": 1}]
    assert CARD not in err
    assert (place / "o.json").read_bytes() == b'{"payment":{"card":"%s"}}' % CARD.encode()
    assert (place / "o.json").stat().st_mode & 0o777 == 0o600


def test_workers_keep_the_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = lines(400)
    (place / "a.ndjson").write_bytes(original)
    done = subprocess.run(
        [sys.executable, "-m", "meshguard", "fields", "seal", str(place / "a.ndjson"), "--config", str(place / "meshguard.yaml"),
         "-o", str(place / "b.ndjson"), "--workers", "2"],
        cwd=ROOT, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert call(place, "open", "b.ndjson", "--in-place") == 0
    assert (place / "b.ndjson").read_bytes() == original


@pytest.mark.parametrize("bad", [b"{", b'{"card":"1","card":"2"}', b"[" * 100, b'\xff{"card":"1"}'])
def test_a_document_that_cannot_be_treated_is_named(place: Path, bad: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a.ndjson").write_bytes(b'{"card":"1"}\n\n' + bad + b'\n{"card":"2"}\n')
    assert call(place, "seal", "a.ndjson", "-o", str(place / "b.ndjson")) == 1
    assert "line 3" in capsys.readouterr().err
    assert not (place / "b.ndjson").exists()
    assert call(place, "seal", "a.ndjson", "-o", str(place / "b.ndjson"), "--keep-going") == 1
    kept = (place / "b.ndjson").read_bytes().split(b"\n")
    assert kept[2] == bad
    assert b"eyJ" in kept[0]
    assert b"eyJ" in kept[3]


def test_a_run_that_was_cut_off_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = lines(300)
    (place / "a.ndjson").write_bytes(original)
    monkeypatch.setattr(at_rest, "BATCH_BYTES", 4096)
    monkeypatch.setattr(at_rest, "CHECKPOINT_BYTES", 8192)
    treat, calls = at_rest.treat_lines, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return treat(*arguments)

    output = str(place / "b.ndjson")
    monkeypatch.setattr(at_rest, "treat_lines", dies)
    assert call(place, "seal", "a.ndjson", "-o", output) == 130
    assert not (place / "b.ndjson").exists()
    first = (place / "b.ndjson.partial").read_bytes()
    assert call(place, "open", "a.ndjson", "-o", output, "--resume") == 1, "another operation"
    calls.clear()
    monkeypatch.setattr(at_rest, "treat_lines", treat)
    assert call(place, "seal", "a.ndjson", "-o", output, "--resume") == 0
    sealed = (place / "b.ndjson").read_bytes()
    assert sealed.startswith(first[:8192])
    assert not list(place.glob("*.partial*"))
    assert call(place, "open", "b.ndjson", "--in-place") == 0
    assert (place / "b.ndjson").read_bytes() == original


def test_streams(place: Path) -> None:
    original = lines(20)
    command = [sys.executable, "-m", "meshguard", "fields", "--help"]
    for operation in ("seal", "open"):
        command = [sys.executable, "-m", "meshguard", "fields", operation, "-", "--config", str(place / "meshguard.yaml")]
        done = subprocess.run(command, cwd=ROOT, input=original, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        original, before = done.stdout, original
        assert (b"eyJ" in original) is (operation == "seal")
    assert original == lines(20)
    assert before != original


def test_wrong_use(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a.ndjson").write_bytes(lines(1))
    assert call(place, "seal", "a.ndjson", "--rule", "cards") == 1
    assert "card, holder" in capsys.readouterr().err
    assert call(place, "seal", "none.ndjson") == 2
    assert call(place, "seal", "-", "--in-place") == 1
    assert call(place, "seal", "a.ndjson", "--resume") == 1
    os.unlink(place / "orders-pii.json")
    (place / "meshguard.yaml").write_text(yaml.safe_dump(CONFIG | {"profile": "strict"}))
    assert call(place, "seal", "a.ndjson") == 1


def test_progress_is_drawn_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    from meshguard.cli.progress import Progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        with Progress("rewrap", 200, stream) as progress:
            progress.advance(100)
        assert ("50%" in stream.getvalue()) is shown
        assert ("###" in stream.getvalue()) is shown


def test_every_action_with_a_keyset_works_at_rest(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = {"paths": ["/x"], "on": "request"}
    fields = [
        rule | {"id": "a", "encrypt": "orders-pii", "select": "$.a", "tenant": {"claim": "org"}, "record": "$.id"},
        rule | {"id": "d", "deterministic": "orders-pii", "select": "$.d"},
        rule | {"id": "t", "tokenise": "orders-pii", "detokenise": True, "select": "$.t"},
        rule | {"id": "m", "mask": "last4", "select": "$.m"},
    ]
    (place / "policy.yaml").write_text(yaml.safe_dump(POLICY | {"fields": fields}))
    original = b'{"id":1,"a":"alpha","d":"delta","t":"tango","m":"kept as it is"}\n{"id":2,"a":"alpha","d":"delta","t":"tango"}\n'
    (place / "a.ndjson").write_bytes(original)
    assert call(place, "seal", "a.ndjson", "-o", str(place / "b.ndjson")) == 1
    assert "tenant_unknown" in capsys.readouterr().err
    assert call(place, "seal", "a.ndjson", "-o", str(place / "b.ndjson"), "--tenant", "acme") == 0
    sealed = (place / "b.ndjson").read_bytes()
    one, two = map(json.loads, sealed.splitlines())
    assert not any(word in sealed for word in (b"alpha", b"delta", b"tango"))
    assert one["m"] == "kept as it is"
    assert one["d"] == two["d"]
    assert one["a"] != two["a"]
    rotate(place / "orders-pii.json", 0.0)
    assert call(place, "rewrap", "b.ndjson", "--in-place", "--tenant", "acme") == 0
    assert json.loads((place / "b.ndjson").read_bytes().splitlines()[0])["d"] != one["d"]
    change(place / "orders-pii.json", "disable", 1)
    capsys.readouterr()
    assert call(place, "open", "b.ndjson", "--tenant", "globex") == 1
    assert call(place, "open", "b.ndjson", "--in-place", "--tenant", "acme") == 0
    assert (place / "b.ndjson").read_bytes() == original
