"""Checkpoints in places beyond the ledger: a file, an HTTP endpoint (a witness). Runs in the ledger's thread, never on the loop."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from meshguard.control.settings.ledger import CheckpointConfig
from meshguard.ledger.notes import Note, NoteError, NoteVerifier
from meshguard.storage.commit import Commit
from meshguard.storage.disk import Disk
from meshguard.storage.ledger import OpenLedger

__all__ = ["publish"]

log = logging.getLogger(__name__)

POST_S = 2.0
"""Deadline of a post: the next commit waits behind it."""
RETRY_S = 10.0
"""After a failure nothing is posted for this long."""
_MAX_ANSWER = 65536
_quiet_until: dict[str, float] = {}


def publish(config: CheckpointConfig, opened: OpenLedger, commit: Commit) -> None:
    """Writes the newest checkpoint of a shard to the configured places."""
    note = commit.note
    disk = Disk()
    place = opened.directory / f"shard-{opened.number}"
    if config.publish_url is not None:
        note = _post(config.publish_url, note, config.witnesses)
    paths = [place / "checkpoint"]
    if config.publish_file is not None:
        paths.append(Path(f"{config.publish_file}.shard-{opened.number}"))
    for path in paths:
        try:
            disk.replace(str(path), note.encode())
        except OSError as exc:
            log.warning("a checkpoint could not be published", extra={"data": {"file": str(path), "error": str(exc)}})


def _post(url: str, text: str, witnesses: list[str]) -> str:
    """The note with the signatures that the endpoint answered, those of known witnesses verified."""
    if time.monotonic() < _quiet_until.get(url, 0.0):
        return text
    from urllib.request import Request, urlopen

    request = Request(url, data=text.encode(), method="POST", headers={"content-type": "text/plain; charset=utf-8"})  # noqa: S310  # settings allow http(s) only
    try:
        with urlopen(request, timeout=POST_S) as answer:  # noqa: S310  # likewise
            body = answer.read(_MAX_ANSWER).decode("utf-8")
        lines = "".join(f"{line}\n" for line in body.splitlines() if line.startswith("— "))
        if not lines:
            return text
        note = Note.parse(text)
        cosigned = Note.parse(f"{note.text}\n{lines}")
        known = [NoteVerifier.parse(witness) for witness in witnesses]
        kept = [entry for entry in cosigned.signatures if any(witness.name == entry[0] and witness.key_id == entry[1] for witness in known)]
        only = Note(note.text, tuple(kept))
        for witness in known:
            witness.accepts(only)
        return note.joined(kept).render()
    except (OSError, NoteError, ValueError) as exc:
        _quiet_until[url] = time.monotonic() + RETRY_S
        log.warning("a checkpoint could not be posted", extra={"data": {"url": url, "error": str(exc)}})
        return text
