"""What a client sees of a refusal: RFC 9457 problem details with a reason code and a decision id, and nothing of the policy."""

from __future__ import annotations

import json
from time import time
from typing import TYPE_CHECKING

from meshguard.model.reasons import FALLBACK, LAST_RECIPIENT, QUARANTINED, TOKEN_INVALID, TOKEN_REQUIRED, WEBSOCKET_HANDSHAKE, Reason
from meshguard.pipeline.grpc import is_grpc, refusal_block, refusal_trailers

if TYPE_CHECKING:
    from meshguard.pipeline.state import ExchangeState

__all__ = ["PROBLEM_TYPE", "answer_of", "last_words", "problem_response"]

PROBLEM_TYPE = "urn:meshguard:problem:"
"""Prefix of the `type` member: stable, and not a URL that anybody has to serve."""
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


def problem_response(reason: Reason, decision_id: str, retry_after_s: int = 1, place: str = "") -> tuple[bytes, bytes]:
    """(field block, body) of the refusal; `retry_after_s` is told where trying again can help. Both are made of constants and the id:
    nothing the client sent comes back, but for the `place` of a violation, where a route wants it told."""
    violation = f',"violation":{json.dumps(place)}' if place else ""
    body = (
        f'{{"type":"{PROBLEM_TYPE}{reason.code}","title":"{reason.title}","status":{reason.status},'
        f'"code":"{reason.code}","instance":"urn:meshguard:decision:{decision_id}"{violation}}}\n'
    ).encode("ascii")
    if reason is LAST_RECIPIENT:  # no problem, but the answer of the one who was asked (RFC 9110 section 9.3.7)
        return b"allow: %b\r\ncache-control: no-store\r\n" % _METHODS, b""
    block = b"content-type: application/problem+json\r\ncache-control: no-store\r\n"
    if reason is TOKEN_REQUIRED:
        block += b"www-authenticate: Bearer\r\n"
    elif reason is TOKEN_INVALID:
        block += b'www-authenticate: Bearer error="invalid_token"\r\n'
    elif reason is WEBSOCKET_HANDSHAKE:
        block += b"sec-websocket-version: 13\r\n"  # RFC 6455 section 4.4
    elif reason.status == 503 or reason is QUARANTINED:
        block += b"retry-after: %d\r\n" % retry_after_s
    elif reason.status == 405:
        block += b"allow: %b\r\n" % _METHODS
    return block, body


def answer_of(exchange: ExchangeState, reason: Reason) -> tuple[bytes, bytes]:
    """(field block, body) of the whole answer of `exchange` that refuses it, in the terms of its protocol; its status is set."""
    head, plan = exchange.head, exchange.plan
    exchange.status = reason.status
    body = b""
    fallback = plan.fallback if plan is not None and reason.code == FALLBACK.code else None
    if exchange.grpc_end is not None or (head is not None and head.minor == 2 and is_grpc(head)):
        exchange.status = 200
        exchange.grpc_end = block = refusal_block(reason, exchange.decision_id, exchange.violation)
    elif fallback is not None:
        block, body = fallback.block, fallback.body
    else:
        until = exchange.peer.quarantined_until if reason is QUARANTINED else 0.0
        retry_after_s = max(1, min(round(until - time()), 86400)) if until else 60 if reason is QUARANTINED else 1
        block, body = problem_response(reason, exchange.decision_id, retry_after_s, exchange.violation)
    exchange.response_bytes = len(body)
    if plan is not None and reason is plan.answer:
        block += plan.location
    return block + exchange.limit_lines + exchange.peer.answer_lines, body


def last_words(exchange: ExchangeState, reason: Reason) -> bytes:
    """The trailers that end a gRPC call whose answer has begun: its client is told why, where a reset would look like a cancellation.
    Empty where the protocol has none, and the answer has to be cut."""
    if exchange.grpc_end is None:
        return b""
    exchange.grpc_end = trailers = refusal_trailers(reason, exchange.decision_id)
    return trailers
