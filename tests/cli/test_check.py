"""`meshguard check` and `meshguard schema` over real files."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from meshguard.cli.check import CONFIG_KEYS, POLICY_KEYS
from meshguard.cli.main import main
from meshguard.cli.schema import DIALECT, schema_of
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.load import BUILTIN
from meshguard.policy.documents import PolicyDocument
from meshguard.sources.documents import read

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "config").glob("*.yaml"))

CONFIG = """\
profile: development
listeners: {inbound: {address: "127.0.0.1:8443", to: app}}
clusters: {app: {endpoints: ["127.0.0.1:8080"]}}
policies: [policy.yaml]
"""
POLICY = """\
roles:
  billing: {principals: ["spiffe://shop.example/ns/prod/sa/billing"]}
rules:
  - {id: read, allow: [billing], methods: [GET], paths: ["/orders/{id}"]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "meshguard.yaml").write_text(CONFIG)
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = main(["check", *map(str, arguments)])
        return Result(code, *capsys.readouterr())

    return call


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_without_problem_and_without_note(path: Path, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    monkeypatch.delenv("OTLP_ENDPOINT", raising=False)
    result = check("--no-files", "--json", path)
    assert result.code == 0, result.out
    report = result.json()
    assert report["ok"] is True
    assert [document["kind"] for document in report["documents"]] == ["config", "policy"]
    assert report["rules"] == {"edge-gateway.yaml": 5, "sidecar.yaml": 4}[path.name]
    assert report["notes"] == []


def test_there_are_two_examples() -> None:
    assert [path.name for path in EXAMPLES] == ["edge-gateway.yaml", "sidecar.yaml"]


def test_a_good_configuration_is_exit_code_0(project: Path, check: Any) -> None:
    result = check(project / "meshguard.yaml")
    assert result.code == 0
    assert result.out == ""
    assert "no problem in 2 documents, 1 rule" in result.err
    assert "note: profile development: not for production" in result.err


def test_problems_of_the_configuration_and_its_policy_are_told_together(project: Path, check: Any) -> None:
    (project / "meshguard.yaml").write_text(CONFIG.replace("to: app", "to: ap"))
    (project / "policy.yaml").write_text(POLICY.replace("allow: [billing]", "allow: [biling]"))
    result = check(project / "meshguard.yaml")
    assert result.code == 1
    lines = result.err.splitlines()
    assert lines[0].endswith("expected the name of a cluster (app), got 'ap'; did you mean 'app'?")
    assert re.match(r".*policy\.yaml:4:\d+: rules\[0\]\.allow\[0\]: expected a role .*did you mean 'billing'\?", lines[1])
    assert lines[2] == "2 problems in 2 files"


def test_a_directory_is_searched_and_its_policies_are_checked_once(project: Path, check: Any) -> None:
    (project / "policy.yaml").write_text(POLICY.replace("allow: [billing]", "allow: [biling]"))
    result = check(project)
    assert result.code == 1
    assert result.err.count("got biling") == 1
    (project / "policy.yaml").write_text(POLICY)
    assert [document["kind"] for document in check("--json", project).json()["documents"]] == ["config", "policy"]


def test_files_below_the_working_directory_are_called_as_in_the_repository(
    project: Path, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "policy.yaml").write_text("rules: [{id: a}]\n")
    monkeypatch.chdir(project)
    assert check("--format", "github", "meshguard.yaml").out.startswith("::error file=policy.yaml,line=1,")


def test_a_keyset_that_is_not_configured_is_told(project: Path, check: Any) -> None:
    field = "fields:\n  - {id: card, paths: [/orders/*], on: response, select: $.card, seal: orders-pi, readers: {billing: open}}\n"
    (project / "policy.yaml").write_text(POLICY + field)
    (project / "k.json").write_text("{}")
    (project / "meshguard.yaml").write_text(CONFIG + "keys: {orders-pii: {provider: file, path: k.json}}\n")
    result = check(project / "meshguard.yaml")
    assert result.code == 1
    assert "policy.yaml:6:" in result.err
    assert "fields[0].seal: expected a keyset of the configuration's `keys`, got 'orders-pi'; did you mean 'orders-pii'?" in result.err
    assert check(project / "policy.yaml").code == 0  # on its own the keysets are not known


def test_field_rules_are_checked_without_keys_at_hand(project: Path, check: Any) -> None:
    field = "fields:\n  - {id: card, paths: [/orders/*], on: respnse, select: $.card, seal: k, readers: {biling: open}}\n"
    (project / "policy.yaml").write_text(POLICY + field)
    result = check(project / "policy.yaml")
    assert result.code == 1
    assert re.search(r"policy\.yaml:6:\d+: fields\[0\]\.on: expected 'request', 'response' or 'both'", result.err)
    (project / "policy.yaml").write_text(POLICY + field.replace("respnse", "response"))
    assert "fields[0].readers.biling: expected a role that the policy names, got 'biling'; did you mean 'billing'?" in check(project).err


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "config" / "policies").glob("*.yaml")), BUILTIN / "policy.yaml"], ids=lambda path: path.name
)
def test_the_policies_that_are_shipped_pass_their_own_tests_and_every_rule_has_one(path: Path) -> None:
    assert main(["test", "--cover", str(path)]) == 0


def test_several_policies_are_one(project: Path, check: Any) -> None:
    (project / "more").mkdir()
    (project / "more" / "a.yaml").write_text("rules: [{id: write, allow: [billing], methods: [POST], paths: [/orders]}]\n")
    assert check(project / "more").code == 1  # the role is in the other document
    result = check("--json", project / "policy.yaml", project / "more")
    assert result.code == 0
    assert result.json()["rules"] == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [("a: 1\n", "the keys a"), ("[1]\n", "a list"), ("5\n", "a single value"), ("rules: []\nclusters: {}\n", "the keys rules")],
)
def test_a_document_of_neither_kind_is_a_problem(tmp_path: Path, check: Any, text: str, told: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    result = check(tmp_path / "x.yaml")
    assert result.code == 1
    assert "a configuration (listeners, clusters, policies, ...) or a policy" in result.err
    assert told in result.err


def test_the_kind_can_be_said(tmp_path: Path, check: Any) -> None:
    (tmp_path / "x.yaml").write_text("rulez: []\n")
    assert "did you mean 'rules'?" in check("--kind", "policy", tmp_path / "x.yaml").err
    assert "listeners: expected a value: this key is required" in check("--kind", "config", tmp_path / "x.yaml").err


def test_json_has_each_problem_with_its_parts(project: Path, check: Any) -> None:
    (project / "meshguard.yaml").write_text(CONFIG.replace("development", "developmnt"))
    result = check("--json", project / "meshguard.yaml")
    assert result.code == 1
    problem = next(problem for problem in result.json()["problems"] if problem["path"] == "profile")
    assert problem == {
        "file": str(project / "meshguard.yaml"), "line": 1, "column": 10, "path": "profile", "value": "'developmnt'",
        "expected": "strict, migration or development", "nearest": "development",
    }  # fmt: skip


def test_github_annotations_are_escaped(tmp_path: Path, check: Any) -> None:
    odd = tmp_path / "a,b:c.yaml"
    odd.write_text('profile: "x%0A::error::y\\n::error::z"\nlisteners: {}\n')
    result = check("--kind", "config", "--format", "github", odd)
    assert result.code == 1
    for line in result.out.splitlines():
        assert line.startswith("::error file=")
        assert "%2C" in line
        assert "%3A" in line
    assert any(",line=1,col=10,title=meshguard::profile: expected" in line for line in result.out.splitlines())
    assert "%250A" in result.out


def test_an_unreadable_file_is_exit_code_2_and_the_others_are_still_checked(project: Path, check: Any) -> None:
    (project / "policy.yaml").write_text("rulez: 1\nrules: []\n")
    result = check(project / "absent.yaml", project / "policy.yaml")
    assert result.code == 2
    assert "absent.yaml: (document): expected a readable file" in result.err
    assert "did you mean 'rules'?" in result.err


def test_show_effective_prints_values_and_origins(project: Path, check: Any) -> None:
    result = check("--show-effective", project / "meshguard.yaml")
    assert result.code == 0
    assert '    address: "127.0.0.1:8443"\n' in result.out
    assert "  sample: 1.0  # profile development\n" in result.out
    values = check("--show-effective", "--json", project / "meshguard.yaml").json()["effective"][0]
    assert values["clusters"]["app"]["timeouts"]["connect_s"] == 1.0


def test_profiles_are_a_table(check: Any) -> None:
    result = check("--profiles")
    assert result.code == 0
    rows = [re.split(r" {2,}", line) for line in result.out.splitlines()]
    assert rows[0] == ["", "strict", "migration", "development"]
    assert ["telemetry.sample", "0.01", "0.1", "1.0"] in rows
    assert ["a development CA", "never", "never", "yes"] in rows


def test_the_kinds_are_told_apart_by_all_of_their_keys() -> None:
    assert set(Configuration.model_fields) == CONFIG_KEYS
    assert set(PolicyDocument.model_fields) > POLICY_KEYS
    assert not CONFIG_KEYS & set(PolicyDocument.model_fields)


def test_a_thousand_rules_are_checked_quickly(tmp_path: Path, check: Any) -> None:
    rules = "".join(f'  - {{id: r{i}, allow: [billing], methods: [GET], paths: ["/s{i}/{{id}}"]}}\n' for i in range(1000))
    (tmp_path / "p.yaml").write_text(POLICY + rules)
    begin = time.process_time()
    assert check(tmp_path / "p.yaml").code == 0
    assert time.process_time() - begin < 3  # 0.2 s on one core of 2024


# -- schema -----------------------------------------------------------------------------------------------------------------


def test_schemas_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert main(["schema", "policy"]) == 0
    policy = json.loads(capsys.readouterr().out)
    assert config["$schema"] == policy["$schema"] == DIALECT
    assert config["required"] == ["listeners", "clusters"]
    assert config["oneOf"] == [{"required": ["policies"]}, {"required": ["bundle"]}]
    assert set(policy["properties"]) >= POLICY_KEYS
    assert config["additionalProperties"] is False


def fits(value: Any, schema: Any, root: Any) -> bool:
    """JSON Schema 2020-12, as much of it as the models make."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in schema:
        return any(fits(value, one, root) for one in schema["anyOf"])
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int, "number": int | float}
    if "type" in schema and (not isinstance(value, kinds[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean")):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        return set(schema.get("required", ())) <= value.keys() and all(
            fits(item, known[key], root) if key in known else other is not False and (other is True or fits(item, other, root))
            for key, item in value.items()
        )
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(fits(item, schema.get("items", {}), root) for item in value)
    return not ("pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value))


@pytest.mark.parametrize("path", [*EXAMPLES, *sorted((ROOT / "config" / "policies").glob("*.yaml"))], ids=lambda path: path.name)
def test_an_editor_finds_no_fault_in_the_examples_and_finds_one_in_a_wrong_key(path: Path) -> None:
    values = read(path, environment={}).values
    schema = schema_of("policy" if path.parent.name == "policies" else "config")
    assert isinstance(values, dict)
    assert fits(values, schema, schema)
    assert not fits({**values, "lsiteners": {}}, schema, schema)


def test_every_key_with_a_reference_in_the_schema_leads_somewhere() -> None:
    for kind in ("config", "policy"):
        schema = schema_of(kind)
        references = set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema)))
        assert references
        assert references <= schema["$defs"].keys()
