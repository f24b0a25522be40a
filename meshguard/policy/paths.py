"""Path templates of rules: `/orders/{id}`, `/files/{name}.json`, `/v1/*/items`, `/admin/**`, `/orders/`.

Grammar. A template is an absolute, canonical path (RFC 3986, as `wire.target` makes it) with these additions:

    {name}       one parameter: one or more characters of one segment; it may have a literal prefix and suffix
                 (`v{major}`, `{file}.json`, `{id}:cancel`); at most one in a segment, each name once in a template
    *            a whole segment, the same as a parameter without a name
    /**          only at the end: zero or more further segments, so `/admin/**` also covers `/admin` and `/admin/`

A trailing slash counts: `/orders/` and `/orders` differ (deny rules take them as equal, see `folded`). What the canonical
path of a request can never hold is refused here, because a rule with it would never match: dot segments, empty segments, a
query, a fragment, `;parameters`, percent-encodings of unreserved characters, and `%2F`, `%5C`, `%00`, which requests may not
carry by default. Non-ASCII characters are written as the percent-encoded UTF-8 that a request would carry; hex digits
are upper-cased.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from sys import intern

__all__ = ["MAX_SEGMENTS", "MAX_TEMPLATE", "Parameter", "Template", "folded", "parse_template"]

MAX_TEMPLATE = 2048
"""Characters of a template; a request line is at most 8 KiB."""
MAX_SEGMENTS = 64
"""Segments of a template: bounds the depth of the trie."""

_LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$&'()+,=:@-]|%[0-9A-F]{2})*\Z")
_PLAIN = re.compile(r"[A-Za-z0-9._~!$&'()+,=:@-]*\Z")
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NEVER_SENT = {0x00: "%00", 0x2F: "%2F", 0x5C: "%5C"}


class Parameter:
    """One or more characters of a segment between a literal `prefix` and `suffix` (both mostly empty)."""

    __slots__ = ("name", "prefix", "suffix")

    def __init__(self, prefix: str, suffix: str, name: str = "") -> None:
        self.prefix = prefix
        self.suffix = suffix
        self.name = name


_ANY = Parameter("", "")


class Template:
    """A parsed template: its normalised `text`, its `segments` and whether it ends with `/**` (`rest`).

    The path `/` is one empty segment; a trailing slash is a last empty segment.
    """

    __slots__ = ("rest", "segments", "text")

    def __init__(self, text: str, segments: tuple[str | Parameter, ...], rest: bool) -> None:
        self.text = text
        self.segments = segments
        self.rest = rest


@lru_cache(maxsize=4096)
def parse_template(text: str) -> Template:
    """Parse and normalise; raises ValueError with what was expected, in words."""
    if not text.startswith("/"):
        raise ValueError("an absolute path that starts with '/'")
    if len(text) > MAX_TEMPLATE:
        raise ValueError(f"a path of at most {MAX_TEMPLATE} characters")
    if "?" in text or "#" in text:
        raise ValueError("a path without query ('?') and fragment ('#')")
    if ";" in text:
        raise ValueError("a path without ';parameters': they are no part of what rules match")
    if "\\" in text:
        raise ValueError("a path without backslashes")
    if "//" in text:
        raise ValueError("a path without '//': slashes are merged before rules are asked")
    parts = text[1:].split("/")
    rest = parts[-1] == "**"
    if rest:
        parts.pop()
    if len(parts) > MAX_SEGMENTS:
        raise ValueError(f"at most {MAX_SEGMENTS} segments")
    names: set[str] = set()
    segments = tuple([_segment(part, names) for part in parts])
    return Template(_joined(segments, rest), segments, rest)


def folded(template: Template) -> list[Template]:
    """What a deny rule matches instead of `template`: case-folded, without the trailing slash, and, where the
    template has percent-encodings, also with them decoded, as upstreams may read it. One or two templates."""
    segments = template.segments
    if segments and segments[-1] == "":
        segments = segments[:-1]
    variants = [tuple([_map(segment, str.casefold) for segment in segments])]
    if "%" in template.text:
        variants.append(tuple([_map(segment, _decoded) for segment in segments]))
    return [Template(_joined(variant, template.rest), variant, template.rest) for variant in variants]


def _segment(part: str, names: set[str]) -> str | Parameter:
    if part == "*":
        return _ANY
    if "*" in part:
        raise ValueError("'*' only as a whole segment and '**' only at the end (use {name} for a part of a segment)")
    before, brace, remainder = part.partition("{")
    if not brace:
        if "}" in part:
            raise ValueError("a '{' before each '}'")
        return _literal(part)
    name, closing, after = remainder.partition("}")
    if not closing or "{" in name:
        raise ValueError("a '}' after each '{'")
    if "{" in after or "}" in after:
        raise ValueError("at most one {parameter} in a segment")
    if not _NAME.match(name):
        raise ValueError("a parameter name of letters, digits, '_', '.' and '-' between the braces")
    if name in names:
        raise ValueError(f"each parameter name once, {name!r} is there twice")
    names.add(name)
    return Parameter(_literal(before), _literal(after), name)


def _literal(part: str) -> str:
    if _PLAIN.match(part) and part not in (".", ".."):  # nearly all
        return intern(part)  # the same segments come again and again, and the trie compares them
    text = _ENCODED.sub(lambda match: match.group().upper(), part)
    if not text.isascii():
        text = "".join(char if char.isascii() else "".join(f"%{octet:02X}" for octet in _utf8(char)) for char in text)
    if text in (".", ".."):
        raise ValueError("a path without '.' and '..' segments")
    if not _LITERAL.match(text):
        raise ValueError("characters that a canonical path can hold (write others percent-encoded)")
    for match in _ENCODED.finditer(text):
        octet = int(match.group(1), 16)
        if octet in _UNRESERVED:
            raise ValueError(f"{chr(octet)!r} instead of {match.group()}: unreserved characters are decoded before rules are asked")
        if octet in _NEVER_SENT:
            raise ValueError(f"a path without {_NEVER_SENT[octet]}: requests with it are refused")
        if octet == 0x25 and re.match(r"[0-9A-Fa-f]{2}", text[match.end() :]):
            raise ValueError("a path that is not encoded twice ('%25' before two hex digits)")
    return text


def _utf8(char: str) -> bytes:
    try:
        return char.encode()
    except UnicodeEncodeError:
        raise ValueError("valid Unicode text") from None


def _spell(segment: str | Parameter) -> str:
    if isinstance(segment, str):
        return segment
    if not segment.name:
        return "*"
    return f"{segment.prefix}{{{segment.name}}}{segment.suffix}"


def _joined(segments: tuple[str | Parameter, ...], rest: bool) -> str:
    text = "/" + "/".join([_spell(segment) for segment in segments])
    return (text if text != "/" else "") + "/**" if rest else text


def _map(segment: str | Parameter, change: Callable[[str], str]) -> str | Parameter:
    if isinstance(segment, str):
        return change(segment)
    return Parameter(change(segment.prefix), change(segment.suffix), segment.name)


def _decoded(text: str) -> str:
    octets = _ENCODED.sub(lambda match: chr(int(match.group(1), 16)), text).encode("latin-1")
    return octets.decode("utf-8", "surrogateescape").casefold()
