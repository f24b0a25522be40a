"""Every reason for which meshguard itself answers a request, in one table.

A reason is what a client sees (its code and a decision id, RFC 9457 problem details) and what the decision
record, the metrics and the spans carry. Codes are stable: they are part of the public surface.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["REASONS", "Fault", "Reason"]


class Fault(Enum):
    """Whose fault a refusal is; it selects who may retry and which metric counts it."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    INTERNAL = "internal"


class Reason:
    """One reason: `code`, HTTP `status`, `grpc` status, `title` for people, `fault`.

    `closes` says that the downstream connection ends after the answer: the framing of what follows is in doubt.
    """

    __slots__ = ("closes", "code", "fault", "grpc", "status", "title")

    def __init__(self, code: str, status: int, grpc: int, title: str, fault: Fault = Fault.DOWNSTREAM, *, closes: bool = False) -> None:
        self.code = code
        self.status = status
        self.grpc = grpc
        self.title = title
        self.fault = fault
        self.closes = closes

    def __repr__(self) -> str:
        return f"Reason({self.code})"


_D, _U, _I = Fault.DOWNSTREAM, Fault.UPSTREAM, Fault.INTERNAL

# the message itself (security.md 1): the connection is not used again, except where the framing is beyond doubt
MALFORMED_REQUEST = Reason("malformed_request", 400, 3, "The request is malformed", closes=True)
AMBIGUOUS_FRAMING = Reason("ambiguous_framing", 400, 3, "The length of the request body is ambiguous", closes=True)
UNKNOWN_TRANSFER_CODING = Reason("unknown_transfer_coding", 501, 12, "The transfer coding is not supported", closes=True)
MALFORMED_CHUNK = Reason("malformed_chunk", 400, 3, "The chunked body is malformed", closes=True)
MALFORMED_TRAILERS = Reason("malformed_trailers", 400, 3, "The trailer section is malformed", closes=True)
UNSUPPORTED_VERSION = Reason("unsupported_version", 505, 12, "The protocol version is not supported", closes=True)
HEAD_TOO_LARGE = Reason("head_too_large", 431, 8, "The request header section is too large", closes=True)
TARGET_TOO_LONG = Reason("target_too_long", 414, 8, "The request target is too long", closes=True)
BODY_TOO_LARGE = Reason("body_too_large", 413, 8, "The request body is too large", closes=True)
AMBIGUOUS_TARGET = Reason("ambiguous_target", 400, 3, "The request target has an ambiguous spelling")
AMBIGUOUS_AUTHORITY = Reason("ambiguous_authority", 400, 3, "The request authority is missing, repeated or ambiguous", closes=True)
AMBIGUOUS_FIELD = Reason("ambiguous_field", 400, 3, "A header field name has an ambiguous spelling")
METHOD_NOT_SUPPORTED = Reason("method_not_supported", 405, 12, "The method is not supported by this proxy", closes=True)
UPGRADE_NOT_SUPPORTED = Reason("upgrade_not_supported", 501, 12, "The protocol upgrade is not supported by this proxy")
WEBSOCKET_HANDSHAKE = Reason("websocket_handshake", 400, 3, "The WebSocket handshake is malformed")
WEBSOCKET_DENIED = Reason("websocket_denied", 403, 7, "WebSocket is not allowed here")
GRPC_TIMEOUT_MALFORMED = Reason("grpc_timeout_malformed", 400, 3, "The grpc-timeout of the call is malformed")
LAST_RECIPIENT = Reason("last_recipient", 200, 0, "Max-Forwards has come to its end here")
EXPECTATION_FAILED = Reason("expectation_failed", 417, 3, "The expectation cannot be met")
PLAINTEXT_REFUSED = Reason("plaintext_refused", 400, 16, "Plain HTTP was sent to a TLS listener", closes=True)
REQUEST_TIMEOUT = Reason("request_timeout", 408, 4, "The request did not arrive in time", closes=True)

# identity and decision
IDENTITY_REQUIRED = Reason("identity_required", 403, 16, "The caller has no verified identity", closes=True)
IDENTITY_EXPIRED = Reason("identity_expired", 403, 16, "The caller's certificate is no longer valid", closes=True)
IDENTITY_REVOKED = Reason("identity_revoked", 403, 16, "The caller's certificate is revoked or no longer trusted", closes=True)
QUARANTINED = Reason("quarantined", 403, 7, "The caller is quarantined", closes=True)
CALLER_UNKNOWN = Reason("caller_unknown", 403, 16, "The proxy names no caller that is acceptable here")
TOKEN_REQUIRED = Reason("token_required", 401, 16, "A bearer token is required")
TOKEN_INVALID = Reason("token_invalid", 401, 16, "The bearer token is not valid")
DECISION_TOKEN_REQUIRED = Reason("decision_token_required", 403, 16, "A decision token of the calling proxy is required")
DECISION_TOKEN_INVALID = Reason("decision_token_invalid", 403, 16, "The decision token is not valid here")
DECISION_TOKEN_TOO_LONG = Reason("decision_token_too_long", 403, 7, "The request has come through too many services")
POLICY_DENIED = Reason("policy_denied", 403, 7, "The policy denies this request")
NO_RULE = Reason("no_rule", 403, 7, "No rule allows this request")
NO_POLICY = Reason("no_policy", 503, 14, "No policy is loaded", _I)
MISDIRECTED = Reason("misdirected", 421, 5, "This authority is not served here")
NO_ROUTE = Reason("no_route", 404, 5, "No route matches this request")
REDIRECTED = Reason("redirected", 308, 9, "This is served over https")
MOVED = Reason("moved", 301, 9, "This is served over https")
RATE_LIMITED = Reason("rate_limited", 429, 8, "Too many requests")
OVERLOADED = Reason("overloaded", 503, 8, "The proxy is overloaded", _I)
LEDGER_UNAVAILABLE = Reason("ledger_unavailable", 503, 14, "The decision could not be put on record", _I)
DRAINING = Reason("draining", 503, 14, "The proxy is shutting down", _I, closes=True)

# fields: bodies that a rule has to read
BODY_NOT_INSPECTABLE = Reason("body_not_inspectable", 415, 3, "The content type or coding of the body cannot be inspected", closes=True)
BODY_INVALID = Reason("body_invalid", 400, 3, "The body is not a valid document of its content type", closes=True)
BODY_OVER_LIMIT = Reason("body_over_limit", 413, 8, "The body is too large to be inspected", closes=True)
INSPECTION_OVERLOADED = Reason("inspection_overloaded", 503, 8, "Too many bodies are being inspected", _I)
REQUEST_INVALID = Reason("request_invalid", 400, 3, "The request breaks the contract of this service")
OPERATION_UNKNOWN = Reason("operation_unknown", 404, 12, "The contract of this service does not know this operation")
FIELD_NOT_OPENED = Reason("field_not_opened", 403, 7, "A protected field could not be opened")
TENANT_UNKNOWN = Reason("tenant_unknown", 403, 7, "The tenant of a protected field is not known")
KEY_UNAVAILABLE = Reason("key_unavailable", 503, 14, "A key for a protected field is not available", _I)
RESPONSE_NOT_INSPECTABLE = Reason("response_not_inspectable", 502, 13, "The upstream's response cannot be inspected", _U)

# destinations that the request itself names (outbound)
DESTINATION_REFUSED = Reason("destination_refused", 403, 7, "This destination may not be called through this proxy")
TOO_MANY_DESTINATIONS = Reason("too_many_destinations", 503, 8, "Too many destinations are in use", _I)
LOOP_DETECTED = Reason("loop_detected", 508, 13, "The destination is this proxy itself")

# upstream
NO_ENDPOINT = Reason("no_endpoint", 503, 14, "No healthy upstream endpoint", _U)
CONNECT_FAILED = Reason("connect_failed", 502, 14, "The upstream could not be reached", _U)
CONNECT_TIMEOUT = Reason("connect_timeout", 504, 14, "The upstream did not accept a connection in time", _U)
UPSTREAM_TLS_FAILED = Reason("upstream_tls_failed", 502, 14, "The upstream could not be authenticated", _U)
UPSTREAM_RESET = Reason("upstream_reset", 502, 14, "The upstream ended the connection early", _U)
UPSTREAM_TIMEOUT = Reason("upstream_timeout", 504, 4, "The upstream did not answer in time", _U)
UPSTREAM_MALFORMED = Reason("upstream_malformed", 502, 13, "The upstream's response is malformed", _U)
UPSTREAM_QUARANTINED = Reason("upstream_quarantined", 503, 14, "The service is quarantined", _U)
FALLBACK = Reason("fallback", 503, 14, "The service is out; this is what its route answers instead", _U)
GRPC_NEEDS_HTTP2 = Reason("grpc_needs_http2", 502, 12, "The upstream does not speak HTTP/2, which gRPC needs", _U)
CIRCUIT_OPEN = Reason("circuit_open", 503, 14, "The upstream is overloaded", _U)
INTERNAL_ERROR = Reason("internal_error", 500, 13, "An internal error occurred", _I, closes=True)

REASONS: dict[str, Reason] = {value.code: value for value in list(globals().values()) if isinstance(value, Reason)}
