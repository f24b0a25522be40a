"""May a request be sent again after its upstream broke off, and what of its body? (RFC 9110 section 9.2.2, RFC 9113 section 8.7)"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshguard.model.messages import NO_BODY, RequestHead
from meshguard.model.reasons import UPSTREAM_RESET, Reason

if TYPE_CHECKING:
    from meshguard.net.stream import Upstream

__all__ = ["repeatable"]

# RFC 9110 section 9.2.1 and idempotence in section 9.2.2: only these are sent again when a kept-alive connection dies under them.
_SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS"))


def repeatable(connection: Upstream, head: RequestHead | None, reason: Reason) -> list[bytes] | None:
    """What of the body has to be sent again; None where the request may not be. It may when the upstream says that it did nothing, or
    when a kept-alive connection died unanswered under a safe request without a body."""
    if connection.answered or head is None or reason is not UPSTREAM_RESET:
        return None
    if connection.unprocessed:
        return connection.replay()
    return [] if connection.reused and head.method in _SAFE and head.length == NO_BODY else None
