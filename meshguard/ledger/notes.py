"""Signed notes (C2SP signed-note) with Ed25519, and cosignatures (C2SP tlog-cosignature) with Ed25519 and ML-DSA-44.

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

from meshguard.ledger import post_quantum
from meshguard.model.errors import MeshguardError

__all__ = ["Note", "NoteError", "NoteSigner", "NoteVerifier", "notes_in", "open_note"]

_ED25519 = 1
_COSIGNATURE = 4
_ML_DSA = 6
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
    """A public key as `<name>+<key id>+<base64(algorithm, key)>` (a verifier key of the standard). `cosigner`: of a witness. A key of 1312
    octets is one of ML-DSA-44, which always cosigns; NoteError where the library has no ML-DSA."""

    __slots__ = ("_key", "_material", "_quantum", "cosigner", "key_id", "name")

    def __init__(self, name: str, public: bytes, *, cosigner: bool = False) -> None:
        _check_name(name)
        quantum = len(public) == post_quantum.PUBLIC_BYTES
        kind = _ML_DSA if quantum else _COSIGNATURE if cosigner else _ED25519
        self.name = name
        self.cosigner = cosigner or quantum
        self._material = bytes((kind,)) + public
        self.key_id = _key_id(name, self._material)
        self._quantum = post_quantum.public_key(public) if quantum else None
        self._key = None if quantum else Ed25519PublicKey.from_public_bytes(public)

    @classmethod
    def parse(cls, text: str) -> NoteVerifier:
        """Raises NoteError."""
        parts = text.strip().split("+", 2)
        try:
            if len(parts) != 3:
                raise ValueError
            material = b64decode(parts[2], validate=True)
            if (len(material), material[0]) not in ((33, _ED25519), (33, _COSIGNATURE), (1 + post_quantum.PUBLIC_BYTES, _ML_DSA)):
                raise ValueError
            made = cls(parts[0], material[1:], cosigner=material[0] == _COSIGNATURE)
        except (ValueError, IndexError) as exc:
            raise NoteError("a verifier key is expected: name+key id+base64 of an Ed25519 or ML-DSA-44 key") from exc
        if parts[1] != made.key_id.hex():
            raise NoteError("the id of the verifier key does not fit its key")
        return made

    def render(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(self._material).decode('ascii')}"

    def accepts(self, note: Note) -> int | None:
        """The time of a cosignature (seconds), 0 for a plain signature, None when this key has not signed.

        Raises NoteError for a signature in its name that is wrong.
        """
        for name, key_id, value in note.signatures:
            if name == self.name and key_id == self.key_id:
                text, seconds, signature = note.text.encode(), 0, value
                if self.cosigner:
                    if len(value) != 8 + (64 if self._quantum is None else post_quantum.SIGNATURE_BYTES):
                        raise NoteError(f"the cosignature of {name} has a wrong length")
                    seconds, signature = int.from_bytes(value[:8], "big"), value[8:]
                try:
                    if self._quantum is not None:
                        self._quantum.verify(signature, _subtree(name, seconds, note.text))
                    elif self._key is not None:
                        self._key.verify(signature, _cosigned(seconds, text) if self.cosigner else text)
                except InvalidSignature as exc:
                    raise NoteError(f"the signature of {name} is wrong") from exc
                return seconds
        return None


class NoteSigner:
    """Signs notes in the name `name`; with `cosigner` as a witness does. `key`: Ed25519, or ML-DSA-44 (`ledger.post_quantum`). `also`:
    whose signature comes with it."""

    __slots__ = ("_also", "_key", "verifier")

    def __init__(
        self, name: str, key: Ed25519PrivateKey | post_quantum.PrivateKey, *, cosigner: bool = False, also: NoteSigner | None = None
    ) -> None:
        self._key = key
        self._also = also
        if isinstance(key, Ed25519PrivateKey):
            public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        else:
            public = key.public_key().public_bytes_raw()
        self.verifier = NoteVerifier(name, public, cosigner=cosigner)

    @property
    def verifiers(self) -> tuple[NoteVerifier, ...]:
        """Of all signatures that it makes."""
        return (self.verifier, *(self._also.verifiers if self._also is not None else ()))

    def __repr__(self) -> str:
        return f"NoteSigner({self.verifier.name})"

    def sign(self, text: str, seconds: int = 0) -> Note:
        """`text` ends with a newline. `seconds`: the time of a cosignature."""
        signatures = [self.signature(text, seconds)]
        if self._also is not None:
            signatures.append(self._also.signature(text, seconds))
        return Note(text, tuple(signatures))

    def signature(self, text: str, seconds: int = 0) -> tuple[str, bytes, bytes]:
        if not text.endswith("\n"):
            raise NoteError("the text of a note ends with a newline")
        verifier = self.verifier
        if not isinstance(self._key, Ed25519PrivateKey):
            value = seconds.to_bytes(8, "big") + self._key.sign(_subtree(verifier.name, seconds, text))
        elif verifier.cosigner:
            value = seconds.to_bytes(8, "big") + self._key.sign(_cosigned(seconds, text.encode()))
        else:
            value = self._key.sign(text.encode())
        return verifier.name, verifier.key_id, value


def open_note(data: str, verifiers: Iterable[NoteVerifier], *, every: bool = False) -> Note:
    """A note that at least one of these keys has signed (`every`: all of them), and none wrongly. Raises NoteError."""
    note = Note.parse(data)
    accepted = [verifier.accepts(note) is not None for verifier in verifiers]
    if not any(accepted) or (every and not all(accepted)):
        raise NoteError("not every key has signed this note" if any(accepted) else "no trusted key has signed this note")
    return note


def _cosigned(seconds: int, text: bytes) -> bytes:
    return b"cosignature/v1\ntime %d\n%b" % (seconds, text)


def _subtree(name: str, seconds: int, text: str) -> bytes:
    """What ML-DSA-44 signs of a checkpoint: `cosigned_message` of tlog-cosignature, from its first three lines. Raises NoteError."""
    lines = text.split("\n")
    try:
        origin, size, root = lines[0].encode(), int(lines[1]), b64decode(lines[2], validate=True)
        who = name.encode()
        if len(root) != 32 or not origin:
            raise ValueError
        heads = (bytes((len(who),)), who, seconds.to_bytes(8, "big"), bytes((len(origin),)), origin)
        return b"".join((b"subtree/v1\n\0", *heads, bytes(8), size.to_bytes(8, "big"), root))
    except (IndexError, ValueError, OverflowError, binascii.Error) as exc:
        raise NoteError("an ML-DSA-44 signature is of a checkpoint: origin, size and root") from exc


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
