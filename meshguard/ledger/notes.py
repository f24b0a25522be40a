"""Signed notes (C2SP signed-note) with Ed25519, and the cosignatures of witnesses (C2SP tlog-cosignature).

A note is a text that ends with a newline, an empty line, and signature lines `— <key name> <base64(key id, signature)>`.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshguard.model.errors import MeshguardError

__all__ = ["Note", "NoteError", "NoteSigner", "NoteVerifier", "notes_in", "open_note"]

_ED25519 = 1
_COSIGNATURE = 4
_MAX_NOTE = 1 << 16
_MAX_SIGNATURES = 100


class NoteError(MeshguardError):
    """A text is no note, or no trusted key has signed it."""


class Note:
    """A parsed note: its `text` (with the last newline) and `signatures` as (key name, key id, signature). Nothing is verified yet."""

    __slots__ = ("signatures", "text")

    def __init__(self, text: str, signatures: tuple[tuple[str, bytes, bytes], ...]) -> None:
        self.text = text
        self.signatures = signatures

    @classmethod
    def parse(cls, data: str) -> Note:
        """Raises NoteError."""
        if len(data) > _MAX_NOTE:
            raise NoteError("the note is too long")
        text, separator, block = data.rpartition("\n\n")
        if not separator or not block.endswith("\n") or any(ord(char) < 0x20 and char != "\n" for char in data):
            raise NoteError("no note: a text, an empty line and signature lines are expected")
        lines = block[:-1].split("\n")
        if len(lines) > _MAX_SIGNATURES:
            raise NoteError("too many signatures")
        return cls(text + "\n", tuple(_signature(line) for line in lines))

    def render(self) -> str:
        lines = (f"— {name} {b64encode(key_id + value).decode('ascii')}\n" for name, key_id, value in self.signatures)
        return self.text + "\n" + "".join(lines)

    def joined(self, others: Iterable[tuple[str, bytes, bytes]]) -> Note:
        """The note with further signatures; those that it has already are left out."""
        return Note(self.text, (*self.signatures, *(entry for entry in others if entry not in self.signatures)))


class NoteVerifier:
    """A public key as `<name>+<key id>+<base64(algorithm, key)>` (a verifier key of the standard). `cosigner`: of a witness."""

    __slots__ = ("_key", "cosigner", "key_id", "name")

    def __init__(self, name: str, public: bytes, *, cosigner: bool = False) -> None:
        _check_name(name)
        kind = _COSIGNATURE if cosigner else _ED25519
        self.name = name
        self.cosigner = cosigner
        self.key_id = _key_id(name, bytes((kind,)) + public)
        self._key = Ed25519PublicKey.from_public_bytes(public)

    @classmethod
    def parse(cls, text: str) -> NoteVerifier:
        """Raises NoteError."""
        parts = text.strip().split("+", 2)
        try:
            if len(parts) != 3:
                raise ValueError
            material = b64decode(parts[2], validate=True)
            if len(material) != 33 or material[0] not in (_ED25519, _COSIGNATURE):
                raise ValueError
            made = cls(parts[0], material[1:], cosigner=material[0] == _COSIGNATURE)
        except ValueError as exc:
            raise NoteError("a verifier key is expected: name+key id+base64 of an Ed25519 key") from exc
        if parts[1] != made.key_id.hex():
            raise NoteError("the id of the verifier key does not fit its key")
        return made

    def render(self) -> str:
        raw = self._key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        kind = bytes((_COSIGNATURE if self.cosigner else _ED25519,))
        return f"{self.name}+{self.key_id.hex()}+{b64encode(kind + raw).decode('ascii')}"

    def accepts(self, note: Note) -> int | None:
        """The time of a cosignature (seconds), 0 for a plain signature, None when this key has not signed.

        Raises NoteError for a signature in its name that is wrong.
        """
        for name, key_id, value in note.signatures:
            if name == self.name and key_id == self.key_id:
                text, seconds, signature = note.text.encode(), 0, value
                if self.cosigner:
                    if len(value) != 72:
                        raise NoteError(f"the cosignature of {name} has a wrong length")
                    seconds, signature = int.from_bytes(value[:8], "big"), value[8:]
                    text = b"cosignature/v1\ntime %d\n%b" % (seconds, text)
                try:
                    self._key.verify(signature, text)
                except InvalidSignature as exc:
                    raise NoteError(f"the signature of {name} is wrong") from exc
                return seconds
        return None


class NoteSigner:
    """Signs notes in the name `name`; with `cosigner` as a witness does."""

    __slots__ = ("_key", "verifier")

    def __init__(self, name: str, key: Ed25519PrivateKey, *, cosigner: bool = False) -> None:
        self._key = key
        self.verifier = NoteVerifier(name, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), cosigner=cosigner)

    def __repr__(self) -> str:
        return f"NoteSigner({self.verifier.name})"

    def sign(self, text: str, seconds: int = 0) -> Note:
        """`text` ends with a newline. `seconds`: the time of a cosignature."""
        return Note(text, (self.signature(text, seconds),))

    def signature(self, text: str, seconds: int = 0) -> tuple[str, bytes, bytes]:
        if not text.endswith("\n"):
            raise NoteError("the text of a note ends with a newline")
        verifier = self.verifier
        if verifier.cosigner:
            value = seconds.to_bytes(8, "big") + self._key.sign(b"cosignature/v1\ntime %d\n%b" % (seconds, text.encode()))
        else:
            value = self._key.sign(text.encode())
        return verifier.name, verifier.key_id, value


def open_note(data: str, verifiers: Iterable[NoteVerifier]) -> Note:
    """A note that at least one of these keys has signed, and none wrongly. Raises NoteError."""
    note = Note.parse(data)
    if not [True for verifier in verifiers if verifier.accepts(note) is not None]:
        raise NoteError("no trusted key has signed this note")
    return note


def notes_in(data: str) -> Iterable[str]:
    """The notes of a file that holds one behind the other. An unfinished last one is left out."""
    part: list[str] = []
    signatures = False
    for line in data.splitlines(keepends=True):
        signing = line.startswith("— ")
        if signatures and not signing:
            yield "".join(part)
            part, signatures = [], False
        part.append(line)
        if signing and line.endswith("\n") and len(part) > 1:
            signatures = True
    if signatures and part[-1].endswith("\n"):
        yield "".join(part)


def _signature(line: str) -> tuple[str, bytes, bytes]:
    parts = line.split(" ")
    try:
        if len(parts) != 3 or parts[0] != "—":
            raise ValueError
        value = b64decode(parts[2], validate=True)
        if len(value) < 5:
            raise ValueError
    except (ValueError, binascii.Error) as exc:
        raise NoteError("a signature line is malformed") from exc
    _check_name(parts[1])
    return parts[1], value[:4], value[4:]


def _check_name(name: str) -> None:
    if not name or "+" in name or any(char.isspace() for char in name):
        raise NoteError("a key name has no space and no plus sign")


def _key_id(name: str, material: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + material).digest()[:4]
