"""The field rule as people write it: which values of which messages are protected how, with which keyset, and who sees what.

    - id: card-number
      paths: ["/orders/{id}"]
      on: response
      select: $.payment.card
      encrypt: orders-pii
      readers: {billing: open, support: {mask: last4}}

Unknown keys are errors; each error says what was expected. What needs more than one key (roles, keysets, overlaps) is in `compile`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from meshguard.fields.keyset import is_keyset_name
from meshguard.fields.masks import MASKS
from meshguard.fields.paths import parse_path
from meshguard.fields.representation import JSON_FAMILIES, family_of
from meshguard.fields.selectors import parse_selector

__all__ = ["ACTIONS", "FieldRuleDocument", "MaskDocument", "ProtobufDocument", "TenantDocument"]

JSON_TYPES = ("application/json", "+json")
FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
PROTOBUF_TYPES = ("application/grpc", "application/grpc+proto", "application/protobuf", "application/x-protobuf")
"""Content types of a rule that names none, by the places that it names."""
ACTIONS = ("encrypt", "seal", "deterministic", "tokenise", "hash", "mask", "remove")
PLACES = ("select", "form", "protobuf", "headers", "query")
NEVER_FIELDS = frozenset((
    "authorization", "connection", "content-encoding", "content-length", "content-type", "expect", "forwarded", "host", "keep-alive", "te",
    "trailer", "traceparent", "tracestate", "transfer-encoding", "upgrade", "via",
))  # fmt: skip
"""Header fields that carry framing, routing, identity or traces: changing them would change what was judged."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_CONTEXT = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
_FIELD_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HOST = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9._-]{0,252}[a-z0-9_])?|\[[0-9a-f:.]{2,64}\]")
_FIELD_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}(?:\.[A-Za-z_][A-Za-z0-9_]{0,127}){0,31}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_READER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}|spiffe://[\x21-\x7e]{1,2039}")
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


def _field_name(text: str) -> str:
    lowered = text.lower()
    if not _FIELD_NAME.fullmatch(lowered) or lowered in NEVER_FIELDS:
        raise ValueError("the name of a header field that is not used for framing, routing, identity or traces")
    return lowered


def _form_name(text: str) -> str:
    if not text or len(text) > 256 or not text.isprintable():
        raise ValueError("a name of at most 256 printable characters, as it is after decoding")
    return text


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("a lower-case host name without port, or '*.' and a suffix")
    return text


def _field_path(text: str) -> str:
    if not _FIELD_PATH.fullmatch(text):
        raise ValueError("field names joined by dots, such as payment.card")
    return text


def _message(text: str) -> str:
    if not _FIELD_PATH.fullmatch(text):
        raise ValueError("the full name of a message, such as shop.v1.Order")
    return text


def _claim(text: str) -> str:
    if not text or len(text) > 256 or ("://" not in text and "" in text.split(".")):
        raise ValueError("a claim name such as org, a dotted path such as app.tenant, or a name that is a URL")
    return text


def _segment(text: str) -> str:
    if not _SEGMENT.fullmatch(text):
        raise ValueError("the part of a SPIFFE ID after which the tenant stands, such as ns")
    return text


def _reader(text: str) -> str:
    if not _READER.fullmatch(text):
        raise ValueError("a role, or a SPIFFE ID or pattern")
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


class TenantDocument(_Document):
    """Where the tenant is found: a `claim` of the caller's verified token, or the part of its `spiffe` ID after the part of this name."""

    claim: Annotated[str, AfterValidator(_claim)] | None = None
    spiffe: Annotated[str, AfterValidator(_segment)] | None = None

    @model_validator(mode="after")
    def _one(self) -> TenantDocument:
        if (self.claim is None) == (self.spiffe is None):
            raise ValueError("exactly one of claim and spiffe")
        return self


class ProtobufDocument(_Document):
    """Fields of protobuf messages: `descriptor` is a file with a FileDescriptorSet (`protoc --include_imports --descriptor_set_out`),
    `fields` are paths of string and bytes fields. The message is that of the gRPC method where a rule's path is one
    (`/shop.v1.Orders/Get`);
    otherwise `request` and `response` name it."""

    descriptor: Annotated[str, Field(min_length=1, max_length=1024)]
    fields: Annotated[
        list[Annotated[str, AfterValidator(_field_path)]],
        BeforeValidator(_one_or_more),
        Field(min_length=1, max_length=256),
        AfterValidator(_unique),
    ]
    request: Annotated[str, AfterValidator(_message)] | None = None
    response: Annotated[str, AfterValidator(_message)] | None = None


View = Literal["open", "token", "ciphertext", "nothing"] | MaskDocument
KeysetName = Annotated[str, AfterValidator(_keyset)]
Names = Annotated[
    list[Annotated[str, AfterValidator(_form_name)]],
    BeforeValidator(_one_or_more),
    Field(min_length=1, max_length=256),
    AfterValidator(_unique),
]


class FieldRuleDocument(_Document):
    """One field rule. It names places (at least one), one action, and views.

    id             names the field in envelopes, records and metrics: changing it makes sealed values unreadable
    paths          templates as in rules; like a deny rule it ignores case and trailing slashes and sees every reading of the path
    methods        absent: all
    hosts          of the request, without port: exact, or `*.suffix`; absent: all
    side           `inbound`, `outbound` or `any`: the listeners on which the rule holds
    on             which messages: `request`, `response` or `both`
    content_types  media types of bodies; a body of another type is refused. Absent: those of the places that are named

    select         JSON (also NDJSON and server-sent events, where `content_types` names them): one selector or several
    form           names in form bodies, URL-encoded or multipart
    protobuf       fields of protobuf and gRPC messages
    headers        header fields
    query          query parameters (of requests)

    encrypt        the keyset (`seal` is another name for it): AES-GCM, every time another ciphertext
    deterministic  the keyset: equal values give equal ciphertext
    tokenise       the keyset: a short stand-in, the same for equal values; with `detokenise: true` readers get the value back
    hash           the keyset: a keyed hash, for good
    mask           the name of a mask: the rest of the value is gone
    remove         true: the value is taken out

    audience       who the protected value is for; bound to it, so that it does not open anywhere else
    tenant         the same for a tenant: its name, or where the caller's verified attributes say it
    record         selector of the record key (JSON): a value does not open in another record
    padding        lengths of sealed values are rounded up to a multiple of this
    readers        role or SPIFFE ID -> `open`, `{mask: NAME}`, `token`, `ciphertext`, `nothing`; the first of these that a recipient's
                   roles give counts, masks in this order
    others         what every other recipient sees; absent: what the action makes
    mode           `shadow`: messages pass as they are; what the rule would have done is on record
    seal_null      null is a value too; otherwise null stays null, and only its absence of content is visible
    """

    id: Annotated[str, AfterValidator(_id)]
    description: str = ""
    paths: Annotated[list[Annotated[str, AfterValidator(_path)]], BeforeValidator(_one_or_more), Field(min_length=1, max_length=1024)]
    methods: (
        Annotated[list[Annotated[str, AfterValidator(_method)]], Field(min_length=1, max_length=64), AfterValidator(_unique)] | None
    ) = None
    hosts: (
        Annotated[list[Annotated[str, AfterValidator(_host)]], BeforeValidator(_one_or_more), Field(min_length=1, max_length=1024)] | None
    ) = None
    side: Literal["inbound", "outbound", "any"] = "any"
    on: Literal["request", "response", "both"]
    content_types: (
        Annotated[list[Annotated[str, AfterValidator(_content_type)]], BeforeValidator(_one_or_more), Field(min_length=1, max_length=64)]
        | None
    ) = None
    select: Annotated[
        list[Annotated[str, AfterValidator(_selector)]],
        BeforeValidator(_one_or_more),
        Field(min_length=1, max_length=256),
        AfterValidator(_unique),
    ] = []
    form: Names | None = None
    protobuf: ProtobufDocument | None = None
    headers: (
        Annotated[
            list[Annotated[str, AfterValidator(_field_name)]],
            BeforeValidator(_one_or_more),
            Field(min_length=1, max_length=64),
            AfterValidator(_unique),
        ]
        | None
    ) = None
    query: Names | None = None
    encrypt: KeysetName | None = None
    seal: KeysetName | None = None
    deterministic: KeysetName | None = None
    tokenise: KeysetName | None = None
    hash: KeysetName | None = None
    mask: Annotated[str, AfterValidator(_mask)] | None = None
    remove: Literal[True] | None = None
    detokenise: bool = False
    audience: Annotated[str, AfterValidator(_context)] | None = None
    tenant: Annotated[str, AfterValidator(_context)] | TenantDocument | None = None
    record: Annotated[str, AfterValidator(_selector)] | None = None
    padding: Annotated[int, Field(ge=2, le=4096)] | None = None
    readers: dict[Annotated[str, AfterValidator(_reader)], View] = {}
    others: Literal["ciphertext", "token", "nothing", "remove"] | MaskDocument | None = None
    seal_null: bool = False
    mode: Literal["enforce", "shadow"] = "enforce"

    @model_validator(mode="after")
    def _consistent(self) -> FieldRuleDocument:
        chosen = [name for name in ACTIONS if getattr(self, name) is not None]
        if len(chosen) != 1:
            raise ValueError(f"exactly one action of {', '.join(ACTIONS)}" + (f", not {' and '.join(chosen)}" if chosen else ""))
        if not any(getattr(self, place) for place in PLACES):
            raise ValueError(f"at least one place: {', '.join(PLACES)}")
        families = {family_of(name) for name in self.content_types or ()}
        for places, name, known in (
            (self.select, "select", JSON_FAMILIES),
            (self.form, "form", {"form", "multipart"}),
            (self.protobuf, "protobuf", {"grpc", "protobuf"}),
        ):
            if not places and families & known:
                raise ValueError(f"{name}, for the content types that are named")
        if self.query and self.on == "response":
            raise ValueError("on: request for query parameters")
        self._actions_fit()
        return self

    def _actions_fit(self) -> None:
        if self.detokenise and self.tokenise is None:
            raise ValueError("detokenise together with tokenise")
        keyless = self.keyset is None
        if keyless and (self.audience or self.tenant or self.record or self.padding):
            raise ValueError("audience, tenant, record and padding only where something is sealed")
        if keyless and (self.others is not None or any(view in ("token", "ciphertext") for view in self.readers.values())):
            raise ValueError(
                "readers that are open, masked or nothing, and no others: nothing is kept of the value but what the action makes"
            )
        if self.record is not None:
            if self.deterministic or self.tokenise or self.hash:
                raise ValueError("no record with deterministic, tokenise and hash: values of two records could not be compared")
            if not self.select or self.form or self.headers or self.query or self.protobuf:
                raise ValueError("a record key for JSON only")

    @property
    def action(self) -> str:
        """The action: `encrypt`, `deterministic`, `tokenise`, `hash`, `mask` or `remove`."""
        chosen = next(name for name in ACTIONS if getattr(self, name) is not None)
        return "encrypt" if chosen == "seal" else chosen

    @property
    def keyset(self) -> str | None:
        """The keyset's name; None for mask and remove."""
        return self.encrypt or self.seal or self.deterministic or self.tokenise or self.hash

    @property
    def keyset_key(self) -> str:
        """The key of the document that names the keyset."""
        return next(name for name in ACTIONS if getattr(self, name) is not None)

    @property
    def has_body(self) -> bool:
        """It looks into bodies."""
        return bool(self.select or self.form or self.protobuf)

    @property
    def body_types(self) -> tuple[str, ...]:
        """The media types of the bodies it looks into."""
        if self.content_types is not None:
            return tuple(self.content_types)
        return (
            *(JSON_TYPES if self.select else ()),
            *(FORM_TYPES if self.form else ()),
            *(PROTOBUF_TYPES if self.protobuf else ()),
        )

    def canonical(self) -> dict[str, Any]:
        """What the rule means, for the digest: everything but its description."""
        left_out = {"description"} if self.mode == "shadow" else {"description", "mode"}
        return self.model_dump(mode="json", exclude=left_out, exclude_none=True)
