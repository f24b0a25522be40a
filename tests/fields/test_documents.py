"""Field rules as documents: every error names its place and what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.model.errors import DocumentError
from tests.fields.parts import RULE, compiled, keyset


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"pths": ["/x"]}, "fields[0].pths", "did you mean 'paths'"),
        ({"select": "$.a..*"}, "fields[0].select[0]", "character 6"),
        ({"select": ["$.a", "$.a"]}, "fields[0].select", "twice"),
        ({"select": []}, "fields[0].select", "at least 1"),
        ({"paths": ["orders"]}, "fields[0].paths[0]", "starts with '/'"),
        ({"paths": ["/a*"]}, "fields[0].paths[0]", "whole segment"),
        ({"methods": ["get"]}, "fields[0].methods[0]", "upper case"),
        ({"on": "always"}, "fields[0].on", "'request', 'response' or 'both'"),
        ({"content_types": ["json"]}, "fields[0].content_types[0]", "media type"),
        ({"seal": "orders-pi"}, "fields[0].seal", "did you mean 'orders-pii'"),
        ({"seal": "a:b"}, "fields[0].seal", "keyset name"),
        ({"readers": {"biling": "open"}}, "fields[0].readers.biling", "did you mean 'billing'"),
        ({"readers": {"billing": "opn"}}, "fields[0].readers.billing", "open or {mask: NAME}"),
        ({"readers": {"billing": {"mask": "last5"}}}, "fields[0].readers.billing.mask", "last4"),
        ({"readers": {"billing": {"msk": "last4"}}}, "fields[0].readers.billing.msk", "did you mean 'mask'"),
        ({"others": "plain"}, "fields[0].others", "ciphertext, remove or {mask: NAME}"),
        ({"on": "both", "others": {"mask": "all"}}, "fields[0].others", "stored in place"),
        ({"id": "a b"}, "fields[0].id", "letters, digits"),
        ({"audience": 'a"b'}, "fields[0].audience", "without quotes"),
        ({"seal_null": "yes"}, "fields[0].seal_null", "boolean"),
        ({"deterministic": True}, "fields[0].deterministic", "valid string"),
        ({"obfuscate": True}, "fields[0].obfuscate", "one of the keys"),
    ],
)
def test_an_error_names_its_place(change: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        compiled({**RULE, **change})
    problems = {problem.path: str(problem) for problem in caught.value.problems}
    assert path in problems, problems
    assert words in problems[path]
    assert len(problems) == 1 or path.endswith(".msk")  # where `mask` is missing too


@pytest.mark.parametrize("key", ["id", "paths", "on"])
def test_required_keys(key: str) -> None:
    with pytest.raises(DocumentError, match="required") as caught:
        compiled({name: value for name, value in RULE.items() if name != key})
    assert [problem.path for problem in caught.value.problems] == [f"fields[0].{key}"]


def test_all_problems_at_once() -> None:
    with pytest.raises(DocumentError) as caught:
        compiled({**RULE, "on": "x"}, {**RULE, "seal": "no"}, {**RULE, "id": "b", "select": "$.payment"}, {**RULE, "id": "c"})
    assert len(caught.value.problems) >= 4


@pytest.mark.parametrize("select", ["$.payment", "$.payment.card", "$.payment.card.digits", "$.*.card", "$['payment']"])
def test_overlapping_selections(select: str) -> None:
    with pytest.raises(DocumentError, match="apart from"):
        compiled(RULE, {**RULE, "id": "other", "select": select})


def test_selections_that_do_not_meet() -> None:
    compiled(
        RULE, {**RULE, "id": "b", "select": "$.payment.name"}, {**RULE, "id": "c", "paths": ["/x"]}, {**RULE, "id": "d", "on": "request"}
    )


def test_ids_are_unique() -> None:
    with pytest.raises(DocumentError, match="not taken"):
        compiled(RULE, {**RULE, "paths": ["/x"]})


def test_the_digest_is_of_the_meaning() -> None:
    assert compiled(RULE).digest == compiled({**RULE, "description": "x"}, keysets=(keyset("orders-pii", bytes(32)),)).digest
    assert compiled(RULE).digest == compiled({**RULE, "select": ["$.payment.card"]}).digest
    assert compiled(RULE).digest != compiled({**RULE, "others": "remove"}).digest
