"""A record as it lies in a segment: length, checksum, canonical JSON.

    octets 0..3    length of the JSON, big endian
    octets 4..7    CRC-32 of the JSON, big endian: finds what a disk did. What people did is found by the leaf hashes
    octet  8       0x00, the domain separator of a leaf (RFC 9162 section 2.1.1)
    octets 9..     the entry, canonical JSON (RFC 8785), UTF-8

The leaf hash is SHA-256 over octet 8 and the entry, so its input lies in one piece. It is not in the record: the path pays for a CRC, an
eighth of the hash, and the hash is made by whoever needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from struct import Struct
from typing import Any
from zlib import crc32

__all__ = ["HEADER", "LEAF_AT", "MAX_ENTRY", "Damage", "entry_of", "frame", "leaves_in", "records", "resumes_at"]

_HEAD = Struct(">IIB")
_pack = _HEAD.pack
HEADER = 9
"""Octets before the JSON."""
LEAF_AT = 8
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


def frame(entry: bytes) -> bytes:
    """The record of `entry`."""
    return _pack(len(entry), crc32(entry), 0) + entry


def entry_of(record: bytes) -> bytes | None:
    """The entry of one whole record; None when these octets are none."""
    if len(record) < HEADER:
        return None
    length, checksum, zero = _HEAD.unpack_from(record)
    entry = record[HEADER:]
    return entry if length == len(entry) and checksum == crc32(entry) and not zero else None


def records(data: Any, offset: int) -> Iterator[tuple[int, int]]:
    """(offset, end) of each record from `offset` to the end of `data` (bytes, or a map of
    a file). Raises Damage where one is not whole."""
    unpack = _HEAD.unpack_from
    size = len(data)
    with memoryview(data) as view:  # released at the end: a map with views on it cannot be closed
        while offset < size:
            begin = offset + HEADER
            if begin > size:
                raise Damage(offset, "the record's head is cut off", short=True)
            length, checksum, zero = unpack(view, offset)
            if not 2 <= length <= MAX_ENTRY or zero:
                raise Damage(offset, "no record begins here")
            end = begin + length
            if end > size:
                raise Damage(offset, "the record is cut off", short=True)
            if crc32(view[begin:end]) != checksum:
                raise Damage(offset, "the checksum does not fit the entry")
            yield offset, end
            offset = end


def leaves_in(data: Any, offset: int, leaves: list[bytes], most: int = -1) -> int:
    """Adds the leaf hashes of the records from `offset` on to `leaves`, `most` at most (-1: all). Returns where the last one ends. Raises
    Damage; what is before it has been added."""
    unpack, digest, check, add = _HEAD.unpack_from, sha256, crc32, leaves.append  # the loop of `records`, in one: it is half of verifying
    size = len(data)
    with memoryview(data) as view:
        while offset < size and most:
            begin = offset + HEADER
            if begin > size:
                raise Damage(offset, "the record's head is cut off", short=True)
            length, checksum, zero = unpack(view, offset)
            end = begin + length
            if not 2 <= length <= MAX_ENTRY or zero:
                raise Damage(offset, "no record begins here")
            if end > size:
                raise Damage(offset, "the record is cut off", short=True)
            if check(view[begin:end]) != checksum:
                raise Damage(offset, "the checksum does not fit the entry")
            add(digest(view[begin - 1 : end]).digest())  # a name for the part would keep the map open behind an exception
            offset = end
            most -= 1
    return offset


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
            length, checksum, _ = _HEAD.unpack_from(data, start)
            end = start + HEADER + length
            if 2 <= length <= MAX_ENTRY and end <= len(data) and crc32(data[start + HEADER : end]) == checksum:
                return start
        position += 1
