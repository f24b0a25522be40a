"""Checkpoints in places beyond the ledger: files, an HTTP endpoint, witnesses. In a thread of its own: no request and no commit waits.

One checkpoint at a time, and always the newest: what came meanwhile is skipped, as a later checkpoint says all that an earlier one did.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from meshguard.control.settings.ledger import CheckpointConfig
from meshguard.ledger.notes import Note, NoteError, NoteVerifier
from meshguard.storage.commit import Commit
from meshguard.storage.disk import Disk
from meshguard.storage.ledger import OpenLedger
from meshguard.storage.shard_reader import ShardReader

if TYPE_CHECKING:
    from meshguard.control.ledger_witness import Witness

__all__ = ["RETRY_S", "Publisher"]

log = logging.getLogger(__name__)

RETRY_S = 10.0
"""After a failure nothing is sent to that place for this long."""


class Publisher:
    """Of one shard. `take(commit)` may be called by any thread."""

    def __init__(self, config: CheckpointConfig, opened: OpenLedger) -> None:
        self._url = config.publish_url
        self._known = [NoteVerifier.parse(witness) for witness in config.witnesses]
        place = opened.directory / f"shard-{opened.number}"
        self._paths = [place / "checkpoint"]
        if config.publish_file is not None:
            self._paths.append(Path(f"{config.publish_file}.shard-{opened.number}"))
        reader = ShardReader(opened.number, place)
        self._witnesses: list[Witness] = []
        if config.witness_urls:
            from meshguard.control.ledger_witness import Witness

            self._witnesses = [Witness(url, reader) for url in config.witness_urls]
        self._quiet_until: dict[str, float] = {}
        self._failing: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self._newest: Commit | None = None
        self._busy = False

    def take(self, commit: Commit) -> None:
        """`commit` has a signed checkpoint."""
        if not self._witnesses and self._url is None:
            self._write(commit.note)
            return
        with self._lock:
            self._newest = commit
            if self._busy:
                return
            self._busy = True
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="meshguard.checkpoints")
            try:
                self._pool.submit(self._work)
            except RuntimeError:  # closed
                self._busy = False

    def close(self) -> None:
        """Waits for what was taken: each step of it has its deadline (`POST_S`)."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _work(self) -> None:
        while True:
            with self._lock:
                commit, self._newest = self._newest, None
                if commit is None:
                    self._busy = False
                    return
            try:
                self._publish(commit)
            except Exception:  # outermost loop of the thread: the next checkpoint is tried anew
                log.exception("a checkpoint could not be published")

    def _publish(self, commit: Commit) -> None:
        note = Note.parse(commit.note)
        cosigned = note
        if self._url is not None:
            cosigned = self._with(cosigned, self._url, commit, None)
        for witness in self._witnesses:
            cosigned = self._with(cosigned, witness.url, commit, witness)
        self._write(cosigned.render())

    def _with(self, note: Note, url: str, commit: Commit, witness: Witness | None) -> Note:
        """The note with the signatures of known keys that this place gave."""
        from meshguard.control.ledger_witness import kept_signatures, posted

        if time.monotonic() < self._quiet_until.get(url, 0.0):
            return note
        try:
            answer = posted(url, commit.note) if witness is None else witness.cosign(commit.note, commit.tree)
            made = note.joined(kept_signatures(commit.note, answer, self._known))
        except (OSError, NoteError, ValueError) as exc:
            self._quiet_until[url] = time.monotonic() + RETRY_S
            if url not in self._failing:
                log.warning("a checkpoint could not be published", extra={"data": {"url": url, "error": str(exc)}})
            self._failing.add(url)
            return note
        self._failing.discard(url)
        return made

    def _write(self, text: str) -> None:
        disk = Disk()
        for path in self._paths:
            try:
                disk.replace(str(path), text.encode())
            except OSError as exc:
                log.warning("a checkpoint could not be published", extra={"data": {"file": str(path), "error": str(exc)}})
