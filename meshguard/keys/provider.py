"""What a key provider is. A new one is a file of this package and a line in `registry`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from meshguard.fields.keyset import Keyset

__all__ = ["KeyProvider"]


class KeyProvider(Protocol):
    """The source of one keyset. Counts uses: a keyset that it hands out never seals more often than is safely written down."""

    @property
    def name(self) -> str:
        """The keyset's name."""
        ...

    async def load(self) -> Keyset:
        """The keyset as it is now. Raises KeysetError."""
        ...

    def watch(self) -> AsyncIterator[None]:
        """Yields each time the keyset may have changed, until it is closed."""
        ...
