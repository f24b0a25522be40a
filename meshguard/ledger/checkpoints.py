"""Checkpoints: size and root of a tree under its origin, as the text of a signed note (C2SP tlog-checkpoint)."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from dataclasses import dataclass

from meshguard.ledger.notes import NoteError

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`origin` names the log (one shard), `size` counts its entries, `root` is their MTH; `extensions` are further lines.

    meshguard writes one extension line, `time <seconds>`: when it was made.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Raises NoteError."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1]:
            raise NoteError("no checkpoint: origin, size and root are expected, a line each")
        origin, size, root, *extensions = lines[:-1]
        try:
            digest = b64decode(root, validate=True)
            if not size.isascii() or not size.isdigit() or (size[0] == "0" and size != "0") or len(size) > 19 or len(digest) != 32:
                raise ValueError
        except (ValueError, binascii.Error) as exc:
            raise NoteError("the size or the root of a checkpoint is malformed") from exc
        if not origin or any(not line for line in extensions):
            raise NoteError("a checkpoint has no empty line")
        return cls(origin, int(size), digest, tuple(extensions))

    def render(self) -> str:
        lines = (self.origin, str(self.size), b64encode(self.root).decode("ascii"), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @property
    def seconds(self) -> int:
        """When it was made (epoch seconds), 0 when it does not say."""
        for line in self.extensions:
            if line.startswith("time ") and line[5:].isascii() and line[5:].isdigit():
                return int(line[5:])
        return 0
