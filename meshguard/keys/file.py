"""The file provider: a keyset in a private JSON file. For development and single machines: the keys lie there in the clear.

Uses are set aside in ranges: before a keyset is handed out, `<file>.uses` says that `RANGE` more values were sealed; when half of
them are, a thread writes down the next range. A crash forgets the rest of a range, never a use. Several processes on one file take
ranges of their own. Where the file lies on a read-only mount the count is kept in a state directory, or there is none at all: with
`subkeys` each process seals under a key of its own. With neither, such a keyset opens and does not seal.
"""

from __future__ import annotations

from errno import EACCES, EPERM, EROFS
from logging import getLogger
from pathlib import Path
from secrets import token_bytes
from threading import Thread
from time import time

from meshguard.fields.keyset import MAX_USES, DataKey, Keyset, KeyState
from meshguard.fields.material import SALT_BYTES
from meshguard.keys.keyset_file import KeysetRecord, locked, read_keyset, read_uses, uses_path, write_uses
from meshguard.keys.lifecycle import create as create_keyset
from meshguard.model.errors import KeysetError

__all__ = ["RANGE", "load_keyset"]

RANGE = 1 << 18
"""Uses set aside at once: 16 384 loads fit into the budget of 2^32, and at 10 000 values a second one lasts 26 s."""


_READ_ONLY = (EROFS, EACCES, EPERM)

log = getLogger(__name__)


def load_keyset(path: Path, name: str, create: bool = False, *, state: Path | None = None, subkeys: bool = False) -> Keyset:
    """Read the keyset `name` and set aside uses for it, in the directory `state` where one is given; with `subkeys` none are needed.
    `create` makes the file when it is missing. Blocks: call it in a thread.

    Raises KeysetError.
    """
    path = Path(path)
    place = uses_path(path, name, state)
    try:
        if create and not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_keyset(path, name, time())
        record = read_keyset(path)  # before a lock file is left beside nothing
        if record.name != name:
            raise KeysetError(f"{path}: is keyset {record.name}, expected {name}")
        if record.provider:
            raise KeysetError(f"{path}: its keys are wrapped by {record.provider}: configure that provider (or `kek` for file)")
        if subkeys:
            return _keyset(path, record, {}, 0, place, subkeys=True)
        return _counted(path, name, place)
    except FileNotFoundError:
        raise KeysetError(f"{path}: no such keyset file (make one with `meshguard keys create {path} --name {name}`)") from None
    except OSError as exc:
        raise KeysetError(f"{path}: cannot be used or its uses not written down: {exc.strerror or exc}") from exc


def _counted(path: Path, name: str, place: Path) -> Keyset:
    # the lock of the keyset file serves for a count beside it; the count elsewhere has its own
    beside = place == uses_path(path, name, None)
    try:
        with locked(path if beside else place):
            record = read_keyset(path)
            primary = next((key.version for key in record.keys if key.state is KeyState.PRIMARY), 0)
            uses = _uses_of(path, name, place, beside) if primary else {}
            granted = _set_aside(path, name, uses, primary, place)
    except OSError as exc:
        if exc.errno not in _READ_ONLY:
            raise
        log.warning("a keyset is read-only: it opens and does not seal", extra={"data": {"file": str(path), "error": exc.strerror}})
        return _keyset(path, read_keyset(path), {}, 0, place)
    return _keyset(path, record, uses, granted, place)


def _uses_of(path: Path, name: str, place: Path, beside: bool) -> dict[int, int]:
    """The count in `place`; a count elsewhere begins with what stands beside the keyset file, and follows what is higher there (a new
    version begins at 0, which only the one who made it may say)."""
    if beside:
        return read_uses(path, name)
    origin = read_uses(path, name)
    own = read_uses(path, name, place) if place.exists() else {}
    return {version: max(count, own.get(version, 0)) for version, count in origin.items()}


def _keyset(path: Path, record: KeysetRecord, uses: dict[int, int], granted: int, place: Path, *, subkeys: bool = False) -> Keyset:
    def extend(key: DataKey) -> None:
        Thread(target=_extend, args=(path, record.name, key, place), name="keyset-uses", daemon=True).start()

    keys = []
    for stored in record.keys:
        # without a count a version is taken as spent; only the primary one seals
        used = min(uses.get(stored.version, MAX_USES), MAX_USES)
        counts = stored.state is KeyState.PRIMARY and not subkeys
        keys.append(
            DataKey(
                stored.version,
                stored.state,
                stored.created,
                stored.material,
                0 if subkeys else used,
                granted if counts and granted else None,
                extend if counts and granted else None,
                _salt if subkeys else None,
            )
        )
    return Keyset(record.name, keys)


def _salt() -> bytes:
    return token_bytes(SALT_BYTES)


def _set_aside(path: Path, name: str, uses: dict[int, int], version: int, place: Path) -> int:
    """Write down that `version` may have sealed RANGE more values than in `uses`; returns the new count. The lock is held."""
    if not version:
        return 0
    granted = min(uses.get(version, MAX_USES) + RANGE, MAX_USES)
    write_uses(path, name, uses | {version: granted}, place)
    return granted


def _extend(path: Path, name: str, key: DataKey, place: Path) -> None:
    """The next range for `key`. Another process may have taken ranges in between: then this one begins after them."""
    beside = place == uses_path(path, name, None)
    try:
        with locked(path if beside else place):
            uses = read_uses(path, name, place)
            before = uses.get(key.version, MAX_USES)
            after = _set_aside(path, name, uses, key.version, place)
    except (OSError, KeysetError):
        key.grant(0)  # nothing was written down; the next use asks again, and what was set aside still holds
        return
    key.grant(key.granted + after - before, written=after)
