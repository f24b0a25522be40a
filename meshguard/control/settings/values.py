"""The small values of the configuration document: addresses, sizes, durations, paths, names.

Each is an annotated type whose error message is worded as an expectation ("a host and port such as 127.0.0.1:8080").
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from datetime import date as Date
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationInfo, WithJsonSchema

__all__ = [
    "Address",
    "AuthorityPattern",
    "ClusterName",
    "DocumentPath",
    "Endpoint",
    "FieldName",
    "FieldValue",
    "ListenAddress",
    "Moment",
    "Name",
    "PathPattern",
    "Percent",
    "Seconds",
    "Section",
    "Size",
    "SpiffePattern",
    "SpiffeTemplate",
    "TrustDomain",
    "document_path",
    "parse_address",
    "parse_moment",
]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Address:
    """A host (name or IP literal, without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ip(self) -> bool:
        """The host is an IP literal."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def is_loopback(self) -> bool:
        """Only this machine reaches it."""
        return self.host == "localhost" or (self.is_ip and ipaddress.ip_address(self.host).is_loopback)

    @property
    def is_any(self) -> bool:
        """Every address of the machine (0.0.0.0, ::)."""
        return self.is_ip and ipaddress.ip_address(self.host).is_unspecified


_HOST_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*\Z")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62})\Z")
# RFC 9110 section 5.6.2 token
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
# SPIFFE-ID section 2.1: lower-case letters, digits, dots, dashes, underscores
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}\Z")
_SPIFFE_PATTERN = re.compile(r"spiffe://[a-z0-9._*-]{1,255}(?:/[A-Za-z0-9._*-]+)*\Z")
_SPIFFE_TEMPLATE = re.compile(r"spiffe://[a-z0-9._*-]{1,255}(?:/(?:[A-Za-z0-9._*-]|\{service\}|\{host\})+)*\Z")
_SIZE = re.compile(r"(\d{1,12})\s*(|B|KiB|MiB|GiB|kB|MB|GB)\Z")
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 1000, "MB": 10**6, "GB": 10**9}


def parse_address(text: object) -> Address:
    """`host:port`, `1.2.3.4:port` or `[v6]:port`. Raises ValueError, worded as an expectation."""
    if isinstance(text, Address):
        return text
    if not isinstance(text, str):
        raise ValueError("a host and port such as 127.0.0.1:8080, orders.internal:8080 or [::1]:8080")
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise ValueError("a host and port such as 127.0.0.1:8080 (the port is missing)")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 0 < int(port_text) <= 65535):
        raise ValueError("a port from 1 to 65535 after the last colon (an IPv6 address stands in brackets: [::1]:8080)")
    if host.startswith("[") and host.endswith("]"):
        try:
            return Address(str(ipaddress.IPv6Address(host[1:-1])), int(port_text))
        except ValueError:
            raise ValueError("an IPv6 address in the brackets, such as [::1]:8080") from None
    if ":" in host:
        raise ValueError("brackets around an IPv6 address, such as [::1]:8080")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return Address(str(ipaddress.IPv4Address(host)), int(port_text))
        except ValueError:
            raise ValueError("an IPv4 address of four numbers, such as 127.0.0.1:8080") from None
    if len(host) > 253 or not _HOST.match(host.lower()):
        raise ValueError("a host and port such as 127.0.0.1:8080, orders.internal:8080 or [::1]:8080")
    return Address(host.lower(), int(port_text))


def _listen_address(text: object) -> Address:
    address = parse_address(text)
    if not address.is_ip and address.host != "localhost":
        raise ValueError("an IP address and port to listen on, such as 0.0.0.0:8443 or [::]:8443")
    return address


def parse_moment(value: object) -> datetime:
    """The end that a date names: a date means until its last second (UTC), a time with offset is taken as it is. Raises ValueError."""
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, Date):
        moment = datetime.combine(value, time.min, UTC) + timedelta(days=1)
    else:
        try:
            text = str(value)
            if len(text) == 10:
                return parse_moment(Date.fromisoformat(text))
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("a date such as 2027-01-31, or a time such as 2027-01-31T18:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("a time with its offset from UTC, such as 2027-01-31T18:00:00Z")
    return moment.astimezone(UTC)


def _size(value: object) -> object:
    if isinstance(value, str):
        match = _SIZE.match(value.strip())
        if match is None:
            raise ValueError("a number of bytes such as 65536 or 64KiB")
        return int(match.group(1)) * _UNITS[match.group(2)]
    return value


def document_path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("a path")
    context: dict[str, Any] = info.context or {}
    base = context.get("base")
    path = Path(value).expanduser()
    return Path(base) / path if base is not None else path


def _matching(pattern: re.Pattern[str], expected: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.match(value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


def _authority_pattern(value: str) -> str:
    text = value.lower().rstrip(".")
    host = text.removeprefix("*.")
    if host == "*" or not (_HOST.match(host) or re.fullmatch(r"\[[0-9a-f:.]+\]", host)):
        raise ValueError("a host name without port, such as orders.shop.example or *.shop.example")
    return text


def _path_pattern(value: str) -> str:
    if not value.startswith("/") or any(char in value for char in "?#\\") or not value.isprintable() or " " in value:
        raise ValueError("a path that begins with /, such as /orders/{id} or /static/**")
    return value


def _field_name(value: str) -> str:
    if not _TOKEN.match(value):
        raise ValueError("the name of a header field")
    return value.lower()


def _field_value(value: str) -> str:
    # RFC 9110 section 5.5: visible characters, spaces and tabs inside; nothing that could end the line
    if value != value.strip() or not value.isascii() or any((ord(char) < 32 and char != "\t") or ord(char) == 127 for char in value):
        raise ValueError("a header value of printable ASCII without spaces around it")
    return value


def url_of(value: str, schemes: tuple[str, ...], example: str) -> str:
    """`value` if it is a plain URL of one of `schemes` (no user info, no fragment). Raises ValueError."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError(f"a URL such as {example}") from None
    if parts.scheme not in schemes or not parts.hostname or parts.fragment:
        raise ValueError(f"a URL such as {example}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL without a user name or password in it")
    return value


_TEXT = {"type": "string"}

ListenAddress = Annotated[
    Address, BeforeValidator(_listen_address), PlainSerializer(str), WithJsonSchema({**_TEXT, "examples": ["0.0.0.0:8443", "[::]:8443"]})
]
Endpoint = Annotated[
    Address, BeforeValidator(parse_address), PlainSerializer(str), WithJsonSchema({**_TEXT, "examples": ["127.0.0.1:8080", "[::1]:8080"]})
]
Moment = Annotated[datetime, BeforeValidator(parse_moment), WithJsonSchema({**_TEXT, "examples": ["2027-01-31", "2027-01-31T18:00:00Z"]})]
Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(ge=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {**_TEXT, "pattern": r"^\d+\s*(B|KiB|MiB|GiB|kB|MB|GB)?$"}]}),
]
Seconds = Annotated[float, Field(gt=0, le=86_400 * 30)]
Percent = Annotated[int, Field(ge=0, le=100)]
Name = Annotated[str, _matching(_NAME, "a name of letters, digits, dots, dashes and underscores, at most 63")]
ClusterName = Annotated[str, Field(min_length=1, description="The name of a cluster under `clusters`.")]
DocumentPath = Annotated[Path, BeforeValidator(document_path), PlainSerializer(str), WithJsonSchema(_TEXT)]
TrustDomain = Annotated[str, _matching(_TRUST_DOMAIN, "a trust domain in lower case, such as shop.example")]
SpiffePattern = Annotated[
    str, _matching(_SPIFFE_PATTERN, "a SPIFFE ID or pattern, such as spiffe://shop.example/ns/prod/sa/edge or .../sa/edge-*")
]
SpiffeTemplate = Annotated[
    str,
    _matching(_SPIFFE_TEMPLATE, "a SPIFFE ID or pattern, such as spiffe://shop.example/ns/prod/sa/edge or .../sa/{service}"),
]
AuthorityPattern = Annotated[str, AfterValidator(_authority_pattern)]
PathPattern = Annotated[str, AfterValidator(_path_pattern)]
FieldName = Annotated[str, AfterValidator(_field_name)]
FieldValue = Annotated[str, AfterValidator(_field_value)]
