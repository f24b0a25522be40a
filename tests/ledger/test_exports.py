"""Decisions in the words of others."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.ledger.exports import ocsf, opa

ENTRY = {
    "at": 5,
    "id": "boot-1",
    "outcome": {"status": 403, "duration_us": 1500, "attempts": 0},
    "schema": "meshguard.decision/1",
    "time": "2027-01-31T18:00:00.250000Z",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "what": {"cluster": "app", "host": "shop.example", "method": "DELETE", "path": "/orders/7", "port": 8443, "tls": "TLSv1.3"},
    "who": {"address": "10.1.2.3", "port": 5, "principal": "spiffe://shop.example/a"},
    "why": {"policy_digest": "sha256:ab", "policy_revision": 3, "reason": "no_rule", "verdict": "deny"},
}


@pytest.mark.parametrize(("class_uid", "activity"), [(6003, 4), (4002, 2)])
def test_ocsf(class_uid: int, activity: int) -> None:
    event = ocsf(ENTRY, class_uid)
    assert (event["class_uid"], event["category_uid"], event["activity_id"]) == (class_uid, class_uid // 1000, activity)
    assert event["type_uid"] == class_uid * 100 + activity
    assert event["time"] == 1_801_418_400_250
    assert (event["action_id"], event["disposition_id"], event["status_id"]) == (2, 2, 2)
    assert event["metadata"]["uid"] == "boot-1"
    assert ("api" in event) == (class_uid == 6003)


def test_opa() -> None:
    event = opa(ENTRY, {"app": "meshguard"})
    assert event["decision_id"] == "boot-1"
    assert event["result"] == {"allow": False, "reason": "no_rule", "rule": None, "verdict": "deny"}
    assert event["input"]["path"] == "/orders/7"
    assert event["bundles"]["policy"]["revision"] == "sha256:ab"
    assert "/input/query" in event["erased"]


def test_unreadable_requests_are_told_too() -> None:
    bare = {key: ENTRY[key] for key in ("at", "id", "schema", "time")}
    assert ocsf(bare)["status_id"] == 2
    assert opa(bare, {})["result"]["allow"] is False


# What schema.ocsf.io says of these two classes with the profile security_control, release 1.3.0: what is required, what is one of several.
BASE = {"action_id", "activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}
REQUIRED = {6003: {*BASE, "actor", "api", "src_endpoint"}, 4002: {*BASE, "dst_endpoint", "http_request", "http_response"}}
OF_OBJECTS = {
    "metadata": {"product", "version"},
    "product": {"vendor_name"},
    "http_response": {"code"},
    "api": {"operation"},
    "request": {"uid"},
}
ENDPOINT = {"ip", "uid", "name", "hostname", "svc_name", "instance_uid", "interface_uid", "interface_name"}
ONE_OF = {
    "product": {"name", "uid"},
    "actor": {"process", "user", "invoked_by", "session", "app_name", "app_uid"},
    "user": {"account", "name", "uid"},
    "src_endpoint": ENDPOINT,
    "dst_endpoint": ENDPOINT,
    "url": {"url_string", "path"},
    "policy": {"name", "uid"},
    "service": {"name", "uid"},
}
NUMBERS = {
    "activity_id": {6003: {0, 1, 2, 3, 4, 99}, 4002: {*range(9), 99}},
    "action_id": {0, 1, 2, 99},
    "disposition_id": {*range(28), 99},
    "severity_id": {*range(7), 99},
    "status_id": {0, 1, 2, 99},
}


def faults(event: Any, class_uid: int, name: str = "") -> list[str]:
    """What of an event is not as the schema has it."""
    found = []
    if not name:
        found += [f"{missing} is missing" for missing in REQUIRED[class_uid] - event.keys()]
        for number, allowed in NUMBERS.items():
            values = allowed[class_uid] if isinstance(allowed, dict) else allowed
            found += [f"{number}: {event[number]}"] if event[number] not in values else []
        if event["type_uid"] != class_uid * 100 + event["activity_id"] or (event["activity_id"] == 99 and not event.get("activity_name")):
            found.append("type_uid or activity_name")
        if set(event["metadata"]["profiles"]) != {"security_control"}:
            found.append("profiles")
    found += [f"{name} without {missing}" for missing in OF_OBJECTS.get(name, set()) - event.keys()]
    if name in ONE_OF and not ONE_OF[name] & {key for key, value in event.items() if value != ""} and name != "url":
        found.append(f"{name} has none of {ONE_OF[name]}")
    for key, value in event.items():
        if isinstance(value, dict):
            found += faults(value, class_uid, key)
    return found


_TEXT = st.sampled_from(["", "x", "/orders/7", "10.1.2.3", "spiffe://shop.example/a"])
ENTRIES = st.fixed_dictionaries(
    {"id": st.just("boot-1"), "time": st.just("2027-01-31T18:00:00.250000Z"), "schema": st.just("meshguard.decision/1")},
    optional={
        "who": st.fixed_dictionaries({}, optional={"principal": _TEXT, "address": _TEXT, "port": st.integers(0, 65535), "subject": _TEXT}),
        "what": st.fixed_dictionaries(
            {},
            optional={
                "method": st.sampled_from(["", "GET", "PATCH", "PROPFIND", "CONNECT", "DELETE"]),
                "host": _TEXT, "path": _TEXT, "cluster": _TEXT, "tls": _TEXT, "port": st.integers(0, 65535),
            },
        ),
        "why": st.fixed_dictionaries(
            {},
            optional={
                "verdict": st.sampled_from(["allow", "deny", "refuse", "error"]),
                "rule": _TEXT, "reason": _TEXT, "policy_digest": _TEXT, "policy_revision": st.integers(0, 9),
            },
        ),
        "outcome": st.fixed_dictionaries({}, optional={"status": st.integers(0, 599), "duration_us": st.integers(0, 10**9)}),
        "trace_id": st.just("4bf92f3577b34da6a3ce929d0e0e4736"),
    },
)  # fmt: skip


@settings(deadline=None)
@given(entry=ENTRIES, class_uid=st.sampled_from([6003, 4002]))
def test_every_event_has_what_the_schema_requires(entry: dict[str, Any], class_uid: int) -> None:
    assert faults(ocsf(entry, class_uid), class_uid) == []


def test_the_check_of_events_finds_faults() -> None:
    for name in REQUIRED[6003]:
        event = ocsf(ENTRY)
        del event[name]
        with pytest.raises((AssertionError, KeyError)):
            assert faults(event, 6003) == []
    event = ocsf(ENTRY)
    event["src_endpoint"] = {"port": 5}
    assert faults(event, 6003)


OPA_EVENT = {
    "type": "object",
    "required": ["labels", "decision_id", "path", "input", "result", "requested_by", "timestamp", "metrics"],
    "additionalProperties": False,
    "properties": {
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "decision_id": {"type": "string", "minLength": 1},
        "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "bundles": {
            "type": "object",
            "additionalProperties": {"type": "object", "properties": {"revision": {"type": "string"}}, "additionalProperties": False},
        },
        "path": {"type": "string", "pattern": "^[^/].*$"},
        "input": {"type": "object"},
        "result": {"type": "object", "required": ["allow"], "properties": {"allow": {"type": "boolean"}}},
        "requested_by": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "metrics": {"type": "object", "additionalProperties": {"type": "integer"}},
        "erased": {"type": "array", "items": {"type": "string", "pattern": "^/(input|result)/"}},
        "masked": {"type": "array", "items": {"type": "string", "pattern": "^/(input|result)/"}},
    },
}
"""One event as OPA's documentation of its decision log service describes it."""


@settings(deadline=None)
@given(entry=ENTRIES)
def test_every_decision_has_the_shape_of_opas_log(entry: dict[str, Any]) -> None:
    event = opa(entry, {"app": "meshguard"})
    jsonschema_rs.validator_for(OPA_EVENT, validate_formats=True).validate(event)
    assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
    assert not {pointer.split("/")[2] for pointer in event["erased"]} & event["input"].keys()
