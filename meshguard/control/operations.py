"""Operations that other parts add to the admin API, and the token that guards them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshguard.model.errors import DocumentError, Problem

__all__ = ["MAX_BODY_BYTES", "AdminRequest", "Operation", "OperationError", "admin_token"]

MAX_BODY_BYTES = 65536
_FEWEST_OCTETS = 16


class OperationError(Exception):
    """What the caller of an operation did wrong: HTTP `status` and words for it."""

    def __init__(self, status: int, title: str) -> None:
        super().__init__(title)
        self.status = status
        self.title = title


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """A request to an operation: `query` holds the last value of each parameter, `body` is at most MAX_BODY_BYTES."""

    method: str
    query: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Operation:
    """A path that another part adds. `handle` gives a status and a JSON value, or raises OperationError."""

    methods: tuple[str, ...]
    handle: Callable[[AdminRequest], Awaitable[tuple[int, object]]]
    guarded: bool = True


def admin_token(path: Path, *, create: bool) -> bytes:
    """The token in `path`; with `create` a missing file is made with a fresh one, readable by its owner only. Raises DocumentError where it
    is too short to be a secret or readable by everyone, OSError."""
    if create and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass  # another process was faster
        else:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_urlsafe(32).encode("ascii") + b"\n")
    if path.stat().st_mode & 0o007:
        raise DocumentError([Problem(str(path), "", "a file that others than its owner and group cannot read (chmod 600)")])
    token = path.read_bytes().strip()
    if len(token) < _FEWEST_OCTETS or not token.isascii():
        raise DocumentError([Problem(str(path), "", f"a token of at least {_FEWEST_OCTETS} ASCII characters")])
    return token
