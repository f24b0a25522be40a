"""Bodies that are treated as they pass: each record (a line, an event, a message) is gathered, bounded, treated, and goes on at once."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Cutter", "RecordTooLongError"]


class RecordTooLongError(ValueError):
    """One record of a stream is longer than what may be gathered."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"a record of more than {limit} octets")


class Cutter(Protocol):
    """Cuts a body into records and treats each. What goes in at most `limit` octets late comes out."""

    def feed(self, data: bytes) -> bytes:
        """What can go on now. Raises what treating raises, RecordTooLongError, and the format's own error."""

    def finish(self) -> bytes:
        """The rest, at the end of the body."""

    @property
    def held(self) -> int:
        """Octets gathered for a record that is not whole yet."""
