"""Finished requests as OpenTelemetry spans: a SERVER span for what the caller asked, a CLIENT span below it for the upstream call.

Attributes and rules are those of the stable HTTP semantic conventions; `meshguard.*` tell the decision. Only requests that are
recorded (`telemetry.span_ids`) are encoded; for all others this costs one test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from meshguard.model.principal import Principal
from meshguard.model.reasons import Reason
from meshguard.model.record import RequestRecord
from meshguard.model.verdicts import Denial, Permit
from meshguard.telemetry.otlp_encoding import (
    CLIENT,
    SERVER,
    STATUS_ERROR,
    STATUS_UNSET,
    AttributeValue,
    NumberAttribute,
    TextAttribute,
    span,
    span_attribute,
    span_name,
)
from meshguard.telemetry.outcome import GRPC_SERVER_ERRORS, METHODS, error_type, grpc_status, method_name, protocol_version, verdict_name
from meshguard.telemetry.span_ids import SpanIds

__all__ = ["SCHEMA_URL", "SpanRecorder", "SpanSink", "redacted_query"]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.27.0"
"""The version of the semantic conventions that these attributes follow."""

_MAX_PATH = 2048
_MAX_HOST = 255
_MAX_USER_AGENT = 256
_MAX_QUERY_PARTS = 20
_MAX_NAME = 200
_MAX_METHOD = 32
_CACHE = 1024

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z_.\-\[\]]{0,31}").fullmatch  # no digits: an account number is not a name
_REDACTED = "REDACTED"
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_Decided = tuple[type[Permit | Denial] | type[None], Reason | None, str | None, str, str]


class SpanSink(Protocol):
    """Where encoded spans go."""

    def add(self, spans: bytes, count: int) -> None:
        """Take over `count` encoded spans. Never blocks, never raises."""


def redacted_query(query: str) -> str:
    """The shape of a query: names that look like names, every value replaced; what has no value or an odd name is replaced whole."""
    parts = query.split("&", _MAX_QUERY_PARTS)
    told = []
    for part in parts[:_MAX_QUERY_PARTS]:
        key, equals, _ = part.partition("=")
        told.append(f"{key}={_REDACTED}" if equals and _PLAIN_KEY(key) else _REDACTED)
    if len(parts) > _MAX_QUERY_PARTS:
        told.append("…")
    return "&".join(told)


class SpanRecorder:
    """A consumer of finished requests (`telemetry.observe`). `scheme(cluster)` tells how its endpoints are called, "http" or "https".

    Attributes that repeat are encoded once for each combination that occurs: those of the connection, of the request and of the decision.
    """

    def __init__(self, sink: SpanSink, ids: SpanIds, scheme: Callable[[str], str] = lambda cluster: "http") -> None:
        self._sink = sink
        self._ids = ids
        self._scheme = scheme
        self._spans: list[bytes] = []
        self._connections: dict[tuple[str, str, str, int, str, str], bytes] = {}
        self._requests: dict[tuple[str, str, str, int], tuple[bytes, bytes]] = {}
        self._decisions: dict[_Decided, bytes] = {}
        self._upstreams: dict[tuple[str, str, str, str, str, int, Reason | None, str], tuple[bytes, bytes, bool]] = {}
        self._agents: dict[bytes, bytes] = {}
        self._path = TextAttribute("url.path")
        self._query = TextAttribute("url.query")
        self._full = TextAttribute("url.full")
        self._decision_id = TextAttribute("meshguard.decision_id")
        self._peer_port = NumberAttribute("network.peer.port")

    def consume(self, records: Sequence[RequestRecord], clock_offset: float) -> None:
        """Encode the spans of what is recorded. A record that cannot be encoded harms no other; its error is raised at the end."""
        ids = self._ids
        recorded = ids.recorded
        spans = self._spans
        broken: Exception | None = None
        for record in records:
            try:
                if recorded(record):
                    server_id = ids.server_span_id(record)
                    trace_id = ids.trace_id(record)
                    head = record.head
                    query = _query(head.target) if head is not None else ""
                    spans.append(self._server(record, trace_id, server_id, query, clock_offset))
                    if record.forwarded and record.client_span_id:
                        spans.append(self._client(record, trace_id, server_id, query, clock_offset))
            except Exception as exc:
                broken = exc
        if broken is not None:
            raise broken

    def flush(self) -> None:
        """Hand the spans to the sink."""
        spans = self._spans
        if spans:
            self._spans = []
            self._sink.add(b"".join(spans), len(spans))

    def _server(self, record: RequestRecord, trace_id: bytes, span_id: bytes, query: str, clock_offset: float) -> bytes:
        peer = record.peer
        plan = record.plan
        head = record.head
        verdict = record.verdict
        refusal = record.refusal
        status = record.status
        attributes: list[bytes] = []

        connection = (peer.listener, peer.protocol, peer.tls_version, peer.local_port, peer.client_address, record.client_address)
        attributes.append(self._connections.get(connection) or self._new_connection(connection))
        attributes.append(self._peer_port.encoded(peer.client_port))
        attributes.append(self._decision_id.encoded(record.decision_id))
        if plan is not None:
            request = (plan.method, plan.template, plan.host, status)
            path = plan.path
            attributes.append(self._path.encoded(path if len(path) <= _MAX_PATH else _capped(path, _MAX_PATH)))
        else:
            request = (head.method.decode("latin-1") if head is not None else "", "", "", status)
        name, encoded = self._requests.get(request) or self._new_request(request)
        attributes.append(encoded)
        decided: _Decided
        if verdict is not None:
            decided = (verdict.__class__, refusal, verdict.rule_id, verdict.policy_digest, _spiffe_id(record.principal))
        else:
            decided = (type(None), refusal, None, "", _spiffe_id(record.principal))
        attributes.append(self._decisions.get(decided) or self._new_decision(decided))
        if query:
            attributes.append(self._query.encoded(query))
        if head is not None:
            agent = _user_agent(head.block)
            if agent:
                attributes.append(self._agents.get(agent) or self._new_agent(agent))
        websocket = record.websocket
        if websocket is not None and websocket.closed_by:
            attributes.append(span_attribute("meshguard.websocket.close_code", websocket.close_code))
            attributes.append(span_attribute("meshguard.websocket.closed_by", websocket.closed_by))
        failed = status >= 500 or not status or record.aborted
        if failed:
            error = error_type(status, refusal, record.aborted)
            attributes.append(span_attribute("error.type", error))
        if record.grpc_end:
            code = grpc_status(record.grpc_end) or 0
            attributes.append(span_attribute("rpc.grpc.status_code", code))
            if code in GRPC_SERVER_ERRORS and not failed:
                failed = True
                attributes.append(span_attribute("error.type", str(code)))
        return span(
            trace_id,
            span_id,
            record.parent_id,
            name,
            SERVER,
            int((record.started + clock_offset) * 1e9),
            int((max(record.ended, record.started) + clock_offset) * 1e9),
            attributes,
            STATUS_ERROR if failed else STATUS_UNSET,
            record.sampled,
        )

    def _client(self, record: RequestRecord, trace_id: bytes, server_id: bytes, query: str, clock_offset: float) -> bytes:
        plan = record.plan
        method, template, cluster = (plan.method, plan.template, plan.cluster) if plan is not None else ("", "", "")
        call = (method, template, cluster, record.upstream, record.upstream_protocol, record.status, record.refusal, record.aborted)
        name, encoded, failed = self._upstreams.get(call) or self._new_upstream(call)
        attributes = [encoded]
        if plan is not None:
            port = f":{plan.port}" if plan.port else ""
            url = f"{self._scheme(cluster)}://{_capped(plan.host, _MAX_HOST)}{port}{_capped(plan.path, _MAX_PATH)}"
            attributes.append(self._full.encoded(f"{url}?{query}" if query else url))
        if record.attempts:
            attributes.append(span_attribute("http.request.resend_count", record.attempts))
        return span(
            trace_id,
            record.client_span_id,
            server_id,
            name,
            CLIENT,
            int((record.forwarded + clock_offset) * 1e9),
            int((max(record.ended, record.forwarded) + clock_offset) * 1e9),
            attributes,
            STATUS_ERROR if failed else STATUS_UNSET,
            record.sampled,
        )

    def _new_connection(self, key: tuple[str, str, str, int, str, str]) -> bytes:
        listener, protocol, tls_version, local_port, peer_address, client_address = key
        told: dict[str, AttributeValue] = {
            "url.scheme": "https" if tls_version else "http",
            "server.port": local_port,
            "client.address": client_address,
            "network.peer.address": peer_address,
            "network.protocol.version": protocol_version(protocol),
            "meshguard.listener": listener,
        }
        if tls_version:
            told["tls.protocol.version"] = tls_version.removeprefix("TLSv")
        return _kept(self._connections, key, _encoded(told))

    def _new_request(self, key: tuple[str, str, str, int]) -> tuple[bytes, bytes]:
        method, template, host, status = key
        told: dict[str, AttributeValue] = {"http.request.method": method_name(method)}
        if method and method not in METHODS:
            told["http.request.method_original"] = method[:_MAX_METHOD]
        if status:
            told["http.response.status_code"] = status
        if host:
            told["server.address"] = _capped(host, _MAX_HOST)
        if template:
            told["http.route"] = template
        return _kept(self._requests, key, (_name(method, template), _encoded(told)))

    def _new_decision(self, key: _Decided) -> bytes:
        verdict, refusal, rule_id, digest, principal = key
        told: dict[str, AttributeValue] = {"meshguard.decision": verdict_name(verdict, refusal)}
        if refusal is not None:
            told["meshguard.reason"] = refusal.code
        if rule_id:
            told["meshguard.rule"] = rule_id
        if digest:
            told["meshguard.policy_digest"] = digest
        if principal:
            told["meshguard.principal"] = principal
        return _kept(self._decisions, key, _encoded(told))

    def _new_upstream(self, key: tuple[str, str, str, str, str, int, Reason | None, str]) -> tuple[bytes, bytes, bool]:
        method, template, cluster, upstream, protocol, status, refusal, aborted = key
        address, _, port = upstream.rpartition(":")
        address = address.strip("[]")
        told: dict[str, AttributeValue] = {
            "http.request.method": method_name(method),
            "server.address": address,
            "network.peer.address": address,
            "meshguard.cluster": cluster,
        }
        if port.isdigit():
            told["server.port"] = told["network.peer.port"] = int(port)
        if protocol:
            told["network.protocol.version"] = protocol_version(protocol)
        if template:
            told["url.template"] = template
        failed = ""
        if refusal is not None:
            failed = refusal.code  # the upstream's own status is not known then
        elif status:
            told["http.response.status_code"] = status
            if status >= 400:  # unlike on the server's side, a 4xx is an error of the one who called
                failed = str(status)
        if aborted:
            failed = f"aborted_by_{aborted}"
        if failed:
            told["error.type"] = failed
        return _kept(self._upstreams, key, (_name(method, template), _encoded(told), bool(failed)))

    def _new_agent(self, agent: bytes) -> bytes:
        text = agent[:_MAX_USER_AGENT].decode("utf-8", "backslashreplace")
        return _kept(self._agents, agent, span_attribute("user_agent.original", text))


def _encoded(attributes: Mapping[str, AttributeValue]) -> bytes:
    return b"".join(span_attribute(key, value) for key, value in attributes.items())


def _kept(cache: dict[_Key, _Value], key: _Key, value: _Value) -> _Value:
    """Remember `value`; a full cache starts anew, because its keys come from clients."""
    if len(cache) >= _CACHE:
        cache.clear()
    cache[key] = value
    return value


def _spiffe_id(principal: Principal | None) -> str:
    return principal.spiffe_id if principal is not None else ""


def _user_agent(block: bytes) -> bytes:
    """The value of the first User-Agent field of a block."""
    at = block.find(b"User-Agent:")  # the usual spellings first: lowering the block costs more than both
    if at < 0:
        at = block.find(b"user-agent:")
    if at < 0 or (at > 0 and block[at - 1] != 0x0A):  # another spelling, or in the middle of another field
        lowered = block.lower()
        at = lowered.find(b"user-agent:")
        while at > 0 and lowered[at - 1] != 0x0A:
            at = lowered.find(b"user-agent:", at + 1)
        if at < 0:
            return b""
    end = block.find(b"\r", at)
    return block[at + 11 : end if end >= 0 else None].strip(b" \t")[:_MAX_USER_AGENT]


def _name(method: str, template: str) -> bytes:
    """`{method} {http.route}` as a field: never the path. An unknown method is "HTTP" in a name (semantic conventions)."""
    name = method if method in METHODS else "HTTP"
    return span_name(f"{name} {template[:_MAX_NAME]}" if template else name)


def _query(target: bytes) -> str:
    mark = target.find(b"?")
    return redacted_query(target[mark + 1 :].decode("latin-1")) if mark >= 0 else ""


def _capped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
