"""What a client sees of a refusal: RFC 9457 problem details with a reason code and a decision id, and nothing of the policy."""

from __future__ import annotations

import json

from meshguard.model.reasons import QUARANTINED, TOKEN_INVALID, TOKEN_REQUIRED, WEBSOCKET_HANDSHAKE, Reason

__all__ = ["PROBLEM_TYPE", "problem_response"]

PROBLEM_TYPE = "urn:meshguard:problem:"
"""Prefix of the `type` member: stable, and not a URL that anybody has to serve."""


def problem_response(reason: Reason, decision_id: str, retry_after_s: int = 1, place: str = "") -> tuple[bytes, bytes]:
    """(field block, body) of the refusal; `retry_after_s` is told where trying again can help. Both are made of constants and the id:
    nothing the client sent comes back, but for the `place` of a violation, where a route wants it told."""
    violation = f',"violation":{json.dumps(place)}' if place else ""
    body = (
        f'{{"type":"{PROBLEM_TYPE}{reason.code}","title":"{reason.title}","status":{reason.status},'
        f'"code":"{reason.code}","instance":"urn:meshguard:decision:{decision_id}"{violation}}}\n'
    ).encode("ascii")
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
        block += b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
    return block, body
