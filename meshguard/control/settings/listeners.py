"""Doors: where requests come in, how the caller is identified there, and which cluster a request goes to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from meshguard.control.settings.edge import AddressRange, CertificateConfig, HstsConfig, Redirect, RouteLimits, RouteRetries
from meshguard.control.settings.fallback import FallbackConfig
from meshguard.control.settings.limits import LimitsConfig
from meshguard.control.settings.rate_limits import RateLimitConfig
from meshguard.control.settings.validation import ValidationConfig
from meshguard.control.settings.values import (
    AuthorityPattern,
    ClusterName,
    DocumentPath,
    FieldName,
    FieldValue,
    ListenAddress,
    Moment,
    Name,
    PathPattern,
    Seconds,
    Section,
    SpiffePattern,
)
from meshguard.wire.fields import REQUEST_CONSUMED, RESPONSE_CONSUMED

__all__ = ["HeaderChanges", "ListenerConfig", "PathConfig", "RouteConfig", "RouteTimeouts"]


class PathConfig(Section):
    """What a route does with spellings of a path that are refused by default."""

    encoded_slash: Literal["reject", "keep"] = Field(default="reject", description="%2F: refused, or kept inside its segment.")
    double_encoding: Literal["reject", "keep"] = Field(default="reject", description="%2541 and the like: refused, or kept.")
    params: Literal["reject", "strip", "keep"] = Field(default="reject", description="/a;x=1: refused, made /a, or kept.")
    backslash: Literal["reject", "keep"] = Field(default="reject", description="%5C: refused or kept; a raw backslash is always refused.")


_OURS = frozenset(name.decode("ascii") for name in (*REQUEST_CONSUMED, *RESPONSE_CONSUMED))


def _changeable(name: str) -> str:
    if name in _OURS:
        raise ValueError("a field that meshguard does not write itself (framing, Host, hop-by-hop and trace fields are its own)")
    return name


def _strippable(name: str) -> str:
    if "*" in name[:-1] or name == "*":
        raise ValueError("the name of a header field, or the beginning of one with * at its end (x-internal-*)")
    return name


StrippedField = Annotated[FieldName, AfterValidator(_strippable)]
ChangedField = Annotated[FieldName, AfterValidator(_changeable)]


class HeaderChanges(Section):
    """Changes to a head on its way: `remove`, then `set` (replaces), then `append`."""

    set: dict[ChangedField, FieldValue] = {}
    append: dict[ChangedField, FieldValue] = {}
    remove: list[ChangedField] = []


class RouteTimeouts(Section):
    """Deadlines of one route; absent: the cluster's, and no limit on the whole exchange."""

    response_s: Seconds | None = Field(default=None, description="From the end of the request to the head of the response.")
    total_s: Seconds | None = Field(default=None, description="The whole exchange.")


class RouteConfig(Section):
    """The first route that matches a request takes it. What is not said matches everything."""

    id: Name = Field(description="Unique; it is the route's name in spans, metrics and the decision log.")
    to: ClusterName
    authorities: list[AuthorityPattern] = []
    paths: list[PathPattern] = Field(default=[], description="Templates: /orders/{id}, /static/**.")
    methods: list[str] = []
    headers: dict[FieldName, str] = Field(default={}, description="Fields that one of their lines must equal.")
    principals: list[SpiffePattern] = Field(default=[], description="Callers by SPIFFE ID or pattern.")
    path: PathConfig = Field(default={}, validate_default=True)
    request_headers: HeaderChanges = Field(default={}, validate_default=True)
    response_headers: HeaderChanges = Field(default={}, validate_default=True)
    timeouts: RouteTimeouts = Field(default={}, validate_default=True)
    limits: RouteLimits = Field(default={}, validate_default=True)
    retries: RouteRetries = Field(default={}, validate_default=True)
    trailers: Literal["drop", "keep"] = Field(default="drop", description="gRPC needs `keep`.")
    decision_token: Literal["none", "send", "pass"] = Field(
        default="none",
        description="send: the next hop gets a signed token of this decision and of the callers before; pass: the verified one as it came.",
    )
    fallback: FallbackConfig | None = Field(default=None, description="What callers get while the service is quarantined.")
    validation: ValidationConfig | None = Field(default=None, description="Requests are judged by this; absent: as the listener says.")
    websocket: Literal["allow", "deny"] | None = Field(default=None, description="Upgrades to WebSocket; absent: as the listener says.")


class ListenerConfig(Section):
    """One listening socket. Say either `to` (one cluster for everything) or `routes`."""

    address: ListenAddress
    tls: Literal["mutual", "permissive", "server", "none"] = Field(
        default="mutual",
        description="mutual: a client certificate is required; permissive: plaintext is taken too, until `permissive_until`;"
        " server: TLS without client certificates (an edge); none: plaintext, for local applications.",
    )
    direction: Literal["inbound", "outbound"] = Field(
        default="inbound",
        description="outbound: the local application's own calls; the caller is this workload itself (needs `tls: none` on loopback).",
    )
    capture: Literal["none", "redirect", "tproxy"] = Field(
        default="none", description="How traffic is redirected here (`meshguard capture`), so that its first destination is known."
    )
    protocols: list[Literal["h2", "http/1.1"]] | None = Field(
        default=None,
        min_length=1,
        description="By preference. Absent: h2 and http/1.1 with TLS (by ALPN), http/1.1 without TLS, where h2 is prior knowledge.",
    )
    permissive_until: Moment | None = Field(default=None, description="End of a relaxation; a date counts to its last second, UTC.")
    to: ClusterName | None = None
    routes: list[RouteConfig] = []
    authorities: list[AuthorityPattern] = Field(default=[], description="Hosts served here; absent: any.")
    websocket: Literal["allow", "deny"] = Field(default="allow", description="Upgrades to WebSocket, where policy allows the request.")
    decision_token: Literal["none", "accept", "require"] = Field(
        default="none", description="Decision tokens of calling proxies: ignored, verified where there is one, or demanded."
    )
    validation: ValidationConfig | None = Field(default=None, description="For every route without its own.")
    engine: Literal["default", "reference"] = Field(
        default="default", description="HTTP implementation; `reference` is h11 and h2, slower."
    )
    trusted_proxies: list[SpiffePattern] = Field(default=[], description="Peers whose X-Forwarded-* and XFCC are believed.")
    caller: Literal["peer", "xfcc"] = Field(
        default="peer",
        description="Whom requests of `trusted_proxies` are judged as: the proxy itself, or the one that the last element of their"
        " X-Forwarded-Client-Cert names (a request without one is refused).",
    )
    forwarded: Literal["x-forwarded", "rfc7239", "none"] = Field(
        default="x-forwarded", description="Which fields tell the upstream about the client, and are read from trusted peers; never both."
    )
    trusted_hops: int = Field(
        default=0, ge=0, le=16, description="Proxies in front, the peer as the first: the client is the entry behind them, from the right."
    )
    trusted_addresses: list[AddressRange] = Field(
        default=[], description="Proxies in front by address: the client is the first entry from the right that is none of them."
    )
    redirect: Redirect | None = Field(default=None, description="https: answer every request with its https address (308).")
    hsts: HstsConfig | None = Field(default=None, description="Strict-Transport-Security on every answer.")
    strip_headers: list[StrippedField] = Field(
        default=[], description="Fields removed from requests, in every spelling; x-internal-* removes all that begin so."
    )
    underscores: Literal["refuse", "drop", "allow"] = Field(default="refuse", description="Header names with `_`.")
    limits: LimitsConfig = Field(default={}, validate_default=True)
    rate_limits: list[RateLimitConfig] = Field(default=[], max_length=32, description="Every one that applies must be passed.")
    certificate: DocumentPath | None = Field(default=None, description="Server certificate for `tls: server`; absent: the own SVID.")
    key: DocumentPath | None = None
    certificates: list[CertificateConfig] = Field(default=[], description="Several certificates for `tls: server`, chosen by server name.")
    unknown_names: Literal["refuse", "default"] = Field(
        default="refuse", description="Clients that name no or another server: refused, or shown the first certificate."
    )
