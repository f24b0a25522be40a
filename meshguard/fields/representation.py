"""What a body claims to be: its media type, what family of formats that is, and its content coding.

One Content-Type, UTF-8, and at most one coding that can be taken off: a body that says more than one thing of itself is read in more than
one way (RFC 9110 section 8.3, RFC 8259 section 8.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from meshguard.fields.codings import CODINGS

__all__ = ["FAMILIES", "JSON_FAMILIES", "STREAMED", "NotReadableError", "Representation", "family_of", "parse_representation"]

# RFC 9110 section 8.3.1. The charset of JSON is UTF-8 (RFC 8259 section 8.1); another one would be read in another way.
_NAME = r"[A-Za-z0-9!#$&^_.+-]+"
_MEDIA_TYPE = re.compile(rf"""[ \t]*({_NAME}/{_NAME})[ \t]*((?:;[ \t]*(?:{_NAME}=(?:{_NAME}|"[^"\\]*"))?[ \t]*)*+)""")
_MULTIPART = re.compile(
    r"""[ \t]*(multipart/form-data)[ \t]*((?:;[ \t]*[A-Za-z0-9!#$&^_.+-]+=(?:[^\s;"]+|"[^"\\]*")[ \t]*)*+)""", re.IGNORECASE
)
_PARAMETER = re.compile(rf""";[ \t]*({_NAME})=("[^"\\]*"|{_NAME})""")

FAMILIES: Final = {
    "application/x-www-form-urlencoded": "form",
    "multipart/form-data": "multipart",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "text/event-stream": "sse",
    "application/grpc": "grpc",
    "application/grpc+proto": "grpc",
    "application/protobuf": "protobuf",
    "application/x-protobuf": "protobuf",
}
"""Media types whose format is known; every other type that a rule names is JSON."""
JSON_FAMILIES = frozenset(("json", "ndjson", "sse"))
STREAMED = frozenset(("ndjson", "sse", "grpc"))
"""Families that are treated record by record as they pass."""


class NotReadableError(ValueError):
    """A body of this kind is not looked into, so it does not pass."""


class Representation:
    """`media_type` in lower case, its `family`, the Content-Type as it was (`text`), `coding` (empty: none)."""

    __slots__ = ("coding", "family", "media_type", "text")

    def __init__(self, media_type: str, text: str, coding: str = "") -> None:
        self.media_type = media_type
        self.family = family_of(media_type)
        self.text = text
        self.coding = coding


def family_of(media_type: str) -> str:
    """The family of a media type in lower case; `+json` and types that are not known are JSON."""
    return FAMILIES.get(media_type, "json")


def parse_representation(content_types: Sequence[str], content_encodings: Sequence[str] = ()) -> Representation:
    """From the values of every Content-Type and Content-Encoding line. Raises NotReadableError."""
    if len(content_types) != 1:
        raise NotReadableError(f"{len(content_types)} Content-Type fields")
    coding = ""
    named = [coding.strip(" \t").lower() for value in content_encodings for coding in value.split(",")]
    if len(named) == 1 and named[0] in CODINGS:
        coding = named[0]
    elif any(name not in ("", "identity") for name in named):
        raise NotReadableError("a content coding that is not handled, or more than one")
    value = content_types[0]
    match = _MEDIA_TYPE.fullmatch(value) or _MULTIPART.fullmatch(value)
    if match is None:
        raise NotReadableError("no valid Content-Type")
    for name, setting in _PARAMETER.findall(match[2]):
        if name.lower() == "charset" and setting.strip('"').lower() not in ("utf-8", "utf8"):
            raise NotReadableError("a charset other than UTF-8")
    return Representation(match[1].lower(), value, coding)
