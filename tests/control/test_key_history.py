"""What is put on record of keysets: each change once, what was destroyed by name, never before somebody listens, never lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshguard.control.key_history import KeyHistory


def heard() -> tuple[KeyHistory, list[Mapping[str, Any]]]:
    history, told = KeyHistory(), list[Mapping[str, Any]]()
    history.to(told.append)
    return history, told


def test_each_change_is_told_once() -> None:
    history, told = heard()
    for _ in range(3):
        history.note("pii", {1: "primary"}, digest="aa")
    history.note("pii", {1: "enabled", 2: "primary"}, digest="bb")
    assert told == [
        {"keyset": "pii", "versions": {"1": "primary"}, "file_sha256": "aa"},
        {"keyset": "pii", "versions": {"1": "enabled", "2": "primary"}, "file_sha256": "bb"},
    ]


def test_what_was_destroyed_and_what_came_back_is_named() -> None:
    history, told = heard()
    history.note("pii", {1: "disabled", 2: "primary"}, ["acme", "zeta"])
    history.note("pii", {1: "destroyed", 2: "primary"}, ["zeta"])
    history.note("pii", {1: "disabled", 2: "primary"}, ["zeta"])
    history.note("pii", {2: "primary"}, [])
    assert [{key: event.get(key) for key in ("destroyed", "returned", "tenants_destroyed")} for event in told] == [
        {"destroyed": None, "returned": None, "tenants_destroyed": None},
        {"destroyed": [1], "returned": None, "tenants_destroyed": ["acme"]},
        {"destroyed": None, "returned": [1], "tenants_destroyed": None},
        {"destroyed": [1], "returned": None, "tenants_destroyed": ["zeta"]},
    ]


def test_what_happened_before_anybody_listened_is_told_then() -> None:
    history = KeyHistory()
    history.note("pii", {1: "primary"})
    told: list[Mapping[str, Any]] = []
    history.to(told.append)
    history.note("other", {1: "primary"})
    assert [event["keyset"] for event in told] == ["pii", "other"]
