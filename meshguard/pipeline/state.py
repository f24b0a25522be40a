"""What is known of one request while it runs, and after it: the attributes of the light record, and the state behind them.

The behaviour is in `exchange`. Everything is a slot and set once here: one of these is made per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from meshguard.model.messages import NO_BODY, RequestHead
from meshguard.model.principal import Principal
from meshguard.model.reasons import OPERATION_UNKNOWN, REQUEST_INVALID, Reason
from meshguard.model.record import FieldOperation
from meshguard.model.verdicts import Denial, Permit
from meshguard.net.cluster.calls import Call
from meshguard.net.cluster.endpoint import Endpoint

if TYPE_CHECKING:
    from meshguard.identity.decision_token import Delegation
    from meshguard.model.verdicts import CandidateResult
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.stream import Downstream, Upstream
    from meshguard.pipeline.inspection import Inspection
    from meshguard.pipeline.journey import Journey
    from meshguard.pipeline.peer import Peer
    from meshguard.pipeline.plan import Plan
    from meshguard.pipeline.upgrade import WebSocket

__all__ = ["ExchangeState"]

_NOTHING: frozenset[Endpoint] = frozenset()
_OF_A_CONTRACT = (REQUEST_INVALID, OPERATION_UNKNOWN)


class ExchangeState(Call):
    """Attributes without underscore are the record's (`model.record.RequestRecord`)."""

    __slots__ = (
        "_cluster",
        "_connection",
        "_door",
        "_head_out",
        "_inspection",
        "_interims",
        "_journey",
        "_replay",
        "_request_complete",
        "_response_complete",
        "_response_length",
        "_response_sent",
        "_touched",
        "aborted",
        "answered",
        "block",
        "body_judged",
        "candidate",  # set only where a candidate policy is asked, and read only there
        "client",
        "client_span_id",
        "deadline",
        "delegation",
        "detail",
        "ended",
        "fallback",  # set only where a route's fallback was taken, and read only where there is one
        "forwarded",
        "grpc_end",
        "head",
        "issuer",
        "judged",
        "limit_lines",
        "line",
        "lines",
        "number",
        "operations",
        "parent_id",
        "peer",
        "plan",
        "principal",
        "refusal",
        "request_bytes",
        "request_length",
        "response_bytes",
        "sampled",
        "span_id",
        "started",
        "status",
        "subject",
        "trace_id",
        "trace_lines",
        "upstream",
        "upstream_protocol",
        "verdict",
        "websocket",
    )

    def __init__(self, journey: Journey, door: Downstream, peer: Peer, head: RequestHead | None, number: int) -> None:
        self.excluded = _NOTHING  # the four of Call, set here: a call of super().__init__ costs 60 ns
        self.attempts = 0
        self.most = None
        self.ticket = None
        self._journey = journey
        self._door: Downstream | None = door
        self._connection: Upstream | None = None
        self._replay: list[bytes] | None = None  # request body to send again: the first upstream processed nothing
        self._cluster: Cluster | None = None
        self._inspection: Inspection | None = None
        self._head_out = b""
        self._request_complete = head is None or head.length == NO_BODY
        self._response_complete = False
        self._response_sent = False
        self._response_length = 0
        self._interims = 0
        self.peer = peer
        self.head = head
        self.number = number
        self.judged = 0  # revision under which a long exchange was judged again
        self.plan: Plan | None = None
        self.verdict: Permit | Denial | None = None
        self.refusal: Reason | None = None
        self.detail = ""
        self.status = 0
        self.started = self._touched = monotonic()
        self.principal: Principal | None = peer.principal
        self.forwarded = 0.0
        self.answered = 0.0
        self.ended = 0.0
        self.request_bytes = 0
        self.response_bytes = 0
        self.upstream = ""
        self.upstream_protocol = ""
        self.aborted = ""
        self.trace_id = b""
        self.trace_lines = b""
        self.client = ""  # its address where a trusted proxy told it; see `client_address`
        self.lines = b""  # what the upstream is told of the client, where it is not the peer's own
        self.body_judged = False  # the decision has looked at the body
        self.block: bytes | None = None  # the field block to send where it is not the head's own
        self.line: bytes | None = None  # request line and Host to send where they are not the plan's
        self.request_length = NO_BODY if head is None else head.length  # of the body as it goes to the upstream
        self.parent_id = b""
        self.span_id = b""  # derived off the path (telemetry.span_ids)
        self.client_span_id = b""
        self.sampled = False
        self.grpc_end: bytes | None = None  # a gRPC call: what its answer ended with (b"": nothing yet)
        self.deadline = 0.0  # that the client set for this call, monotonic; 0.0: none
        self.limit_lines = b""  # what the client is told of rate limits
        self.operations: Sequence[FieldOperation] = ()
        self.subject = ""
        self.delegation: Delegation | None = None  # who called whom on the way here, where a token says so
        self.websocket: WebSocket | None = None  # what was asked for, and what became of it
        self.issuer = ""

    candidate: CandidateResult
    fallback: dict[str, object]

    @property
    def request_complete(self) -> bool:
        return self._request_complete

    @property
    def connection(self) -> Upstream | None:
        return self._connection

    @property
    def waiting_for_client(self) -> bool:
        """The next octet has to come from the client (and is not held back by us)."""
        return not self._request_complete and not (self._door is not None and self._door.request_held)

    @property
    def client_address(self) -> str:
        """Of the client as far as trusted proxies tell: for the record, rate limits and whoever else asks."""
        return self.client or self.peer.client_address

    @property
    def has_begun(self) -> bool:
        """It was let in before, and its body has been read since: a drain or a shortage concerns new requests only."""
        return self._inspection is not None

    @property
    def violation(self) -> str:
        """Where in the request its contract was broken, if this client may know."""
        return self._inspection.place if self.refusal in _OF_A_CONTRACT and self._inspection is not None else ""

    @property
    def chain(self) -> Sequence[str]:
        """The proven callers, the direct one last; empty without a token."""
        if self.delegation is None:
            return ()
        chain, principal = self.delegation.chain, self.principal
        # on an outbound listener the caller is our own workload: it hands on a chain that ends with who had called it
        return chain if principal is None or chain[-1] == principal.spiffe_id else (*chain, principal.spiffe_id)

    @property
    def decision_id(self) -> str:
        return f"{self._journey.boot_id}-{self.number:x}"

    def release_upstream(self) -> None:
        """The response is whole here, not yet with the client: the upstream connection is free for others."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.finish(self._request_complete)
