"""Decisions in the words of others."""

from __future__ import annotations

import pytest

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
