"""The fleet's section, its quarantine on an instance, and the overview, without a store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from meshguard.control.fleet.containment import Both, FleetContainment
from meshguard.control.fleet.instances import instances_of
from meshguard.control.settings.fleet import FleetConfig
from meshguard.integrity.containment import ContainmentSet, Member, encode
from meshguard.integrity.dsse import sign
from meshguard.model.errors import DocumentError
from meshguard.policy.quarantine import Entry, Quarantine
from meshguard.sources.nats_store import Entry as Stored
from meshguard.sources.nats_store import keyed
from tests.control.test_settings import MINIMAL, load, told

FLEET = MINIMAL + "fleet: {name: prod, servers: ['nats://127.0.0.1:4222'], state: fleet%s}\n"
BAD, WORSE = "spiffe://shop.example/bad", "spiffe://shop.example/worse"


def test_a_short_section_is_enough_on_one_machine() -> None:
    loaded = load(FLEET % "")
    assert loaded.configuration.fleet is not None
    assert loaded.configuration.fleet.buckets.quarantine == "meshguard-quarantine"
    assert any("no signers" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FLEET.replace("127.0.0.1", "nats.example") % "", "nothing goes in plaintext"),
        (FLEET.replace("nats://127.0.0.1:4222", "http://nats:4222") % "", "tls://nats.shop.example:4222"),
        (FLEET.replace("nats://127", "nats://me:secret@127") % "", "without a user name"),
        (FLEET % ", user: me", "password of `user`"),
        (FLEET % ", stale_after_s: 5", "at least twice"),
        (FLEET % ", tls: {certificate: a.pem}", "together"),
        (FLEET % ", tls: {svid: true, certificate: a.pem, key: a.key}", "`svid` is the client certificate"),
        (FLEET % ", tls: {svid: true, spiffe_id: 'spiffe://shop.example/nats', ca: a.pem}", "either a SPIFFE ID"),
        (FLEET % ", quarantine: {signers: [a.pub], threshold: 2}", "at most the number of signers"),
        (FLEET % ", buckets: {quarantine: 'a.b'}", "a bucket name"),
        (MINIMAL.replace("policies: [policies/]", "bundle: {fleet: prod, keys: [a.pub], state: s}"), "a `fleet` section"),
        (MINIMAL.replace("policies: [policies/]", "bundle: {fleet: x, path: b, keys: [a.pub], state: s}"), "exactly one of"),
        (MINIMAL.replace("app}", "app, rate_limits: [{id: a, key: [identity], requests: 1, per_s: 1, scope: fleet}]}"), "a `fleet`"),
    ],
)
def test_what_does_not_fit_is_told(text: str, expected: str) -> None:
    complaints = told(text)
    assert any(expected in complaint for complaint in complaints), complaints


class Node:
    """A containment with a clock that is set and a record of what it did."""

    def __init__(self, directory: Path, **quarantine: Any) -> None:
        self.now = 1000.0
        self.applied: list[set[str]] = []
        self.recorded: list[str] = []
        values = {"name": "prod", "servers": ["nats://127.0.0.1:4222"], "state": str(directory / "fleet"), "quarantine": quarantine}
        self.containment = FleetContainment(
            FleetConfig.model_validate(values),
            lambda quarantine: self.applied.append(set(quarantine.entries)),
            lambda event, data: self.recorded.append(event),
            lambda: None,
            lambda: self.now,
        )

    def take(self, data: bytes | None, revision: int = 1) -> None:
        asyncio.run(self.containment.take(Stored("prod", data, revision, 0.0)))

    @property
    def held(self) -> set[str]:
        return set(self.containment.current.entries)


@pytest.fixture
def signer(tmp_path: Path) -> Callable[..., bytes]:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "signer.pub").write_bytes(public)

    def make(sequence: int, *targets: str, until: float = 0.0, unsigned: bool = False) -> bytes:
        envelope = encode(ContainmentSet("prod", sequence, 1.0, tuple(Member(target, "", "", 1.0, until) for target in targets)))
        return (envelope if unsigned else sign(envelope, key)).encode()

    return make


def test_entries_end_and_the_set_stays(tmp_path: Path, signer: Callable[..., bytes]) -> None:
    node = Node(tmp_path, signers=[str(tmp_path / "signer.pub")])
    node.take(signer(1, BAD, until=2000.0))
    assert node.held == {BAD}
    node.now = 2000.0
    node.containment.expire()
    assert node.applied[-1] == set()
    node.take(signer(1, BAD, until=2000.0))
    assert node.held == set(), "the same set again holds nobody anew"


def test_a_target_that_is_not_understood_keeps_the_others_in(tmp_path: Path, signer: Callable[..., bytes]) -> None:
    node = Node(tmp_path, signers=[str(tmp_path / "signer.pub")])
    node.take(signer(1, "galaxy:far-away", BAD))
    assert node.held == {BAD}


def test_a_kept_set_that_nobody_trusted_has_signed_holds_until_a_signed_one_comes(tmp_path: Path, signer: Callable[..., bytes]) -> None:
    open_node = Node(tmp_path)
    open_node.take(signer(2**60, BAD, unsigned=True))
    assert open_node.held == {BAD}, "without signers the store's word counts"
    node = Node(tmp_path, signers=[str(tmp_path / "signer.pub")])
    node.containment.load()
    assert node.held == {BAD}
    node.take(signer(3, unsigned=True))
    assert node.held == {BAD}
    node.take(signer(3, WORSE))
    assert node.held == {WORSE}, "its number, whoever made it up, holds up nobody who may sign"
    again = Node(tmp_path, signers=[str(tmp_path / "signer.pub")])
    again.containment.load()
    assert again.held == {WORSE}
    again.take(signer(2))
    assert (again.held, again.recorded[-1]) == ({WORSE}, "fleet_quarantine_refused")


def test_a_signer_whose_file_is_gone_lets_nobody_change_anything(tmp_path: Path, signer: Callable[..., bytes]) -> None:
    node = Node(tmp_path, signers=[str(tmp_path / "signer.pub")])
    node.take(signer(1, BAD))
    (tmp_path / "signer.pub").unlink()
    node.take(signer(2))
    assert node.held == {BAD}
    assert node.containment.refused


def test_damage_on_disk_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "quarantine.json").write_bytes(b'{"payload')
    with pytest.raises(DocumentError):
        node.containment.load()


def test_node_and_fleet_are_in_force_as_one() -> None:
    applied: list[Quarantine] = []
    both = Both(applied.append)
    both.node(Quarantine([Entry(BAD, "mine", "", 1.0, 50.0)]))
    both.fleet(Quarantine([Entry(BAD, "ours", "", 1.0, 0.0), Entry(WORSE, "", "", 1.0, 60.0)]))
    assert {target: entry.reason for target, entry in applied[-1].entries.items()} == {BAD: "ours", WORSE: ""}
    both.node(Quarantine())
    assert set(applied[-1].entries) == {BAD, WORSE}, "a node cannot let in whom the fleet holds"
    both.fleet(Quarantine())
    assert not applied[-1].entries


def test_a_report_under_another_key_is_not_believed() -> None:
    value = orjson.dumps({"format": 1, "instance": "one", "worker": 0, "state": "serving"})
    entries = [Stored("prod.one.0", value, 1, 5.0), Stored("prod.two.0", value, 2, 5.0), Stored("prod.three.0", b"{", 3, 5.0)]
    assert [(each.name, each.revision) for each in instances_of("prod", entries)] == [("one", 1)]


def test_keys_have_no_separators_of_names_in_them() -> None:
    assert keyed("prod", "node.7", "a/b*>") == "prod.node_7.a_b__"
