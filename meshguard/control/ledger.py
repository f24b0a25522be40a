"""The ledger of a process: its key, its shard, its gate on the path; what it says of itself."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from meshguard import __version__
from meshguard.control.ledger_key import load_signer
from meshguard.control.ledger_publish import Publisher
from meshguard.control.operations import Operation
from meshguard.control.settings.configuration import Configuration
from meshguard.ledger.notes import NoteVerifier
from meshguard.model.errors import MeshguardError
from meshguard.storage.commit import Commit
from meshguard.storage.gate import Gate
from meshguard.storage.ledger import OpenLedger, open_ledger
from meshguard.telemetry.decision_log import DecisionLog
from meshguard.telemetry.metrics import Registry

__all__ = ["LedgerService"]

log = logging.getLogger(__name__)


class LedgerService:
    """Opens the ledger of `configuration` (which has one). `shards`: the numbers to try, see `storage.ledger`. Raises MeshguardError,
    OSError: nothing is served on a ledger that is damaged or held by another process."""

    def __init__(self, configuration: Configuration, registry: Registry, decisions: DecisionLog, shards: Sequence[int] = (0,)) -> None:
        config = configuration.ledger
        if config is None:
            raise MeshguardError("no ledger is configured")
        self._config = config
        self.on_checkpoint: Callable[[str], None] | None = None
        """Told the note of each checkpoint, in the ledger's thread."""
        domain = configuration.identity.trust_domain if configuration.identity is not None else ""
        signer = load_signer(config, domain or "localhost", make=configuration.profile == "development")
        self.signer = signer
        directory = Path(config.directory)
        now = time.time()
        trusted = [NoteVerifier.parse(text) for text in config.checkpoints.trusted]
        self.opened: OpenLedger = open_ledger(
            directory, shards, signer, trusted, segment_bytes=config.segment_bytes, segment_s=config.segment_s, now=int(now)
        )
        counters = {
            "entries": registry.counter("meshguard.ledger.entries", "Entries that were written", "{entry}").labels(),
            "lost": registry.counter("meshguard.ledger.lost", "Decisions that could not be put on record", "{entry}").labels(),
            "failures": registry.counter("meshguard.ledger.failures", "Failures of writing and syncing", "{failure}").labels(),
            "state": registry.gauge("meshguard.ledger.state", "0 written, 1 on the reserve, 2 cannot be written", "1").labels(),
        }
        refuse = config.on_failure == "refuse" or (config.on_failure is None and configuration.profile == "strict")
        self._publisher = Publisher(config.checkpoints, self.opened)
        self.gate = Gate(
            self.opened.shard,
            decisions.tell,
            decisions.keep,
            durability=config.durability,
            refuse=refuse,
            batch_s=config.sync_s,
            checkpoint_s=config.checkpoints.interval_s,
            count=counters.__getitem__,
            report=self._signed,
        )
        self._started(directory, now)

    def _started(self, directory: Path, now: float) -> None:
        verifier = self.signer.verifier.render()
        public = directory / "checkpoint.pub"
        keys = "".join(f"{each.render()}\n" for each in self.signer.verifiers)
        if not public.exists() or public.read_text("utf-8") != keys:
            public.write_text(keys, "utf-8")
        shard, repaired = self.opened.shard, self.opened.repaired
        data = {
            "clock_offset_us": int((now - time.monotonic()) * 1e6),
            "key": verifier,
            "pid": os.getpid(),
            "shard": self.opened.number,
            "size": shard.size,
            "version": __version__,
        }
        if not self.gate.event("start", data):
            raise MeshguardError(f"{shard.directory}: the ledger cannot be written")
        for repair in repaired:
            log.warning("the ledger was repaired", extra={"data": repair})
            self.gate.event("repair", repair)

    def _signed(self, commit: Commit) -> None:
        """Called in the ledger's thread for each checkpoint. Nothing here waits for another machine."""
        self._publisher.take(commit)
        if self.on_checkpoint is not None:
            self.on_checkpoint(commit.note)

    async def keep(self) -> None:
        """Keeps its segments in order until it is cancelled."""
        from meshguard.control.ledger_keeping import keep_ledger

        await keep_ledger(self._config, self.gate, self.signer.verifier.name, self.opened.number)

    def operations(self) -> dict[str, Operation]:
        """What the admin API serves of it."""
        from meshguard.control.ledger_query import ledger_operations

        return ledger_operations(self.opened.directory)

    def close(self) -> None:
        self.gate.close()
        self._publisher.close()
