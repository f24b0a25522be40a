"""Keyset files: privacy, atomic replacement, states, and a count of uses that no crash makes too small."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwe
from joserfc.jwk import KeySet

from meshguard.fields.envelope import Envelope
from meshguard.fields.keyset import MAX_USES, ROTATE_AT, Keyset, KeyState
from meshguard.keys import file as provider_file
from meshguard.keys.file import RANGE, load_keyset
from meshguard.keys.keyset_file import read_keyset, read_uses, write_uses
from meshguard.keys.lifecycle import change, create, rotate
from meshguard.model.errors import KeysetError

NONCE = bytes(12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "orders-pii.json"
    create(place, "orders-pii", 1_700_000_000.0)
    return place


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    values["keys"][0] |= changes
    path.write_text(json.dumps(values))


def test_files_are_private_and_hold_a_jwk_set(path: Path) -> None:
    for name in (path, Path(f"{path}.uses"), Path(f"{path}.lock")):
        assert name.stat().st_mode & 0o777 == 0o600
    sealed = Envelope(load_keyset(path, "orders-pii"), "f").seal(b'"x"', NONCE)
    keys = KeySet.import_key_set({"keys": json.loads(path.read_text())["keys"]})
    registry = jwe.JWERegistry(algorithms=["dir", "A256GCM"], strict_check_header=False)
    assert jwe.decrypt_compact(json.loads(sealed), keys, registry=registry).plaintext == b'"x"'


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o644])
@pytest.mark.parametrize("suffix", ["", ".uses"])
def test_a_file_that_others_can_read_or_change_is_refused(path: Path, mode: int, suffix: str) -> None:
    Path(f"{path}{suffix}").chmod(mode)
    with pytest.raises(KeysetError, match="chmod 600"):
        load_keyset(path, "orders-pii")


def test_keys_are_never_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(KeysetError, match="exists"):
        create(path, "orders-pii", 0.0)
    assert path.read_bytes() == before


def test_the_life_of_a_version(path: Path) -> None:
    old = Envelope(load_keyset(path, "orders-pii"), "f").seal(b"1", NONCE)
    assert [key.state for key in rotate(path, 0.0).keys] == [KeyState.ENABLED, KeyState.PRIMARY]
    assert Envelope(load_keyset(path, "orders-pii"), "f").open(old) == (b"1", 1)
    for operation, version in (("disable", 2), ("destroy", 1), ("enable", 1), ("disable", 3)):
        with pytest.raises(KeysetError):
            change(path, operation, version)
    change(path, "disable", 1)
    assert load_keyset(path, "orders-pii").versions[0].opener() is None
    change(path, "enable", 1)
    change(path, "disable", 1)
    secret = json.loads(path.read_text())["keys"][0]["k"]
    change(path, "destroy", 1)
    assert secret not in "".join(item.read_text() for item in path.parent.iterdir())
    assert load_keyset(path, "orders-pii").versions[0].state is KeyState.DESTROYED
    assert [key.version for key in rotate(path, 0.0).keys] == [1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"kty": "EC"}, {"use": "sig"}, {"kid": "other:1"}, {"version": 0}, {"version": "1"}, {"version": True},
        {"state": "primray"}, {"created": "now"},
        {"k": "AAAA"}, {"k": "A" * 42 + "B"}, {"k": 7}, {"state": "destroyed"}, {"extra": 1}, {"k": "ä" * 43},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_and_its_key_not_shown(path: Path, changes: dict[str, Any]) -> None:
    material = json.loads(path.read_text())["keys"][0]["k"]
    edit(path, **changes)
    with pytest.raises(KeysetError) as caught:
        read_keyset(path)
    assert material not in str(caught.value)
    assert material not in repr(caught.value.__context__)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format":"x"}', '{"format":"meshguard-keyset/1","name":"orders-pii","keys":{}}'])
def test_something_else_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(KeysetError):
        load_keyset(path, "orders-pii")


def test_another_keyset_is_refused(path: Path) -> None:
    with pytest.raises(KeysetError, match="expected billing"):
        load_keyset(path, "billing")


def test_a_missing_file_is_made_only_when_asked(tmp_path: Path) -> None:
    place = tmp_path / "keys" / "a.json"
    with pytest.raises(KeysetError, match="meshguard keys create"):
        load_keyset(place, "a")
    assert not place.parent.exists()
    assert load_keyset(place, "a", create=True).primary is not None
    assert place.parent.stat().st_mode & 0o777 == 0o700


def test_uses_are_written_down_before_they_happen(path: Path) -> None:
    first = load_keyset(path, "orders-pii").primary
    assert first is not None
    assert read_uses(path, "orders-pii") == {1: RANGE}
    first.encrypt(NONCE, b"1", b"")  # and the process dies
    second = load_keyset(path, "orders-pii").primary
    assert second is not None
    assert second.uses == RANGE
    assert read_uses(path, "orders-pii") == {1: 2 * RANGE}


def test_a_range_is_extended_while_it_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_file, "RANGE", 64)
    one, other = load_keyset(path, "orders-pii").primary, load_keyset(path, "orders-pii").primary
    assert one is not None
    assert other is not None
    sealed = 0
    for _ in range(500):
        for key in (one, other):
            deadline = time.monotonic() + 10
            while True:
                try:
                    key.encrypt(NONCE, b"1", b"")
                    break
                except KeysetError:  # the thread that writes down more is not done yet
                    assert time.monotonic() < deadline
                    for thread in threading.enumerate():
                        if thread.name == "keyset-uses":
                            thread.join(5)
            sealed += 1
    assert sealed <= read_uses(path, "orders-pii")[1]
    for thread in threading.enumerate():
        if thread.name == "keyset-uses":
            thread.join(5)


def test_when_more_cannot_be_written_down_sealing_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_file, "RANGE", 8)
    key = load_keyset(path, "orders-pii").primary
    assert key is not None
    Path(f"{path}.uses").unlink()
    for _ in range(8):
        key.encrypt(NONCE, b"1", b"")
    with pytest.raises(KeysetError, match="set aside"):
        key.encrypt(NONCE, b"1", b"")
    assert key.uses == 8


def test_a_lost_count_does_not_begin_again(path: Path) -> None:
    Path(f"{path}.uses").unlink()
    with pytest.raises(KeysetError, match="unknown how often"):
        load_keyset(path, "orders-pii")
    rotate(path, 0.0)
    found = load_keyset(path, "orders-pii")
    assert found.primary is not None
    assert found.primary.version == 2


def test_the_end_of_the_budget(path: Path) -> None:
    write_uses(path, "orders-pii", {1: ROTATE_AT - RANGE})
    assert load_keyset(path, "orders-pii").needs_rotation
    write_uses(path, "orders-pii", {1: MAX_USES})
    key = load_keyset(path, "orders-pii").primary
    assert key is not None
    with pytest.raises(KeysetError, match="rotate"):
        key.encrypt(NONCE, b"1", b"")


def test_a_crash_while_writing_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        rotate(path, 0.0)
    with pytest.raises(KeysetError, match="No space"):
        load_keyset(path, "orders-pii")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not Path(f"{path}.new").exists()
    assert load_keyset(path, "orders-pii").primary is not None


def test_a_keyset_in_a_file_seals_and_opens(tmp_path: Path) -> None:
    found = load_keyset(tmp_path / "k.json", "orders-pii", create=True)
    assert isinstance(found, Keyset)
    assert found.name == "orders-pii"
    assert Envelope(found, "f").open(Envelope(found, "f").seal(b"1", NONCE)) == (b"1", 1)
