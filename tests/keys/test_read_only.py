"""Keyset files on mounts that cannot be written: they open, and seal where the count has another place or none is needed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from meshguard.fields.envelope import Envelope
from meshguard.fields.keyset import Keyset
from meshguard.keys.file import RANGE, load_keyset
from meshguard.keys.keyset_file import read_uses, uses_path, write_uses
from meshguard.keys.lifecycle import create, rotate
from meshguard.model.errors import KeysetError
from tests.keys.jose import header_of, open_value

NONCE = bytes(12)


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a keyset that refuses to be written from now on."""
    path = tmp_path / "mount" / "orders-pii.json"
    path.parent.mkdir()
    create(path, "orders-pii", 0.0)
    Path(f"{path}.lock").unlink()
    really = os.open

    def guarded(name: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(name).startswith(str(path.parent)):
            raise OSError(errno.EROFS, "Read-only file system", str(name))
        return really(name, flags, *more, **options)

    monkeypatch.setattr(os, "open", guarded)
    return path


def seal(keyset: Keyset) -> bytes:
    return Envelope(keyset, "f").seal(b"1", NONCE)


def test_it_opens_and_does_not_seal(mount: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = seal(load_keyset(mount, "orders-pii", subkeys=True))
    keyset = load_keyset(mount, "orders-pii")
    assert Envelope(keyset, "f").open(sealed) == (b"1", 1)
    with pytest.raises(KeysetError):
        seal(keyset)


def test_it_seals_with_its_count_elsewhere(mount: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    place = uses_path(mount, "orders-pii", state)
    keyset = load_keyset(mount, "orders-pii", state=state)
    assert Envelope(keyset, "f").open(seal(keyset)) == (b"1", 1)
    assert read_uses(mount, "orders-pii", place) == {1: RANGE}
    again = load_keyset(mount, "orders-pii", state=state)
    assert again.primary is not None
    assert again.primary.uses == RANGE
    assert read_uses(mount, "orders-pii", place) == {1: 2 * RANGE}
    assert read_uses(mount, "orders-pii") == {1: 0}


def test_a_new_version_begins_to_count_in_the_state(tmp_path: Path) -> None:
    path, state = tmp_path / "k.json", tmp_path / "state"
    state.mkdir()
    create(path, "k", 0.0)
    load_keyset(path, "k", state=state)
    rotate(path, 0.0)
    keyset = load_keyset(path, "k", state=state)
    assert keyset.primary is not None
    assert (keyset.primary.version, keyset.primary.uses) == (2, 0)
    assert read_uses(path, "k", uses_path(path, "k", state)) == {1: RANGE, 2: RANGE}


def test_a_count_that_is_lost_everywhere_does_not_begin_again(tmp_path: Path) -> None:
    path, state = tmp_path / "k.json", tmp_path / "state"
    state.mkdir()
    create(path, "k", 0.0)
    Path(f"{path}.uses").unlink()
    with pytest.raises(KeysetError, match="unknown how often"):
        load_keyset(path, "k", state=state)
    write_uses(path, "k", {1: 5})
    assert load_keyset(path, "k", state=state).primary is not None


def test_subkeys_need_no_count_and_any_library_can_derive_them(mount: Path) -> None:
    for name in (f"{mount}.uses",):
        Path(name).unlink()
    one, other = load_keyset(mount, "orders-pii", subkeys=True), load_keyset(mount, "orders-pii", subkeys=True)
    sealed = seal(one)
    assert Envelope(other, "f").open(sealed) == (b"1", 1)
    assert header_of(sealed.decode().strip('"'))["kid"] != header_of(seal(other).decode().strip('"'))["kid"]
    assert open_value(sealed.decode().strip('"'), one.versions[0].material) == b"1"
    assert not one.needs_rotation


def test_a_subkey_is_renewed_before_its_nonces_are_spent(mount: Path) -> None:
    from meshguard.fields.material import RENEW_AT

    keyset = load_keyset(mount, "orders-pii", subkeys=True)
    envelope = Envelope(keyset, "f")
    first = envelope.seal(b"1", NONCE)
    sealer = keyset.versions[0].holder.sealer("", lambda: b"", lambda: bytes(16))
    assert sealer.uses == 1
    sealer.uses = RENEW_AT
    second = envelope.seal(b"1", NONCE)
    assert first.partition(b".")[0] != second.partition(b".")[0]
    assert [envelope.open(value) for value in (first, second)] == [(b"1", 1)] * 2
