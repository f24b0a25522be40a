"""The key providers, by the name that a configuration uses. The one place to add another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from meshguard.keys.file import FileKeyProvider
from meshguard.keys.provider import KeyProvider

__all__ = ["PROVIDERS", "provider"]

PROVIDERS: tuple[tuple[str, Callable[[str, Path, bool], KeyProvider]], ...] = (("file", FileKeyProvider),)
"""(name, what makes a provider of a keyset name, its path and whether a missing one may be created)."""


def provider(kind: str, name: str, path: Path, create: bool) -> KeyProvider:
    """The provider of keyset `name`. Raises KeyError for an unknown kind."""
    return dict(PROVIDERS)[kind](name, path, create)
