"""Who is cut out of the mesh, and until when: an immutable set that answers for an identity.

A target is a SPIFFE ID, a pattern of them (as in rules), or `serial:HEX` for one certificate: the workload may come back with a new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from meshguard.policy.principals import PrincipalIndex, PrincipalPattern, parse_principal

__all__ = ["NOBODY", "Containment", "Entry", "Quarantine", "parse_target"]

_SERIAL = re.compile(r"serial:(?:[0-9a-f]{1,40})\Z")
MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """One quarantined `target`. `since` and `until` are epoch seconds, `until` 0 has no end; `by` says who asked for it."""

    target: str
    reason: str
    by: str
    since: float
    until: float = 0.0

    def alive(self, now: float) -> bool:
        return not self.until or now < self.until


def parse_target(text: str) -> PrincipalPattern | str:
    """A pattern, or the serial as lower-case hex. Raises ValueError with what was expected."""
    if text.startswith("serial:"):
        if not _SERIAL.match(text):
            raise ValueError("serial: and lower-case hexadecimal digits")
        return text[7:].lstrip("0") or "0"
    return parse_principal(text)


class Quarantine:
    """The entries by target, in the order of their beginning. Raises ValueError for a target that is none."""

    __slots__ = ("_index", "_numbered", "_serials", "entries")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries = {entry.target: entry for entry in entries}
        self._numbered = list(self.entries.values())
        self._serials: dict[str, Entry] = {}
        filed = []
        for number, entry in enumerate(self._numbered):
            target = parse_target(entry.target)
            if isinstance(target, str):
                self._serials[target] = entry
            else:
                filed.append((target, number))
        self._index = PrincipalIndex(filed)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def find(self, spiffe_id: str, serial: str, now: float) -> Entry | None:
        """The entry that holds this identity now; of several the one that holds it longest."""
        found = [self._numbered[number] for number in self._index.find(spiffe_id)]
        by_serial = self._serials.get(serial.lstrip("0") or "0") if serial else None
        if by_serial is not None:
            found.append(by_serial)
        living = [entry for entry in found if entry.alive(now)]
        return max(living, key=lambda entry: entry.until or float("inf"), default=None)

    def with_entry(self, entry: Entry) -> Quarantine:
        """Replaces an entry of the same target."""
        return Quarantine([*(each for each in self._numbered if each.target != entry.target), entry])

    def without(self, target: str) -> Quarantine:
        """Raises KeyError when it is not there."""
        if target not in self.entries:
            raise KeyError(target)
        return Quarantine(each for each in self._numbered if each.target != target)

    def alive(self, now: float) -> Quarantine:
        """Only what has not ended; the same object when nothing has."""
        living = [entry for entry in self._numbered if entry.alive(now)]
        return self if len(living) == len(self._numbered) else Quarantine(living)


NOBODY = Quarantine()


class Containment:
    """The quarantine in force, for whoever has to ask later: `current` is replaced, never changed."""

    __slots__ = ("current",)

    def __init__(self) -> None:
        self.current = NOBODY
