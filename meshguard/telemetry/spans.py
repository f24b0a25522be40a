"""Finished requests as OpenTelemetry spans: a SERVER span for what the caller asked, a CLIENT span below it for the upstream call.

Attributes and rules are those of the stable HTTP semantic conventions; `meshguard.*` tell the decision. Only requests that are
recorded (`telemetry.span_ids`) are encoded; for all others this costs one test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from meshguard.model.record import RequestRecord
from meshguard.telemetry.otlp_encoding import CLIENT, SERVER, STATUS_ERROR, STATUS_UNSET, Repeating, span, span_attribute
from meshguard.telemetry.outcome import METHODS, error_type, method_name, protocol_version, verdict_name
from meshguard.telemetry.span_ids import SpanIds

__all__ = ["SCHEMA_URL", "SpanRecorder", "SpanSink", "redacted_query"]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.27.0"
"""The version of the semantic conventions that these attributes follow."""

_MAX_PATH = 2048
_MAX_HOST = 255
_MAX_USER_AGENT = 256
_MAX_QUERY_PARTS = 20
_MAX_NAME = 200

_USER_AGENT = re.compile(rb"(?:\A|\n)[Uu][Ss][Ee][Rr]-[Aa][Gg][Ee][Nn][Tt]:[ \t]*([^\r\n]*)").search
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z_.\-\[\]]{0,31}").fullmatch  # no digits: an account number is not a name
_REDACTED = "REDACTED"


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
    """A consumer of finished requests (`telemetry.observe`). `scheme(cluster)` tells how its endpoints are called, "http" or "https"."""

    def __init__(self, sink: SpanSink, ids: SpanIds, scheme: Callable[[str], str] = lambda cluster: "http") -> None:
        self._sink = sink
        self._ids = ids
        self._scheme = scheme
        self._spans: list[bytes] = []
        self._method = Repeating("http.request.method")
        self._status = Repeating("http.response.status_code")
        self._route = Repeating("http.route")
        self._template = Repeating("url.template")
        self._url_scheme = Repeating("url.scheme")
        self._server_address = Repeating("server.address")
        self._server_port = Repeating("server.port")
        self._peer_address = Repeating("network.peer.address")
        self._peer_port = Repeating("network.peer.port")
        self._client_address = Repeating("client.address")
        self._version = Repeating("network.protocol.version")
        self._tls = Repeating("tls.protocol.version")
        self._error = Repeating("error.type")
        self._agent = Repeating("user_agent.original")
        self._decision = Repeating("meshguard.decision")
        self._rule = Repeating("meshguard.rule")
        self._reason = Repeating("meshguard.reason")
        self._principal = Repeating("meshguard.principal")
        self._digest = Repeating("meshguard.policy_digest")
        self._listener = Repeating("meshguard.listener")
        self._cluster = Repeating("meshguard.cluster")

    def consume(self, records: Sequence[RequestRecord], clock_offset: float) -> None:
        """Encode the spans of those records that are recorded."""
        recorded = self._ids.recorded
        spans = self._spans
        for record in records:
            if recorded(record):
                server_id = self._ids.server_span_id(record)
                trace_id = self._ids.trace_id(record)
                spans.append(self._server(record, trace_id, server_id, clock_offset))
                if record.forwarded and record.client_span_id:
                    spans.append(self._client(record, trace_id, server_id, clock_offset))

    def flush(self) -> None:
        """Hand the spans to the sink."""
        spans = self._spans
        if spans:
            self._spans = []
            self._sink.add(b"".join(spans), len(spans))

    def _server(self, record: RequestRecord, trace_id: bytes, span_id: bytes, clock_offset: float) -> bytes:
        peer = record.peer
        plan = record.plan
        head = record.head
        verdict = record.verdict
        refusal = record.refusal
        status = record.status
        raw_method = plan.method if plan is not None else head.method.decode("latin-1") if head is not None else ""
        attributes = [
            self._method[method_name(raw_method)],
            self._url_scheme["https" if peer.tls_version else "http"],
            self._server_port[peer.local_port],
            self._peer_address[peer.client_address],
            span_attribute("network.peer.port", peer.client_port),
            self._client_address[peer.client_address],
            self._version[protocol_version(peer.protocol)],
            self._decision[verdict_name(type(verdict), refusal)],
            self._listener[peer.listener],
            span_attribute("meshguard.decision_id", record.decision_id),
        ]
        if status:
            attributes.append(self._status[status])
        if raw_method and raw_method not in METHODS:
            attributes.append(span_attribute("http.request.method_original", raw_method[:32]))
        template = ""
        if plan is not None:
            template = plan.template
            attributes.append(span_attribute("url.path", _capped(plan.path, _MAX_PATH)))
            attributes.append(self._server_address[_capped(plan.host, _MAX_HOST)])
            if template:
                attributes.append(self._route[template])
        if head is not None:
            query = _query(head.target)
            if query:
                attributes.append(span_attribute("url.query", query))
            agent = _USER_AGENT(head.block)
            if agent is not None:
                attributes.append(self._agent[agent[1][:_MAX_USER_AGENT].decode("utf-8", "backslashreplace")])
        if peer.tls_version:
            attributes.append(self._tls[peer.tls_version.removeprefix("TLSv")])
        if peer.principal is not None:
            attributes.append(self._principal[peer.principal.spiffe_id])
        if verdict is not None:
            attributes.append(self._digest[verdict.policy_digest])
            if verdict.rule_id:
                attributes.append(self._rule[verdict.rule_id])
        if refusal is not None:
            attributes.append(self._reason[refusal.code])
        failed = error_type(status, refusal, record.aborted)
        if failed:
            attributes.append(self._error[failed])
        return span(
            trace_id,
            span_id,
            record.parent_id,
            _name(raw_method, template),
            SERVER,
            int((record.started + clock_offset) * 1e9),
            int((max(record.ended, record.started) + clock_offset) * 1e9),
            attributes,
            STATUS_ERROR if failed else STATUS_UNSET,
            record.sampled,
        )

    def _client(self, record: RequestRecord, trace_id: bytes, server_id: bytes, clock_offset: float) -> bytes:
        plan = record.plan
        head = record.head
        refusal = record.refusal
        raw_method = plan.method if plan is not None else ""
        template = plan.template if plan is not None else ""
        address, _, port = record.upstream.rpartition(":")
        address = address.strip("[]")
        attributes = [self._method[method_name(raw_method)], self._server_address[address], self._peer_address[address]]
        if port.isdigit():
            attributes.append(self._server_port[int(port)])
            attributes.append(self._peer_port[int(port)])
        if plan is not None:
            query = _query(head.target) if head is not None else ""
            url = f"{self._scheme(plan.cluster)}://{_capped(plan.host, _MAX_HOST)}{_capped(plan.path, _MAX_PATH)}"
            attributes.append(span_attribute("url.full", f"{url}?{query}" if query else url))
            attributes.append(self._cluster[plan.cluster])
            if template:
                attributes.append(self._template[template])
        if record.attempts > 1:
            attributes.append(span_attribute("http.request.resend_count", record.attempts - 1))
        failed = ""
        if refusal is not None:
            failed = refusal.code  # the upstream's own status is not known then
        elif record.status:
            attributes.append(self._status[record.status])
            if record.status >= 400:  # unlike on the server's side, a 4xx is an error of the one who called
                failed = str(record.status)
        if record.aborted:
            failed = f"aborted_by_{record.aborted}"
        if failed:
            attributes.append(self._error[failed])
        return span(
            trace_id,
            record.client_span_id,
            server_id,
            _name(raw_method, template),
            CLIENT,
            int((record.forwarded + clock_offset) * 1e9),
            int((max(record.ended, record.forwarded) + clock_offset) * 1e9),
            attributes,
            STATUS_ERROR if failed else STATUS_UNSET,
            record.sampled,
        )


def _name(method: str, template: str) -> bytes:
    """`{method} {http.route}`: never the path. A method that is not known is "HTTP" in a name (semantic conventions, HTTP spans)."""
    name = method if method in METHODS else "HTTP"
    return f"{name} {template[:_MAX_NAME]}".encode() if template else name.encode()


def _query(target: bytes) -> str:
    mark = target.find(b"?")
    return redacted_query(target[mark + 1 :].decode("latin-1")) if mark >= 0 else ""


def _capped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
