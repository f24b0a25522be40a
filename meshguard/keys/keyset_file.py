"""Keyset files and the counts of their uses, on disk (their content: `records`).

A keyset in the clear and its count are private to their owner (0600); a wrapped keyset may be read by all and changed by nobody else.
Files are replaced atomically (a temporary file, fsync, rename, fsync of the directory) and changed only under the lock of
`<file>.lock`. The count of uses is a file of its own, `<file>.uses` or in a state directory, because it changes while the proxy runs and
the keyset does not: the keyset may lie on a read-only mount.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meshguard.keys.records import WRAPPED, KeyRecord, KeysetRecord, parse_record, record_values
from meshguard.model.errors import KeysetError

__all__ = ["KeyRecord", "KeysetRecord", "locked", "read_keyset", "read_uses", "uses_path", "write_keyset", "write_uses"]

USES_FORMAT = "meshguard-uses/1"
MAX_FILE_BYTES = 8 << 20
"""Tens of thousands of versions or tenants."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, between processes and threads. Raises OSError when the directory cannot be written."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError as exc:  # the directory: what is told is the file that was asked for, not its lock
        raise FileNotFoundError(exc.errno, exc.strerror, str(path)) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_keyset(path: Path) -> KeysetRecord:
    """Read and check a keyset file. Raises KeysetError (which never carries material), FileNotFoundError."""
    values = _read(path)
    try:
        return parse_record(values)
    except ValueError as exc:
        raise KeysetError(f"{path}: {exc}") from None


def write_keyset(path: Path, record: KeysetRecord) -> None:
    """Replace the keyset file. The caller holds the lock."""
    _write(path, record_values(record), 0o644 if record.provider else 0o600)


def uses_path(path: Path, name: str, state: Path | None) -> Path:
    """Where the uses of keyset `name` are counted: beside its file, or in the directory `state`."""
    return Path(f"{path}.uses") if state is None else Path(state) / f"{name}.uses"


def read_uses(path: Path, name: str, place: Path | None = None) -> dict[int, int]:
    """How many values each version of keyset `name` may have sealed, as counted in `place` (default: beside `path`). Raises
    KeysetError, also when the file is gone: a lost count must not begin again at zero."""
    place = place or uses_path(path, name, None)
    try:
        values = _read(place)
    except FileNotFoundError:
        raise KeysetError(f"{place} is missing, so it is unknown how often the keys were used: restore it, or rotate the keyset") from None
    uses = values.get("uses")
    if set(values) != {"format", "name", "uses"} or values["format"] != USES_FORMAT or values["name"] != name or not isinstance(uses, dict):
        raise KeysetError(f"{place}: expected the uses ({USES_FORMAT}) of keyset {name}")
    if not all(version.isdecimal() and type(count) is int and count >= 0 for version, count in uses.items()):
        raise KeysetError(f"{place}: expected a count for each version")
    return {int(version): count for version, count in uses.items()}


def write_uses(path: Path, name: str, uses: Mapping[int, int], place: Path | None = None) -> None:
    """Replace the uses of a keyset. The caller holds the lock."""
    values = {"format": USES_FORMAT, "name": name, "uses": {str(version): count for version, count in uses.items()}}
    _write(place or uses_path(path, name, None), values, 0o600)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())  # of the file that is read, whatever the name points to by now
        if not stat.S_ISREG(status.st_mode):
            raise KeysetError(f"{path}: expected a regular file")
        if status.st_uid not in (os.geteuid(), 0):
            raise KeysetError(f"{path}: belongs to another user")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise KeysetError(f"{path}: larger than {MAX_FILE_BYTES} octets")
    try:
        values = json.loads(data)
    except ValueError:
        values = None
    # others may read nothing but a wrapped keyset, and change nothing at all
    wrapped = isinstance(values, dict) and values.get("format") == WRAPPED
    if status.st_mode & (0o022 if wrapped else 0o077):
        mode = stat.S_IMODE(status.st_mode)
        raise KeysetError(
            f"{path}: mode {mode:04o} lets others {'' if wrapped else 'read or '}change it (chmod {'644' if wrapped else '600'})"
        )
    if values is None:
        raise KeysetError(f"{path}: not JSON")
    if not isinstance(values, dict):
        raise KeysetError(f"{path}: expected an object")
    return values


def _write(path: Path, values: Mapping[str, Any], mode: int) -> None:
    # a name in the way is left over from a crash; the lock is ours
    temporary = Path(f"{path}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(json.dumps(values, indent=1).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
