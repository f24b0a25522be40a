"""The usual decision as text, put together from pieces that connections and plans keep: a third of the cost of building an object.

Usual is a request that was allowed, forwarded and answered, without anything of note (no refusal, no token, no field operation, no early
end, no fallback, candidate or controls on its route). Everything else goes the long way (`telemetry.decision_log`), and a property test
holds that both give the same octets. What is of the connection is kept in `peer.told`, what is of the target in `plan.told`: both die with
their owners.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from meshguard.model.principal import Principal
from meshguard.model.record import PeerFacts, PlanFacts, RequestRecord
from meshguard.model.verdicts import Permit
from meshguard.telemetry.span_ids import SpanIds

__all__ = ["PLAIN", "UsualDecision"]

PLAIN = 255
"""Characters of a text up to which it is told as it is; longer ones go the long way, which knows each limit."""
_MAX_METHOD = 32
_CACHE = 1024
_THREE = tuple(f"{number:03d}" for number in range(1000))


class UsualDecision:
    """`tell(record, prefix, micros)`: the canonical object, or None when the record is not a usual one. `prefix` is the time up to the
    seconds, `micros` of the second. `why` and `svid` give the canonical JSON of a permit and of an SVID."""

    __slots__ = ("_spans", "_svid", "_texts", "_why")

    def __init__(
        self, spans: SpanIds | None, why: Callable[[Permit, int], orjson.Fragment], svid: Callable[[Principal], orjson.Fragment]
    ) -> None:
        self._spans = spans
        self._why = why
        self._svid = svid
        self._texts: dict[str, str] = {}

    def tell(self, record: RequestRecord, prefix: str, micros: int) -> bytes | None:
        plan, verdict, upstream, answered = record.plan, record.verdict, record.upstream, record.answered
        if (
            plan is None
            or plan.extra
            or verdict.__class__ is not Permit
            or not upstream
            or not answered
            or record.refusal is not None
            or record.aborted
            or record.operations
            or record.subject
            or record.detail
            or record.body_judged
            or record.chain
            or record.websocket is not None
            or record.grpc_end
        ):
            return None
        peer, principal = record.peer, record.principal
        of_peer = peer.told
        if of_peer is None or of_peer[0] is not principal:
            of_peer = peer.told = self._of_peer(peer, principal)
        of_plan = plan.told
        if of_plan is None or of_plan[0] is not verdict:
            of_plan = plan.told = self._of_plan(plan, verdict)
        _, direction, listener, place, tls_and_who, address = of_peer
        _, cluster, host, target, route, why = of_plan
        if not target or not why or record.client_address != address:
            return None
        mark = record.head.target.find(b"?") if record.head is not None else -1
        query = "" if mark < 0 or record.head is None else f'"query_bytes":{len(record.head.target) - mark - 1},'
        started, ended = record.started, record.ended
        duration = int((ended - started) * 1e6) if ended else 0
        sampled = span = ""
        trace = record.trace_id
        spans = self._spans
        if spans is not None and spans.recorded(record):
            trace = spans.trace_id(record)
            span = f'"span_id":"{spans.server_span_id(record).decode("latin-1")}",'
            sampled = '"sampled":true,' if record.sampled else '"sampled":false,'
        traced = f'"trace_id":"{trace.decode("latin-1")}",' if trace else ""
        to = self._texts.get(upstream) or self._text(upstream)
        return (
            f'{{"id":"{record.decision_id}","outcome":{{"attempts":{record.attempts + 1},"duration_us":{duration},'
            f'"status":{record.status},"upstream":{to},"upstream_us":{int((answered - record.forwarded) * 1e6)}}},{sampled}'
            f'"schema":"meshguard.decision/1",{span}"time":"{prefix}{_THREE[micros // 1000]}{_THREE[micros % 1000]}Z",{traced}'
            f'{cluster}{direction}{host}{listener}{target}{place}{query}"request_bytes":{record.request_bytes},'
            f'"response_bytes":{record.response_bytes},{route}{tls_and_who}{why}'
        ).encode()

    def _of_peer(self, peer: PeerFacts, principal: Principal | None) -> tuple[Any, ...]:
        who = f'"who":{{"address":{self._text(peer.client_address)},"port":{int(peer.client_port)}'
        if principal is not None:
            proof = f'"proxy":{self._text(peer.proxy)}' if peer.proxy else f'"svid":{_said(self._svid(principal))}'
            who += f',"principal":{self._text(principal.spiffe_id)},{proof}'
        return (
            principal,
            '"direction":"outbound",' if peer.outbound else "",
            f'"listener":{self._text(peer.listener)},',
            f'"port":{int(peer.local_port)},"protocol":{self._text(peer.protocol)},',
            f'"tls":{self._text(peer.tls_version)}}},{who}}},',
            peer.client_address,
        )

    def _of_plan(self, plan: PlanFacts, verdict: Any) -> tuple[Any, ...]:
        """An empty target: not to be told this way."""
        if verdict.shadow or len(plan.method) > _MAX_METHOD or len(plan.host) > PLAIN or len(plan.path) > PLAIN:
            return (verdict, "", "", "", "", "")
        known = self._texts.get
        try:
            path = orjson.dumps(plan.path).decode()
        except TypeError:  # text that is not valid Unicode
            return (verdict, "", "", "", "", "")
        method = known(plan.method) or self._text(plan.method)
        return (
            verdict,
            f'"what":{{"cluster":{known(plan.cluster) or self._text(plan.cluster)},',
            f'"host":{known(plan.host) or self._text(plan.host)},',
            f'"method":{method},"path":{path},',
            f'"route":{known(plan.route) or self._text(plan.route)},',
            f'"why":{_said(self._why(verdict, plan.policy_revision))}}}',
        )

    def _text(self, value: str) -> str:
        """Its JSON, remembered: clients choose some of these, so there is a bound."""
        made = orjson.dumps(value.encode("utf-8", "backslashreplace").decode("utf-8")).decode()
        if len(self._texts) >= _CACHE:
            self._texts.clear()
        self._texts[value] = made
        return made


def _said(fragment: orjson.Fragment) -> str:
    return orjson.dumps(fragment).decode()
