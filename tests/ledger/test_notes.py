"""Signed notes, checkpoints, cosignatures."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from meshguard.ledger.checkpoints import Checkpoint
from meshguard.ledger.notes import Note, NoteError, NoteSigner, NoteVerifier, notes_in, open_note

# The example of the package that defined the format (golang.org/x/mod/sumdb/note).
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SIGNER = NoteSigner("shop.example/meshguard/1", Ed25519PrivateKey.from_private_bytes(b"1" * 32))
WITNESS = NoteSigner("witness.example", Ed25519PrivateKey.from_private_bytes(b"2" * 32), cosigner=True)
TEXT = Checkpoint("shop.example/meshguard/1/shard-0", 7, b"r" * 32, ("time 1800000000",)).render()


def test_the_published_example() -> None:
    verifier = NoteVerifier.parse(NEUMANN)
    assert verifier.render() == NEUMANN
    note = open_note(NOTE, [verifier])
    assert note.render() == NOTE
    with pytest.raises(NoteError, match="wrong"):
        open_note(NOTE.replace("problem is", "problem was"), [verifier])


def test_a_checkpoint_says_what_the_standard_asks() -> None:
    assert TEXT == "shop.example/meshguard/1/shard-0\n7\ncnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=\ntime 1800000000\n"
    checkpoint = Checkpoint.parse(TEXT)
    assert (checkpoint.size, checkpoint.root, checkpoint.seconds) == (7, b"r" * 32, 1_800_000_000)


@pytest.mark.parametrize(
    "text", ["", "a\n1\n", "a\n01\n" + "A" * 44 + "\n", "a\n-1\nAA==\n", "\n1\nAA==\n", "a\n1\n!!\n", TEXT[:-1], TEXT + "\n"]
)
def test_other_texts_are_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


def test_a_witness_cosigns() -> None:
    note = SIGNER.sign(TEXT).joined([WITNESS.signature(TEXT, 1_800_000_001)])
    opened = open_note(note.render(), [SIGNER.verifier, WITNESS.verifier])
    assert WITNESS.verifier.accepts(opened) == 1_800_000_001
    assert NoteVerifier.parse(WITNESS.verifier.render()).accepts(opened) == 1_800_000_001
    name, key_id, value = WITNESS.signature(TEXT, 1_800_000_001)
    later = Note(TEXT, ((name, key_id, (1_800_000_002).to_bytes(8, "big") + value[8:]),))
    with pytest.raises(NoteError, match="wrong"):
        WITNESS.verifier.accepts(later)


def test_a_strangers_signature_is_not_enough() -> None:
    stranger = NoteSigner("shop.example/meshguard/1", Ed25519PrivateKey.from_private_bytes(b"3" * 32))
    with pytest.raises(NoteError, match="no trusted key"):
        open_note(stranger.sign(TEXT).render(), [SIGNER.verifier])


def test_a_false_key_id_is_refused() -> None:
    name, _, key = SIGNER.verifier.render().split("+", 2)
    with pytest.raises(NoteError, match="id"):
        NoteVerifier.parse(f"{name}+00000000+{key}")


def test_notes_lie_one_behind_the_other() -> None:
    one, two = SIGNER.sign(TEXT).render(), SIGNER.sign("x\n1\n\ny\n").joined([WITNESS.signature("x\n1\n\ny\n", 5)]).render()
    assert list(notes_in(one + two + one)) == [one, two, one]
    for cut in range(1, len(two)):
        assert list(notes_in(one + two[:cut]))[:1] == [one]


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        note = Note.parse(text)
    except NoteError:
        return
    assert Note.parse(note.render()).render() == note.render()
