"""The policy document: what people write. Every model refuses unknown keys; every value is checked where it stands.

A policy is a set of documents. What needs more than one key or document (unknown roles, ids used twice) is checked in `compile`.

Meaning, in short. A request is allowed when an allow rule matches and no deny rule does; the default is deny. Within a rule each
key that is given must match (and), the values of one key are alternatives (or). A key that is absent matches everything.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, model_validator
from pydantic_core import core_schema

from meshguard.policy.paths import parse_template
from meshguard.policy.principals import parse_principal
from meshguard.policy.times import Clock, Moment, parse_clock, parse_moment, parse_timezone

__all__ = [
    "RESERVED_ROLES", "ClaimValue", "FieldRuleValues", "HeaderDocument", "PolicyDocument", "RoleDocument", "RuleDocument", "TestDocument",
    "TestRequestDocument", "WindowDocument",
]  # fmt: skip

RESERVED_ROLES = ("anyone", "authenticated")
"""Words that stand for callers themselves: everyone, also without identity; everyone with a verified workload identity."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}\Z")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}\Z")
_FIELD_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}\Z")
_HOST = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*\Z|\[[0-9a-f:.]+\]\Z")
_CALL = re.compile(r"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]+) (?P<target>[^\s\x00-\x1f\x7f]+)\Z")
_USER = re.compile(r"jwt:[^\s#]+#.+\Z")
_VALUE_LIMIT = 4096
MAX_USER = 1024
"""Characters of an end user in a rule; StringOrURI has no limit of its own (RFC 7519 section 2)."""


def _name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError("a name of at most 64 letters, digits, '_', '.' and '-'")
    return text


def _role_name(text: str) -> str:
    if text in RESERVED_ROLES:
        raise ValueError(f"another name: {text!r} is a word of its own")
    return _name(text)


def _id(text: str) -> str:
    if not _ID.match(text):
        raise ValueError("an id of at most 128 letters, digits, '_', '.', ':', '/' and '-'")
    return text


def _user(text: str) -> str:
    match = _USER.match(text)
    if match is None or len(text) > MAX_USER or not text.isprintable():
        raise ValueError("an end user such as jwt:https://login.shop.example#alice, or #* for every user of that issuer")
    return text


def _principal(text: str) -> str:
    return parse_principal(text).text


def _caller(text: str) -> str:
    if text.startswith("jwt:"):
        return _user(text)
    return _principal(text) if text.startswith("spiffe:") else _name(text)


def _path(text: str) -> str:
    return parse_template(text).text


def _method(text: str) -> str:
    if not _METHOD.match(text):
        raise ValueError("a method name in upper case, such as GET (method names are case-sensitive)")
    return text


def _host(text: str) -> str:
    if len(text) > 255 or not _HOST.match(text):
        raise ValueError("a lower-case host name without port, or '*.' and a suffix, such as *.shop.example")
    return text


def _field_name(text: str) -> str:
    lowered = text.lower()
    if not _FIELD_NAME.match(lowered):
        raise ValueError("a header field name")
    return lowered


def _field_value(text: str) -> str:
    if len(text) > _VALUE_LIMIT or not text.isprintable():
        raise ValueError(f"a field value of at most {_VALUE_LIMIT} printable characters")
    if text != text.strip():
        raise ValueError("a field value without spaces at its ends: requests arrive without them")
    return text


def _claim_path(text: str) -> str:
    if not text or len(text) > 256 or ("://" not in text and "" in text.split(".")):
        raise ValueError("a claim name such as groups, a dotted path such as realm_access.roles, or a name that is a URL")
    return text


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str | int | bool) else value


def _unique(values: list[Any]) -> list[Any]:
    seen: list[Any] = []
    known: set[Any] = set()
    for value in values:
        key = (type(value), value)
        if key in known:
            raise ValueError(f"each value once, {value!r} is there twice")
        known.add(key)
        seen.append(value)
    return seen


RoleName = Annotated[str, AfterValidator(_role_name)]
Principal = Annotated[str, AfterValidator(_principal)]
Caller = Annotated[str, AfterValidator(_caller)]
User = Annotated[str, AfterValidator(_user)]
Path = Annotated[str, AfterValidator(_path)]
Method = Annotated[str, AfterValidator(_method)]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
FieldName = Annotated[str, AfterValidator(_field_name)]
FieldValue = Annotated[str, AfterValidator(_field_value)]
FieldValues = Annotated[list[FieldValue], BeforeValidator(_one_or_more), Field(min_length=1, max_length=1024), AfterValidator(_unique)]
ClaimPath = Annotated[str, AfterValidator(_claim_path)]
ClaimValue = bool | int | str
ClaimValues = Annotated[list[ClaimValue], BeforeValidator(_one_or_more), Field(min_length=1, max_length=1024), AfterValidator(_unique)]
Callers = Annotated[list[Caller], BeforeValidator(_one_or_more), Field(min_length=1, max_length=1024), AfterValidator(_unique)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
TimeOfDay = Annotated[Clock, BeforeValidator(parse_clock), WithJsonSchema({"type": "string", "examples": ["18:00"]})]
Instant = Annotated[Moment, BeforeValidator(parse_moment), WithJsonSchema({"type": "string", "examples": ["2030-01-31T18:00:00Z"]})]
Timezone = Annotated[str, AfterValidator(parse_timezone)]

FieldRuleValues = dict[str, Any]
"""One entry of `fields` as plain values: `meshguard.fields` validates and compiles them, the policy knows nothing of them."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=False)


class RoleDocument(_Document):
    """Who holds a role. `principals`: any of these. `jwt`: each claim named has one of its values (all claims, any value). `users`: the
    token speaks for one of these, beside its claims.
    With both, principals and a token, `match: any` asks for one of the two, `match: all` for both."""

    description: str = ""
    principals: list[Principal] = Field(default=[], max_length=10_000)
    jwt: dict[ClaimPath, ClaimValues] = Field(default={}, max_length=16)
    users: list[User] = Field(default=[], max_length=10_000)
    match: Literal["any", "all"] = "any"

    @model_validator(mode="after")
    def _somebody(self) -> RoleDocument:
        if not self.principals and not self.jwt and not self.users:
            raise ValueError("principals, jwt or both: a role without them is held by nobody")
        return self


class HeaderDocument(_Document):
    """What the value of a field must be. Values of one key are alternatives, several keys must hold for the same value.

    There are no regular expressions on purpose: their running time cannot be bounded on values that a caller chooses."""

    exact: FieldValues | None = None
    prefix: FieldValues | None = None
    suffix: FieldValues | None = None
    contains: FieldValues | None = None
    ignore_case: bool = False
    present: Literal[True] | None = None
    absent: Literal[True] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> HeaderDocument:
        values = [key for key in ("exact", "prefix", "suffix", "contains") if getattr(self, key) is not None]
        if sum((bool(values), self.present is not None, self.absent is not None)) != 1:
            raise ValueError("one of: present: true, absent: true, or exact, prefix, suffix and contains")
        return self


def _header(value: object) -> object:
    return {"exact": value} if isinstance(value, str | list) else value


Header = Annotated[HeaderDocument, BeforeValidator(_header)]


class WindowDocument(_Document):
    """A window of time; every key that is given must hold. `to` before `from` goes over midnight, and `days` are then the days on
    which the window opens. `to` and `before` are exclusive. Without a time zone it is UTC."""

    days: Annotated[list[Day], Field(min_length=1), AfterValidator(_unique)] | None = None
    opens: TimeOfDay | None = Field(default=None, alias="from")
    closes: TimeOfDay | None = Field(default=None, alias="to")
    timezone: Timezone = "UTC"
    after: Instant | None = None
    before: Instant | None = None

    @model_validator(mode="after")
    def _consistent(self) -> WindowDocument:
        if (self.opens is None) != (self.closes is None):
            raise ValueError("both from and to, or neither")
        if self.opens is not None and self.opens == self.closes:
            raise ValueError("a from that differs from to (leave both out for the whole day)")
        if self.days is None and self.opens is None and self.after is None and self.before is None:
            raise ValueError("days, from and to, after or before")
        if self.after is not None and self.before is not None and self.after.seconds(self.timezone) >= self.before.seconds(self.timezone):
            raise ValueError("an after that is earlier than before")
        return self


class ChainDocument(_Document):
    """Who a request must have come from and through; several keys must hold together.

    through       each of these is among the later callers, the direct one included
    never_through none of these is anywhere in the chain
    on_behalf_of  it began with one of these"""

    through: (
        Annotated[list[Principal], BeforeValidator(_one_or_more), Field(min_length=1, max_length=8), AfterValidator(_unique)] | None
    ) = None
    never_through: (
        Annotated[list[Principal], BeforeValidator(_one_or_more), Field(min_length=1, max_length=64), AfterValidator(_unique)] | None
    ) = None
    on_behalf_of: (
        Annotated[list[Principal], BeforeValidator(_one_or_more), Field(min_length=1, max_length=64), AfterValidator(_unique)] | None
    ) = None

    @model_validator(mode="after")
    def _something(self) -> ChainDocument:
        if self.through is None and self.never_through is None and self.on_behalf_of is None:
            raise ValueError("through, never_through or on_behalf_of")
        return self


class _Body:
    """`BodyDocument`, built for the first rule that has one: most policies have none, and it weighs half a megabyte."""

    @staticmethod
    def _validated(value: object) -> object:
        from meshguard.policy.body_documents import BodyDocument

        return None if value is None else BodyDocument.model_validate(value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
        return core_schema.no_info_plain_validator_function(cls._validated)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: Any) -> Any:
        from meshguard.policy.body_documents import BodyDocument

        return handler(core_schema.nullable_schema(BodyDocument.__pydantic_core_schema__))


class RuleDocument(_Document):
    """One rule: who may (`allow`) or may not (`deny`) do what. Exactly one of the two.

    methods  exact for allow; deny ignores their case. GET implies HEAD in both.
    paths    templates (see `paths`); deny rules ignore case and a trailing slash, and see every reading of the path
    ports    the listener's local ports
    hosts    the authority without port: exact, or `*.suffix` for anything below the suffix
    headers  allow: the field is there and all its lines match; deny: one line, or one member of a comma list, matches
    claims   of the verified token; a list claim matches when one of its members does
    chain    who the request came from and through, as decision tokens prove it
    body     what the body says (see `body_documents`); what cannot be read counts against the request
    when     a CEL expression (see `expression`) that must be true; one that cannot be evaluated counts against the request
    shadow   the rule decides nothing and is reported as would_allow or would_deny
    """

    id: Annotated[str, AfterValidator(_id)]
    description: str = ""
    allow: Callers | None = None
    deny: Callers | None = None
    methods: Annotated[list[Method], Field(min_length=1, max_length=64), AfterValidator(_unique)] | None = None
    paths: Annotated[list[Path], Field(min_length=1, max_length=1024), AfterValidator(_unique)] | None = None
    ports: Annotated[list[Port], Field(min_length=1, max_length=64), AfterValidator(_unique)] | None = None
    hosts: Annotated[list[Host], Field(min_length=1, max_length=1024), AfterValidator(_unique)] | None = None
    headers: Annotated[dict[FieldName, Header], Field(min_length=1, max_length=32)] | None = None
    claims: Annotated[dict[ClaimPath, ClaimValues], Field(min_length=1, max_length=32)] | None = None
    chain: ChainDocument | None = None
    times: Annotated[list[WindowDocument], Field(min_length=1, max_length=64)] | None = None
    body: Annotated[Any, _Body] = None
    when: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    shadow: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fields_once(cls, value: object) -> object:
        headers = value.get("headers") if isinstance(value, dict) else None
        if isinstance(headers, dict):
            names = [name.lower() for name in headers if isinstance(name, str)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"each header once, {twice!r} is there in several spellings")
        return value

    @model_validator(mode="after")
    def _one_effect(self, info: ValidationInfo) -> RuleDocument:
        if info.context is not None and "breathe" in info.context:  # ten thousand rules beside a running loop
            info.context["breathe"]()
        if (self.allow is None) == (self.deny is None):
            raise ValueError("exactly one of allow and deny")
        return self


class TestRequestDocument(_Document):
    """What else a tested request carries. `claims` are those of a verified token; without the key there is no token. `body` is a JSON
    document, or as a text the body octet for octet; a Content-Type that is not among the headers is that of JSON."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    headers: dict[FieldName, Annotated[list[str], BeforeValidator(_one_or_more)]] = {}
    claims: dict[str, Any] | None = None
    body: Any = None
    chain: list[Principal] | None = Field(
        default=None, max_length=16, description="The callers before the caller itself, the first one first."
    )
    host: str = "localhost"
    port: Port = 443
    time: Instant | None = None


class TestDocument(_Document):
    """One expectation: the caller `as` (a role, a SPIFFE ID, `anyone` or `authenticated`) makes the `call` and is allowed or denied,
    where given by `rule`."""

    __test__ = False

    caller: Caller = Field(alias="as")
    call: str
    request: TestRequestDocument = Field(default_factory=TestRequestDocument, alias="with")
    expect: Literal["allow", "deny"]
    rule: str | None = None
    description: str = ""

    @model_validator(mode="after")
    def _callable(self) -> TestDocument:
        if not _CALL.match(self.call):
            raise ValueError('a call such as "GET /orders/7"')
        if self.caller.startswith("spiffe:") and not parse_principal(self.caller).exact:
            raise ValueError("as: an exact SPIFFE ID, a role, anyone or authenticated")
        return self


class PolicyDocument(_Document):
    """One document of a policy."""

    description: str = ""
    roles: dict[RoleName, RoleDocument] = {}
    rules: list[RuleDocument] = []
    fields: list[FieldRuleValues] = []
    tests: list[TestDocument] = []
