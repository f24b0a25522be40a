"""HPACK, the encoding side (RFC 7541): lines of HTTP/1.1 heads to field blocks, without a dynamic table.

Each line is encoded by itself, from the static table or as a literal, so what it becomes is the same on every connection and is
remembered once for all. A table of our own would save octets and cost the look-ups and insertions again on each connection; measured, it
does not pay inside a mesh. INVARIANT: nothing is ever inserted, and the first block of a connection says so (`NO_TABLE`), which is right
whatever table size the peer allows or will allow (section 4.2).
"""

from __future__ import annotations

import functools

from meshguard.wire.http2.static_table import STATIC_TABLE

__all__ = ["NO_TABLE", "encode_block", "encode_length", "encode_request", "encode_status", "never_index", "request_method"]

NO_TABLE = b"\x20"
"""A dynamic table size update to 0, for the beginning of the first block."""

_LINES = 1024
_NAMES_REMEMBERED = 1024
_REMEMBERED_OCTETS = 2048
"""A longer block is encoded without the memory, which holds at most 2 MB of lines."""
_NOT_FORWARDED = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings"))
# Never to be indexed by an intermediary (section 7.1.3); `never_index` adds to them, up to so many names: then no literal is.
_SENSITIVE = {b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"}
_SENSITIVE_NAMES = 256
_PAIRS = {pair: index for index, pair in reversed(list(enumerate(STATIC_TABLE, 1)))}
_WITH_VALUES = frozenset(name for name, value in STATIC_TABLE if value)
_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(STATIC_TABLE, 1)))}


def _integer(value: int, prefix: int, first: int) -> bytes:
    """Section 5.1: `prefix` is the mask of the prefix, `first` the bits above it."""
    if value < prefix:
        return bytes((first | value,))
    octets = bytearray((first | prefix,))
    value -= prefix
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _field(name: bytes, value: bytes) -> bytes:
    index = _PAIRS.get((name, value))
    if index is not None and (value or name[:1] != b":"):
        return _integer(index, 0x7F, 0x80)
    first = 0x10 if name in _SENSITIVE or len(_SENSITIVE) > _SENSITIVE_NAMES else 0x00
    index = _NAMES.get(name)
    start = _integer(index, 0x0F, first) if index is not None else b"%c%b%b" % (first, _integer(len(name), 0x7F, 0), name)
    return b"%b%b%b" % (start, _integer(len(value), 0x7F, 0), value)


def never_index(name: bytes) -> None:
    """A peer has sent a field of this name that no intermediary may index: from now on it goes on as such (section 6.2.3). By its name, for
    all connections: a line is encoded once for all of them, and whoever calls a field secret on one of them means the field."""
    if name in _SENSITIVE or len(_SENSITIVE) > _SENSITIVE_NAMES:
        return
    _SENSITIVE.add(name)
    for memory in (_literal, _remembered_line, encode_status, encode_length, _start, _authority):
        memory.cache_clear()


@functools.lru_cache(maxsize=_NAMES_REMEMBERED)
def _literal(name: bytes) -> bytes:
    """How every field `name` begins; empty where it depends on the value, or the field goes no further."""
    name = name.lower()
    if not name or name in _NOT_FORWARDED or name in _WITH_VALUES or name == b"te":
        return b""
    first = 0x10 if name in _SENSITIVE or len(_SENSITIVE) > _SENSITIVE_NAMES else 0x00
    index = _NAMES.get(name)
    return _integer(index, 0x0F, first) if index is not None else b"%c%b%b" % (first, _integer(len(name), 0x7F, 0), name)


def _line(line: bytes) -> bytes:
    name, _, value = line.partition(b":")
    value = value.strip(b" \t")
    start = _literal(name)
    if start and 0 < len(value) < 0x7F:  # every other line: most of those that nobody has seen are ids
        return b"%b%c%b" % (start, len(value), value)
    name = name.lower()
    if not name or name in _NOT_FORWARDED or (name == b"te" and value.lower() != b"trailers"):
        return b""
    return _field(name, value)


_remembered_line = functools.lru_cache(maxsize=_LINES)(_line)


def encode_block(block: bytes) -> bytes:
    """A field block (`name: value` CRLF each, any case of names). What belongs to a connection is left out."""
    return b"".join(map(_remembered_line if len(block) <= _REMEMBERED_OCTETS else _line, block.split(b"\r\n")))


@functools.lru_cache(maxsize=64)
def encode_status(status: int) -> bytes:
    return _field(b":status", b"%d" % status)


@functools.lru_cache(maxsize=256)
def encode_length(octets: int) -> bytes:
    return _field(b"content-length", b"%d" % octets)


@functools.lru_cache(maxsize=256)
def _start(line: bytes, scheme: bytes) -> bytes:
    """`:method`, `:scheme` and `:path` of a request line."""
    method, target, _ = line.split(b" ")
    return _field(b":method", method) + _field(b":scheme", scheme) + _field(b":path", target)


@functools.lru_cache(maxsize=256)
def _authority(line: bytes) -> bytes:
    return _field(b":authority", line.partition(b":")[2].strip(b" \t"))


def request_method(head: bytes) -> bytes:
    """The method that a head serialised for HTTP/1.1 has in HTTP/2: CONNECT where it holds `:protocol` (RFC 8441 section 4)."""
    return b"CONNECT" if b"\n:protocol:" in head else head[: head.index(b" ")]


def encode_request(head: bytes, scheme: bytes) -> bytes:
    """A whole request head as serialised for HTTP/1.1, through its empty line; Host becomes `:authority`."""
    lines = head.split(b"\r\n")
    short = len(head) <= _REMEMBERED_OCTETS
    protocol = b""
    line = lines[0]
    if b"\n:protocol:" in head:
        (found,) = (number for number, text in enumerate(lines) if text.startswith(b":protocol:"))
        protocol = _field(b":protocol", lines.pop(found)[10:].strip(b" \t"))
        line = b"CONNECT" + line[line.index(b" ") :]
    host = lines[1]
    if host[:5].lower() == b"host:":
        del lines[:2]
    else:
        del lines[0]
        found = next((number for number, text in enumerate(lines) if text[:5].lower() == b"host:"), -1)
        host = lines.pop(found) if found >= 0 else b""
    start = _start(line, scheme) if short else _start.__wrapped__(line, scheme)
    authority = (_authority(host) if short else _authority.__wrapped__(host)) if host else b""
    return b"".join((start, authority, protocol, *map(_remembered_line if short else _line, lines)))
