"""What a provider of key-encryption keys (KEKs) is. A new one is a file of this package and a line in `registry`.

A provider makes, wraps and unwraps data keys; where a keyset lives, how long its keys may be used and what happens in an outage is the
business of `live`, and the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from meshguard.model.errors import KeysetError

__all__ = ["Binding", "Kek", "KekError"]


@dataclass(frozen=True, slots=True)
class Binding:
    """What a wrapped key is bound to: moved to another keyset or version it does not unwrap."""

    keyset: str
    version: int

    @property
    def text(self) -> str:
        """One text for both, as additional data: keyset names have no slash."""
        return f"meshguard/keyset/{self.keyset}/{self.version}"


class KekError(KeysetError):
    """The provider did not do it. `away`: it could not be reached or had no time (try again later); otherwise it said no."""

    def __init__(self, message: str, *, away: bool) -> None:
        super().__init__(message)
        self.away = away


class Kek(Protocol):
    """One key-encryption key at a provider. Every call has a deadline of its own; none logs or shows a key."""

    @property
    def place(self) -> str:
        """Where the KEK is, for people: no secret in it."""
        ...

    async def new_key(self, binding: Binding) -> tuple[bytes, str]:
        """A new data key of 32 octets and its wrapped form. Raises KekError."""
        ...

    async def wrap(self, key: bytes, binding: Binding) -> str:
        """The wrapped form of a data key, under the KEK as it is now. Raises KekError."""
        ...

    async def unwrap(self, wrapped: str, binding: Binding) -> bytes:
        """The data key in `wrapped`. Raises KekError."""
        ...

    async def tend(self) -> float:
        """Keeps a login alive: renews what is due. Returns the seconds until the next look (inf: none is needed). Raises KekError."""
        ...

    async def close(self) -> None:
        """Lets go of logins and sessions."""
        ...
