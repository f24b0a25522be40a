"""What is known of one request when it is over: the light record that telemetry, the decision log and the detectors read.

The pipeline's `Exchange` has these attributes itself, so nothing is copied per request; everything expensive (ids as text,
wall-clock time, span objects, JSON) is derived off the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from meshguard.model.messages import RequestHead
from meshguard.model.principal import Principal
from meshguard.model.reasons import Reason
from meshguard.model.verdicts import Denial, Permit

__all__ = ["FieldOperation", "PeerFacts", "PlanFacts", "RequestRecord"]


class FieldOperation:
    """One act on a protected field: `operation` (`seal`, `open`, `mask`, `pass`, `remove`), `field` rule id, `keyset` and key `version`
    (0 where none), `count` values. Never the value."""

    __slots__ = ("count", "field", "keyset", "operation", "version")

    def __init__(self, operation: str, field: str, keyset: str = "", version: int = 0, count: int = 1) -> None:
        self.operation = operation
        self.field = field
        self.keyset = keyset
        self.version = version
        self.count = count


class PeerFacts(Protocol):
    """Facts of a downstream connection, shared by its exchanges."""

    listener: str  # name of the listener
    client_address: str  # textual IP
    client_port: int
    principal: Principal | None
    protocol: str  # "http/1.1", "h2"
    tls_version: str  # "TLSv1.3", "" for plaintext
    local_address: str
    local_port: int


class PlanFacts(Protocol):
    """What was derived from method, authority and target: shared by equal requests."""

    method: str  # as sent
    path: str  # canonical path without query
    host: str  # authority without port, lower case
    route: str  # id of the route, "" when none matched
    template: str  # low-cardinality `http.route` (the path template of the rule or route), "" when none
    cluster: str  # name of the cluster, "" when none
    policy_revision: int


class RequestRecord(Protocol):
    """One finished request. Times are `time.monotonic()` seconds; 0.0 means that it did not happen."""

    number: int  # counts up in this process; decision id = f"{boot_id}-{number:x}"
    decision_id: str  # property, made on demand
    peer: PeerFacts
    head: RequestHead | None  # None when the head itself was refused
    plan: PlanFacts | None  # None when the target was refused
    verdict: Permit | Denial | None  # None when refused before the decision
    refusal: Reason | None  # why meshguard answered itself, None when the upstream's answer was passed on
    detail: str  # for the record only
    status: int  # sent to the client; 0 when the client got none
    started: float  # head parsed
    forwarded: float  # request head written to the upstream
    answered: float  # response head received
    ended: float
    request_bytes: int  # body octets
    response_bytes: int
    upstream: str  # "address:port" of the endpoint used, ""
    attempts: int  # how often the request was sent again after the first time
    aborted: str  # "" or who ended it early: "client", "upstream", "deadline", "shutdown"
    trace_id: bytes  # 32 hex digits
    parent_id: bytes  # 16 hex digits of the caller's span, b"" when this is the root
    span_id: bytes  # server span, b"" unless sampled
    client_span_id: bytes  # span of the upstream call: the parent id sent upstream
    sampled: bool
    operations: Sequence[FieldOperation]
    subject: str  # `sub` of the verified JWT, ""
