"""Dynamic clusters: destinations that the requests name themselves, and what bounds the choice."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from meshguard.control.settings.edge import AddressRange
from meshguard.control.settings.values import AuthorityPattern, Seconds, Section

__all__ = ["DestinationsConfig", "placeholders"]

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_ADDRESS = re.compile(r"(?:[a-z0-9._-]|\{(?:host|service)\})+:(?:[0-9]{1,5}|\{port\})\Z|\[[0-9a-f:.]+\]:(?:[0-9]{1,5}|\{port\})\Z")


def placeholders(text: str) -> set[str]:
    """Names in braces."""
    return set(PLACEHOLDER.findall(text))


def _pattern(value: str) -> str:
    if value == "*":
        return value
    name, colon, port = value.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = value, ""
    elif not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("a host name or *.suffix, with :PORT for one port only, such as *.prod.svc or orders:8443")
    host = _host(name)
    return f"{host}:{int(port)}" if port else host


def _host(name: str) -> str:
    from pydantic import TypeAdapter

    return TypeAdapter(AuthorityPattern).validate_python(name)


def _address(value: str) -> str:
    if not _ADDRESS.match(value.lower()):
        raise ValueError("a host and port to connect to, with {host}, {service} and {port}, such as {service}.prod.svc:8443")
    return value.lower()


class DestinationsConfig(Section):
    """Which destinations requests may name on a cluster without endpoints, and how each is reached."""

    authorities: list[Annotated[str, AfterValidator(_pattern)]] = Field(
        default=[], description="Destinations allowed: host, *.suffix, with :PORT for one port only; absent: what the policy allows."
    )
    default_port: int = Field(default=8443, ge=1, le=65535, description="Port of an authority without one.")
    address: Annotated[str, AfterValidator(_address)] = Field(
        default="{host}:{port}", description="Where to connect: {host}, {service} (its first label) and {port} are the request's."
    )
    original: bool = Field(
        default=False, description="Connect to the address that a redirected client had connected to (`capture` on the listener)."
    )
    ip_literals: bool = Field(default=False, description="Take destinations that are addresses instead of names.")
    refuse_addresses: list[AddressRange] = Field(
        default=["169.254.0.0/16", "fe80::/10"], description="Never connected to, whatever a name resolves to."
    )
    limit: int = Field(default=256, ge=1, le=65536, description="Destinations open at one time.")
    idle_s: Seconds = Field(default=300.0, description="A destination without a request for so long is closed.")
