"""Cosignatures of witnesses (C2SP tlog-witness): each is given the checkpoint with the proof that it continues the one it signed last.

A witness that says it has signed a larger tree than ours has seen a ledger that this one does not continue: a rollback, told as an error.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Sequence
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from meshguard.ledger.merkle import Tree
from meshguard.ledger.notes import Note, NoteVerifier
from meshguard.storage.shard_reader import ShardReader

__all__ = ["POST_S", "Witness", "kept_signatures", "posted"]

log = logging.getLogger(__name__)

POST_S = 2.0
"""Deadline of a post, for each step of it."""
_MAX_ANSWER = 65536


class Witness:
    """One, for one shard. `url`: its submission prefix."""

    def __init__(self, url: str, reader: ShardReader) -> None:
        self.url = url.rstrip("/")
        self._reader = reader
        self._signed = Tree()  # the tree that it has signed last, as far as we know

    def cosign(self, note: str, tree: Tree) -> str:
        """Its signature lines for the checkpoint `note` of `tree`. Raises OSError, ValueError."""
        for _ in range(2):
            old = self._signed
            proof = self._reader.consistency(old, tree.size) if 0 < old.size < tree.size else []
            lines = "".join(f"{b64encode(node).decode()}\n" for node in proof)
            try:
                answer = posted(f"{self.url}/add-checkpoint", f"old {old.size}\n{lines}\n{note}")
            except HTTPError as exc:
                size = _size_in(exc)
                if size is None or size == old.size:
                    raise ValueError(f"it answered {exc.code}") from exc
                if size > tree.size:
                    log.error(
                        "a witness has signed a larger ledger than this one: it was rolled back or replaced",
                        extra={"data": {"url": self.url, "its_size": size, "size": tree.size}},
                    )
                    raise ValueError(f"it has signed {size} entries, and there are {tree.size}") from exc
                self._signed = self._reader.tree_at(size)
                continue
            self._signed = tree
            return answer
        raise ValueError("it does not agree about what it has signed")


def posted(url: str, text: str) -> str:
    """The answer to a post. Raises OSError (HTTPError for a refusal)."""
    request = Request(url, data=text.encode(), method="POST", headers={"content-type": "text/plain; charset=utf-8"})  # noqa: S310  # settings allow http(s) only
    with urlopen(request, timeout=POST_S) as answer:  # noqa: S310  # likewise
        return str(answer.read(_MAX_ANSWER).decode("utf-8", "replace"))


def kept_signatures(note: str, answer: str, known: Sequence[NoteVerifier]) -> list[tuple[str, bytes, bytes]]:
    """The signature lines of an answer that are of known keys, verified; others are left out. Raises NoteError for a wrong one."""
    lines = "".join(f"{line}\n" for line in answer.splitlines() if line.startswith("— "))
    if not lines:
        return []
    text = Note.parse(note).text
    said = Note.parse(f"{text}\n{lines}")
    kept = [entry for entry in said.signatures if any((witness.name, witness.key_id) == entry[:2] for witness in known)]
    only = Note(text, tuple(kept))
    for witness in known:
        witness.accepts(only)
    return kept


def _size_in(refusal: HTTPError) -> int | None:
    """The size that a 409 tells."""
    with refusal:
        text = refusal.read(64).decode("ascii", "replace")
    told = text.removesuffix("\n")
    fits = refusal.code == 409 and refusal.headers.get_content_type() == "text/x.tlog.size" and told.isascii() and told.isdigit()
    return int(told) if fits and len(told) < 19 else None
