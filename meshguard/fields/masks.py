"""Masks: what a reader sees who may recognise a value and not read it.

Masks that show a part keep the separators, so `123-45-6789` becomes `***-**-6789`. They show nothing of a value that is too short to
hide the rest: fewer than `MIN_CHARACTERS` letters and digits are masked whole. A masked value is always a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Callable

__all__ = ["MASKS", "Mask", "apply_mask"]

Mask = Callable[[str], str]

HIDDEN = "***"
"""What stands for a value of which nothing, not even its length, is shown."""
MIN_CHARACTERS = 8
"""Four shown characters leave at least as many hidden."""
MAX_KEPT = 64
"""Longer values are no card, account or telephone numbers: their shape is not shown."""
SHOWN = 4


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
    places = [place for place, char in enumerate(text) if char.isalnum()]
    if len(places) < MIN_CHARACTERS or len(text) > MAX_KEPT:
        return HIDDEN
    return _stars(text[: places[-SHOWN]]) + text[places[-SHOWN] :]


def _first4(text: str) -> str:
    places = [place for place, char in enumerate(text) if char.isalnum()]
    if len(places) < MIN_CHARACTERS or len(text) > MAX_KEPT:
        return HIDDEN
    return text[: places[SHOWN - 1] + 1] + _stars(text[places[SHOWN - 1] + 1 :])


def _email(text: str) -> str:
    local, at, domain = text.rpartition("@")
    if not local or not domain or "@" in local or len(local) < 2:
        return HIDDEN
    return f"{local[0]}{HIDDEN}{at}{domain}"


def _stars(text: str) -> str:
    return "".join("*" if char not in " -./()+" else char for char in text)


MASKS: dict[str, Mask] = {"all": _all, "email": _email, "first4": _first4, "last4": _last4}
"""The masks that a rule can name."""
