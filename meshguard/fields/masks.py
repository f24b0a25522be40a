"""Masks: what a reader sees who may recognise a value and not read it.

Masks that show a part keep the separators, so `123-45-6789` becomes `***-**-6789`. They show nothing of a value that is too short to
hide the rest: fewer than `MIN_CHARACTERS` letters and digits are masked whole. A masked value is always a JSON string, and masking it
once more changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

__all__ = ["MASKS", "Mask", "apply_mask"]

Mask = Callable[[str], str]

HIDDEN = "***"
"""What stands for a value of which nothing, not even its length, is shown."""
MIN_CHARACTERS = 8
"""Four shown characters leave at least as many hidden."""
MAX_KEPT = 64
"""Longer values are no card, account or telephone numbers: their shape is not shown."""
_DATE = re.compile(r"([0-9]{4})-(?:[0-9]{2}|\*\*)-(?:[0-9]{2}|\*\*)(?:[T ].{0,40})?")
_IPV4 = re.compile(r"([0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3})\.(?:[0-9]{1,3}|\*)")
_IPV6 = re.compile(r"[0-9A-Fa-f:]{2,39}(?:[0-9.]{7,15}|\*)?")


def apply_mask(mask: Mask, raw: bytes) -> bytes:
    """The JSON string that stands for the value `raw` (one valid JSON value). Numbers are masked as written; true, false, null,
    arrays and objects are masked whole."""
    first = raw[:1]
    if first == b'"':
        text = mask(str(json.loads(raw)))
    elif first in b"-0123456789":
        text = mask(raw.decode())
    else:
        text = HIDDEN
    return json.dumps(text, ensure_ascii=False).encode()


def _all(text: str) -> str:
    return HIDDEN


def _last4(text: str) -> str:
    return _shown(text, 0, 4)


def _last2(text: str) -> str:
    return _shown(text, 0, 2)


def _first4(text: str) -> str:
    return _shown(text, 4, 0)


def _card(text: str) -> str:
    return _shown(text, 6, 4, least=13)  # the most that PCI DSS 4.0 requirement 3.4.1 lets be shown; card numbers have 13 to 19 digits


def _shown(text: str, first: int, last: int, least: int = MIN_CHARACTERS) -> str:
    """The first and the last so many letters and digits, with the separators between."""
    places = [place for place, char in enumerate(text) if char.isalnum()]
    if len(text) > MAX_KEPT:
        return HIDDEN
    if len(places) < least:
        return text if _is_masked(text, places, first, last, least) else HIDDEN
    begin = places[first - 1] + 1 if first else 0
    end = places[-last] if last else len(text)
    return text[:begin] + _stars(text[begin:end]) + text[end:]


def _is_masked(text: str, places: list[int], first: int, last: int, least: int) -> bool:
    """True for what this mask makes of a value: the second proxy of a pair leaves it as it is."""
    if len(places) != first + last or len(places) + text.count("*") < least:
        return False
    begin = places[first - 1] + 1 if first else 0
    end = places[-last] if last else len(text)
    return all(char in " -./()+*" for char in text[begin:end]) and "*" in text[begin:end]


def _email(text: str) -> str:
    local, at, domain = text.rpartition("@")
    if not local or not domain or "@" in local or len(local) < 2:
        return HIDDEN
    return f"{local[0]}{HIDDEN}{at}{domain}"


def _domain(text: str) -> str:
    local, at, domain = text.rpartition("@")
    return f"{HIDDEN}{at}{domain}" if local and domain and "@" not in local else HIDDEN


def _name(text: str) -> str:
    words = text.split()
    if not words or len(words) > 8 or not all(word[0].isalpha() for word in words):
        return HIDDEN
    return " ".join(word[0] + HIDDEN for word in words)


def _year(text: str) -> str:
    match = _DATE.fullmatch(text)
    return HIDDEN if match is None else f"{match[1]}-**-**"


def _network(text: str) -> str:
    match = _IPV4.fullmatch(text)
    if match is not None:
        return f"{match[1]}.*"
    parts = text.split(":")
    if len(parts) >= 3 and _IPV6.fullmatch(text) and all(parts[:2]):
        return ":".join(parts[:2]) + ":*"
    return HIDDEN


def _stars(text: str) -> str:
    return "".join("*" if char not in " -./()+" else char for char in text)


MASKS: dict[str, Mask] = {
    "all": _all,  # ***
    "card": _card,  # 411111******1234
    "domain": _domain,  # ***@example.com
    "email": _email,  # j***@example.com
    "first4": _first4,  # DE89****************
    "last2": _last2,  # *******89
    "last4": _last4,  # ***-**-6789
    "name": _name,  # J*** D***
    "network": _network,  # 192.0.2.*, 2001:db8:*
    "year": _year,  # 1980-**-**
}
"""The masks that a rule can name."""
