"""A proof as a document that is checked without the ledger: entry, path to the root, the signed checkpoint it belongs to.

{"schema": "meshguard.proof/1", "shard": 0, "index": 7, "entry": "<the entry's canonical JSON as text>", "inclusion": [base64, ...],
 "checkpoint": "<signed note>", "older"?: "<signed note>", "consistency"?: [base64, ...]}
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from meshguard.ledger.checkpoints import Checkpoint
from meshguard.ledger.merkle import RangeRoot, leaf_hash
from meshguard.ledger.notes import NoteVerifier, open_note
from meshguard.ledger.proofs import ProofError, consistency_proof, inclusion_proof, verify_consistency, verify_inclusion

__all__ = ["SCHEMA", "make_proof", "verify_proof"]

SCHEMA = "meshguard.proof/1"


def make_proof(index: int, entry: bytes, note: str, root_of: RangeRoot, older: str = "") -> dict[str, Any]:
    """Proves that `entry` is entry `index` of the tree of the checkpoint `note`, and that this tree continues the one of `older`."""
    size = Checkpoint.parse(_text(note)).size
    made: dict[str, Any] = {
        "checkpoint": note,
        "entry": entry.decode("utf-8"),
        "inclusion": _encoded(inclusion_proof(index, size, root_of)),
        "index": index,
        "schema": SCHEMA,
    }
    if older:
        made["older"] = older
        made["consistency"] = _encoded(consistency_proof(Checkpoint.parse(_text(older)).size, size, root_of))
    return made


def verify_proof(proof: Any, verifiers: Sequence[NoteVerifier]) -> Checkpoint:
    """The checkpoint that `proof` leads to. Raises ProofError, NoteError."""
    try:
        if proof["schema"] != SCHEMA:
            raise ProofError(f"a proof of schema {SCHEMA} is expected")
        index, entry, path = proof["index"], proof["entry"], _decoded(proof["inclusion"])
        note, older = proof["checkpoint"], proof.get("older", "")
        if type(index) is not int or not isinstance(entry, str) or not isinstance(note, str) or not isinstance(older, str):
            raise TypeError
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ProofError("the proof lacks a part or has one of a wrong kind") from exc
    checkpoint = Checkpoint.parse(open_note(note, verifiers).text)
    verify_inclusion(index, checkpoint.size, leaf_hash(entry.encode("utf-8")), path, checkpoint.root)
    if older:
        before = Checkpoint.parse(open_note(older, verifiers).text)
        if before.origin != checkpoint.origin:
            raise ProofError("the older checkpoint is of another log")
        try:
            nodes = _decoded(proof["consistency"])
        except (KeyError, TypeError, ValueError) as exc:
            raise ProofError("the proof lacks its consistency part") from exc
        verify_consistency(before.size, checkpoint.size, before.root, checkpoint.root, nodes)
    return checkpoint


def _text(note: str) -> str:
    return note.rpartition("\n\n")[0] + "\n"


def _encoded(nodes: Sequence[bytes]) -> list[str]:
    return [b64encode(node).decode("ascii") for node in nodes]


def _decoded(nodes: Any) -> list[bytes]:
    if not isinstance(nodes, list) or len(nodes) > 128:
        raise ValueError
    try:
        made = [b64decode(node, validate=True) for node in nodes]
    except binascii.Error as exc:
        raise ValueError from exc
    if any(len(node) != 32 for node in made):
        raise ValueError
    return made
