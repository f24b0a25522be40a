"""A call that asks for a connection the slow way, and its place in the cluster's line."""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from enum import Enum

from meshguard.model.reasons import Reason
from meshguard.net.cluster.endpoint import Connection, Endpoint

__all__ = ["Call", "Dial", "Ticket", "TicketState"]

_NOTHING: frozenset[Endpoint] = frozenset()


class Call:
    """Subclass this and hand it to `Cluster.submit`.

    The cluster answers each submission exactly once, with `connected` or with `failed`, unless it is cancelled first; the answer
    may come before `submit` returns. `excluded` holds endpoints to avoid while there are others. `attempts` counts the
    retries granted to this call, `most` bounds them where its route says so (None: the cluster does); `ticket` belongs to the
    cluster. A call may be submitted again after its answer.
    """

    __slots__ = ("attempts", "excluded", "most", "ticket")

    def __init__(self) -> None:
        self.excluded: AbstractSet[Endpoint] = _NOTHING
        self.attempts = 0
        self.most: int | None = None
        self.ticket: Ticket | None = None

    def connected(self, conn: Connection) -> None:
        """The call owns `conn` until it gives it to `Cluster.release` or `Cluster.discard`. It may have been closed in the very
        moment before: then discard it, as any connection that breaks before its first octet."""
        raise NotImplementedError

    def failed(self, reason: Reason, detail: str) -> None:
        """No connection: `reason` is for the client, `detail` for the record."""
        raise NotImplementedError


class TicketState(Enum):
    """WAITING -> GRANTED (an answer is due) -> ANSWERED; CANCELLED from either of the first two."""

    WAITING = 1
    GRANTED = 2
    ANSWERED = 3
    CANCELLED = 4


class Ticket:
    """One submission of a call. `deadline` bounds the wait without a dial of its own; `refused` are the endpoints that could not be
    reached for it; `fresh` asks for a new connection (its pooled one died, and what killed one probably killed its neighbours);
    `retried` says that it counts in the retry budget; `heir`: its dial was begun for another one, and may fail before it had its time
    (once: None afterwards). `conn`, or `reason` and `detail`, is the answer once granted."""

    __slots__ = ("call", "conn", "deadline", "detail", "dial", "fresh", "heir", "reason", "refused", "retried", "state")

    def __init__(self, call: Call, deadline: float) -> None:
        self.call = call
        self.deadline = deadline
        self.dial: Dial | None = None
        self.refused: AbstractSet[Endpoint] = _NOTHING
        self.fresh = self.retried = call.attempts > 0
        self.heir: bool | None = False
        self.conn: Connection | None = None
        self.reason: Reason | None = None
        self.detail = ""
        self.state = TicketState.WAITING


class Dial:
    """A connection being opened to `endpoint` for `ticket`; without one it is spare: whoever needs it next takes it."""

    __slots__ = ("endpoint", "task", "ticket")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.ticket: Ticket | None = None
        self.task: asyncio.Task[None] | None = None
