"""The keyset file: a JWK Set (RFC 7517 section 5) of symmetric keys, so that any JOSE library can open what they sealed.

    {"format": "meshguard-keyset/1", "name": "orders-pii", "keys": [
      {"kty": "oct", "use": "enc", "kid": "orders-pii:1", "version": 1, "state": "primary", "created": "2026-01-31T12:00:00Z", "k": "..."}]}

A destroyed version stays as a line without `k`. Beside it lies `<file>.uses`, which says how many values each version may have sealed: a
file of its own, because it changes while the proxy runs and the keyset does not. Both are private to their owner (0600), replaced
atomically (a temporary file, fsync, rename, fsync of the directory) and changed only under the lock of `<file>.lock`.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshguard.fields.keyset import KEY_BYTES, KeyState, is_keyset_name
from meshguard.model.errors import KeysetError

__all__ = ["KeyRecord", "KeysetRecord", "locked", "read_keyset", "read_uses", "write_keyset", "write_uses"]

FORMAT = "meshguard-keyset/1"
USES_FORMAT = "meshguard-uses/1"
MAX_FILE_BYTES = 1 << 20
"""About 5000 versions."""
_MEMBERS = {"kty", "use", "kid", "version", "state", "created", "k"}


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One version as it is stored; `created` is epoch seconds. The repr has no key."""

    version: int
    state: KeyState
    created: float
    material: bytes | None

    def __repr__(self) -> str:
        return f"KeyRecord(version={self.version}, state={self.state.value})"

    def with_state(self, state: KeyState) -> KeyRecord:
        """The same version in another state; destroying drops the key."""
        return replace(self, state=state, material=None if state is KeyState.DESTROYED else self.material)


@dataclass(frozen=True, slots=True)
class KeysetRecord:
    """A keyset as it is stored, versions in ascending order."""

    name: str
    keys: tuple[KeyRecord, ...]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a keyset file, between processes and threads. Raises OSError when the directory cannot be written."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_keyset(path: Path) -> KeysetRecord:
    """Read and check a keyset file. Raises KeysetError (which never carries material), FileNotFoundError."""
    values = _read(path)
    try:
        if set(values) != {"format", "name", "keys"} or values["format"] != FORMAT:
            raise ValueError(f"expected exactly the members format ({FORMAT}), name and keys")
        name = values["name"]
        if not isinstance(name, str) or not is_keyset_name(name):
            raise ValueError("expected a keyset name")
        if not isinstance(values["keys"], list):
            raise ValueError("expected a list of keys")
        keys = tuple(_key(name, number, item) for number, item in enumerate(values["keys"]))
        if [key.version for key in keys] != sorted({key.version for key in keys}):
            raise ValueError("expected versions in ascending order, each once")
    except ValueError as exc:
        raise KeysetError(f"{path}: {exc}") from None
    return KeysetRecord(name, keys)


def write_keyset(path: Path, record: KeysetRecord) -> None:
    """Replace the keyset file. The caller holds the lock."""
    keys: list[dict[str, Any]] = []
    for key in record.keys:
        entry: dict[str, Any] = {"kty": "oct", "use": "enc", "kid": f"{record.name}:{key.version}"}
        entry |= {"version": key.version, "state": key.state.value, "created": _timestamp(key.created)}
        if key.material is not None:
            entry["k"] = urlsafe_b64encode(key.material).rstrip(b"=").decode()
        keys.append(entry)
    _write(path, {"format": FORMAT, "name": record.name, "keys": keys})


def read_uses(path: Path, name: str) -> dict[int, int]:
    """How many values each version of keyset `name` may have sealed. Raises KeysetError, also when the file is gone: a lost count
    must not begin again at zero."""
    place = Path(f"{path}.uses")
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


def write_uses(path: Path, name: str, uses: Mapping[int, int]) -> None:
    """Replace the uses of a keyset. The caller holds the lock."""
    _write(Path(f"{path}.uses"), {"format": USES_FORMAT, "name": name, "uses": {str(version): count for version, count in uses.items()}})


def _key(name: str, number: int, item: object) -> KeyRecord:
    where = f"keys[{number}]"
    if not isinstance(item, dict) or not set(item) <= _MEMBERS or not set(item) >= _MEMBERS - {"k"}:
        raise ValueError(f"{where}: expected the members {', '.join(sorted(_MEMBERS))}")
    version = item["version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"{where}.version: expected a number from 1")
    if item["kty"] != "oct" or item["use"] != "enc" or item["kid"] != f"{name}:{version}":
        raise ValueError(f"{where}: expected kty oct, use enc and kid {name}:{version}")
    try:
        state = KeyState(item["state"])
        created = datetime.strptime(item["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except (ValueError, TypeError):
        raise ValueError(f"{where}: expected a state and a time such as 2026-01-31T12:00:00Z") from None
    material = _material(item.get("k"))
    if (state is KeyState.DESTROYED) != ("k" not in item) or (material is None and "k" in item):
        raise ValueError(f"{where}.k: expected {KEY_BYTES} octets in base64url, or a destroyed version without k")
    return KeyRecord(version, state, created, material)


def _material(text: object) -> bytes | None:
    if not isinstance(text, str) or not text.isascii():
        return None
    with suppress(ValueError):
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if len(data) == KEY_BYTES and urlsafe_b64encode(data).rstrip(b"=").decode() == text:
            return data
    return None


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())  # of the file that is read, whatever the name points to by now
        if not stat.S_ISREG(status.st_mode):
            raise KeysetError(f"{path}: expected a regular file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise KeysetError(f"{path}: mode {mode:04o} lets others read or change it (chmod 600)")
        if status.st_uid not in (os.geteuid(), 0):
            raise KeysetError(f"{path}: belongs to another user")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise KeysetError(f"{path}: larger than {MAX_FILE_BYTES} octets")
    try:
        values = json.loads(data)
    except ValueError:
        raise KeysetError(f"{path}: not JSON") from None
    if not isinstance(values, dict):
        raise KeysetError(f"{path}: expected an object")
    return values


def _write(path: Path, values: Mapping[str, Any]) -> None:
    # a name in the way is left over from a crash; the lock is ours
    temporary = Path(f"{path}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
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
