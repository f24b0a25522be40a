"""What is known of one request when it is over: the light record that telemetry, the decision log and the detectors read.

The pipeline's `Exchange` has these attributes itself, so nothing is copied per request; everything expensive (ids as text,
wall-clock time, span objects, JSON) is derived off the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from meshguard.model.messages import RequestHead
from meshguard.model.principal import Principal
from meshguard.model.reasons import Reason
from meshguard.model.verdicts import Denial, Permit

__all__ = ["FieldOperation", "PeerFacts", "PlanFacts", "RequestRecord", "WebSocketFacts"]


class FieldOperation:
    """One act on a protected field: `operation` (`seal`, `open`, `mask`, `pass`, `remove`, `rewrap`), `field` rule id, `keyset` and key
    `version` (0 where none), `count` values. Never the value."""

    __slots__ = ("count", "field", "keyset", "operation", "version")

    def __init__(self, operation: str, field: str, keyset: str = "", version: int = 0, count: int = 1) -> None:
        self.operation = operation
        self.field = field
        self.keyset = keyset
        self.version = version
        self.count = count


class PeerFacts(Protocol):
    """Facts of a downstream connection, shared by its exchanges."""

    told: tuple[Any, ...] | None  # what the decision record keeps of it, as text

    @property
    def listener(self) -> str: ...  # name of the listener
    @property
    def client_address(self) -> str: ...  # textual IP
    @property
    def client_port(self) -> int: ...
    @property
    def principal(self) -> Principal | None: ...
    @property
    def protocol(self) -> str: ...  # "http/1.1", "h2"
    @property
    def tls_version(self) -> str: ...  # "TLSv1.3", "" for plaintext
    @property
    def local_address(self) -> str: ...
    @property
    def local_port(self) -> int: ...
    @property
    def proxy(self) -> str: ...  # the SPIFFE ID of the proxy that spoke for this caller, ""
    @property
    def outbound(self) -> bool: ...  # a call of this workload itself


class PlanFacts(Protocol):
    """What was derived from method, authority and target: shared by equal requests."""

    told: tuple[Any, ...] | None  # what the decision record keeps of it, as text

    @property
    def method(self) -> str: ...  # as sent
    @property
    def path(self) -> str: ...  # canonical path without query
    @property
    def host(self) -> str: ...  # authority without port, lower case
    @property
    def port(self) -> int: ...  # of the authority; 0: none was given
    @property
    def route(self) -> str: ...  # id of the route, "" when none matched
    @property
    def template(self) -> str: ...  # low-cardinality `http.route` (the path template of the rule or route), "" when none
    @property
    def cluster(self) -> str: ...  # name of the cluster, "" when none
    @property
    def policy_revision(self) -> int: ...
    @property
    def extra(self) -> bool: ...  # one of the three that follow is there
    @property
    def fallback(self) -> Any: ...  # what the route has instead of its cluster, or None
    @property
    def candidate(self) -> Any: ...  # what is known of a candidate policy's answer, None where none is configured
    @property
    def controls(self) -> Any: ...  # `telemetry.controls.Citations` where packs are configured, else None


class WebSocketFacts(Protocol):
    """If a WebSocket came to be, and how it ended: code of the first Close (0: none) and whose it was (client, upstream, meshguard)."""

    @property
    def opened(self) -> bool: ...
    @property
    def close_code(self) -> int: ...
    @property
    def closed_by(self) -> str: ...


class RequestRecord(Protocol):
    """One finished request. Times are `time.monotonic()` seconds; 0.0 means that it did not happen."""

    @property
    def principal(self) -> Principal | None: ...  # who it was judged as; the peer's may have changed since

    @property
    def number(self) -> int: ...  # counts up in this process; decision id = f"{boot_id}-{number:x}"
    @property
    def decision_id(self) -> str: ...  # property, made on demand
    @property
    def peer(self) -> PeerFacts: ...
    @property
    def head(self) -> RequestHead | None: ...  # None when the head itself was refused
    @property
    def plan(self) -> PlanFacts | None: ...  # None when the target was refused
    @property
    def verdict(self) -> Permit | Denial | None: ...  # None when refused before the decision
    @property
    def body_judged(self) -> bool: ...  # rules have looked at the body
    @property
    def refusal(self) -> Reason | None: ...  # why meshguard answered itself, None when the upstream's answer was passed on
    @property
    def detail(self) -> str: ...  # for the record only
    @property
    def status(self) -> int: ...  # sent to the client; 0 when the client got none
    @property
    def started(self) -> float: ...  # head parsed
    @property
    def forwarded(self) -> float: ...  # request head written to the upstream
    @property
    def answered(self) -> float: ...  # response head received
    @property
    def ended(self) -> float: ...
    @property
    def request_bytes(self) -> int: ...  # body octets
    @property
    def response_bytes(self) -> int: ...
    @property
    def upstream(self) -> str: ...  # "address:port" of the endpoint used, ""
    @property
    def upstream_protocol(self) -> str: ...  # "http/1.1", "h2", ""
    @property
    def attempts(self) -> int: ...  # how often the request was sent again after the first time
    @property
    def aborted(self) -> str: ...  # "" or who ended it early: "client", "upstream", "deadline", "shutdown", "revoked"
    @property
    def trace_id(self) -> bytes: ...  # 32 hex digits
    @property
    def parent_id(self) -> bytes: ...  # 16 hex digits of the caller's span, b"" when this is the root
    @property
    def span_id(self) -> bytes: ...  # server span, b"" unless sampled
    @property
    def client_span_id(self) -> bytes: ...  # span of the upstream call: the parent id sent upstream
    @property
    def sampled(self) -> bool: ...
    @property
    def operations(self) -> Sequence[FieldOperation]: ...
    @property
    def websocket(self) -> WebSocketFacts | None: ...  # of a request that asked for one
    @property
    def client_address(self) -> str: ...  # the peer's, or what trusted proxies told of its client
    @property
    def grpc_end(self) -> bytes | None: ...  # the field block with `grpc-status`; None where the request is no gRPC call
    @property
    def subject(self) -> str: ...  # `sub` of the verified JWT, ""
    @property
    def chain(self) -> Sequence[str]: ...  # the callers on the way here as a decision token proves them, the direct one last; or empty
    @property
    def issuer(self) -> str: ...  # `iss` of the verified JWT, ""
