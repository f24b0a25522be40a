"""Newline-delimited JSON: one document a line, treated line by line. Line ends, blank lines and a missing last line end stay."""

from __future__ import annotations

from collections.abc import Callable

from meshguard.fields.streams import RecordTooLongError

__all__ = ["LineCutter"]


class LineCutter:
    """A `Cutter` of lines. `treat` takes one document and returns it treated."""

    __slots__ = ("_limit", "_rest", "_treat")

    def __init__(self, treat: Callable[[bytes], bytes], limit: int) -> None:
        self._treat = treat
        self._limit = limit
        self._rest = bytearray()

    @property
    def held(self) -> int:
        return len(self._rest)

    def feed(self, data: bytes) -> bytes:
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(data)
            return b""
        self._keep(data[: data.find(b"\n")])
        whole = bytes(self._rest) + data[data.find(b"\n") : end]
        self._rest = bytearray()
        self._keep(data[end + 1 :])
        return b"".join([self._line(line) + b"\n" for line in whole.split(b"\n")])

    def finish(self) -> bytes:
        line = bytes(self._rest)
        self._rest = bytearray()
        return self._line(line)

    def _keep(self, data: bytes) -> None:
        if len(self._rest) + len(data) > self._limit:
            raise RecordTooLongError(self._limit)
        self._rest += data

    def _line(self, line: bytes) -> bytes:
        if len(line) > self._limit:
            raise RecordTooLongError(self._limit)
        return self._treat(line) if line.strip(b" \t\r") else line
