"""`meshguard test` as people run it: exit status, text, JSON, JUnit, problems with their places."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from meshguard.cli.main import main

POLICY = """\
roles:
  billing: {principals: ["spiffe://shop.example/ns/prod/sa/billing"]}
  support: {principals: ["spiffe://shop.example/ns/prod/sa/support-*"], jwt: {groups: [support]}}
rules:
  - id: read-orders
    allow: [billing, support]
    methods: [GET]
    paths: ["/orders/{id}"]
  - id: no-admin
    deny: anyone
    paths: ["/admin/**"]
"""
TESTS = """\
tests:
  - {as: billing, call: GET /orders/7, expect: allow, rule: read-orders}
  - {as: billing, call: GET /Admin/users, expect: deny, rule: no-admin}
  - {as: support, call: GET /orders/%37?page=2, expect: allow}
  - {as: anyone, call: GET /orders/7, expect: deny}
  - {as: anyone, call: GET /x/%2e%2e/admin, expect: deny, rule: no-admin}
  - {as: billing, call: GET /orders/..%2fadmin, expect: deny}
"""


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "rules.yaml").write_text(POLICY)
    (tmp_path / "policies" / "tests.yaml").write_text(TESTS)
    return tmp_path / "policies"


def test_the_sketch_passes(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(policies), "--cover"]) == 0
    assert capsys.readouterr().out == "6 passed, 0 failed; 2 of 2 rules decided a test\n"


def test_a_failure_is_shown_with_what_happened(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (policies / "more.yaml").write_text("tests:\n  - {as: billing, call: POST /orders/7, expect: allow, rule: read-orders}\n")
    assert main(["test", str(policies)]) == 1
    out = capsys.readouterr().out
    assert "billing: POST /orders/7 -> allow" in out
    assert "expected allow by read-orders, got deny (no_rule)" in out
    assert "nearest miss: read-orders failed by method" in out
    assert "6 passed, 1 failed" in out


def test_json_and_junit(policies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (policies / "more.yaml").write_text("tests:\n  - {as: billing, call: GET /admin, expect: allow}\n")
    assert main(["test", str(policies), "--json", "--junit", str(tmp_path / "out.xml")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["failed"], report["uncovered"]) == (6, 1, [])
    assert report["policy_digest"].startswith("sha256:")
    (failed,) = [result for result in report["results"] if not result["passed"]]
    assert (failed["verdict"], failed["rule"], failed["reason"]) == ("deny", "no-admin", "policy_denied")
    suites = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (suites.get("tests"), suites.get("failures")) == ("7", "1")
    assert len(suites.findall("./testsuite/testcase")) == 7
    (failure,) = suites.findall("./testsuite/testcase/failure")
    assert failure.get("message") == "expected allow, got deny by no-admin"


def test_a_rule_without_a_test_fails_only_when_coverage_is_asked_for(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (policies / "more.yaml").write_text("rules:\n  - {id: lonely, allow: billing, paths: [/lonely]}\n")
    assert main(["test", str(policies)]) == 0
    assert "without a test: lonely" in capsys.readouterr().out
    assert main(["test", str(policies), "--cover"]) == 1


def test_no_tests_at_all_is_no_success(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (policies / "tests.yaml").unlink()
    assert main(["test", str(policies)]) == 1
    assert "no tests" in capsys.readouterr().err


def test_problems_are_told_with_their_places(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (policies / "rules.yaml").write_text(POLICY.replace("[billing, support]", "[biling, support]"))
    assert main(["test", str(policies)]) == 1
    err = capsys.readouterr().err
    assert "rules.yaml:6:13: rules[0].allow[0]: expected a role" in err
    assert "did you mean 'billing'?" in err


def test_wrong_use_and_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test"]) == 2
    assert main(["test", str(tmp_path / "nothing.yaml")]) in (1, 2)
    assert "an existing file or directory" in capsys.readouterr().err
