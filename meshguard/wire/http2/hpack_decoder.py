"""HPACK, the decoding side (RFC 7541): field blocks to entries of a book.

The dynamic table holds made entries, so an indexed field is one list look-up. INVARIANT: a decoder that has raised is out of step with its
peer for good: the connection ends with COMPRESSION_ERROR (RFC 9113 section 4.3).
"""

from __future__ import annotations

from meshguard.model.errors import MeshguardError
from meshguard.wire.http2.field_book import Book, Entry
from meshguard.wire.http2.hpack_encoder import never_index
from meshguard.wire.http2.huffman import HuffmanError, decode_huffman
from meshguard.wire.http2.static_table import DYNAMIC

__all__ = ["HpackDecoder", "HpackError"]

_LONGEST_INTEGER = 4
"""Octets of an integer behind its prefix (28 bits): more is wrong or an attack (RFC 7541 section 5.1)."""
_NEWEST = DYNAMIC - 1


class HpackError(MeshguardError):
    """The block is no HPACK, or its table is not ours."""


def _integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """(value, next position) of an integer whose prefix was all ones. An end before its end raises IndexError."""
    value = prefix
    for shift in range(0, 7 * _LONGEST_INTEGER, 7):
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise HpackError("an integer that is too large")


class HpackDecoder:
    """One direction of one connection. `changed` is set when a block changes the table, for whoever remembers decoded blocks."""

    __slots__ = ("_book", "_dynamic", "_limit", "_most", "_must_shrink", "_size", "_static", "changed")

    def __init__(self, book: Book, limit: int) -> None:
        self._book = book
        self._static = book.static
        self._dynamic: list[Entry] = []  # the newest is the last: index 62 is -1
        self._size = 0
        self._most = min(limit, 4096)  # what the encoder uses; it begins with the default
        self._limit = limit
        self._must_shrink = False
        self.changed = False

    @property
    def table_octets(self) -> int:
        """The size of the dynamic table (RFC 7541 section 4.1)."""
        return self._size

    def set_limit(self, limit: int) -> None:
        """The peer has acknowledged our SETTINGS_HEADER_TABLE_SIZE: if its table is larger it has to say that it shrinks (section 4.2)."""
        self._limit = limit
        self._must_shrink = self._most > limit

    def decode(self, block: bytes) -> list[Entry]:
        """The fields in order. Raises HpackError."""
        fields: list[Entry] = []
        try:
            self._decode(block, fields)
        except IndexError as exc:
            raise HpackError("an index outside the tables, or a block that ends too early") from exc
        except HuffmanError as exc:
            raise HpackError(f"Huffman code: {exc}") from exc
        return fields

    def _decode(self, block: bytes, fields: list[Entry]) -> None:
        add = fields.append
        static = self._static
        dynamic = self._dynamic
        position = 0
        end = len(block)
        if self._must_shrink and (not end or block[0] & 0xE0 != 0x20):
            raise HpackError("no table size update")
        while position < end:
            octet = block[position]
            position += 1
            if octet > 0x80:  # indexed (section 6.1)
                index = octet & 0x7F
                if index == 0x7F:
                    index, position = _integer(block, position, 0x7F)
                add(static[index] if index < DYNAMIC else dynamic[_NEWEST - index])
                continue
            if octet >= 0x40:
                if octet == 0x80:
                    raise HpackError("index 0")
                index = octet & 0x3F  # literal with incremental indexing (section 6.2.1)
                if index == 0x3F:
                    index, position = _integer(block, position, 0x3F)
            elif octet >= 0x20:
                if fields:
                    raise HpackError("a table size update after a field")
                position = self._resize(block, position, octet & 0x1F)
                continue
            else:
                index = octet & 0x0F  # literal without indexing, or never indexed (sections 6.2.2, 6.2.3)
                if index == 0x0F:
                    index, position = _integer(block, position, 0x0F)
            if index:
                name = (static[index] if index < DYNAMIC else dynamic[_NEWEST - index])[2]
            else:
                name, position = _string(block, position)
            # the value, as in `_string`; a call costs a tenth of the field
            length = block[position]
            position += 1
            coded = length >= 0x80
            length &= 0x7F
            if length == 0x7F:
                length, position = _integer(block, position, 0x7F)
            stop = position + length
            if stop > end:
                raise HpackError("a string longer than its block")
            value = block[position:stop]
            position = stop
            if coded:
                value = decode_huffman(value)
            entry = self._book.entry(name, value)
            add(entry)
            if octet >= 0x40:
                self._insert(entry)
            elif octet >= 0x10:
                never_index(name)

    def _resize(self, block: bytes, position: int, size: int) -> int:
        """A dynamic table size update (section 6.3)."""
        if size == 0x1F:
            size, position = _integer(block, position, 0x1F)
        if size > self._limit:
            raise HpackError("a table size above the limit")
        self._must_shrink = False
        self._most = size
        self.changed = True
        self._evict()
        return position

    def _insert(self, entry: Entry) -> None:
        self.changed = True
        size = entry[3]
        if size > self._most:  # it empties the table (section 4.4)
            self._dynamic.clear()
            self._size = 0
            return
        self._dynamic.append(entry)
        self._size += size
        if self._size > self._most:
            self._evict()

    def _evict(self) -> None:
        dynamic = self._dynamic
        oldest = 0
        while self._size > self._most:
            self._size -= dynamic[oldest][3]
            oldest += 1
        del dynamic[:oldest]


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """(string, next position) (section 5.2)."""
    length = block[position]
    position += 1
    coded = length >= 0x80
    length &= 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, 0x7F)
    stop = position + length
    if stop > len(block):
        raise HpackError("a string longer than its block")
    string = block[position:stop]
    if coded:
        string = decode_huffman(string)
    return string, stop
