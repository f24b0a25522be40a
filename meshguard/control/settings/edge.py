"""What an edge gateway has beside a sidecar: certificates by name, redirects, strict transport, limits of one route."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from meshguard.control.settings.values import DocumentPath, Section, Size

__all__ = ["AddressRange", "CertificateConfig", "HstsConfig", "Redirect", "RedirectConfig", "RouteLimits", "RouteRetries"]

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_SERVER_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\Z")


def _server_name(value: str) -> str:
    name = value.lower().rstrip(".")
    if len(name) > 253 or not _SERVER_NAME.match(name):
        raise ValueError("a host name, or *. and a suffix for one label in front of it, such as *.shop.example")
    return name


def _range(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise ValueError("a range of addresses such as 10.0.0.0/8 or fd00::/8, or one address") from None


AddressRange = Annotated[str, AfterValidator(_range)]


class CertificateConfig(Section):
    """A certificate for some server names."""

    certificate: DocumentPath = Field(description="Certificate chain in PEM, leaf first.")
    key: DocumentPath
    names: list[Annotated[str, AfterValidator(_server_name)]] = Field(
        default=[], description="Server names it is shown for; *.suffix stands for one label. Absent: the DNS names in the certificate."
    )


def _redirect(value: object) -> object:
    return {"to": value} if isinstance(value, str) else value


class RedirectConfig(Section):
    """Every request is answered by its https address; nothing is forwarded."""

    to: Literal["https"]
    port: int = Field(default=443, ge=1, le=65535, description="Port of the https address.")
    status: Literal[301, 308] = Field(default=308, description="301 only for GET and HEAD: other methods would be changed by it.")


Redirect = Annotated[
    RedirectConfig,
    BeforeValidator(_redirect),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": ["https"]},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["to"],
                    "properties": {
                        "to": {"type": "string", "enum": ["https"]},
                        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                        "status": {"type": "integer", "enum": [301, 308]},
                    },
                },
            ]
        }
    ),
]


class HstsConfig(Section):
    """Strict-Transport-Security (RFC 6797) on every answer of the listener."""

    max_age_s: int = Field(default=31_536_000, ge=0, description="0 tells browsers to forget it.")
    include_subdomains: bool = False
    preload: bool = False


class RouteLimits(Section):
    """Limits of one route, in place of the listener's."""

    body_bytes: Size | None = Field(default=None, description="A request body that is passed on; 0: no limit.")


class RouteRetries(Section):
    """Retries of one route, in place of the cluster's (whose budget holds all the same)."""

    attempts: int | None = Field(default=None, ge=0, le=10)
