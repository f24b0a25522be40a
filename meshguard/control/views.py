"""From configuration to what the journey reads on its way: listener views, routes, path and principal matchers. Pure conversions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from meshguard.control.delegation import token_reader
from meshguard.control.protocols import http2_view, protocols
from meshguard.control.settings.edge import HstsConfig
from meshguard.control.settings.listeners import HeaderChanges, ListenerConfig, RouteConfig
from meshguard.net.limits import ConnectionLimits, WebSocketLimits
from meshguard.pipeline.routes import HeaderOperations, Redirect, Route, RouteTable, authority_matcher
from meshguard.pipeline.snapshot import ListenerView
from meshguard.policy.paths import Parameter, parse_template
from meshguard.policy.principals import parse_principal
from meshguard.wire import http1, reference
from meshguard.wire.events import RequestEngine, WireLimits
from meshguard.wire.semantics import FieldRules
from meshguard.wire.target import STRICT, PathOptions

if TYPE_CHECKING:
    from meshguard.control.contracts import Contracts
    from meshguard.control.delegation import TokenWriters
    from meshguard.control.settings.fallback import FallbackConfig
    from meshguard.pipeline.delegation import TokenWriter
    from meshguard.pipeline.fallback import Fallback
    from meshguard.pipeline.forwarding import Forwarding

__all__ = ["ENGINES", "listener_view", "path_matcher", "principal_matcher", "wire_limits"]

ENGINES: dict[str, Callable[[WireLimits, FieldRules], RequestEngine]] = {
    "default": http1.RequestParser,
    "reference": reference.RequestReader,
}


def wire_limits(config: ListenerConfig) -> WireLimits:
    limits = config.limits
    return WireLimits(limits.head_bytes, limits.fields, limits.request_line_bytes, limits.chunk_line_bytes, limits.chunk_extension_bytes)


def listener_view(name: str, config: ListenerConfig, contracts: Contracts, writers: TokenWriters) -> ListenerView:
    """What the listener `name` does with its requests."""
    limits = config.limits
    hsts = config.hsts
    strict = {} if hsts is None else {"strict-transport-security": _strict_transport(hsts)}
    return ListenerView(
        name=name,
        routes=RouteTable(
            [_route(route, strict, config, contracts, writers(route)) for route in config.routes]
            if config.routes
            else [_only_route(name, config, strict, contracts)],
            authority_matcher(config.authorities) if config.authorities else None,
        ),
        limits=ConnectionLimits(
            handshake_s=limits.handshake_s,
            head_s=limits.head_s,
            body_idle_s=limits.body_idle_s,
            body_total_s=limits.body_total_s,
            idle_s=limits.idle_s,
            body_bytes=limits.body_bytes,
            refused_body_bytes=limits.refused_body_bytes,
            requests_per_turn=limits.requests_per_turn,
            websocket=WebSocketLimits(
                limits.websocket_message_bytes,
                limits.websocket_frame_bytes,
                limits.websocket_idle_s,
                limits.websocket_ping_s,
                limits.websocket_close_s,
            ),
        ),
        wire_limits=wire_limits(config),
        field_rules=FieldRules(tuple(name.encode("ascii") for name in config.strip_headers), config.underscores),
        new_engine=ENGINES[config.engine],
        requires_identity=config.tls == "mutual",
        configured=config,
        close_share=limits.overload_close_percent / 100,
        shed_share=limits.overload_shed_percent / 100,
        plaintext_until=config.permissive_until.timestamp() if config.permissive_until is not None else 0.0,
        outbound=config.direction == "outbound",
        capture=config.capture,
        address=(config.address.host, config.address.port),
        forwarding=_forwarding(config),
        redirect=None if config.redirect is None else Redirect(config.redirect.port, config.redirect.status),
        answer_lines=b"".join(f"{key}: {value}\r\n".encode("ascii") for key, value in strict.items()),
        trusts=principal_matcher(config.trusted_proxies) if config.trusted_proxies else None,
        speaks=config.caller == "xfcc",
        token_reader=token_reader(config),
        http2=http2_view(config) if "h2" in protocols(config) else None,
    )


def _forwarding(config: ListenerConfig) -> Forwarding | None:
    if config.forwarded == "x-forwarded" and not (config.trusted_hops or config.trusted_addresses or config.trusted_proxies):
        return None
    from meshguard.pipeline.forwarding import Forwarding
    from meshguard.wire.forwarded import parse_networks

    return Forwarding(config.forwarded, config.trusted_hops, parse_networks(config.trusted_addresses))


def _strict_transport(config: HstsConfig) -> str:
    """The field's value (RFC 6797 section 6.1)."""
    return f"max-age={config.max_age_s}" + "; includeSubDomains" * config.include_subdomains + "; preload" * config.preload


def _only_route(name: str, config: ListenerConfig, fields: Mapping[str, str], contracts: Contracts) -> Route:
    """Everything to one cluster (`to` of the listener)."""
    return Route(
        name,
        config.to or "",
        response_operations=_operations(HeaderChanges(set=dict(fields))),
        websocket=config.websocket == "allow",
        contract=contracts[config.validation] if config.validation is not None else None,
    )


def _route(
    config: RouteConfig, fields: Mapping[str, str], listener: ListenerConfig, contracts: Contracts, writer: TokenWriter | None
) -> Route:
    """`fields` are set on every response, where the route itself does not set them."""
    principals = principal_matcher(config.principals) if config.principals else None
    validation = config.validation or listener.validation
    options = config.path
    strict = (options.encoded_slash, options.double_encoding, options.params, options.backslash) == ("reject",) * 4
    return Route(
        config.id,
        config.to,
        hosts=authority_matcher(config.authorities) if config.authorities else None,
        paths=path_matcher(config.paths) if config.paths else None,
        methods=frozenset(config.methods) if config.methods else None,
        headers=tuple((key.lower().encode("ascii"), value.encode("latin-1")) for key, value in config.headers.items()),
        principals=None if principals is None else lambda caller: caller is not None and principals(caller),
        options=STRICT if strict else PathOptions(options.encoded_slash, options.double_encoding, options.params, options.backslash),
        request_operations=_operations(config.request_headers),
        response_operations=_operations(config.response_headers.model_copy(update={"set": {**fields, **config.response_headers.set}})),
        response_s=config.timeouts.response_s,
        total_s=config.timeouts.total_s or 0.0,
        keep_trailers=config.trailers == "keep",
        websocket=(config.websocket or listener.websocket) == "allow",
        body_bytes=config.limits.body_bytes,
        attempts=config.retries.attempts,
        contract=contracts[validation] if validation is not None else None,
        token_writer=writer,
        fallback=_fallback(config.fallback) if config.fallback is not None else None,
    )


def _fallback(config: FallbackConfig) -> Fallback:
    from meshguard.pipeline.fallback import Fallback

    respond = config.respond
    if respond is None:
        return Fallback(config.when, config.to or "")
    lines = {"cache-control": "no-store", **{key.lower(): value for key, value in respond.headers.items()}}
    if respond.body:
        lines["content-type"] = respond.content_type
    block = b"".join(b"%b: %b\r\n" % (key.encode("ascii"), value.encode("latin-1")) for key, value in lines.items())
    return Fallback(config.when, config.to or "", respond.status, block, respond.body.encode(), respond.grpc_status)


def _operations(changes: HeaderChanges) -> HeaderOperations | None:
    if not (changes.set or changes.append or changes.remove):
        return None
    return HeaderOperations(
        [(key.encode("ascii"), value.encode("latin-1")) for key, value in changes.set.items()],
        [(key.encode("ascii"), value.encode("latin-1")) for key, value in changes.append.items()],
        [key.encode("ascii") for key in changes.remove],
    )


def path_matcher(patterns: Sequence[str]) -> Callable[[str], str | None]:
    """Matches canonical paths; gives the first template that matches. The same templates as in policies."""
    compiled = [(re.compile(_expression(pattern)).fullmatch, pattern) for pattern in patterns]

    def match(path: str) -> str | None:
        for matches, pattern in compiled:
            if matches(path):
                return pattern
        return None

    return match


def _expression(pattern: str) -> str:
    template = parse_template(pattern)
    text = "".join("/" + _segment(segment, "[^/]") for segment in template.segments)
    return text + "(?:/.*)?" if template.rest else text or "/"


def _segment(segment: str | Parameter, character: str) -> str:
    if isinstance(segment, Parameter):
        return f"{re.escape(segment.prefix)}{character}+{re.escape(segment.suffix)}"
    return re.escape(segment)


def principal_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Matches SPIFFE IDs byte for byte against exact IDs and patterns. The same patterns as in policies."""
    parsed = [parse_principal(pattern) for pattern in patterns]
    exact = frozenset(pattern.text for pattern in parsed if pattern.exact)
    expressions = [
        re.compile(
            "spiffe://" + "/".join(_segment(segment, "[^/]") for segment in pattern.segments) + ("/.+" if pattern.rest else "")
        ).fullmatch
        for pattern in parsed
        if not pattern.exact
    ]

    def matches(spiffe_id: str) -> bool:
        return spiffe_id in exact or any(expression(spiffe_id) for expression in expressions)

    return matches
