"""The fleet's quarantine on this instance: taken from the store, kept on disk, in force beside the node's own.

    set in the store -> signatures, fleet, number -> in force (connections are cut in this turn) -> kept on disk -> reported

A set that is refused, older, deleted or not there changes nothing: the last known one goes on, over restarts and without the store, and
that is on record. Entries end by themselves at their `until`. What the node's own quarantine says stays, whatever the fleet says.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from meshguard.control.settings.fleet import FleetConfig
from meshguard.integrity.containment import ContainmentError, ContainmentSet, accept, open_set
from meshguard.integrity.dsse import PublicKey, SignatureError, load_public_keys
from meshguard.model.errors import DocumentError, MeshguardError, Problem
from meshguard.policy.quarantine import NOBODY, Entry, Quarantine, parse_target
from meshguard.sources.nats_store import Entry as Stored

__all__ = ["Both", "FleetContainment", "signer_keys"]

log = logging.getLogger(__name__)

_FILE = "quarantine.json"


class Both:
    """The quarantine of the node and that of the fleet, in force as one. Where both name a target, the longer one counts."""

    def __init__(self, apply: Callable[[Quarantine], None]) -> None:
        self._apply = apply
        self._node = self._fleet = NOBODY

    def node(self, quarantine: Quarantine) -> None:
        self._node = quarantine
        self._put()

    def fleet(self, quarantine: Quarantine) -> None:
        self._fleet = quarantine
        self._put()

    def _put(self) -> None:
        merged: dict[str, Entry] = dict(self._node.entries)
        for target, entry in self._fleet.entries.items():
            other = merged.get(target)
            if other is None or (other.until or float("inf")) < (entry.until or float("inf")):
                merged[target] = entry
        self._apply(Quarantine(merged.values()))


def signer_keys(config: FleetConfig) -> list[PublicKey]:
    """Who may sign sets; empty where nobody needs to. Raises DocumentError, OSError."""
    keys: dict[str, PublicKey] = {}
    for path in config.quarantine.signers:
        try:
            keys |= {key.id: key for key in load_public_keys(path.read_bytes())}
        except SignatureError as exc:
            raise DocumentError([Problem(str(path), "", f"PEM with public keys of signers ({exc})")]) from exc
    return list(keys.values())


class FleetContainment:
    """`apply` puts a set in force; `record(event, data)` is for the ledger; `changed()` is called when another set is in force."""

    def __init__(
        self,
        config: FleetConfig,
        apply: Callable[[Quarantine], None],
        record: Callable[..., None],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._apply = apply
        self._record = record
        self._changed = changed
        self._clock = clock
        self._path = Path(config.state) / _FILE
        self._foreign = False  # the held set is not signed by whoever may sign now
        self._seen = False  # a value on this connection
        self._keys: list[PublicKey] = []
        self._stamps: list[tuple[int, int, int]] = []
        self.held: ContainmentSet | None = None
        self.since = 0.0
        self.current = NOBODY
        self.refused = ""
        self.refusals = 0

    def load(self) -> None:
        """What was in force before a restart. Raises DocumentError, OSError: a damaged file lets nobody in."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            held = open_set(data, (), 1)
        except ContainmentError as exc:
            raise DocumentError([Problem(str(self._path), "", f"the quarantine of the fleet as it was kept ({exc})")]) from exc
        if held.fleet != self._config.name:
            return
        try:
            open_set(data, self._signers(), self._config.quarantine.threshold)
        except ContainmentError as exc:
            # it stays in force (it only tightens), and any set that is signed as is asked for now takes its place
            self._foreign = True
            log.warning("the kept quarantine of the fleet is not signed by whom is trusted now", extra={"data": {"error": str(exc)}})
        self._take(held, "disk")

    async def take(self, stored: Stored | None) -> None:
        """What the watch tells: a value, a deletion, or None once all there was has been told."""
        if stored is None:
            if not self._seen and self.held is not None:
                self._missing("it is not there")
            return
        if stored.value is None:
            self._missing("it was deleted")
            return
        self._seen = True
        try:
            found = open_set(stored.value, self._signers(), self._config.quarantine.threshold)
            accept(found, None if self._foreign else self.held, self._config.name)
        except (MeshguardError, OSError) as exc:
            self._refuse(str(exc), stored.revision)
            return
        if self.refused:
            self.refused = ""
            self._changed()
        if self.held is not None and found.digest == self.held.digest and not self._foreign:
            return
        whatever, self._foreign = self._foreign, False
        self._take(found, f"revision {stored.revision}")
        await asyncio.to_thread(self._keep, stored.value, found.sequence, whatever)

    def connected(self) -> None:
        """A new connection: its watch begins."""
        self._seen = False

    def expire(self) -> None:
        """Lets go of what has ended; to be called now and then."""
        living = self.current.alive(self._clock())
        if living is not self.current:
            ended = sorted(set(self.current.entries) - set(living.entries))
            self.current = living
            self._apply(living)
            log.warning("quarantine ended", extra={"data": {"targets": ended, "by": "time to live", "scope": "fleet"}})
            self._record("fleet_quarantine_ended", {"targets": ended})

    def told(self) -> dict[str, object]:
        """For readiness, lists and reports."""
        held = self.held
        return {
            "sequence": held.sequence if held is not None else 0,
            "digest": held.digest if held is not None else "",
            "entries": len(self.current.entries),
            "since": self.since,
            "refused": self.refused,
        }

    def _signers(self) -> list[PublicKey]:
        """Read anew only where a file has changed: an effect must not wait behind whatever else threads are busy with."""
        stats = [os.stat(path) for path in self._config.quarantine.signers]
        stamps = [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]
        if stamps != self._stamps:
            self._keys, self._stamps = signer_keys(self._config), stamps
        return self._keys

    def _take(self, found: ContainmentSet, origin: str) -> None:
        entries = []
        for member in found.members:
            try:
                parse_target(member.target)
            except ValueError:
                log.error("a target of the fleet's quarantine is not understood here", extra={"data": {"target": member.target}})
                continue
            entries.append(Entry(member.target, member.reason, member.by, member.since, member.until))
        before = set(self.current.entries)
        since = self._clock()
        current = Quarantine(entries).alive(since)
        self._apply(current)  # first: what could not be put in force is not held, and comes again with the next connection
        self.held, self.since, self.current = found, since, current
        self._changed()
        now = set(self.current.entries)
        data = {"sequence": found.sequence, "origin": origin, "added": sorted(now - before), "removed": sorted(before - now)}
        data |= {"entries": len(now), "signers": sorted(found.signers)}
        log.warning("quarantine of the fleet in force", extra={"data": data})
        self._record("fleet_quarantine", data)

    def _missing(self, what: str) -> None:
        sequence = self.held.sequence if self.held is not None else 0
        data = {"error": what, "sequence": sequence, "entries": len(self.current.entries)}
        self.refused = f"the set in the store: {what}"
        self.refusals += 1
        self._changed()
        log.error("the store has lost the fleet's quarantine, the last known set goes on", extra={"data": data})
        self._record("fleet_quarantine_refused", data)

    def _refuse(self, error: str, revision: int) -> None:
        self.refused = error
        self.refusals += 1
        self._changed()
        data = {"error": error, "revision": revision, "sequence": self.held.sequence if self.held is not None else 0}
        log.error("a quarantine set of the store is refused, the last known one goes on", extra={"data": data})
        self._record("fleet_quarantine_refused", data)

    def _keep(self, data: bytes, sequence: int, whatever: bool) -> None:
        """In a thread. Another process of this node may have kept a newer one already; `whatever` is kept is replaced otherwise."""
        try:
            try:
                if not whatever and open_set(self._path.read_bytes(), (), 1).sequence > sequence:
                    return
            except (OSError, ContainmentError):
                pass  # none, or one that is replaced
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._path.with_name(f".{_FILE}.{os.getpid()}")
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._path)
        except OSError as exc:
            data_told = {"error": str(exc)}
            log.error("the fleet's quarantine cannot be kept: a restart begins with an older one", extra={"data": data_told})
