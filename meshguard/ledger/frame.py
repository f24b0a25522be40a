"""A record as it lies in a segment: length, checksum, canonical JSON.

    octets 0..3    length of the JSON, big endian
    octets 4..11   checksum: the first 8 octets of the leaf hash
    octet  12      0x00, the domain separator of a leaf (RFC 9162 section 2.1.1)
    octets 13..    the entry, canonical JSON (RFC 8785), UTF-8

The leaf hash is SHA-256 over octet 12 and the entry, so one hash serves the checksum and the tree, and its input lies in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from struct import Struct
from typing import Any

__all__ = ["HEADER", "LEAF_AT", "MAX_ENTRY", "Damage", "frame", "leaf_of", "records", "resumes_at"]

_LENGTH = Struct(">I")
HEADER = 13
"""Octets before the JSON."""
LEAF_AT = 12
"""Where the input of the leaf hash begins."""
MAX_ENTRY = 1 << 20
"""Octets of one entry at most: a length above it is damage, not a large entry."""


class Damage(Exception):
    """The octets at `offset` are no record. `short`: the data ends inside what could have become one."""

    def __init__(self, offset: int, what: str, *, short: bool = False) -> None:
        super().__init__(what)
        self.offset = offset
        self.what = what
        self.short = short


def frame(entry: bytes) -> tuple[bytes, bytes]:
    """The record of `entry`, and its leaf hash."""
    leaf_input = b"\0" + entry
    leaf = sha256(leaf_input).digest()
    return b"%b%b%b" % (_LENGTH.pack(len(entry)), leaf[:8], leaf_input), leaf


def leaf_of(record: bytes) -> bytes:
    """The leaf hash of a record."""
    return sha256(record[LEAF_AT:]).digest()


def records(data: Any, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """(offset, end, leaf hash) of each record from `offset` to the end of `data` (bytes, or a map of
    a file). Raises Damage where one is not whole."""
    unpack = _LENGTH.unpack_from
    digest = sha256
    size = len(data)
    with memoryview(data) as view:  # released at the end: a map with views on it cannot be closed
        while offset < size:
            if offset + HEADER > size:
                raise Damage(offset, "the record's head is cut off", short=True)
            length = unpack(data, offset)[0]
            if not 2 <= length <= MAX_ENTRY or data[offset + LEAF_AT]:
                raise Damage(offset, "no record begins here")
            end = offset + HEADER + length
            if end > size:
                raise Damage(offset, "the record is cut off", short=True)
            leaf = digest(view[offset + LEAF_AT : end]).digest()
            if leaf[:8] != data[offset + 4 : offset + LEAF_AT]:
                raise Damage(offset, "the checksum does not fit the entry")
            yield offset, end, leaf
            offset = end


def resumes_at(data: Any, offset: int, *, look: int = 4 * MAX_ENTRY) -> int | None:
    """Where, behind damage at `offset`, a whole record lies again; None when none does within `look` octets.

    An entry begins with `{"`, so only such places are tried.
    """
    position = offset + HEADER
    limit = min(len(data), offset + look)
    while True:
        position = data.find(b'\0{"', position, limit)
        if position < 0:
            return None
        start: int = position - LEAF_AT
        if start > offset:
            length = _LENGTH.unpack_from(data, start)[0]
            end = start + HEADER + length
            fits = 2 <= length <= MAX_ENTRY and end <= len(data)
            if fits and sha256(data[position:end]).digest()[:8] == data[start + 4 : position]:
                return start
        position += 1
