"""The field rule as people write it: which members of which bodies are sealed with which keyset, and who sees what.

    - id: card-number
      paths: ["/orders/{id}"]
      on: response
      select: $.payment.card
      seal: orders-pii
      readers: {billing: open, support: {mask: last4}}

Unknown keys are errors; each error says what was expected. What needs more than one key (roles, keysets, overlaps) is in `compile`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from meshguard.fields.keyset import is_keyset_name
from meshguard.fields.masks import MASKS
from meshguard.fields.paths import parse_path
from meshguard.fields.selectors import parse_selector

__all__ = ["DEFAULT_CONTENT_TYPES", "FieldRuleDocument", "MaskDocument"]

DEFAULT_CONTENT_TYPES = ("application/json", "+json")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_CONTEXT = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
_CONTENT_TYPE = re.compile(r"(?:[a-z0-9][a-z0-9!#$&^_.-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}|\+json)")


def _id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError("an id of at most 128 letters, digits, '_', '.', ':', '/' and '-'")
    return text


def _path(text: str) -> str:
    parse_path(text)
    return text


def _method(text: str) -> str:
    if not _METHOD.fullmatch(text):
        raise ValueError("a method name in upper case, such as GET")
    return text


def _selector(text: str) -> str:
    parse_selector(text)
    return text


def _content_type(text: str) -> str:
    lowered = text.lower()
    if not _CONTENT_TYPE.fullmatch(lowered):
        raise ValueError("a media type without parameters, such as application/json, or +json for every type with that suffix")
    return lowered


def _keyset(text: str) -> str:
    if not is_keyset_name(text):
        raise ValueError("a keyset name of at most 64 letters, digits, '_', '.' and '-'")
    return text


def _context(text: str) -> str:
    if not _CONTEXT.fullmatch(text):
        raise ValueError("at most 256 visible ASCII characters without quotes and backslashes")
    return text


def _mask(text: str) -> str:
    if text not in MASKS:
        raise ValueError(f"one of {', '.join(sorted(MASKS))}")
    return text


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _unique(values: list[str]) -> list[str]:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"each value once, {twice!r} is there twice")
    return values


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MaskDocument(_Document):
    """`{mask: NAME}`: the reader sees the value through a mask."""

    mask: Annotated[str, AfterValidator(_mask)]


class FieldRuleDocument(_Document):
    """One field rule.

    id             names the field in envelopes, records and metrics: changing it makes sealed values unreadable
    paths          templates as in rules; like a deny rule it ignores case and trailing slashes and sees every reading of the path
    methods        absent: all
    on             which bodies: `request`, `response` or `both`
    content_types  media types of those bodies; a body of another type is refused
    select         one selector or several; a member that is absent stays absent
    seal           the keyset
    audience       who the sealed value is for; bound to it, so that it does not open anywhere else
    tenant         the same for a tenant
    readers        role -> `open` or `{mask: NAME}`; the best of a recipient's roles counts (open before masks, masks in this order)
    others         what every other recipient sees: `ciphertext`, `{mask: NAME}` or `remove`
    seal_null      null is a value too; otherwise null stays null, and only its absence of content is visible
    """

    id: Annotated[str, AfterValidator(_id)]
    description: str = ""
    paths: Annotated[list[Annotated[str, AfterValidator(_path)]], BeforeValidator(_one_or_more), Field(min_length=1, max_length=1024)]
    methods: (
        Annotated[list[Annotated[str, AfterValidator(_method)]], Field(min_length=1, max_length=64), AfterValidator(_unique)] | None
    ) = None
    on: Literal["request", "response", "both"]
    content_types: Annotated[
        list[Annotated[str, AfterValidator(_content_type)]], BeforeValidator(_one_or_more), Field(min_length=1, max_length=64)
    ] = list(DEFAULT_CONTENT_TYPES)
    select: Annotated[
        list[Annotated[str, AfterValidator(_selector)]],
        BeforeValidator(_one_or_more),
        Field(min_length=1, max_length=256),
        AfterValidator(_unique),
    ]
    seal: Annotated[str, AfterValidator(_keyset)]
    audience: Annotated[str, AfterValidator(_context)] | None = None
    tenant: Annotated[str, AfterValidator(_context)] | None = None
    readers: dict[str, Literal["open"] | MaskDocument] = {}
    others: Literal["ciphertext", "remove"] | MaskDocument = "ciphertext"
    seal_null: bool = False

    def canonical(self) -> dict[str, Any]:
        """What the rule means, for the digest: everything but its description."""
        return self.model_dump(mode="json", exclude={"description"})
