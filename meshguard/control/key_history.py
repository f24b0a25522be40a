"""What became of the keys of each keyset, on record from the moment this process acts on it.

`meshguard keys destroy` proves what it did to a file. That a node has let go of the key is known to the node only, when it takes the
changed file over: then it writes a `keys` event. The event names versions and tenants, never a key; `file_sha256` is the digest that the
proof of the command has as `after_sha256`, so the two belong together. A key that comes back after it was destroyed (a backup of
the file was laid back) is on record too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["KeyHistory"]


class KeyHistory:
    """`tell` puts an event on record; what is noted before it is set is told when it is set."""

    __slots__ = ("_known", "_tell", "_untold")

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[int, str], frozenset[str], str]] = {}
        self._tell: Callable[[Mapping[str, Any]], object] | None = None
        self._untold: list[dict[str, Any]] = []

    def to(self, tell: Callable[[Mapping[str, Any]], object]) -> None:
        """Where events go from now on."""
        self._tell = tell
        untold, self._untold = self._untold, []
        for event in untold:
            tell(event)

    def note(self, keyset: str, versions: Mapping[int, str], tenants: Collection[str] = (), digest: str = "") -> None:
        """The keyset as it is in force now: the state of each version, the tenants that have a key, the digest of its file."""
        before = self._known.get(keyset)
        now = self._known[keyset] = (dict(versions), frozenset(tenants), digest)
        if before == now:
            return
        event: dict[str, Any] = {"keyset": keyset, "versions": {str(version): state for version, state in versions.items()}}
        if digest:
            event["file_sha256"] = digest
        if before is not None:
            was = before[0]
            gone = [version for version in was if was[version] != "destroyed" and versions.get(version, "destroyed") == "destroyed"]
            back = [version for version in was if was[version] == "destroyed" and versions.get(version, "destroyed") != "destroyed"]
            lost = sorted(before[1] - now[1])
            event |= {name: found for name, found in (("destroyed", gone), ("returned", back), ("tenants_destroyed", lost)) if found}
        if self._tell is None:
            self._untold.append(event)
        else:
            self._tell(event)
