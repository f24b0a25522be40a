"""One canonical path per request, made once before the decision: what is judged is what is sent (security.md 1, "Paths").

A path that needs no work (nearly all) passes one expression. Otherwise: percent-escapes are checked and unreserved characters
decoded, dot segments resolved, slashes merged, parameters refused, stripped or kept, until nothing changes. Every spelling on
which servers disagree is refused unless the route asks for it.

`readings` are the case-folded spellings that a usual upstream could still take from the canonical path (decoded escapes,
compatibility forms of Unicode, stripped parameters, trailing dots, in any order); a deny rule holds for all of them.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

from meshguard.model.errors import RequestError
from meshguard.model.reasons import AMBIGUOUS_TARGET

__all__ = ["STRICT", "PathOptions", "Target", "canonicalise"]


class PathOptions:
    """What a route does with spellings that are refused by default.

    encoded_slash    `reject` or `keep` (`%2F` stays as it is, inside its segment)
    double_encoding  `reject` or `keep` (`%2541` stays)
    params           `reject`, `strip` (`/a;x=1` is `/a`, for the upstream too) or `keep`
    backslash        `reject` or `keep` (`%5C` only; a raw one is never allowed)
    """

    __slots__ = ("backslash", "double_encoding", "encoded_slash", "params")

    def __init__(
        self, encoded_slash: str = "reject", double_encoding: str = "reject", params: str = "reject", backslash: str = "reject"
    ) -> None:
        self.encoded_slash = encoded_slash
        self.double_encoding = double_encoding
        self.params = params
        self.backslash = backslash


STRICT = PathOptions()


class Target:
    """`path` canonical (str, begins with `/` or is `*`), `query` bytes after `?` as sent or None, `readings` (see the module)."""

    __slots__ = ("path", "query", "readings")

    def __init__(self, path: str, query: bytes | None, readings: tuple[str, ...]) -> None:
        self.path = path
        self.query = query
        self.readings = readings


# Segments of unreserved and sub-delims characters but `;`, none empty and none beginning with a dot; ends with a segment or one slash.
_CLEAN = re.compile(rb"(?:/[A-Za-z0-9_~!$&'()*+,=:@\-][A-Za-z0-9._~!$&'()*+,=:@\-]*+)*+/?").fullmatch
# RFC 3986 section 3.3 pchar and `/`; `%` is checked apart. No backslash, no `#`, no raw non-ASCII, no "<>^`{|}.
_PATH_CHARACTERS = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:@%/\-]*+").fullmatch
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_ESCAPED_CONTROL = re.compile(rb"%(?:[01][0-9A-Fa-f]|7[Ff])").search
_ESCAPED_SLASH = re.compile(rb"%2[Ff]").search
_ESCAPED_BACKSLASH = re.compile(rb"%5[Cc]").search
_DOUBLE_ESCAPE = re.compile(rb"%25(?:[0-9A-Fa-f]{2}|[uU])").search
_HIGH_ESCAPES = re.compile(rb"(?:%[89A-Fa-f][0-9A-Fa-f])++").findall
_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_ESCAPES = {
    (high + low).encode("ascii"): bytes([value]) if (value := int(high + low, 16)) in _UNRESERVED else b"%%%02X" % value
    for high in "0123456789abcdefABCDEF"
    for low in "0123456789abcdefABCDEF"
}
"""The two digits of an escape, in any case -> what stands for it in a canonical path."""


def canonicalise(target: bytes, options: PathOptions = STRICT) -> Target:
    """The canonical form of an origin-form target (or `*`). Raises RequestError(AMBIGUOUS_TARGET)."""
    if target == b"*":
        return Target("*", None, ("*",))
    raw, mark, rest = target.partition(b"?")
    query = rest if mark else None
    if b"#" in target:
        raise RequestError(AMBIGUOUS_TARGET, "fragment")
    if not raw.startswith(b"/"):
        raise RequestError(AMBIGUOUS_TARGET, "not absolute")
    if _CLEAN(raw) is not None:
        path = raw.decode("ascii")
        folded = path.lower()
        if "." in folded or "::$" in folded:
            return Target(path, query, _readings(path))
        return Target(path, query, (folded,))
    if _PATH_CHARACTERS(raw) is None:
        raise RequestError(AMBIGUOUS_TARGET, "character not allowed in a path")
    path = _settle(raw, options)
    return Target(path, query, _readings(path))


def _settle(raw: bytes, options: PathOptions) -> str:
    """Applies the steps until nothing changes. Each pass shortens the path, so this ends; twice is already unusual."""
    for _ in range(8):
        done = _resolve(_decode(raw, options), options)
        if done == raw:
            return done.decode("ascii")
        raw = done
    raise RequestError(AMBIGUOUS_TARGET, "no stable form")


def _decode(raw: bytes, options: PathOptions) -> bytes:
    """Checks every escape; decodes unreserved characters, keeps the others in upper case. One table look-up an escape: 8 KB of them cost
    under a millisecond."""
    if b"%" not in raw:
        return raw
    if _BAD_ESCAPE(raw):
        raise RequestError(AMBIGUOUS_TARGET, "bad percent-escape")
    if _ESCAPED_CONTROL(raw):
        raise RequestError(AMBIGUOUS_TARGET, "encoded control character")
    if options.encoded_slash != "keep" and _ESCAPED_SLASH(raw):
        raise RequestError(AMBIGUOUS_TARGET, "encoded slash")
    if options.backslash != "keep" and _ESCAPED_BACKSLASH(raw):
        raise RequestError(AMBIGUOUS_TARGET, "encoded backslash")
    if options.double_encoding != "keep" and _DOUBLE_ESCAPE(raw):
        raise RequestError(AMBIGUOUS_TARGET, "double encoding")
    for run in _HIGH_ESCAPES(raw):
        _check_utf8(bytes.fromhex(run.replace(b"%", b"").decode("ascii")))
    first, *pieces = raw.split(b"%")
    return first + b"".join([_ESCAPES[piece[:2]] + piece[2:] for piece in pieces])


def _check_utf8(data: bytes) -> None:
    """Strict UTF-8: overlong forms, surrogates and stray bytes are refused."""
    try:
        data.decode("utf-8", "strict")
    except UnicodeDecodeError as exc:
        raise RequestError(AMBIGUOUS_TARGET, "escapes are not UTF-8") from exc


_SEPARATORS = re.compile(rb"[/\\]")


def _refuse_hidden_dots(segment: bytes) -> None:
    """A kept escape of a separator must not hide dot segments: an upstream that decodes it would resolve them after the decision."""
    probe = segment
    for _ in range(3):
        probe = unquote_to_bytes(probe)
    if any(part.split(b";")[0] in (b".", b"..") for part in _SEPARATORS.split(probe)):
        raise RequestError(AMBIGUOUS_TARGET, "dot segment beside an encoded separator")


def _resolve(path: bytes, options: PathOptions) -> bytes:
    """Dot segments, repeated slashes and parameters (RFC 3986 section 5.2.4)."""
    if b"//" not in path and b"/." not in path and b";" not in path and b"%" not in path:
        return path
    out: list[bytes] = []
    segments = path.split(b"/")[1:]
    last = len(segments) - 1
    for index, segment in enumerate(segments):
        if b";" in segment:
            if options.params == "reject":
                raise RequestError(AMBIGUOUS_TARGET, "path parameter")
            bare = segment[: segment.index(b";")]
            if options.params == "strip" or bare in (b".", b"..", b""):
                if options.params == "keep":
                    raise RequestError(AMBIGUOUS_TARGET, "path parameter on a dot segment")
                segment = bare
        if b"%" in segment:
            _refuse_hidden_dots(segment)
        if segment == b"..":
            if not out:
                raise RequestError(AMBIGUOUS_TARGET, "dot segments leave the root")
            out.pop()
        elif segment and segment != b".":
            out.append(segment)
            continue
        if index == last:
            out.append(b"")
    return b"/" + b"/".join(out)


# -- readings -----------------------------------------------------------------------------------------------------------

_READINGS = 64
_READING_OCTETS = 32768
"""A path with more readings, or longer ones in all, is refused: honest ones have one to four, and each costs every deny rule a look."""

# Best-fit mappings of common code pages, which some servers apply after decoding.
_LOOKALIKES = {
    **dict.fromkeys("\u2215\u2044\u29f8\u29f9\u2216", "/"),
    "\u0131": "i", "\u0130": "i", "\u017f": "s", "\u212a": "k",
}  # fmt: skip
_MANY_READINGS = re.compile(r"[%;]|\.(?:/|\Z)|::\$").search
_QUERY_MARK = re.compile(r"[?#\x00]").search
_PARAMETERS = re.compile(r";[^/]*+")
_INDENT = re.compile(r"/[ \t]++")
_STREAM = re.compile(r"::\$[^/]*+")


def _readings(path: str) -> tuple[str, ...]:
    """The case-folded spellings an upstream could take, the canonical one first: every text that any sequence of `_STEPS` makes of it."""
    if _MANY_READINGS(path) is None:
        return (path.lower(),)
    texts = {path: None}
    octets = len(path)
    waiting = [path]
    while waiting:
        text = waiting.pop()
        for step in _STEPS:
            other = step(text)
            if other not in texts:
                octets += len(other)
                if len(texts) >= _READINGS or octets > _READING_OCTETS:
                    raise RequestError(AMBIGUOUS_TARGET, "too many readings")
                texts[other] = None
                waiting.append(other)
    return tuple(dict.fromkeys(text.casefold() for text in texts))


def _unquote(text: str) -> str:
    if "%" not in text:
        return text
    return unquote_to_bytes(text).decode("utf-8", "replace")


def _compatible(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _lookalike(text: str) -> str:
    """Best-fit characters for what looks like them; invisible ones go."""
    if text.isascii():
        return text
    return "".join(_LOOKALIKES.get(char, char) for char in text if unicodedata.category(char) != "Cf")


def _cut(text: str) -> str:
    """Up to a decoded query, fragment or end of a C string."""
    mark = _QUERY_MARK(text)
    return text if mark is None else text[: mark.start()]


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


def _without_parameters(text: str) -> str:
    return _PARAMETERS.sub("", text) if ";" in text else text


def _without_streams(text: str) -> str:
    """NTFS opens `a::$DATA` as `a`."""
    return _STREAM.sub("", text) if "::$" in text else text


def _without_endings(text: str) -> str:
    """Dots and blanks at the end of a segment go (Windows); dot segments stay."""
    return "/".join(map(_bare, text.split("/")))


def _bare(segment: str) -> str:
    bare = segment.rstrip(" \t")
    return bare if bare in (".", "..") else bare.rstrip(". \t")


def _without_indents(text: str) -> str:
    """Blanks at the beginning of a segment go."""
    return _INDENT.sub("/", text)


def _normal(text: str) -> str:
    """Dot segments resolved, as far as there is something above, and slashes merged."""
    if "//" not in text and "/." not in text:
        return text
    out: list[str] = []
    segments = text.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if out:
                out.pop()
        elif segment and segment != ".":
            out.append(segment)
    if out and segments[-1] in ("", ".", ".."):
        out.append("")
    return "/" + "/".join(out)


_STEPS = (
    *(_unquote, _compatible, _lookalike, _cut, _slashes, _normal),
    *(_without_parameters, _without_streams, _without_endings, _without_indents),
)
