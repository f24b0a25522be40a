"""What a decoded field means, worked out once: the entries of the HPACK tables.

An entry is (kind, text, name, size). INVARIANT: an entry of kind REGULAR holds a validated line `name: value` CRLF in `text`, so that the
fields of a message that are only forwarded cost one list look-up and one join; every other kind holds the value in `text`, whose
grammar was checked too, and MALFORMED says that no message may hold the field (RFC 9113 section 8.2). `size` is what HPACK counts: the
octets of name and value and 32 (RFC 7541 section 4.1). A *book* makes entries; it knows the rules of one kind of message.
"""

from __future__ import annotations

import functools
import re

from meshguard.wire.fields import RESPONSE_CONSUMED
from meshguard.wire.grammar import TOKEN, field_splitter
from meshguard.wire.http2.static_table import STATIC_TABLE
from meshguard.wire.semantics import FieldRules

__all__ = [
    "AUTHORITY",
    "COOKIE",
    "DROPPED",
    "EXPECT",
    "HOST",
    "LENGTH",
    "MALFORMED",
    "METHOD",
    "PATH",
    "PROTOCOL",
    "REFUSED",
    "REGULAR",
    "SCHEME",
    "SPECIAL",
    "STATUS",
    "Book",
    "Entry",
    "RequestBook",
    "ResponseBook",
    "request_book",
    "response_book",
]

Entry = tuple[int, bytes, bytes, int]

REGULAR = 0
SPECIAL = 1  # cut from the block for our own use
COOKIE = 2  # of a request: crumbs are joined (RFC 9113 section 8.2.3)
LENGTH = 3
HOST = 4
EXPECT = 5
DROPPED = 6  # a name with `_`
REFUSED = 7  # the same, on a listener that refuses it
MALFORMED = 8
METHOD, SCHEME, AUTHORITY, PATH, PROTOCOL, STATUS = range(9, 15)  # INVARIANT: pseudo-header fields are above MALFORMED

_CONNECTION_SPECIFIC = (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
_KNOWN_NAMES = 1024
"""Names whose kind a book remembers; they come from clients."""

# RFC 9113 section 8.2.1: no upper case; of the rest, the token of RFC 9110.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]++").fullmatch
# field-content with no white space around it
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff]++(?:[\t ]++[\x21-\x7e\x80-\xff]++)*+)?+").fullmatch
_SCHEME = re.compile(rb"https?+").fullmatch
_AUTHORITY = re.compile(rb"[\x21-\x7e]*+").fullmatch
_PATH = re.compile(rb"/[\x21\x22\x24-\x7e]*+|\*").fullmatch  # absolute, without a fragment
_STATUS = re.compile(rb"[1-5][0-9][0-9]").fullmatch


class Book:
    """Makes entries. `static` is the static table; index 0 is none."""

    __slots__ = ("_kinds", "_pseudo", "static")

    def __init__(self) -> None:
        self._kinds: dict[bytes, int] = {}
        self._pseudo = {
            METHOD: TOKEN, SCHEME: _SCHEME, AUTHORITY: _AUTHORITY, PATH: _PATH, PROTOCOL: TOKEN, STATUS: _STATUS,
        }  # fmt: skip
        self.static: list[Entry] = [(MALFORMED, b"", b"", 32), *(self.entry(name, value) for name, value in STATIC_TABLE)]

    def entry(self, name: bytes, value: bytes) -> Entry:
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kind(name)
            if len(self._kinds) < _KNOWN_NAMES:
                self._kinds[name] = kind
        if kind > MALFORMED:
            if self._pseudo[kind](value) is None:
                kind = MALFORMED
        elif _VALUE(value) is None or (name == b"te" and value.lower() != b"trailers"):
            kind = MALFORMED
        elif not kind:
            return (REGULAR, b"%b: %b\r\n" % (name, value), name, len(name) + len(value) + 32)
        return (kind, value, name, len(name) + len(value) + 32)

    def _kind(self, name: bytes) -> int:
        raise NotImplementedError


class RequestBook(Book):
    """Of requests on a listener with `rules`. `cookies_cut`: the rules consume cookies too."""

    __slots__ = ("_rules", "cookies_cut", "underscores")

    def __init__(self, rules: FieldRules) -> None:
        self._rules = rules
        self.cookies_cut = self._cut(b"cookie")
        self.underscores = not rules.drop_underscored and not rules.refuse_underscored
        super().__init__()

    def _cut(self, name: bytes) -> bool:
        return len(self._rules.split(b"\r\n" + name + b": x\r\n")) > 1

    def _kind(self, name: bytes) -> int:
        kind = _REQUEST_KINDS.get(name)
        if kind is not None:
            return kind
        if _NAME(name) is None:
            return MALFORMED
        if b"_" in name and not self.underscores:
            return REFUSED if self._rules.refuse_underscored else DROPPED
        return SPECIAL if self._cut(name) else REGULAR


class ResponseBook(Book):
    """Of responses, the same on every connection."""

    __slots__ = ()

    def _kind(self, name: bytes) -> int:
        kind = _RESPONSE_KINDS.get(name)
        if kind is not None:
            return kind
        if _NAME(name) is None:
            return MALFORMED
        return SPECIAL if len(_SPLIT_RESPONSE(b"\r\n" + name + b": x\r\n")) > 1 else REGULAR


_SPLIT_RESPONSE = field_splitter(RESPONSE_CONSUMED, (b"x-meshguard-*",)).split
_REQUEST_KINDS = {
    b":method": METHOD,
    b":scheme": SCHEME,
    b":authority": AUTHORITY,
    b":path": PATH,
    b":protocol": PROTOCOL,
    b"host": HOST,
    b"content-length": LENGTH,
    b"cookie": COOKIE,
    b"expect": EXPECT,
    **dict.fromkeys(_CONNECTION_SPECIFIC, MALFORMED),
}
_RESPONSE_KINDS = {b":status": STATUS, b"content-length": LENGTH, **dict.fromkeys(_CONNECTION_SPECIFIC, MALFORMED)}


@functools.lru_cache(maxsize=16)  # one for each set of rules in force; a reload makes others
def request_book(rules: FieldRules) -> RequestBook:
    return RequestBook(rules)


@functools.lru_cache(maxsize=1)
def response_book() -> ResponseBook:
    return ResponseBook()
