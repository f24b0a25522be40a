"""One connection that cannot be judged ends, and the others are judged all the same."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from meshguard.control.living import judge_doors
from meshguard.pipeline.journey import Journey
from meshguard.pipeline.peer import Peer
from meshguard.pipeline.snapshot import Snapshot


class Door:
    """What the judge needs of a connection, and what became of it."""

    def __init__(self, expires: float) -> None:
        self.peer = Peer("inbound", cast(Any, None), ("10.0.0.1", 1), ("10.0.0.2", 2))
        self.peer.expires = expires
        self.end = ""

    def recall(self, overstays: object) -> bool:
        return False

    def cut(self, why: str) -> None:
        self.end = why

    def abandon(self, why: str) -> None:
        self.end = f"abandoned: {why}"


class Broken(Door):
    def cut(self, why: str) -> None:
        raise RuntimeError("a bug")


class Doors:
    """A journey as far as its connections go."""

    def __init__(self, *doors: Door) -> None:
        self.connections = doors

    def overstays(self, stream: object, snapshot: object) -> bool:
        return False


def test_an_exception_ends_one_connection_and_not_the_look(caplog: pytest.LogCaptureFixture) -> None:
    doors = [Door(10.0), Broken(10.0), Door(10.0), Broken(100.0), Door(100.0)]
    with caplog.at_level(logging.ERROR):
        judge_doors(cast(Journey, Doors(*doors)), cast(Snapshot, None), None, 50.0, leaving=True)
    assert [door.end for door in doors] == ["identity_expired", "abandoned: could not be judged", "identity_expired", "", ""]
    assert caplog.text.count("a connection could not be judged") == 1
