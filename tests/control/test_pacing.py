"""Loading beside a running loop: every part of the work gives way, and large things are freed piece by piece."""

from __future__ import annotations

import hashlib
import json
import weakref
from pathlib import Path

import pytest
import yaml

from meshguard.control.pacing import all_parts, forget, let_go, paced
from meshguard.control.policies import load_policy
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.documents import PolicyDocument
from meshguard.sources.documents import load_documents

RULES = 300


def policy() -> dict[str, object]:
    rules = [{"id": f"r{i:03d}", "allow": [f"spiffe://a.test/s{i}"], "methods": ["GET"], "paths": [f"/x{i}/{{id}}"]} for i in range(RULES)]
    last = {"id": "staff", "deny": ["staff"], "paths": ["/y"]}
    return {"roles": {"staff": {"principals": ["spiffe://a.test/*"]}}, "rules": [*rules, last]}


@pytest.mark.parametrize(("name", "write"), [("p.yaml", yaml.safe_dump), ("p.json", json.dumps)])
def test_reading_validating_and_compiling_breathe_at_every_rule(tmp_path: Path, name: str, write: object) -> None:
    assert callable(write)
    (tmp_path / name).write_text(write(policy()))
    breaths = 0

    def breathe() -> None:
        nonlocal breaths
        breaths += 1

    load_documents([tmp_path], PolicyDocument, breathe=breathe)
    assert breaths >= 2 * RULES, "parsing and validation"
    before, breaths = breaths, 0
    loaded = load_policy([tmp_path], breathe=breathe)
    assert breaths - before >= 5 * RULES, "besides: rules, callers, index, warnings, digest"
    plain = load_policy([tmp_path])
    assert (loaded.compiled.digest, loaded.compiled.rule_count) == (plain.compiled.digest, RULES + 1)


def test_the_digest_is_of_the_whole_canonical_text() -> None:
    """Hashed rule by rule, it is that of one JSON text: instances of other versions name the same policy alike."""
    rules = [
        {"id": "b", "shadow": False, "allow": ["anyone"], "paths": ["/b"]},
        {"id": "a", "shadow": False, "deny": ["anyone"], "methods": ["GET"], "paths": ["/a"]},
    ]
    given = [{key: value for key, value in rule.items() if key != "shadow"} for rule in rules]
    content = {"format": 1, "roles": {}, "rules": sorted(rules, key=lambda rule: str(rule["id"])), "fields": []}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    compiled = compile_policy([PolicyDocument.model_validate({"rules": given})])
    assert compiled.digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_a_policy_is_let_go_of_rule_by_rule(tmp_path: Path) -> None:
    class Piece:
        pass

    compiled = compile_policy([PolicyDocument.model_validate(policy())])
    held = list(compiled.parts())
    assert len(held) >= RULES * 3, "a rule, its leaf and its node"
    breaths = []
    waiting = [compiled]
    del compiled
    forget(waiting, lambda: breaths.append(1))
    assert not waiting
    assert len(breaths) == len(held)
    pieces = [Piece() for _ in range(4)]
    alive = [weakref.ref(piece) for piece in pieces]
    counts: list[int] = []
    parts = all_parts(pieces[:2], pieces[2:])
    pieces.clear()
    let_go(parts, lambda: counts.append(sum(each() is not None for each in alive)))
    assert counts == [3, 2, 1, 0], "one after the other"


def test_a_paced_thread_goes_on_after_each_rest() -> None:
    breathe = paced()
    for _ in range(50):
        breathe()
