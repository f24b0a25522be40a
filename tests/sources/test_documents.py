"""Documents: values, places, every error at once, and nothing secret in a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from meshguard.model.errors import DocumentError, Problem
from meshguard.sources.complaints import nearest, shown
from meshguard.sources.documents import find_documents, load_documents, parse, parse_path, path_text, place_problems, read
from meshguard.sources.yamltext import MAX_ALIASED, MAX_DEPTH, Malformed, locate, parse_json, parse_yaml


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["pet"]
    name: str


class Robot(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["robot"]
    volts: int


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(default=1, ge=1, le=9)
    owner: Literal["anyone"] | list[str] = "anyone"
    companion: Annotated[Pet | Robot, Field(discriminator="kind")] | None = None
    password: str = ""


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    leaves: dict[str, Leaf] = {}
    branches: list[Leaf] = []


def problems(text: str, file: str = "t.yaml", environment: dict[str, str] | None = None) -> list[Problem]:
    with pytest.raises(DocumentError) as caught:
        parse(file, text, environment=environment or {}).model(Tree)
    return caught.value.problems


def told(text: str, **more: Any) -> list[str]:
    return [str(problem) for problem in problems(text, **more)]


# -- values -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on: response", {"on": "response"}),  # YAML 1.1 would make the key True
        ("a: no", {"a": "no"}),
        ("a: yes", {"a": "yes"}),
        ("a: 12:30", {"a": "12:30"}),  # and this 750
        ("a: 2027-01-31", {"a": "2027-01-31"}),
        ("a: 007", {"a": "007"}),
        ("a: 0", {"a": 0}),
        ("a: -17", {"a": -17}),
        ("a: 1.5", {"a": 1.5}),
        ("a: 1.0e+3", {"a": 1000.0}),
        ("a: 12e4567", {"a": "12e4567"}),
        ("a: 0x1f", {"a": "0x1f"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: .nan", {"a": ".nan"}),
        ("a: 123456789012345678901234567890", {"a": "123456789012345678901234567890"}),
        ("a: true", {"a": True}),
        ("a: 'true'", {"a": "true"}),
        ('a: "5"', {"a": "5"}),
        ("a: !!str 5", {"a": "5"}),
        ("a:", {"a": None}),
        ("a: ~", {"a": None}),
        ("5: x", {"5": "x"}),
        ("- [a, 1]\n- {b: }", [["a", 1], {"b": None}]),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x 3\nb: *x", {"a": 3, "b": 3}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ],
)
def test_values_are_those_of_the_core_schema(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "expected", "line"),
    [
        ("a: 1\nb: 2\na: 3", "every key once", 3),
        ("a: {x: 1, x: 2}", "every key once", 1),
        ("a: &b 1\nc:\n  <<: *b", "no merge key", 3),
        ("a: 1\nb: !!python/object/apply:os.system [x]", "no tag", 2),
        ("a: !!binary aGk=", "no tag", 1),
        ("a: 1\n---\nb: 2", "one document", 2),
        ("? [a]\n: 1", "a key that is text", 1),
        ("a: *nowhere", "anchor", 1),
        ("a: &x [*x]", "complete before it", 1),
        ("a: [1, 2\nb: 3", "valid YAML", 2),
        ("\ta: 1", "valid YAML", 1),
        ("a: 'open", "valid YAML", 1),
        ("", "a document", 1),
    ],
)
def test_text_that_is_no_document_is_refused_with_its_line(text: str, expected: str, line: int) -> None:
    with pytest.raises(Malformed) as caught:
        parse_yaml(text)
    found = caught.value.problems("f")[0]
    assert expected in found.expected
    assert found.line == line


def test_every_duplicate_key_is_told() -> None:
    with pytest.raises(Malformed) as caught:
        parse_yaml("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert [(reason[0], reason[2]) for reason in caught.value.reasons] == [(2, "a"), (3, "c")]


def test_aliases_cannot_multiply() -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    with pytest.raises(Malformed, match="aliases that stand for at most"):
        parse_yaml(text)


def test_few_aliases_are_fine() -> None:
    text = "a: &a [x, y]\nb: [" + ", ".join(["*a"] * 1000) + "]"
    assert MAX_ALIASED > 3000
    value = parse_yaml(text)
    assert isinstance(value, dict)
    assert len(value["b"]) == 1000


def test_nesting_is_bounded() -> None:
    parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(Malformed, match="nesting"):
        parse_yaml("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(Malformed, match="nesting"):
        parse_json("[" * 100_000 + "]" * 100_000)


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**50), 2**50)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdefg", min_size=1, max_size=4), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(_plain)
def test_what_a_yaml_writer_writes_is_read_back(value: object) -> None:
    assert parse_yaml(yaml.safe_dump({"v": value}, allow_unicode=True)) == {"v": value}


@settings(max_examples=100, deadline=None)
@given(_plain)
def test_json_and_yaml_agree_on_json(value: object) -> None:
    text = json.dumps({"v": value})
    assert parse_json(text) == {"v": value}


@settings(max_examples=200, deadline=None)
@given(st.text("ab:-[]{}&*!|>'\"#%@`,? \n\t$0.~\\", max_size=40))
def test_any_text_is_a_value_or_malformed(text: str) -> None:
    try:
        parse_yaml(text)
    except Malformed as exc:
        reasons = exc.reasons
    else:
        return
    assert all(expected and line >= 0 for line, _, _, expected, _ in reasons)


# -- places -----------------------------------------------------------------------------------------------------------------


def test_places_of_values_keys_and_what_is_missing() -> None:
    text = "name: oak\nleaves:\n  one:\n    size: 3\nbranches:\n  - size: 1\n  - {size: 2,\n     owner: [a, b]}\n"
    places = locate(text, [("name",), ("leaves", "one", "size"), ("branches", 1, "owner", 1), ("branches", 1, "nothing"), ("branches",)])
    assert {path: (place.line, place.column, place.text) for path, place in places.items()} == {
        ("name",): (1, 7, "oak"),
        ("leaves", "one", "size"): (4, 11, "3"),
        ("branches", 1, "owner", 1): (8, 17, "b"),
        ("branches", 1, "nothing"): (7, 5, None),
        ("branches",): (5, 1, None),
    }


@settings(max_examples=100, deadline=None)
@given(_plain)
def test_every_path_has_the_place_where_its_value_begins(value: object) -> None:
    text = yaml.safe_dump({"v": value}, default_flow_style=True, allow_unicode=True, width=20)
    paths = [("v",)]
    if isinstance(value, list):
        paths += [("v", index) for index in range(len(value))]  # type: ignore[misc]
    places = locate(text, paths)
    assert places.keys() == set(paths)
    lines = text.split("\n")
    for place in places.values():
        assert place.line <= len(lines)
        assert place.column <= len(lines[place.line - 1]) + 1


@given(st.lists(st.integers(0, 99) | st.text("ab.[]", min_size=1, max_size=4), min_size=1, max_size=5))
def test_paths_are_read_back(path: list[str | int]) -> None:
    assert parse_path(path_text(path)) == tuple(path)


# -- errors -----------------------------------------------------------------------------------------------------------------


def test_every_error_is_told_at_once_in_the_order_of_the_document() -> None:
    text = "nane: oak\nleaves:\n  one: {size: 0, colour: red}\n  two: {size: many}\nbranches: {}\n"
    assert told(text) == [
        "t.yaml:1:1: name: expected a value: this key is required",
        "t.yaml:1:7: nane: expected one of the keys branches, leaves, name; did you mean 'name'?",
        "t.yaml:3:15: leaves.one.size: expected a number at least 1, got 0",
        "t.yaml:3:26: leaves.one.colour: expected one of the keys companion, owner, password, size",
        "t.yaml:4:15: leaves.two.size: expected a whole number, got 'many'",
        "t.yaml:5:1: branches: expected a list, got a mapping of 0",
    ]


def test_members_of_a_union_are_told_as_one() -> None:
    assert told("name: a\nbranches: [{owner: anyome}]") == [
        "t.yaml:2:20: branches[0].owner: expected anyone or a list, got 'anyome'; did you mean 'anyone'?"
    ]
    assert told("name: a\nbranches: [{owner: [ann, 7]}]") == ["t.yaml:2:26: branches[0].owner[1]: expected text (put it in quotes), got 7"]


def test_a_discriminated_union_is_told_by_its_key() -> None:
    assert told("name: a\nbranches: [{companion: {kind: robto, volts: 3}}]") == [
        "t.yaml:2:31: branches[0].companion.kind: expected pet or robot, got 'robto'; did you mean 'robot'?"
    ]
    assert told("name: a\nbranches: [{companion: {volts: 3}}]") == [
        "t.yaml:2:13: branches[0].companion.kind: expected a value: this key is required"
    ]
    assert told("name: a\nbranches: [{companion: {kind: robot, volt: 3}}]") == [
        "t.yaml:2:13: branches[0].companion.volts: expected a value: this key is required",
        "t.yaml:2:44: branches[0].companion.volt: expected one of the keys kind, volts; did you mean 'volts'?",
    ]


def test_no_word_of_the_validator_leaks() -> None:
    text = (
        "name: [a]\nleaves: 3\nbranches:\n - 4\n - {owner: 3}\n - {companion: 3}\n - {companion: {kind: pet, name: {}}}\n - {size: 1.5}\n"
    )
    for line in told(text):
        assert not any(word in line for word in ("pydantic", "function-", "literal[", "Input should", "valid dictionary", "type="))
    assert len(told(text)) == 7


def test_a_document_of_another_form_is_cut_short() -> None:
    text = "name: a\nleaves: {" + ", ".join(f"k{i}: {{bad: 1}}" for i in range(500)) + "}"
    found = problems(text)
    assert len(found) == 201
    assert any("300 more" in problem.expected for problem in found)


@pytest.mark.parametrize(
    "text",
    [
        "name: a\nbranches: [{password: {a: hunter2}, size: hunter2x}]".replace("size: hunter2x", "size: 0"),
        "name: a\nbranches: [{password: [hunter2]}]",
        'name: {v: "-----BEGIN PRIVATE KEY-----hunter2"}',
        'name: a\nbranches: ["-----BEGIN PRIVATE KEY-----hunter2"]',
        "name: a\nbranches: ['https://ann:hunter2@host/']",
        "name: a\nbranches: [{secrets: hunter2}]",
        "name: a\nbranches: ['${PW}']",
        "name: a\nbranches: [{size: '${PW}'}]",
    ],
)
def test_secrets_are_not_told(text: str) -> None:
    for file in ("t.yaml",):
        found = told(text, file=file, environment={"PW": "hunter2"})
        assert found
        assert "hunter2" not in "\n".join(found)


def test_values_of_variables_are_not_told_from_json_either() -> None:
    text = json.dumps({"name": "a\ud83d\ude00", "branches": [{"size": "${PW}"}]})  # surrogates: places cannot be found by the YAML walk
    found = told(text, file="t.json", environment={"PW": "hunter2"})
    assert found
    assert "hunter2" not in "\n".join(found)


def test_shown_values_are_short() -> None:
    assert len(shown("x" * 1000)) < 70
    assert shown(True) == "true"
    assert shown({"a": 1}) == "a mapping of 1"


@pytest.mark.parametrize(
    ("name", "best"), [("adress", "address"), ("lsiteners", "listeners"), ("TLS", "tls"), ("zebra", ""), ("polices", "policies"), ("x", "")]
)
def test_nearest_names(name: str, best: str) -> None:
    assert nearest(name, ["address", "listeners", "tls", "policies"]) == best


# -- variables --------------------------------------------------------------------------------------------------------------


def test_variables_are_replaced_in_values_only() -> None:
    environment = {"A": "one", "EMPTY": "", "Y": "a: {b: c}"}
    text = "x: ${A}-${A}\ny: ${Y}\n${A}: k\nd: ${NOPE:-two}\ne: ${EMPTY:-three}\nf: ${NOPE:-}\ng: $${A}\nh: $5\ni: '${EMPTY}'\n"
    assert parse("f.yaml", text, environment=environment).values == {
        "x": "one-one", "y": "a: {b: c}", "${A}": "k", "d": "two", "e": "three", "f": "", "g": "${A}", "h": "$5", "i": "",
    }  # fmt: skip


def test_a_number_may_come_from_a_variable() -> None:
    assert parse("f.yaml", "name: a\nbranches: [{size: '${N}'}]", environment={"N": "7"}).model(Tree).branches[0].size == 7


@pytest.mark.parametrize(
    ("text", "expected"), [("a: 1\nb: ${NOPE}", "NOPE to be set"), ("a: 1\nb: ${1x}", "a variable as"), ("a: 1\nb: ${A", "a variable as")]
)
def test_a_variable_that_is_not_set_is_a_problem_with_its_line(text: str, expected: str) -> None:
    for file in ("f.yaml", "f.json"):
        with pytest.raises(DocumentError, match=expected) as caught:
            parse(file, text if file == "f.yaml" else json.dumps({"b": text.rpartition(": ")[2]}), environment={"A": "x"})
        if file == "f.yaml":
            assert caught.value.problems[0].line == 2


# -- files ------------------------------------------------------------------------------------------------------------------


def test_files_are_found_in_order_and_hidden_ones_skipped(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json", "notes.txt", ".hidden.yaml", "sub/d.yaml", "..data/e.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "z.yaml").symlink_to(tmp_path / "..data" / "e.yaml")  # as a mounted ConfigMap does
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in find_documents([tmp_path])]
    assert found == ["a.yml", "b.yaml", "c.json", "sub/d.yaml", "z.yaml"]


def test_absent_paths_and_empty_directories_are_problems(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DocumentError) as caught:
        find_documents([tmp_path / "empty", tmp_path / "absent"])
    assert ["at least one" in problem.expected or "existing" in problem.expected for problem in caught.value.problems] == [True, True]


def test_problems_of_all_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: 1\n")
    (tmp_path / "b.yaml").write_text("name: fine\n")
    (tmp_path / "c.json").write_text('{"name": "x",\n "leaves": []}')
    (tmp_path / "d.yaml").write_text("a: b: c\n")
    (tmp_path / "e.yaml").write_text("# nothing\n")
    (tmp_path / "f.yaml").write_bytes(b"name: x\n# \xff\n")
    with pytest.raises(DocumentError) as caught:
        load_documents([tmp_path], Tree)
    assert [(Path(problem.file).name, problem.line) for problem in caught.value.problems] == [
        ("a.yaml", 1), ("c.json", 2), ("d.yaml", 1), ("e.yaml", 1), ("f.yaml", 2),
    ]  # fmt: skip


def test_an_empty_file_is_not_an_empty_policy(tmp_path: Path) -> None:
    for text in ("", "# only a comment\n", "---\n"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(DocumentError):
            load_documents([tmp_path / "a.yaml"], Tree)


def test_json_errors_have_their_place() -> None:
    with pytest.raises(DocumentError) as caught:
        parse("f.json", '{"a": 1,\n "b": }')
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (2, 7)
    for text in ('{"a": 1, "a": 2}', '{"a": NaN}', ""):
        with pytest.raises(DocumentError):
            parse("f.json", text)


def test_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("a: " + "x" * 100)
    with pytest.raises(DocumentError, match="at most 50 bytes"):
        read(tmp_path / "big.yaml", max_bytes=50)


def test_loaded_documents_know_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: oak\nbranches: [{size: 2}]\n")
    (loaded,) = load_documents([tmp_path], Tree)
    assert loaded.value == Tree(name="oak", branches=[Leaf(size=2)])
    placed = place_problems([Problem(loaded.file, "branches[0].size", "another size"), Problem("other", "x", "y")], [loaded.document])
    assert [(problem.line, problem.column) for problem in placed] == [(2, 19), (0, 0)]


def test_part_of_a_document_is_validated_with_whole_paths() -> None:
    document = parse("f.yaml", "extra:\n  - {size: 3}\n  - {size: 0}\n")
    assert document.model(Leaf, at=("extra", 0)).size == 3
    with pytest.raises(DocumentError, match=r"f.yaml:3:12: extra\[1\].size: expected a number at least 1, got 0"):
        document.model(Leaf, at=("extra", 1))
