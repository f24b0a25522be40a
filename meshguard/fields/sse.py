"""Server-sent events (HTML standard section 9.2): the JSON in the `data` of each event, treated event by event.

The data of an event are the values of its `data` lines, joined by line feeds. A treated document goes back into lines of the same kind:
the same end of line, the same space after the colon. Comments, `event`, `id`, `retry` and events without data pass as they are, and so does
`[DONE]`, with which many services end a stream. An event that is not ended when the body is treated too: readers differ on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from meshguard.fields.streams import RecordTooLongError

__all__ = ["EventCutter"]

_END = re.compile(rb"\r\n|\n|\r")
_DATA = re.compile(rb"data(?:(:[ ]?)(.*))?\Z", re.DOTALL).match
_BOM = b"\xef\xbb\xbf"
_DONE = b"[DONE]"
_RETURN = 0x0D


class EventCutter:
    """A `Cutter` of events. `treat` takes one document and returns it treated."""

    __slots__ = ("_begun", "_limit", "_lines", "_rest", "_size", "_treat")

    def __init__(self, treat: Callable[[bytes], bytes], limit: int) -> None:
        self._treat = treat
        self._limit = limit
        self._rest = bytearray()  # an unfinished line
        self._lines: list[tuple[bytes, bytes]] = []  # (line, its end) of the unfinished event
        self._size = 0
        self._begun = False

    @property
    def held(self) -> int:
        return self._size + len(self._rest)

    def feed(self, data: bytes) -> bytes:
        rest = self._rest
        before = len(rest)
        if before + self._size > self._limit:
            raise RecordTooLongError(self._limit)
        rest += data
        out = []
        position = 0
        if not self._begun:
            if len(rest) < len(_BOM) and _BOM.startswith(rest):
                return b""
            self._begun = True
            if rest.startswith(_BOM):
                out.append(_BOM)
                position = len(_BOM)
        # what was searched before holds no end of a line, but for a carriage return that a line feed may follow
        for match in _END.finditer(rest, max(position, before - 1)):
            start, end = match.span()
            if end == len(rest) and rest[start] == _RETURN and end == start + 1:
                break
            out.append(self._line(bytes(rest[position:start]), bytes(rest[start:end])))
            position = end
        self._rest = rest[position:] if position else rest
        if self.held > self._limit:
            raise RecordTooLongError(self._limit)
        return b"".join(out)

    def finish(self) -> bytes:
        text, self._rest = bytes(self._rest), bytearray()
        out = b""
        if text:
            ended = text.endswith(b"\r")
            self._keep(text[:-1] if ended else text, b"\r" if ended else b"")
        return out + self._event()

    def _line(self, line: bytes, end: bytes) -> bytes:
        if line:
            self._keep(line, end)
            return b""
        return self._event() + end

    def _keep(self, line: bytes, end: bytes) -> None:
        self._size += len(line) + len(end)
        if self._size > self._limit:
            raise RecordTooLongError(self._limit)
        self._lines.append((line, end))

    def _event(self) -> bytes:
        """The gathered lines, with their data treated."""
        lines, self._lines, self._size = self._lines, [], 0
        places = [(number, match) for number, (line, _) in enumerate(lines) if (match := _DATA(line)) is not None]
        if not places:
            return b"".join([line + end for line, end in lines])
        document = b"\n".join([match[2] or b"" for _, match in places])
        if not document.strip(b" \t\r\n") or document.strip(b" ") == _DONE:
            return b"".join([line + end for line, end in lines])
        treated = self._treat(document)
        if treated == document:
            return b"".join([line + end for line, end in lines])
        # as many lines as the document needs now, where the first of them stood, like the first of them
        first, match = places[0]
        prefix, end = b"data" + (match[1] or b": "), lines[first][1]
        pieces = treated.split(b"\n")
        gone = {number for number, _ in places}
        out = []
        for number, (line, line_end) in enumerate(lines):
            if number == first:
                last = lines[places[-1][0]][1]
                out += [prefix + piece + (end or b"\n") for piece in pieces[:-1]] + [
                    prefix + pieces[-1] + (last if len(places) > 1 else end)
                ]
            elif number not in gone:
                out.append(line + line_end)
        return b"".join(out)
