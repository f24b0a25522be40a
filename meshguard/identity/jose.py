"""The text forms that JOSE is made of, read strictly: base64url without padding and JSON objects without surprises.

Two readers that disagree on a token are a way in, so every form that some reader takes otherwise is refused: padding, foreign
characters, stray bits in the last character (RFC 4648 section 3.5), duplicate members, NaN and infinity, numbers beyond a double,
invalid UTF-8, lone surrogates.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping

__all__ = ["decode_base64url", "parse_object"]

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*\Z")
_INTEGER_DIGITS = 20
"""Digits of an integer: enough for 64 bits; a longer one is no date and no id that other readers keep exact."""


def decode_base64url(text: str) -> bytes:
    """Unpadded base64url (RFC 7515 section 2). Raises ValueError for anything but the one canonical spelling."""
    if not _BASE64URL.match(text) or len(text) % 4 == 1:
        raise ValueError("not base64url")
    try:
        octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as exc:
        raise ValueError("not base64url") from exc
    if base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii") != text:
        raise ValueError("stray bits in base64url")
    return octets


def parse_object(octets: bytes) -> dict[str, object]:
    """One JSON object (RFC 8259). Raises ValueError."""
    try:
        text = octets.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant, parse_float=_finite, parse_int=_short)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # escapes can spell lone surrogates, which no other reader could take
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeError:
        raise ValueError("not Unicode text") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _members(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond a double")
    return value


def _short(text: str) -> int:
    if len(text) > _INTEGER_DIGITS:
        raise ValueError("an integer of too many digits")
    return int(text)
