"""The words for how a request ended, shared by the decision log, the metrics and the spans so that they always agree."""

from __future__ import annotations

import re

from meshguard.model.reasons import Fault, Reason
from meshguard.model.verdicts import Denial, Permit

__all__ = ["GRPC_SERVER_ERRORS", "METHODS", "OTHER_METHOD", "error_type", "grpc_status", "method_name", "protocol_version", "verdict_name"]

OTHER_METHOD = "_OTHER"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
"""Methods that may become a label: anything else is `_OTHER` (OpenTelemetry semantic conventions, `http.request.method`)."""

_PROTOCOL_VERSIONS = {"http/1.1": "1.1", "http/1.0": "1.0", "h2": "2", "h2c": "2", "h3": "3"}


def method_name(method: str) -> str:
    """The method as a bounded label."""
    return method if method in METHODS else OTHER_METHOD


def protocol_version(protocol: str) -> str:
    """`network.protocol.version` of an ALPN name; the name itself where it is not known."""
    return _PROTOCOL_VERSIONS.get(protocol, protocol)


def verdict_name(verdict: type[Permit | Denial] | type[None], refusal: Reason | None) -> str:
    """One of four words, from the class of the verdict and the reason of our own answer.

    `allow`   permitted, and the upstream's answer was passed on
    `deny`    the policy said no
    `refuse`  the request itself is not acceptable (malformed, no identity, no route, over a limit): before or after the decision
    `error`   permitted or not, an upstream or meshguard itself failed
    """
    if issubclass(verdict, Denial):
        return "deny"
    if refusal is not None:
        return "refuse" if refusal.fault is Fault.DOWNSTREAM else "error"
    return "allow" if issubclass(verdict, Permit) else "error"


_GRPC_STATUS = re.compile(rb"(?:\A|\n)grpc-status:[ \t]*([0-9]{1,3})[ \t]*\r", re.IGNORECASE).search
GRPC_SERVER_ERRORS = frozenset((2, 4, 12, 13, 14, 15))
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: the codes that are an error of the server's side
(OpenTelemetry semantic conventions for gRPC)."""


def grpc_status(end: bytes | None) -> int | None:
    """The status of a gRPC call from the block its answer ended with; None where there is none."""
    if not end:
        return None
    match = _GRPC_STATUS(end)
    return 2 if match is None else int(match[1])  # clients take a missing one for UNKNOWN


def error_type(status: int, refusal: Reason | None, aborted: str) -> str:
    """`error.type` of the server side: "" where the request is no error (OpenTelemetry: a 4xx is the client's, not ours)."""
    if aborted:
        return f"aborted_by_{aborted}"
    if status < 500 and status:
        return ""
    return refusal.code if refusal is not None else str(status)
