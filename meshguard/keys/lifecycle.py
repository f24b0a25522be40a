"""What can be done to a stored keyset: create, rotate, enable, disable, destroy. Each step checks that it may be taken.

rotate    a new primary version; the old one is enabled: it opens what it sealed
disable   enabled -> disabled: opens nothing for now
enable    disabled -> enabled
destroy   disabled -> destroyed: its key is gone, and with it everything that it sealed
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from secrets import token_bytes

from meshguard.fields.keyset import KEY_BYTES, KeyState, is_keyset_name
from meshguard.keys.keyset_file import KeyRecord, KeysetRecord, locked, read_keyset, read_uses, write_keyset, write_uses
from meshguard.model.errors import KeysetError

__all__ = ["TRANSITIONS", "change", "create", "rotate"]

TRANSITIONS = {
    "disable": ((KeyState.ENABLED,), KeyState.DISABLED),
    "enable": ((KeyState.DISABLED,), KeyState.ENABLED),
    "destroy": ((KeyState.DISABLED,), KeyState.DESTROYED),
}
"""Operation -> (states it starts from, state it ends in)."""


def create(path: Path, name: str, now: float) -> KeysetRecord:
    """A new keyset file with one version. Raises KeysetError when there is a file already: keys are never overwritten."""
    if not is_keyset_name(name):
        raise KeysetError(f"{name!r}: expected a keyset name of at most 64 letters, digits, '_', '.' and '-'")
    with locked(path):
        if path.exists():
            raise KeysetError(f"{path} exists: keys are never overwritten (rotate makes a new version)")
        record = KeysetRecord(name, (KeyRecord(1, KeyState.PRIMARY, now, token_bytes(KEY_BYTES)),))
        write_uses(path, name, {1: 0})  # first: a keyset without its count would be refused
        write_keyset(path, record)
    return record


def rotate(path: Path, now: float) -> KeysetRecord:
    """A new primary version. Works also when the count of uses is lost: the old versions then count as spent."""
    with locked(path):
        record = read_keyset(path)
        version = 1 + max((key.version for key in record.keys), default=0)
        older = tuple(key.with_state(KeyState.ENABLED) if key.state is KeyState.PRIMARY else key for key in record.keys)
        record = replace(record, keys=(*older, KeyRecord(version, KeyState.PRIMARY, now, token_bytes(KEY_BYTES))))
        try:
            uses = read_uses(path, record.name)
        except KeysetError:
            uses = {}
        write_uses(path, record.name, uses | {version: 0})
        write_keyset(path, record)
    return record


def change(path: Path, operation: str, version: int) -> KeysetRecord:
    """Take one version through `operation` of TRANSITIONS. Raises KeysetError when it is unknown or not in a state for it."""
    starts, end = TRANSITIONS[operation]
    with locked(path):
        record = read_keyset(path)
        key = next((key for key in record.keys if key.version == version), None)
        if key is None:
            raise KeysetError(f"{path}: keyset {record.name} has no version {version}")
        if key.state not in starts:
            wanted = " or ".join(state.value for state in starts)
            hint = " (rotate first)" if key.state is KeyState.PRIMARY else ""
            raise KeysetError(f"version {version} is {key.state.value}; {operation} needs one that is {wanted}{hint}")
        if end is not KeyState.ENABLED and any(tenant.wrapped and tenant.version == version for tenant in record.tenants.values()):
            raise KeysetError(f"version {version} holds the secrets of tenants: `meshguard keys rewrap` moves them on first")
        record = record.with_key(key.with_state(end))
        write_keyset(path, record)
    return record
