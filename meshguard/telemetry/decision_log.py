"""One JSON line per request: who called what, when, why it was allowed or not, and how it ended.

Schema `meshguard.decision/1` (keys marked ? are left out when there is nothing to say; new keys may come, none changes its meaning):

    schema, id, time        time: when the request head was complete, RFC 3339, UTC, microseconds
    who                     principal? (SPIFFE ID), svid? {trust_domain, serial, thumbprint}, proxy? (SPIFFE ID of the one that spoke for
                            the principal; there is no svid then), subject? (sub of the verified JWT), user? (jwt:ISSUER#SUB), address,
                            port, via? (the peer, where trusted proxies told of another client), chain? (callers, by a decision token)
    what                    method, host, path (canonical), route, cluster, listener, protocol, tls, port, request_bytes,
                            response_bytes, direction? (outbound: a call of the own workload), query_bytes?
    why                     verdict (allow, deny, refuse, error), rule?, reason?, detail?, near_miss? {rule, condition, detail?},
                            shadow? [{rule, effect}], policy_digest?, policy_revision?, body? (judged: rules have looked at it)
    outcome                 status (0: none was sent), upstream?, attempts (how often one was tried), duration_us,
                            upstream_us? (until its response head), aborted?, websocket? {close (code), by},
                            fallback? {because (a reason), cluster? or status?, detail?}: what the route had instead of its cluster
    fields?                 [{operation, field, keyset?, version?, count}]: what was done to protected fields, never their values
    candidate?              {effect (would_allow, would_deny, error), rule?, reason?, nearest?, policy_digest?}: what a candidate policy
                            beside the live one would have decided otherwise
    controls?               {satisfied?, violated?}: ids of the controls of configured packs that this request was judged by
    trace_id?, span_id?, sampled?
and, where records were lost, a line {schema, gap: N, since, time} in their place.

Of a query only its length is told: a name can be as secret as a value (`?123-45-6789`). Text of the client is cut to a limit (marked by
an ellipsis) and escaped by the JSON encoder: a line has exactly one newline, at its end.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from meshguard.model.principal import Principal
from meshguard.model.reasons import Reason
from meshguard.model.record import PlanFacts, RequestRecord
from meshguard.model.verdicts import CandidateResult, Denial, Permit
from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.outcome import grpc_status, verdict_name
from meshguard.telemetry.span_ids import SpanIds
from meshguard.telemetry.usual_decision import UsualDecision

if TYPE_CHECKING:
    from meshguard.telemetry.controls import Citations

__all__ = ["MAX_DETAIL", "MAX_HOST", "MAX_METHOD", "MAX_PATH", "MAX_SUBJECT", "SCHEMA", "DecisionLog", "DecisionSink", "gap_line"]

SCHEMA = "meshguard.decision/1"
MAX_METHOD = 32
MAX_HOST = 255
MAX_PATH = 2048
MAX_SUBJECT = 256
MAX_DETAIL = 512

_HANDOVER_BYTES = 64 * 1024  # lines are handed to the sink in pieces of this size: waking its thread costs some 10 us
_CACHE = 1024  # entries of a cache of JSON fragments; it starts anew when full
_THREE = tuple(f"{number:03d}" for number in range(1000))  # two look-ups cost a third of formatting six digits
_NEWLINE = orjson.OPT_APPEND_NEWLINE
_SORTED = orjson.OPT_SORT_KEYS
_USER_INFO = re.compile(r"^([^/?#]*//)?[^/?#]*@")


class DecisionSink(Protocol):
    """Where decision records go."""

    def write(self, lines: bytes, count: int) -> None:
        """Take over `count` records, one JSON line each. Never blocks, never raises: what cannot be kept is counted by the sink."""


def gap_line(count: int, since: float, now: float | None = None) -> bytes:
    """The line that stands for `count` lost records; the first was lost at `since` (epoch seconds)."""
    written = time.time() if now is None else now
    return orjson.dumps({"schema": SCHEMA, "gap": count, "since": _rfc3339(since), "time": _rfc3339(written)}, option=_NEWLINE)


class DecisionLog:
    """A consumer of finished requests (`telemetry.observe`) that writes their records to a sink.

    `spans` tells which requests have spans, so that their id is put on record; None when no spans are exported. `fed`: the lines come
    by `keep`, from the ledger, which has them already; `consume` then does nothing.
    """

    def __init__(self, sink: DecisionSink, registry: Registry, spans: SpanIds | None = None, *, fed: bool = False) -> None:
        self._fed = fed
        self.controls: Citations | None = None  # for requests that were refused before there was a plan
        self._sink = sink
        self._spans = spans
        self._lines: list[bytes] = []
        self._size = 0
        self._svids: dict[str, orjson.Fragment] = {}
        self._permits: dict[tuple[str, str, int], orjson.Fragment] = {}
        self._usual = UsualDecision(spans, self._why_of, self._svid_of).tell
        self._second = -1
        self._prefix = ""
        self._unwritable = registry.counter(
            "meshguard.decision_log.reduced", "Records of which only the id could be written", "{record}"
        ).labels()

    def consume(self, records: Sequence[RequestRecord], clock_offset: float) -> None:
        """Turn these records into lines."""
        if self._fed:
            return
        lines = self._lines
        size = self._size
        for record in records:
            line = self.tell(record, clock_offset)
            lines.append(line)
            lines.append(b"\n")
            size += len(line)
        self._size = size
        if size >= _HANDOVER_BYTES:
            self.flush()

    def tell(self, record: RequestRecord, clock_offset: float) -> bytes:
        """The record as canonical JSON (keys sorted, no newline): the line of this log, and the entry of the ledger."""
        try:
            when = record.started + clock_offset
            second = int(when)
            if second != self._second:
                self._second = second
                self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            micros = int((when - second) * 1e6)
            return self._usual(record, self._prefix, micros) or self._line(record, micros)
        except Exception:  # outermost loop of the log: a record that cannot be told still leaves a line
            self._unwritable.value += 1
            return _reduced(record, clock_offset)

    def keep(self, line: bytes) -> None:
        """Takes a line that `tell` has made."""
        self._lines.append(line)
        self._lines.append(b"\n")
        self._size += len(line)
        if self._size >= _HANDOVER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand the lines to the sink."""
        lines = self._lines
        if lines:
            self._lines = []
            self._size = 0
            self._sink.write(b"".join(lines), len(lines) // 2)

    def _line(self, record: RequestRecord, micros: int) -> bytes:
        peer = record.peer
        plan = record.plan
        verdict = record.verdict
        refusal = record.refusal
        head = record.head
        started = record.started
        ended = record.ended

        who: dict[str, object] = {"address": record.client_address, "port": peer.client_port}
        if who["address"] != peer.client_address:
            who["via"] = peer.client_address
        principal = record.principal
        if principal is not None:
            who["principal"] = principal.spiffe_id
            if peer.proxy:
                who["proxy"] = peer.proxy  # it has seen the certificate; we have not
            else:
                who["svid"] = self._svid_of(principal)
        if record.chain:
            who["chain"] = list(record.chain)
        if record.subject:
            who["subject"] = _capped(record.subject, MAX_SUBJECT)
            if record.issuer:
                who["user"] = _capped(f"jwt:{record.issuer}#{record.subject}", MAX_DETAIL)

        if plan is not None:
            path = plan.path
            what: dict[str, object] = {
                "method": plan.method if len(plan.method) <= MAX_METHOD else _capped(plan.method, MAX_METHOD),
                "host": plan.host if len(plan.host) <= MAX_HOST else _capped(plan.host, MAX_HOST),
                "path": path if len(path) <= MAX_PATH else _capped(path, MAX_PATH),
                "route": plan.route,
                "cluster": plan.cluster,
                "listener": peer.listener,
                "protocol": peer.protocol,
                "tls": peer.tls_version,
                "port": peer.local_port,
                "request_bytes": record.request_bytes,
                "response_bytes": record.response_bytes,
            }
            revision = plan.policy_revision
        else:
            method, host, path = _as_sent(record)
            what = {
                "method": method,
                "host": host,
                "path": path,
                "route": "",
                "cluster": "",
                "listener": peer.listener,
                "protocol": peer.protocol,
                "tls": peer.tls_version,
                "port": peer.local_port,
                "request_bytes": record.request_bytes,
                "response_bytes": record.response_bytes,
            }
            revision = 0
        if peer.outbound:
            what["direction"] = "outbound"
        if head is not None:
            mark = head.target.find(b"?")
            if mark >= 0:
                what["query_bytes"] = len(head.target) - mark - 1

        why: orjson.Fragment | dict[str, object]
        if refusal is None and verdict.__class__ is Permit and not verdict.shadow and not record.detail and not record.body_judged:
            why = self._why_of(verdict, revision)
        else:
            why = _why(verdict, refusal, record.detail, revision)
            if record.body_judged:
                why["body"] = "judged"

        upstream = record.upstream
        outcome: dict[str, object] = {
            "status": record.status,
            "attempts": record.attempts + 1 if upstream else record.attempts,  # the record counts those after the first
            "duration_us": int((ended - started) * 1e6) if ended else 0,
        }
        if upstream:
            outcome["upstream"] = upstream
            if record.answered:
                outcome["upstream_us"] = int((record.answered - record.forwarded) * 1e6)
        if record.aborted:
            outcome["aborted"] = record.aborted
        websocket = record.websocket
        if websocket is not None and websocket.closed_by:
            outcome["websocket"] = {"close": websocket.close_code, "by": websocket.closed_by}
        if record.grpc_end:
            outcome["grpc_status"] = grpc_status(record.grpc_end)

        line: dict[str, object] = {
            "schema": SCHEMA,
            "id": record.decision_id,
            "time": f"{self._prefix}{_THREE[micros // 1000]}{_THREE[micros % 1000]}Z",
            "who": who,
            "what": what,
            "why": why,
            "outcome": outcome,
        }
        if plan is None:
            if self.controls is not None:
                line["controls"] = self.controls.cite(record).fragment
        elif plan.extra:
            _add_extras(line, outcome, record, plan)
        if record.operations:
            line["fields"] = [_operation(act) for act in record.operations]
        if record.trace_id:
            line["trace_id"] = record.trace_id.decode("latin-1")
        spans = self._spans
        if spans is not None and spans.recorded(record):
            line["trace_id"] = spans.trace_id(record).decode("latin-1")
            line["span_id"] = spans.server_span_id(record).decode("latin-1")
            line["sampled"] = record.sampled
        try:
            return orjson.dumps(line, option=_SORTED)
        except TypeError:  # text that is not valid Unicode (lone surrogates): said with escapes
            return orjson.dumps(_encodable(line), option=_SORTED)

    def _svid_of(self, principal: Principal) -> orjson.Fragment:
        known = self._svids.get(principal.thumbprint)
        if known is not None:
            return known
        if len(self._svids) >= _CACHE:
            self._svids.clear()
        made = orjson.Fragment(
            orjson.dumps(
                _encodable({"trust_domain": principal.trust_domain, "serial": principal.serial, "thumbprint": principal.thumbprint}),
                option=_SORTED,
            )
        )
        self._svids[principal.thumbprint] = made
        return made

    def _why_of(self, verdict: Permit, revision: int) -> orjson.Fragment:
        permit = (verdict.rule_id, verdict.policy_digest, revision)
        known = self._permits.get(permit)
        if known is not None:
            return known
        if len(self._permits) >= _CACHE:
            self._permits.clear()
        rule_id, digest, revision = permit
        why = {"verdict": "allow", "rule": rule_id, "policy_digest": digest, "policy_revision": revision}
        made = self._permits[permit] = orjson.Fragment(orjson.dumps(_encodable(why), option=_SORTED))
        return made


def _why(verdict: Permit | Denial | None, refusal: Reason | None, detail: str, revision: int) -> dict[str, object]:
    why: dict[str, object] = {"verdict": verdict_name(type(verdict), refusal)}
    if isinstance(verdict, Denial):
        why["reason"] = (refusal or verdict.reason).code
        near = verdict.near_miss
        if near is not None:
            miss: dict[str, object] = {"rule": near.rule_id, "condition": near.condition}
            if near.detail:
                miss["detail"] = _capped(near.detail, MAX_DETAIL)
            why["near_miss"] = miss
    elif refusal is not None:
        why["reason"] = refusal.code
    if verdict is not None:
        if verdict.rule_id:
            why["rule"] = verdict.rule_id
        if verdict.shadow:
            why["shadow"] = [{"rule": result.rule_id, "effect": result.effect} for result in verdict.shadow]
        why["policy_digest"] = verdict.policy_digest
        why["policy_revision"] = revision
    if detail:
        why["detail"] = _capped(detail, MAX_DETAIL)
    return why


def _add_extras(line: dict[str, object], outcome: dict[str, object], record: RequestRecord, plan: PlanFacts) -> None:
    """What only some configurations have: controls of packs, a candidate policy, a fallback of the route."""
    candidate = getattr(record, "candidate", None) if plan.candidate is not None else None
    if candidate is not None and candidate.effect != "same":
        line["candidate"] = _candidate(candidate)
    if plan.controls is not None:
        line["controls"] = plan.controls.cite(record).fragment
    fallback = getattr(record, "fallback", None) if plan.fallback is not None else None
    if fallback is not None:
        outcome["fallback"] = fallback


def _candidate(result: CandidateResult) -> dict[str, object]:
    told = {"rule": result.rule_id, "reason": result.reason, "nearest": result.nearest, "policy_digest": result.policy_digest}
    return {"effect": result.effect, **{key: value for key, value in told.items() if value}}


def _operation(act: Any) -> dict[str, object]:
    told: dict[str, object] = {"operation": act.operation, "field": act.field, "count": act.count}
    if act.keyset:
        told["keyset"] = act.keyset
        told["version"] = act.version
    return told


def _as_sent(record: RequestRecord) -> tuple[str, str, str]:
    """Method, host and path of a head whose target was refused: as sent, without query, fragment and user info."""
    head = record.head
    if head is None:
        return "", "", ""
    target = re.split(r"[?#]", head.target.decode("utf-8", "backslashreplace"), maxsplit=1)[0]
    return (
        _capped(head.method.decode("utf-8", "backslashreplace"), MAX_METHOD),
        _capped(_USER_INFO.sub("", head.authority.decode("utf-8", "backslashreplace")), MAX_HOST),
        _capped(_USER_INFO.sub(r"\1", target), MAX_PATH),
    )


def _reduced(record: RequestRecord, clock_offset: float) -> bytes:
    """What is left of a record that could not be turned into a line: its id and its time."""
    line = {"schema": SCHEMA, "id": record.decision_id, "time": _rfc3339(record.started + clock_offset), "reduced": True}
    return orjson.dumps(line, option=_SORTED)


def _capped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _encodable(value: Any) -> Any:
    """The same value with every lone surrogate spelled out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return value


def _rfc3339(when: float) -> str:
    second = int(when)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{int((when - second) * 1e6):06d}Z"
