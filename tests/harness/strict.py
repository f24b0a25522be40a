"""A strict, independent HTTP/1.1 message parser: the judge of every byte that the process under test writes.

Sans-IO: `feed` takes bytes in any segmentation and returns events; anything outside the strict grammar of RFC 9112 raises
`Violation`. Deliberately narrower than any server: one spelling of framing, CRLF only, no folding, no extensions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELD = re.compile(rb"(" + _TCHAR + rb"):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*\Z")
_REQUEST_LINE = re.compile(rb"(" + _TCHAR + rb") ([\x21-\x7e]+) HTTP/1\.([01])\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)\Z")
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,15}\Z")


class Violation(Exception):
    """The peer wrote something that is not strict HTTP/1.1."""


class Truncated(Exception):
    """The connection ended inside a message. `received` is the body so far."""


@dataclass
class Head:
    """A parsed head: a request has `method` and `target`, a response `status`. `length` is None for chunked, -1 until close."""

    raw: bytes
    minor: int
    fields: list[tuple[str, str]]
    method: str = ""
    target: str = ""
    status: int = 0
    reason: str = ""
    length: int | None = 0

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name: str, default: str = "") -> str:
        """The only value of a field; fails when a field that is asked for as one came several times."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else default


@dataclass
class Data:
    data: bytes


@dataclass
class End:
    trailers: list[tuple[str, str]] = field(default_factory=list)


def parse_fields(lines: list[bytes]) -> list[tuple[str, str]]:
    out = []
    for line in lines:
        match = _FIELD.match(line)
        if match is None:
            raise Violation(f"field line {line[:200]!r}")
        out.append((match[1].decode("ascii"), match[2].decode("latin-1")))
    return out


class Parser:
    """Messages of one direction of one connection. `methods` (responses only): methods of the requests awaiting an answer, in order."""

    def __init__(self, kind: str, *, max_head: int = 1 << 20) -> None:
        self.kind = kind
        self.methods: list[str] = []
        self._buffer = bytearray()
        self._state = "head"
        self._left = 0
        self._max_head = max_head
        self._head: Head | None = None

    @property
    def between_messages(self) -> bool:
        return self._state == "head" and not self._buffer

    @property
    def pending(self) -> bytes:
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[Head | Data | End]:
        self._buffer += data
        events: list[Head | Data | End] = []
        while self._step(events):
            pass
        return events

    def eof(self) -> list[Head | Data | End]:
        if self._state == "close":
            self._state = "head"
            return [End()]
        if not self.between_messages:
            raise Truncated(f"ended in state {self._state} with {bytes(self._buffer[:200])!r} pending")
        return []

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > self._max_head:
                raise Violation("endless line")
            return None
        if end == 0 or self._buffer[end - 1] != 13:
            raise Violation(f"bare LF in {bytes(self._buffer[: end + 1])!r}")
        line = bytes(self._buffer[: end - 1])
        del self._buffer[: end + 1]
        return line

    def _step(self, events: list[Head | Data | End]) -> bool:
        buffer = self._buffer
        match self._state:
            case "head":
                end = buffer.find(b"\r\n\r\n")
                if end < 0:
                    if len(buffer) > self._max_head:
                        raise Violation("endless head")
                    return False
                raw = bytes(buffer[: end + 4])
                del buffer[: end + 4]
                head = self._parse_head(raw)
                events.append(head)
                self._head = head
                if head.length is None:
                    self._state = "size"
                elif head.length == -1:
                    self._state = "close"
                elif head.length == 0:
                    events.append(End())
                else:
                    self._left = head.length
                    self._state = "length"
                return True
            case "length" | "chunk":
                if not buffer:
                    return False
                part = bytes(buffer[: self._left])
                del buffer[: len(part)]
                self._left -= len(part)
                events.append(Data(part))
                if self._left == 0:
                    if self._state == "length":
                        events.append(End())
                        self._state = "head"
                    else:
                        self._state = "crlf"
                return True
            case "size":
                line = self._line()
                if line is None:
                    return False
                if not _CHUNK.match(line):
                    raise Violation(f"chunk size line {line!r}")
                self._left = int(line, 16)
                self._trailer_lines: list[bytes] = []
                self._state = "chunk" if self._left else "trailers"
                return True
            case "crlf":
                if len(buffer) < 2:
                    return False
                if buffer[:2] != b"\r\n":
                    raise Violation(f"chunk data followed by {bytes(buffer[:20])!r}")
                del buffer[:2]
                self._state = "size"
                return True
            case "trailers":
                line = self._line()
                if line is None:
                    return False
                if line:
                    self._trailer_lines.append(line)
                else:
                    events.append(End(parse_fields(self._trailer_lines)))
                    self._state = "head"
                return True
            case "close":
                if not buffer:
                    return False
                events.append(Data(bytes(buffer)))
                buffer.clear()
                return True
        raise AssertionError(self._state)

    def _parse_head(self, raw: bytes) -> Head:
        first, *lines = raw[:-4].split(b"\r\n")
        if b"\n" in raw.replace(b"\r\n", b"") or b"\r" in raw.replace(b"\r\n", b""):
            raise Violation(f"bare CR or LF in head {raw[:300]!r}")
        pattern = _REQUEST_LINE if self.kind == "request" else _STATUS_LINE
        match = pattern.match(first)
        if match is None:
            raise Violation(f"first line {first[:200]!r}")
        fields = parse_fields(lines)
        if self.kind == "request":
            head = Head(raw, int(match[3]), fields, method=match[1].decode(), target=match[2].decode())
            if len(head.all("host")) != 1:
                raise Violation(f"{len(head.all('host'))} Host fields in {raw[:300]!r}")
        else:
            head = Head(raw, int(match[1]), fields, status=int(match[2]), reason=match[3].decode("latin-1"))
        codings, lengths = head.all("transfer-encoding"), head.all("content-length")
        if codings and lengths:
            raise Violation("Transfer-Encoding and Content-Length together")
        if codings and (codings != ["chunked"] or head.minor == 0):
            raise Violation(f"Transfer-Encoding {codings!r} in HTTP/1.{head.minor}")
        if len(lengths) > 1 or (lengths and not _LENGTH.match(lengths[0].encode("latin-1"))):
            raise Violation(f"Content-Length {lengths!r}")
        length: int | None = None if codings else int(lengths[0]) if lengths else 0
        if self.kind == "response":
            bodiless = head.status < 200 or head.status in (204, 304)
            if (head.status < 200 or head.status == 204) and (codings or lengths):
                raise Violation(f"framing fields in a {head.status}")
            if head.status >= 200:
                method = self.methods.pop(0) if self.methods else "GET"
                bodiless = bodiless or method == "HEAD"
            if bodiless:
                length = 0
            elif not codings and not lengths:
                length = -1
        head.length = length
        return head
