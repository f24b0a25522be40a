"""Takes secrets out of text that is about to be logged: the second line of defence behind not logging them.

It knows the shapes of credentials (private keys, tokens, credentials in URLs and fields) and the exact values it was told to protect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["MAX_TEXT", "REDACTED", "Redactor"]

REDACTED = "[redacted]"
MAX_TEXT = 8192
"""Characters of a text that are kept: it bounds a log line, and the work of the expressions below."""

_CREDENTIAL_WORDS = ("password", "passwd", "passphrase", "secret", "token", "key", "credential", "authorization", "cookie")
_CREDENTIAL = r"(?:password|passwd|passphrase|secret|token|api[_-]?key|private[_-]?key|credential|authorization|cookie)"

# What a text must contain (in lower case) for the expression to be tried at all, the expression, its replacement. Without that test
# a kilobyte of ordinary text costs a millisecond, with it a few microseconds.
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # an end marker that is missing (cut off) redacts to the end of the text
    (
        ("private key",),
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.S),
        REDACTED,
    ),
    (
        ("authorization", "cookie"),
        re.compile(r"(?i)((?:proxy-)?authorization|(?:set-)?cookie)([\"']?[ \t]*[:=,][ \t]*)[^\r\n]+"),
        rf"\1\2{REDACTED}",
    ),
    (("eyj",), re.compile(r"eyJ[A-Za-z0-9_-]{8,1024}+(?:\.[A-Za-z0-9_-]*){1,4}"), REDACTED),  # JWS and JWE compact form
    (("bearer", "basic", "dpop"), re.compile(r"(?i)\b(bearer|basic|dpop)[ \t]+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {REDACTED}"),
    (
        _CREDENTIAL_WORDS,
        re.compile(rf"(?i)({_CREDENTIAL}[\w-]{{0,40}}[\"']?[ \t]*[:=][ \t]*)(\"[^\"]*\"|'[^']*'|[^\s\"'&,;}})]+)"),
        rf"\1{REDACTED}",
    ),
    (("hvs.", "hvb.", "hvr."), re.compile(r"hv[sbr]\.[A-Za-z0-9_-]{10,}"), REDACTED),  # Vault and OpenBao tokens
    (("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), REDACTED),  # AWS access key ids
    (("://",), re.compile(r"(://)[^/\s@\"']{1,512}@"), rf"\1{REDACTED}@"),
    (("://",), re.compile(r"(https?://[^\s?\"'#]{1,512})\?[^\s\"']+"), rf"\1?{REDACTED}"),
)
_CREDENTIAL_KEY = re.compile(rf"(?i){_CREDENTIAL}").search
_SHORTEST = 6  # a protected value shorter than this would blank out half of every text


class Redactor:
    """Redacts text and structures. Values given to `protect` never come out, whatever they look like."""

    def __init__(self) -> None:
        self._values: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Redactor()"

    def protect(self, value: str) -> None:
        """Never let this value through (a credential read from the configuration). Ignored under six characters."""
        if len(value) >= _SHORTEST and value not in self._values:
            self._values = tuple(sorted((*self._values, value), key=len, reverse=True))

    def text(self, text: str) -> str:
        """The text without secrets, cut to MAX_TEXT."""
        for value in self._values:  # the longest first: one may be the beginning of another
            text = text.replace(value, REDACTED)
        cut = len(text) > MAX_TEXT
        if cut:
            text = text[: MAX_TEXT - 1]
        lowered = text.lower()
        for signs, pattern, replacement in _PATTERNS:
            for sign in signs:
                if sign in lowered:
                    text = pattern.sub(replacement, text)
                    break
        return text + "…" if cut else text

    def value(self, value: object, depth: int = 4) -> object:
        """The same for JSON-like data: values under a name that means a secret are replaced whole. Other types become their text."""
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return self.text(value)
        if depth == 0:
            return "…"
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): REDACTED if _CREDENTIAL_KEY(str(key)) else self.value(item, depth - 1)
                for key, item in list(value.items())[:100]
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(item, depth - 1) for item in list(value)[:100]]
        if isinstance(value, (bytes, bytearray, memoryview)):
            return f"<{len(value)} bytes>"  # bytes in a log are keys or bodies
        return self.text(str(value))
