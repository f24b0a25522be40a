"""Conditions on bodies: what each of them takes, and that doubt counts against the request in both directions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.cli.audit_replay import replay_entry
from meshguard.fields.envelope import Envelope
from meshguard.model.errors import DocumentError
from meshguard.model.verdicts import Denial, Permit
from meshguard.pipeline.bodies import BodyReader
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.decision import Conditional
from meshguard.policy.diff import diff
from meshguard.policy.explain import explain
from meshguard.policy.question import Question, ask
from tests.fields.orders_proto import descriptor_set
from tests.fields.parts import keyset
from tests.harness.proxy import ROOT
from tests.policy.build import BILLING, caller, outcome, policy


def question(body: bytes | None, kind: str = "application/json", **more: Any) -> Question:
    def lines(name: str) -> list[str]:
        return [kind] if name == "content-type" else []

    reader = BodyReader("/x", lines, body, 1 << 20)
    return Question("POST", "/x", ("/x",), host="localhost", port=8443, now=1.9e9, read=reader.read, **more)


def judged(rule: dict[str, Any], body: Any, kind: str = "application/json") -> tuple[bool, bool]:
    """Whether an allow rule and a deny rule of this kind match."""
    octets = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    allow = ask(policy({"allow": "anyone", **rule}), None, question(octets, kind))
    deny = ask(policy({"id": "yes", "allow": "anyone"}, {"deny": "anyone", **rule}), None, question(octets, kind))
    return isinstance(allow, Permit), isinstance(deny, Denial)


def one(**test: Any) -> dict[str, Any]:
    return {"body": {"json": {"$.v": test}}}


MATCHES, NOT, DOUBT = (True, True), (False, False), (False, True)


@pytest.mark.parametrize(
    ("rule", "body", "expected"),
    [
        (one(exact=["a", 1, True, None]), {"v": "a"}, MATCHES),
        (one(exact=["a", 1, True, None]), {"v": 1.0}, MATCHES),
        (one(exact=["a", 1, True, None]), {"v": True}, MATCHES),
        (one(exact=["a", 1, True, None]), {"v": None}, MATCHES),
        (one(exact=["a", 1, True, None]), {"v": 2}, NOT),
        (one(exact=["a", 1, True, None]), {"v": []}, DOUBT),
        (one(exact="a"), {}, NOT),
        (one(exact="a"), {"v": None}, NOT),
        (one(exact="a"), {"v": 1}, DOUBT),
        (one(exact=1), {"v": True}, DOUBT),
        (one(exact=0.1), {"v": 0.1}, MATCHES),
        (one(exact="ADMIN", ignore_case=True), {"v": "Admin"}, MATCHES),
        (one(prefix=["a", "b"], suffix="z", contains="m"), {"v": "bmz"}, MATCHES),
        (one(prefix=["a", "b"], suffix="z", contains="m"), {"v": "cmz"}, NOT),
        (one(min=1, max=5), {"v": 5}, MATCHES),
        (one(above=1, below=5), {"v": 5}, NOT),
        (one(min=1), {"v": "5"}, DOUBT),
        (one(below=9007199254740993), {"v": 9007199254740994}, NOT),
        (one(max=9007199254740992), {"v": 9007199254740993}, DOUBT),  # as a double it is below the bound, as an integer above it
        (one(present=True), {"v": 0}, MATCHES),
        (one(present=True), {"v": None}, DOUBT),
        (one(present=True), {}, NOT),
        (one(absent=True), {}, MATCHES),
        (one(absent=True), {"v": None}, DOUBT),
        (one(absent=True), {"v": 1}, NOT),
        (one(absent=True), {"V": 1}, DOUBT),
        (one(exact="a"), {"v": "b", "V": "b"}, DOUBT),
        (one(exact="a"), None, DOUBT),
        (one(exact="a"), b"", DOUBT),
        (one(exact="a"), [{"v": "b"}], DOUBT),
        (one(exact="a"), "b", DOUBT),
        ({"body": {"json": {"$.a_b": 1}}}, {"aB": 1}, DOUBT),  # readers of protobuf's JSON take either spelling
        ({"body": {"json": {"$.items[*].n": {"max": 3}}}}, {"items": [{"n": 1}, {"n": 3}, {}]}, MATCHES),
        ({"body": {"json": {"$.items[*].n": {"max": 3}}}}, {"items": [{"n": 4}]}, NOT),
        ({"body": {"json": {"$.items[*].n": {"max": 3}}}}, {"items": [{"n": 1}, {"n": 4}]}, DOUBT),
        ({"body": {"json": {"$.items[*].n": {"max": 3}}}}, {"items": []}, NOT),
        ({"body": {"json": {"$.items[*].n": {"max": 3}}}}, {"items": [1]}, DOUBT),
        ({"body": {"json": {"$.items[1]": 7}}}, {"items": [1, 7]}, MATCHES),
        ({"body": {"json": {"$.items[1]": 7}}}, {"items": {"1": 7}}, DOUBT),
        ({"body": {"json": {"$..n": 3}}}, {"a": [{"b": {"n": 3}}], "c": 1}, MATCHES),
        ({"body": {"json": {"$..n": 3}}}, {"a": [{"b": {"N": 3}}]}, DOUBT),
        ({"body": {"json": {"$..n": 3}}}, {"a": 1}, NOT),
        ({"body": {"json": {"$.a": 1, "$.b": 2}}}, {"a": 1, "b": 2}, MATCHES),
        ({"body": {"json": {"$.a": 1, "$.b": 2}}}, {"a": 1, "b": 3}, NOT),
        ({"body": {"json": {}}}, {"any": 1}, MATCHES),
        ({"body": {"json": {}}}, b"{", DOUBT),
        ({"when": "body.v == 'a'"}, {"v": "a"}, MATCHES),
        ({"when": "body.v == 'a'"}, {"v": "b"}, NOT),
        ({"when": "body.v == 'a'"}, {}, DOUBT),
        ({"when": "body.v == 'a'"}, {"v": "b", "V": "a"}, DOUBT),
        ({"when": "has(body.v) && body['w'] == 1"}, {"W": 1}, DOUBT),
        ({"when": "body.items.exists(i, i.qty > 3)"}, {"items": [{"qty": 1}, {"qty": 4.5}]}, MATCHES),
        ({"when": "body.items.exists(i, i.qty > 3)"}, {"items": [{"qty": 1}], "Size": 1, "Exists": 2}, NOT),
        ({"when": "body.v > 5", "body": {"json": {"$.w": 1}}}, {"v": 6, "w": 1}, MATCHES),
    ],
)
def test_what_matches(rule: dict[str, Any], body: Any, expected: tuple[bool, bool]) -> None:
    assert judged(rule, body) == expected


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("rule", "body", "kind", "expected"),
    [
        ({"body": {"form": {"n": {"max": 3}}}}, b"n=3", FORM, MATCHES),
        ({"body": {"form": {"n": 0.1}}}, b"n=0.1", FORM, MATCHES),
        ({"body": {"form": {"n": {"max": 3}}}}, b"n=x", FORM, DOUBT),
        ({"body": {"form": {"r": ["a b", "c"]}}}, b"r=a+b&r=%63", FORM, MATCHES),
        ({"body": {"form": {"r": "a"}}}, b"r=a&r=b", FORM, DOUBT),
        ({"body": {"form": {"r": "a"}}}, b"r=b&r%5B%5D=a", FORM, DOUBT),
        ({"body": {"form": {"r": "a"}}}, b'{"r":"a"}', "application/json", DOUBT),
        ({"body": {"json": {"$.r": "a"}, "form": {"r": "a"}}}, b'{"r":"a"}', "application/json", MATCHES),
        ({"body": {"form": {}}, "when": "body.r == 'a'"}, b"r=a&t=1&t=2", FORM, MATCHES),
        ({"body": {"form": {}}, "when": "body.r == 'a'"}, b"r=b&r=a", FORM, DOUBT),
        ({"when": "body.r == 'a'"}, b"r=a", FORM, DOUBT),  # an expression alone reads JSON
    ],
)
def test_forms(rule: dict[str, Any], body: bytes, kind: str, expected: tuple[bool, bool]) -> None:
    assert judged(rule, body, kind) == expected


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(("admin", "user", "")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("role", "Role", "a", "b")), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON)
@settings(max_examples=200, deadline=None)
def test_a_deny_rule_holds_wherever_an_allow_rule_would(value: Any) -> None:
    """INVARIANT: doubt is never in the caller's favour, so what an allow rule takes for certain a deny rule does too."""
    for rule in ({"$.role": "admin"}, {"$..role": {"present": True}}, {"$.a[*].role": {"max": 2}}, {"$.b": {"absent": True}}):
        allowed, denied = judged({"body": {"json": rule}}, value)
        assert denied or not allowed


def test_what_is_sealed_cannot_be_compared() -> None:
    """It may be opened to anything after the decision."""
    value = b'{"role":%b,"x":"eyJhbGciOiJIUzI1NiJ9.e30.x"}'
    sealed = Envelope(keyset("k"), "f").seal(b'"admin"', bytes(12))
    for rule in ({"body": {"json": {"$.role": "admin"}}}, {"when": "body.role == 'admin'"}):
        assert judged(rule, value % b'"admin"') == MATCHES
        assert judged(rule, value % b'"user"') == NOT
        assert judged(rule, value % sealed) == DOUBT


def _outlook(compiled: CompiledPolicy) -> Conditional:
    found = compiled.bind(caller(BILLING)).outlook("POST", "/x", ("/x",), "localhost", 8443)
    assert isinstance(found, Conditional)
    return found


def test_the_body_is_asked_for_only_where_it_can_change_the_verdict() -> None:
    by_header = {"headers": {"x-a": "1"}}
    body = {"body": {"json": {"$.v": 1}}}
    with_header, without = question(b"{}", headers={"x-a": ["1"]}), question(b"{}")
    allow_body = {"allow": "anyone", **body}
    assert _outlook(policy(allow_body)).without_body(without) is None
    either = _outlook(policy(allow_body, {"allow": "anyone", **by_header}))
    assert isinstance(either.without_body(with_header), Permit)
    assert either.without_body(without) is None
    both = _outlook(policy({"allow": "anyone", **body, **by_header}))
    assert isinstance(both.without_body(without), Denial)
    assert both.without_body(with_header) is None
    denied = _outlook(policy({"deny": "anyone", **body}, {"id": "h", "deny": "anyone", **by_header}, {"id": "yes", "allow": "anyone"}))
    assert isinstance(denied.without_body(with_header), Denial)
    assert denied.without_body(without) is None
    hopeless = _outlook(policy({"deny": "anyone", **body}, {"allow": "anyone", **by_header}))
    assert isinstance(hopeless.without_body(without), Denial)  # nobody allows it whatever the body says


def test_reasons() -> None:
    allow, deny = (
        policy({"allow": "anyone", **one(exact="a")}),
        policy({"id": "y", "allow": "anyone"}, {"id": "n", "deny": "anyone", **one(exact="a")}),
    )
    for body, kind, code in (
        (b"{", "application/json", "body_invalid"),
        (b"x", "text/plain", "body_not_inspectable"),
        (b'{"v":1,"v":1}', "application/json", "body_invalid"),
    ):
        assert outcome(ask(allow, None, question(body, kind))) == (code, None)
        assert outcome(ask(deny, None, question(body, kind))) == (code, "n")
    assert outcome(ask(allow, None, question(None))) == ("no_rule", None)
    assert outcome(ask(deny, None, question(None))) == ("policy_denied", "n")
    verdict = ask(allow, None, question(b'{"v":"planted"}'))
    assert isinstance(verdict, Denial)
    assert verdict.near_miss is not None
    assert (verdict.near_miss.condition, verdict.near_miss.detail) == ("body", "body json $.v is 'a'")


def test_explanations_digests_differences_and_replays_know_of_bodies() -> None:
    before, after = policy({"allow": "anyone", **one(max=5)}), policy({"allow": "anyone", **one(max=6)})
    told = explain(before, None, question(b'{"v":6}'))
    assert "body (body json $.v max 5)" in told.text()
    assert before.digest != after.digest
    assert policy({"allow": "anyone", **one(exact=["a", "b"])}).digest == policy({"allow": "anyone", **one(exact=["b", "a"])}).digest
    found = diff(before, after, lambda path: (path,))
    assert {flip.kind for flip in found.flips} == {"changed"}
    entry = {
        "time": "2030-01-01T00:00:00Z",
        "who": {"principal": BILLING},
        "what": {"method": "POST", "path": "/x", "host": "h", "port": 1},
        "why": {"policy_digest": "x", "verdict": "allow"},
    }
    for compiled in (before, policy({"id": "y", "allow": "anyone"}, {"id": "n", "deny": "anyone", **one(max=5)})):
        replayed = replay_entry(compiled, entry)
        assert replayed is not None
        assert replayed.uncertain == ("body",)  # it is not on record, and nobody guesses


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "json, form or protobuf"),
        ({"json": {"v": 1}}, "'$'"),
        ({"json": {"$.v": {}}}, "one of"),
        ({"json": {"$.v": {"min": 5, "max": 1}}}, "a range"),
        ({"json": {"$.v": {"min": 5, "exact": 5}}}, "either a range"),
        ({"json": {"$.v": {"present": False}}}, "true, or leave"),
        ({"json": {"$.v": {"min": 1, "above": 1}}}, "min or above"),
        ({"json": {"$.v": {"min": 1, "ignore_case": True}}}, "ignore_case"),
        ({"json": {"$.v": {"regex": "a"}}}, "Extra"),
        ({"json": {"$.v": [1, 1]}}, "each value once"),
        ({"protobuf": {"descriptor": "x.pb", "fields": {"a..b": 1}}}, "field names"),
    ],
)
def test_what_is_no_condition(body: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + expected.replace("$", r"\$")):
        policy({"allow": "anyone", "body": body})


def test_descriptors_are_asked_for_at_load() -> None:
    with pytest.raises(DocumentError, match="loaded from files"):
        policy({"allow": "anyone", "body": {"protobuf": {"descriptor": "x.pb", "fields": {"a": 1}}}})


def test_a_deny_rule_without_methods_is_worth_a_look() -> None:
    noted = policy({"id": "y", "allow": "anyone"}, {"id": "n", "deny": "anyone", **one(exact="a")})
    assert any("names methods" in problem.expected for problem in noted.warnings)
    quiet = policy({"id": "y", "allow": "anyone"}, {"id": "n", "deny": "anyone", "methods": ["POST"], **one(exact="a")})
    assert not quiet.warnings


def test_tests_in_documents_have_bodies(tmp_path: Path) -> None:
    (tmp_path / "bank.pb").write_bytes(descriptor_set().SerializeToString())
    call, old = "POST /bank.v1.Orders/Place", "POST /bank.v1.Orders/Old"
    grpc = {"content-type": "application/grpc"}
    document = {
        "rules": [
            {"id": "small", "allow": "anyone", "methods": ["POST"], "paths": ["/t"], "body": {"json": {"$.amount": {"max": 5}}}},
            {
                "id": "call",
                "allow": "anyone",
                "methods": ["POST"],
                "paths": ["/bank.v1.Orders/*"],
                "body": {
                    "protobuf": {"descriptor": "bank.pb", "fields": {"payment.amount": {"max": 5}, "notes": {"max": 1}, "role": ["USER"]}}
                },
            },
            {
                "id": "old",
                "allow": "anyone",
                "paths": ["/bank.v1.Orders/Old"],
                "body": {"protobuf": {"descriptor": "bank.pb"}},
                "when": "body.level == 'HIGH' && body.limit == 7",
            },
        ],
        "tests": [
            {"as": "anyone", "call": "POST /t", "with": {"body": {"amount": 5}}, "expect": "allow", "rule": "small"},
            {"as": "anyone", "call": "POST /t", "with": {"body": {"amount": 6}}, "expect": "deny"},
            {"as": "anyone", "call": "POST /t", "with": {"body": '{"amount":5,"amount":6}'}, "expect": "deny"},
            {"as": "anyone", "call": "POST /t", "expect": "deny"},
            {
                "as": "anyone",
                "call": call,
                "with": {"headers": grpc, "body": {"payment": {"amount": -5}, "notes": {"a": 1}}},
                "expect": "allow",
            },
            {
                "as": "anyone",
                "call": call,
                "with": {"headers": grpc, "body": {"payment": {"amount": 6}, "notes": {"a": 1}}},
                "expect": "deny",
            },
            {
                "as": "anyone",
                "call": call,
                "with": {"headers": grpc, "body": {"payment": {"amount": 1}, "notes": {"a": 1}, "role": "ADMIN"}},
                "expect": "deny",
            },
            {"as": "anyone", "call": "POST /bank.v1.Orders/Chat", "with": {"headers": grpc, "body": {}}, "expect": "deny"},
            {"as": "anyone", "call": old, "with": {"headers": grpc, "body": {"id": 3, "level": "HIGH"}}, "expect": "allow", "rule": "old"},
            {"as": "anyone", "call": old, "with": {"headers": grpc, "body": {"id": 3, "level": "LOW"}}, "expect": "deny"},
        ],
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, "-m", "meshguard", "test", str(tmp_path / "p.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "10 passed, 0 failed; 3 of 3 rules" in done.stdout, done.stdout + done.stderr
    document["rules"][1]["body"]["protobuf"]["fields"] = {"paymnt.amount": 1}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, "-m", "meshguard", "check", str(tmp_path / "p.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "a field of bank.v1." in done.stderr
