"""What a rule says about bodies, as people write it: `body` of a rule.

    body:
      json: {$.amount: {max: 5000}, $.currency: [EUR, USD]}

One key for each format that the rule can read; a request in another one cannot be read by the rule, which counts against it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from meshguard.model.selectors import parse_selector

__all__ = ["MAX_TESTS", "BodyDocument", "BodyProtobufDocument", "ValueDocument"]

MAX_TESTS = 64
"""Places that one rule looks at: each is walked to in the body of a request."""
_TEXT_LIMIT = 4096
_FIELD_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}(?:\.[A-Za-z_][A-Za-z0-9_]{0,127}){0,31}")


def _selector(text: str) -> str:
    return parse_selector(text).text


def _form_name(text: str) -> str:
    if not text or len(text) > 256 or not text.isprintable():
        raise ValueError("a name of at most 256 printable characters, as it is after decoding")
    return text


def _field_path(text: str) -> str:
    if not _FIELD_PATH.fullmatch(text):
        raise ValueError("field names joined by dots, such as payment.amount")
    return text


def _message(text: str) -> str:
    if not _FIELD_PATH.fullmatch(text):
        raise ValueError("the full name of a message, such as shop.v1.Order")
    return text


def _text(text: str) -> str:
    if len(text) > _TEXT_LIMIT:
        raise ValueError(f"at most {_TEXT_LIMIT} characters")
    return text


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _unique(values: list[Any]) -> list[Any]:
    keys = [(type(value), value) for value in values]
    twice = next((value for value, key in zip(values, keys, strict=True) if keys.count(key) > 1), None)
    if len(set(keys)) != len(keys):
        raise ValueError(f"each value once, {twice!r} is there twice")
    return values


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Text = Annotated[str, AfterValidator(_text)]
Scalar = bool | int | float | Text | None
Scalars = Annotated[list[Scalar], BeforeValidator(_listed), Field(min_length=1, max_length=1024), AfterValidator(_unique)]
Texts = Annotated[list[Text], BeforeValidator(_listed), Field(min_length=1, max_length=1024), AfterValidator(_unique)]
Number = int | float


class ValueDocument(_Document):
    """What a value of a body must be. Values of one key are alternatives, several keys must hold for the same value.

    exact             one of these, of the same type: `1` is the number, `"1"` the text; `null` only where it is listed
    prefix, suffix, contains   of a text; `ignore_case` for these and `exact`
    min, max, above, below     of a number; `min` and `max` are inclusive
    present, absent            whether there is a value at all; `null` is none
    """

    exact: Scalars | None = None
    prefix: Texts | None = None
    suffix: Texts | None = None
    contains: Texts | None = None
    ignore_case: bool = False
    min: Number | None = None
    max: Number | None = None
    above: Number | None = None
    below: Number | None = None
    present: Annotated[bool, AfterValidator(lambda value: _true(value))] | None = None
    absent: Annotated[bool, AfterValidator(lambda value: _true(value))] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ValueDocument:
        texts = [key for key in ("exact", "prefix", "suffix", "contains") if getattr(self, key) is not None]
        numbers = [key for key in ("min", "max", "above", "below") if getattr(self, key) is not None]
        if sum((bool(texts or numbers), self.present is not None, self.absent is not None)) != 1:
            raise ValueError("one of: present: true, absent: true, or exact, prefix, suffix, contains, min, max, above, below")
        if numbers and texts:
            raise ValueError("either a range of numbers, or exact, prefix, suffix and contains")
        if self.ignore_case and not texts:
            raise ValueError("ignore_case with exact, prefix, suffix or contains")
        if (self.min is not None and self.above is not None) or (self.max is not None and self.below is not None):
            raise ValueError("min or above, max or below")
        low, high = self.min if self.min is not None else self.above, self.max if self.max is not None else self.below
        if low is not None and high is not None and (low > high or (low == high and (self.above is not None or self.below is not None))):
            raise ValueError("a range that holds a number")
        return self


def _true(value: bool) -> bool:
    if not value:
        raise ValueError("true, or leave the key out")
    return value


def _value(value: object) -> object:
    return value if isinstance(value, dict | ValueDocument) else {"exact": value}


Value = Annotated[ValueDocument, BeforeValidator(_value)]
Selector = Annotated[str, AfterValidator(_selector)]


class BodyProtobufDocument(_Document):
    """Fields of protobuf messages. `descriptor` is a file with a FileDescriptorSet, relative to the document; the message is that of the
    gRPC method that is called, or for bodies of `application/protobuf` the one that `request` names."""

    descriptor: Annotated[str, Field(min_length=1, max_length=1024)]
    request: Annotated[str, AfterValidator(_message)] | None = None
    fields_: Annotated[dict[Annotated[str, AfterValidator(_field_path)], Value], Field(max_length=MAX_TESTS, alias="fields")] = {}


class BodyDocument(_Document):
    """Values by selector (`json`), by name (`form`), by field path (`protobuf`). An empty mapping asks only for a body that can be read.

    A body that is missing, in another format, or not readable in one way only counts against the request: an allow rule does not match,
    a deny rule does."""

    json_: Annotated[dict[Selector, Value], Field(max_length=MAX_TESTS)] | None = Field(default=None, alias="json")
    form: Annotated[dict[Annotated[str, AfterValidator(_form_name)], Value], Field(max_length=MAX_TESTS)] | None = None
    protobuf: BodyProtobufDocument | None = None

    @model_validator(mode="after")
    def _something(self) -> BodyDocument:
        if self.json_ is None and self.form is None and self.protobuf is None:
            raise ValueError("json, form or protobuf")
        return self
