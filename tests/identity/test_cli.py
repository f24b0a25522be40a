"""`meshguard identity`: what it prints, writes and returns."""

from __future__ import annotations

import json
import ssl
import stat
import time
from pathlib import Path

import pytest

from meshguard.cli.main import main
from tests.identity.pki import Ca


def run(*arguments: str | Path) -> int:
    return main(["identity", *map(str, arguments)])  # as a user calls it


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """A directory with an SVID, issued by the CA in its `ca` neighbour."""
    assert run("init", tmp_path / "ca", "--trust-domain", "shop.example") == 0
    assert run("issue", tmp_path / "ca", "--path", "/ns/dev/sa/web", "--out", tmp_path / "web") == 0
    return tmp_path / "web"


def bundle(workload: Path, domain: str = "shop.example") -> str:
    return f"{domain}={workload / 'bundle.pem'}"


def test_init_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", tmp_path / "ca", "--trust-domain", "shop.example") == 0
    assert "made the development CA" in capsys.readouterr().out
    assert run("init", tmp_path / "ca", "--trust-domain", "shop.example") == 0
    assert "found the development CA" in capsys.readouterr().out
    assert run("init", tmp_path / "ca", "--trust-domain", "other.example") == 2
    assert "not of other.example" in capsys.readouterr().err
    assert run("init", tmp_path / "ca2", "--trust-domain", "Other") == 2
    assert "upper case" in capsys.readouterr().err


def test_issue(workload: Path) -> None:
    assert sorted(path.name for path in workload.iterdir()) == ["bundle.pem", "svid.key", "svid.pem"]
    assert stat.S_IMODE((workload / "svid.key").stat().st_mode) == 0o600
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(workload / "svid.pem", workload / "svid.key")  # what other programs do with it


def test_issue_refused(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca = workload.parent / "ca"
    assert run("issue", ca, "--path", "web", "--out", workload) == 2
    assert "does not start with /" in capsys.readouterr().err
    assert run("issue", workload, "--path", "/web", "--out", workload) == 2
    assert "meshguard identity init" in capsys.readouterr().err
    for life in ("0s", "1y", "h", "-1h", "400d"):
        assert run("issue", ca, "--path", "/web", "--out", workload, f"--life={life}") == 2


def test_verify(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svid = workload / "svid.pem"
    capsys.readouterr()
    assert run("verify", svid, "--bundle", bundle(workload)) == 0
    assert capsys.readouterr().out == "spiffe://shop.example/ns/dev/sa/web\n"
    assert run("verify", svid, "--bundle", bundle(workload), "--at", str(time.time() + 2 * 86400)) == 1
    assert capsys.readouterr().err.startswith("refused: expired")
    assert run("verify", svid, "--bundle", bundle(workload), "--at", "2001-01-01T00:00:00Z") == 1
    assert capsys.readouterr().err.startswith("refused: not_yet_valid")
    assert run("verify", svid, "--bundle", bundle(workload, "partner.example")) == 1
    assert capsys.readouterr().err.startswith("refused: trust_domain_unknown")
    assert run("verify", svid) == 2
    assert run("verify", workload / "absent", "--bundle", bundle(workload)) == 2
    assert run("verify", svid, "--bundle", str(workload / "bundle.pem")) == 2
    assert run("verify", workload / "svid.key", "--bundle", bundle(workload)) == 2
    assert run("verify", svid, "--bundle", f"shop.example={svid}") == 2
    assert "issuer_not_ca" in capsys.readouterr().err


def test_verify_with_an_agent_that_is_not_there(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", workload / "svid.pem", "--workload-api", f"unix://{workload / 'no.sock'}") == 2
    assert "no.sock" in capsys.readouterr().err


def test_show(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("show", workload / "svid.pem") == 0
    text = capsys.readouterr().out
    assert "spiffe://shop.example/ns/dev/sa/web" in text
    assert "not judged" in text
    assert text.rstrip().endswith("\nacceptable")
    assert run("show", workload / "svid.pem", "--bundle", bundle(workload)) == 0
    assert "ok    spiffe://shop.example/ns/dev/sa/web, until" in capsys.readouterr().out


def test_show_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop, partner = Ca("shop.example"), Ca("partner.example")
    (tmp_path / "leaf.pem").write_bytes(
        partner.issue(uris=["spiffe://shop.example/a", "spiffe://shop.example/b"], usages=["key_agreement"]).pem
    )
    (tmp_path / "minted.pem").write_bytes(partner.issue(uris=["spiffe://shop.example/a"]).pem)
    for ca in (shop, partner):
        (tmp_path / f"{ca.trust_domain}.pem").write_bytes(ca.pem)
    bundles = [argument for ca in (shop, partner) for argument in ("--bundle", f"{ca.trust_domain}={tmp_path / ca.trust_domain}.pem")]
    assert run("show", tmp_path / "leaf.pem", *bundles, "--at", "1800000000") == 1
    text = capsys.readouterr().out
    for code in ("san_multiple_uris", "key_usage_no_digital_signature"):
        assert f"[{code}]" in text
    assert text.count("FAIL") == 3
    assert text.rstrip().endswith("NOT acceptable")
    assert run("show", tmp_path / "minted.pem", *bundles, "--at", "1800000000") == 1
    assert "signed by a CA of partner.example [foreign_authority]" in capsys.readouterr().out


def test_show_json(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("show", workload / "svid.pem", "--bundle", bundle(workload), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["accepted"] is True
    assert document["spiffe_id"] == "spiffe://shop.example/ns/dev/sa/web"
    assert document["chain"]["outcome"] == "accepted"
    assert all(rule["passed"] is True for rule in document["rules"])
    assert document["facts"]["key"] == "P-256"
    assert run("show", workload / "svid.pem", "--bundle", bundle(workload), "--json", "--at", "0") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["accepted"] is False
    assert document["chain"]["code"] == "not_yet_valid"


def test_show_with_a_revocation_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Ca("shop.example")
    (tmp_path / "ca.pem").write_bytes(shop.pem)
    (tmp_path / "leaf.der").write_bytes(shop.issue(serial=7).der)
    (tmp_path / "a.crl").write_bytes(shop.crl([7]))
    arguments = ["show", tmp_path / "leaf.der", "--bundle", f"shop.example={tmp_path / 'ca.pem'}", "--at", "1800000000"]
    assert run(*arguments) == 0
    assert run(*arguments, "--crl", tmp_path / "a.crl") == 1
    assert "[revoked]" in capsys.readouterr().out


def test_renew(workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, svid = workload.parent / "ca", workload / "svid.pem"
    first = svid.read_bytes()
    assert run("renew", ca, workload) == 0
    assert "not renewed" in capsys.readouterr().out
    assert svid.read_bytes() == first
    assert run("renew", ca, workload, "--force") == 0
    assert svid.read_bytes() != first
    assert run("verify", svid, "--bundle", bundle(workload)) == 0
    assert run("issue", ca, "--path", "/x", "--out", workload, "--dns", "x.local", "--address", "10.0.0.7", "--life", "5s") == 0
    second = svid.read_bytes()
    assert run("renew", ca, workload) == 0  # its life began a minute before it was made: more than half is over
    assert svid.read_bytes() != second
    capsys.readouterr()
    assert run("show", svid, "--json") == 0
    names = json.loads(capsys.readouterr().out)["facts"]["names"]
    assert names == ["UniformResourceIdentifier: spiffe://shop.example/x", "DNSName: x.local", "IPAddress: 10.0.0.7"]
    assert run("init", workload.parent / "other", "--trust-domain", "other.example") == 0
    assert run("renew", workload.parent / "other", workload, "--force") == 2
    assert run("renew", ca, workload.parent / "nothing") == 2


@pytest.mark.parametrize("command", ["", "init", "issue", "renew", "show", "verify"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*[command][: bool(command)], "--help") == 0
    assert f"meshguard identity {command}" in capsys.readouterr().out.split("example", 1)[1]
