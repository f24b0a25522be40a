"""Finished requests to feed to telemetry: plain values with the attributes of `meshguard.model.record`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshguard.model.messages import NO_BODY, RequestHead
from meshguard.model.principal import Principal
from meshguard.model.reasons import Reason
from meshguard.model.record import FieldOperation, WebSocketFacts
from meshguard.model.verdicts import Denial, Permit

DIGEST = "sha256:" + "ab" * 32
BILLING = Principal(
    spiffe_id="spiffe://shop.example/ns/prod/sa/billing",
    trust_domain="shop.example",
    path="/ns/prod/sa/billing",
    not_before=1_700_000_000.0,
    not_after=1_700_003_600.0,
    serial="1f2e3d",
    thumbprint="cd" * 32,
)


class Peer:
    """Facts of a connection."""

    __slots__ = (
        "client_address",
        "client_port",
        "listener",
        "local_address",
        "local_port",
        "outbound",
        "principal",
        "protocol",
        "proxy",
        "tls_version",
        "told",
    )

    def __init__(
        self,
        *,
        listener: str = "inbound",
        client_address: str = "10.1.2.3",
        client_port: int = 51234,
        principal: Principal | None = BILLING,
        protocol: str = "http/1.1",
        tls_version: str = "TLSv1.3",
        local_address: str = "10.9.9.9",
        local_port: int = 8443,
        outbound: bool = False,
    ) -> None:
        self.outbound = outbound
        self.told: tuple[Any, ...] | None = None
        self.listener = listener
        self.client_address = client_address
        self.client_port = client_port
        self.principal = principal
        self.protocol = protocol
        self.tls_version = tls_version
        self.local_address = local_address
        self.proxy = ""
        self.local_port = local_port


class Plan:
    """What was derived from the target."""

    __slots__ = (
        *("candidate", "cluster", "controls", "extra", "fallback", "host", "method", "path", "policy_revision", "route", "template"),
        *("port", "told"),
    )

    def __init__(
        self,
        *,
        method: str = "GET",
        path: str = "/orders/7",
        host: str = "orders.shop.example",
        route: str = "orders",
        template: str = "/orders/{id}",
        cluster: str = "app",
        policy_revision: int = 3,
        port: int = 0,
    ) -> None:
        self.port = port
        self.method = method
        self.path = path
        self.host = host
        self.route = route
        self.template = template
        self.told: tuple[Any, ...] | None = None
        self.cluster = cluster
        self.policy_revision = policy_revision
        self.controls = self.candidate = self.fallback = None
        self.extra = False


def head(
    target: bytes = b"/orders/7?card=4111111111111111", method: bytes = b"GET", block: bytes = b"user-agent: curl/8.5\r\n"
) -> RequestHead:
    """A request head as the wire layer makes it."""
    made = RequestHead()
    made.method = method
    made.target = target
    made.scheme = b""
    made.authority = b"orders.shop.example"
    made.block = block
    made.length = NO_BODY
    made.minor = 1
    made.keep_alive = True
    made.expect = False
    made.specials = []
    made.size = 120
    return made


PEER = Peer()
PLAN = Plan()
HEAD = head()
PERMIT = Permit("read-orders", DIGEST)


class Record:
    """A finished request: allowed, 200, 1.5 ms, not sampled, unless said otherwise."""

    __slots__ = (
        "aborted",
        "answered",
        "attempts",
        "body_judged",
        "chain",
        "client_span_id",
        "detail",
        "ended",
        "forwarded",
        "grpc_end",
        "head",
        "issuer",
        "number",
        "operations",
        "parent_id",
        "peer",
        "plan",
        "principal",
        "refusal",
        "request_bytes",
        "response_bytes",
        "sampled",
        "span_id",
        "started",
        "status",
        "subject",
        "trace_id",
        "upstream",
        "upstream_protocol",
        "verdict",
        "websocket",
    )

    def __init__(
        self,
        *,
        number: int = 1,
        peer: Peer = PEER,
        head: RequestHead | None = HEAD,
        plan: Plan | None = PLAN,
        verdict: Permit | Denial | None = PERMIT,
        refusal: Reason | None = None,
        detail: str = "",
        status: int = 200,
        started: float = 1000.0,
        forwarded: float = 1000.0002,
        answered: float = 1000.0012,
        ended: float = 1000.0015,
        request_bytes: int = 0,
        response_bytes: int = 480,
        upstream: str = "127.0.0.1:8080",
        upstream_protocol: str = "http/1.1",
        attempts: int = 0,
        aborted: str = "",
        trace_id: bytes = b"4bf92f3577b34da6a3ce929d0e0e4736",
        parent_id: bytes = b"00f067aa0ba902b7",
        span_id: bytes = b"",
        client_span_id: bytes = b"b7ad6b7169203331",
        sampled: bool = False,
        operations: Sequence[FieldOperation] = (),
        subject: str = "",
        chain: tuple[str, ...] = (),
        websocket: WebSocketFacts | None = None,
        issuer: str = "",
        grpc_end: bytes | None = None,
    ) -> None:
        self.grpc_end = grpc_end
        self.body_judged = False
        self.number = number
        self.peer = peer
        self.principal = peer.principal
        self.head = head
        self.plan = plan
        self.verdict = verdict
        self.refusal = refusal
        self.detail = detail
        self.status = status
        self.started = started
        self.forwarded = forwarded
        self.answered = answered
        self.ended = ended
        self.request_bytes = request_bytes
        self.response_bytes = response_bytes
        self.upstream = upstream
        self.upstream_protocol = upstream_protocol
        self.attempts = attempts
        self.aborted = aborted
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.span_id = span_id
        self.client_span_id = client_span_id
        self.sampled = sampled
        self.operations = operations
        self.subject = subject
        self.chain = chain
        self.websocket = websocket
        self.issuer = issuer

    @property
    def client_address(self) -> str:
        return self.peer.client_address

    @property
    def decision_id(self) -> str:
        return f"5f1c2a9e-{self.number:x}"
