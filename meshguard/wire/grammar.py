"""The HTTP/1.1 grammar as regular expressions over bytes (RFC 9110 section 5, RFC 9112 sections 2 to 5).

Every expression is linear: repetitions are possessive, so no input makes one backtrack. They end in explicit bytes or are used
with `fullmatch`: `$` would also match before a trailing newline, and `\\d` on text has other digits than 0 to 9.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

__all__ = [
    "AUTHORITY",
    "CHUNK_LINE",
    "CONTENT_LENGTH",
    "FIELD_BLOCK",
    "FORBIDDEN_IN_HEAD",
    "PLAIN_REQUEST_HEAD",
    "REQUEST_HEAD",
    "REQUEST_LINE",
    "RESPONSE_HEAD",
    "TOKEN",
    "UNDERSCORED",
    "field_splitter",
    "usual_request",
    "usual_response",
]

_TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
# field-content: HTAB, SP, VCHAR and obs-text; CR, LF, NUL, DEL and other controls never (RFC 9110 section 5.5)
_VALUE = rb"[\t \x21-\x7e\x80-\xff]*+"
_FIELD = rb"[" + _TCHAR + rb"]++:" + _VALUE
_KEPT_ALIVE = rb"[cC][oO][nN][nN][eE][cC][tT][iI][oO][nN]:[ \t]*+[kK][eE][eE][pP]-[aA][lL][iI][vV][eE]"
_LENGTH_FIELD = rb"[cC][oO][nN][tT][eE][nN][tT]-[lL][eE][nN][gG][tT][hH]:[ \t]*+([0-9]{1,18})"
_PLAIN_FIELD = rb"[" + _TCHAR.replace(b"_", b"") + rb"]++:" + _VALUE

TOKEN = re.compile(rb"[" + _TCHAR + rb"]++").fullmatch

REQUEST_LINE = re.compile(rb"([" + _TCHAR + rb"]++) ([\x21-\x7e]++) HTTP/([0-9])\.([0-9])").fullmatch
# The whole head in one match, 0.8 us for 460 bytes: groups are method, target, minor version. The first takes no field name with
# `_`, which spares nearly every head a search for them; the second is the whole grammar.
_START = rb"([" + _TCHAR + rb"]++) ([\x21-\x7e]++) HTTP/1\.([01])"
PLAIN_REQUEST_HEAD = re.compile(_START + rb"(?:\r\n" + _PLAIN_FIELD + rb")*+\r\n\r\n").match
REQUEST_HEAD = re.compile(_START + rb"(?:\r\n" + _FIELD + rb")*+\r\n\r\n").match
# Groups: minor version, status. The reason phrase is not forwarded (RFC 9112 section 4: a client ought to ignore it).
RESPONSE_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: " + _VALUE + rb")?+(?:\r\n" + _FIELD + rb")*+\r\n\r\n").match
# A block of field lines, each ended by CRLF (trailers, header operations).
FIELD_BLOCK = re.compile(rb"(?:" + _FIELD + rb"\r\n)*+").fullmatch

# What no head may hold, looked for in each new piece of an incomplete head so that a refusal need not wait for its end.
FORBIDDEN_IN_HEAD = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]").search

CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
# Size and optional extension; no white space around the size (RFC 9112 section 7.1 has none; BWS there is an attack's tool).
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t \x21-\x7e\x80-\xff]++)?+\r\n").match

# uri-host [":" port] without user info (RFC 9110 section 7.2); groups: host, port digits (may be empty) or None.
AUTHORITY = re.compile(rb"([A-Za-z0-9](?:[A-Za-z0-9._\-]*+)|\[[0-9A-Fa-f:.]++\])(?::([0-9]{0,5}))?+").fullmatch

UNDERSCORED = re.compile(rb"\n([" + _TCHAR + rb"]*?_[" + _TCHAR + rb"]*+):[^\r]*+\r")


def _letter(char: int, *, any_dash: bool) -> bytes:
    if 97 <= char <= 122:
        return b"[%c%c]" % (char, char - 32)
    if char == 0x2D and any_dash:
        return rb"[\-_]"
    return re.escape(bytes([char]))


def _alternatives(names: Iterable[bytes], *, any_dash: bool) -> bytes:
    """A trie of the names as an expression: one step per character whatever their number. A name ending in `*` is a prefix."""
    root: dict[int, dict] = {}  # type: ignore[type-arg]  # a recursive type
    for name in names:
        node = root
        for char in name:
            node = node.setdefault(char, {})
        node[-1] = {}

    def emit(node: dict) -> bytes:  # type: ignore[type-arg]
        if 0x2A in node:  # a prefix: whatever follows belongs to it, longer names among the others too
            return rb"[" + _TCHAR + rb"]*+"
        branches = []
        for char in sorted(key for key in node if key >= 0):
            branches.append(_letter(char, any_dash=any_dash) + emit(node[char]))
        if not branches:
            return b""
        text = b"(?:" + b"|".join(branches) + b")" if len(branches) > 1 or -1 in node else branches[0]
        return text + b"?+" if -1 in node else text

    return emit(root)


@functools.lru_cache(maxsize=64)  # compiling one takes 10 ms; a reload asks for the same ones again
def field_splitter(exact: tuple[bytes, ...], spoofable: tuple[bytes, ...]) -> re.Pattern[bytes]:
    """An expression whose `split` cuts named fields out of a validated head in one pass.

    `exact` and `spoofable` are lower-case names (a trailing `*` makes a prefix); spoofable ones are also found with `_` for `-`,
    since CGI-like upstreams read both as one name. The pieces are [rest, name, value, rest, name, value, ..., rest]; the values may
    have trailing white space. Measured: half of what a search plus a substitution costs.
    """
    return re.compile(rb"\n(" + _named(exact, spoofable) + rb"):[ \t]*+([^\r]*+)\r")


def _named(exact: Iterable[bytes], spoofable: Iterable[bytes]) -> bytes:
    return b"|".join(filter(None, (_alternatives(exact, any_dash=False), _alternatives(spoofable, any_dash=True))))


@functools.lru_cache(maxsize=64)
def usual_request(exact: tuple[bytes, ...], spoofable: tuple[bytes, ...]) -> Callable[[bytes], re.Match[bytes] | None]:
    """Matches the usual request head and takes it apart in one pass: Host, then up to three of `traceparent`, `content-length` and
    `connection: keep-alive`, no other field of `exact` and `spoofable`, no name with `_`. What it does not match goes the long way, which
    decides.

    Groups: method, target, minor version, fields before Host, Host, fields behind it, then three times (traceparent, content-length,
    fields behind it), each None where absent. Measured: half of a head expression plus a split.
    """
    lines = rb"((?:(?!(?:" + _named(exact, spoofable) + rb"):)" + _PLAIN_FIELD + rb"\r\n)*+)"
    parent = rb"[tT][rR][aA][cC][eE][pP][aA][rR][eE][nN][tT]:[ \t]*+([\x21-\x7e]++)"
    special = rb"(?:(?:" + parent + rb"|" + _LENGTH_FIELD + rb"|" + _KEPT_ALIVE + rb")\r\n" + lines + rb")?+"
    host = rb"[hH][oO][sS][tT]:[ \t]*+([\x21-\x7e]++)\r\n"
    return re.compile(_START + rb"\r\n" + lines + host + lines + special * 3 + rb"\r\n").match


def usual_response(exact: Iterable[bytes], spoofable: Iterable[bytes]) -> Callable[[bytes], re.Match[bytes] | None]:
    """The same for a response over HTTP/1.1 with one `content-length` and perhaps `connection: keep-alive`. Groups: status, fields (twice)
    before the length, the length, fields (twice) behind it; the second ones None where absent."""
    lines = rb"((?:(?!(?:" + _named(exact, spoofable) + rb"):)" + _FIELD + rb"\r\n)*+)"
    start = rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: " + _VALUE + rb")?+\r\n"
    kept = rb"(?:" + _KEPT_ALIVE + rb"\r\n" + lines + rb")?+"
    return re.compile(start + lines + kept + _LENGTH_FIELD + rb"\r\n" + lines + kept + rb"\r\n").match
