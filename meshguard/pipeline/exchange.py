"""One request and its answer: the state between a door (downstream stream), the journey and an upstream connection.

The exchange *is* the light record (`model.record.RequestRecord`): telemetry reads its attributes off the path and nothing is
copied per request. After `finish` its references to connections and bodies are gone.

States: a request is *deciding* (no upstream yet), *forwarding*, or *over*. The response is *awaited*, *begun* or *complete*. The door
calls `request_data`, `request_end`, `client_gone`, `pause`, `resume`; the cluster calls `connected` or `failed`; the upstream
connection calls `response_head`, `response_data`, `response_end`, `upstream_failed`, `upstream_paused`, `upstream_resumed`.
"""

from __future__ import annotations

import logging
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, cast

from meshguard.model.errors import RequestError, withheld
from meshguard.model.messages import CHUNKED, NO_BODY, ResponseHead
from meshguard.model.reasons import (
    BODY_TOO_LARGE,
    GRPC_NEEDS_HTTP2,
    IDENTITY_REVOKED,
    INTERNAL_ERROR,
    LEDGER_UNAVAILABLE,
    REASONS,
    UPGRADE_NOT_SUPPORTED,
    UPSTREAM_RESET,
    Reason,
)
from meshguard.model.verdicts import Permit
from meshguard.net.cluster.endpoint import Connection
from meshguard.pipeline.deadlines import TimedExchange
from meshguard.pipeline.refusal import answer_of, last_words, problem_response
from meshguard.pipeline.repeat import repeatable

if TYPE_CHECKING:
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.stream import Downstream, Upstream
    from meshguard.net.tunnel import Tunnel
    from meshguard.pipeline.inspection import Inspection
    from meshguard.pipeline.journey import Journey

__all__ = ["Exchange"]

log = logging.getLogger(__name__)


@cache
def _inspection_type() -> type[Inspection]:
    from meshguard.pipeline.inspection import Inspection  # loaded by the first who needs it

    return Inspection


class Exchange(TimedExchange):
    """See the module."""

    __slots__ = ()

    # -- forwarding -----------------------------------------------------------------------------------------------------

    def forward(self, permit: Permit, cluster: Cluster, head_out: bytes) -> None:
        """Sends the request to `cluster`. INVARIANT: takes the `Permit`; there is no other way to the network."""
        self.verdict = permit
        self._cluster = cluster
        self._head_out = head_out
        connection = cluster.checkout()
        if connection is None:
            if not self._request_complete and self._door is not None:
                self._door.hold_request()  # the body waits with the client until there is somewhere to send it
            cluster.submit(self)
        else:
            self._take(connection)  # the door flushes, when it has handed over what it has read

    def connected(self, conn: Connection) -> None:
        """The cluster gives a connection (Call interface)."""
        self._take(conn)
        self.flush_request()

    def _take(self, conn: Connection) -> None:
        connection = cast("Upstream", conn)  # what the connector of the cluster makes
        if self.ended:
            connection.unused()
            return
        if self.grpc_end is not None and connection.protocol != "h2":
            connection.unused()
            self.refuse(GRPC_NEEDS_HTTP2)
            return
        self._connection = connection
        self.upstream = connection.endpoint.key
        self.upstream_protocol = connection.protocol
        if connection.closed:  # it ended between the cluster's choice and now; nothing was sent
            self.upstream_failed(UPSTREAM_RESET, "closed at once")
            return
        self.forwarded = self._touched = monotonic()
        head = self.head
        if head is None:
            return
        if self.websocket is None:
            connection.start(self, self._head_out, head.method, self.request_length == CHUNKED)
        else:
            head_out = self.websocket.head_for(connection.protocol, self._head_out)
            connection.start(self, head_out, b"CONNECT" if connection.protocol == "h2" else head.method, False)
        if self._inspection is not None:
            self._inspection.release_request(self)
        if self._replay is not None:
            self._send_again(connection)
        if self._request_complete:
            connection.flush()
        elif self._door is not None and self._door.request_held:
            self._door.release_request()  # what of the body is here goes in one write with the head

    def _send_again(self, connection: Upstream) -> None:
        """What the client has sent before the first upstream said that it processed nothing."""
        replay, self._replay = self._replay or [], None
        for data in replay:
            connection.send_data(data)
        if self._request_complete:
            connection.send_end(b"")

    def failed(self, reason: Reason, detail: str) -> None:
        """The cluster has no connection to give (Call interface)."""
        if not self.ended:
            self._cluster = None
            plan, table = self.plan, self.peer.table
            if plan is not None and plan.fallback is not None and table is not None:
                self._cluster = plan.fallback.elsewhere(self, reason, detail, table.snapshot.clusters)
            if self._cluster is not None:
                self._cluster.submit(self)
            else:
                self.refuse(reason, detail)

    def request_data(self, data: bytes) -> None:
        self.request_bytes += len(data)
        limit = self.plan.body_bytes if self.plan is not None else self.peer.limits.body_bytes
        if limit and self.request_bytes > limit:
            self.refuse(BODY_TOO_LARGE)
            return
        self._touched = monotonic()
        if self._inspection is not None and self._inspection.takes_request(self, data):
            return
        connection = self._connection
        if connection is not None:
            connection.send_data(data)

    def request_end(self, trailers: bytes) -> None:
        self._request_complete = True
        if self._inspection is not None and self._inspection.ends_request(self):
            return
        connection = self._connection
        if connection is not None:
            if trailers:
                keep = self.plan is not None and (self.plan.keep_trailers or self.grpc_end is not None) and self.peer.table is not None
                trailers = self.peer.table.view.field_rules.trailers(trailers) if keep and self.peer.table is not None else b""
                trailers = self._inspection.trailers(self, "request", trailers) if self._inspection is not None else trailers
            connection.send_end(trailers)
            connection.flush()

    def flush_request(self) -> None:
        if self._connection is not None:
            self._connection.flush()

    def inspection(self, journey: Journey) -> Inspection:
        """The bodies of this exchange, for a route with field rules."""
        if self._inspection is None:
            self._inspection = _inspection_type()(journey, self)
        return self._inspection

    def send_continue(self) -> None:
        if self._door is not None:
            self._door.send_continue()

    def send_body(self, data: bytes) -> None:
        if self._door is not None:
            self._door.send_data(data)

    # -- the answer -----------------------------------------------------------------------------------------------------

    def response_whole(self, head: ResponseHead, body: bytes) -> None:
        """The usual answer: all of it at once. The same as head, data and end, in a third of the calls."""
        plan, door, connection = self.plan, self._door, self._connection
        if door is None or plan is None or plan.inspects_response or connection is None or not self._request_complete or self.websocket:
            self.response_head(head)
            if body:
                self.response_data(body)
            self.response_end(b"")
            return
        self.answered = monotonic()
        self.status = head.status
        self.response_bytes = len(body)
        self._connection = self._door = None
        connection.finish(True)
        block = head.block if plan.response_operations is None else plan.response_operations.apply(head.block)
        if not self.finish(door):
            self._unrecorded(door)
            return
        door.send_whole(head.status, block + self.limit_lines if self.limit_lines else block, body)
        door.exchange_over(True)

    def response_head(self, head: ResponseHead) -> None:
        door = self._door
        if door is None:
            return
        if head.status < 200:
            self._interim(door, head)
            return
        if self.websocket is not None and head.status < 300 and self.head is not None and self.head.minor == 2:
            self.refuse(UPGRADE_NOT_SUPPORTED, "the upstream did not upgrade")  # to an extended CONNECT a 2xx means a tunnel
            return
        self.answered = self._touched = monotonic()
        self.status = head.status
        plan = self.plan
        block = head.block
        if self.grpc_end is not None and head.length == NO_BODY:
            self.grpc_end = block  # trailers only
        if plan is not None:
            if plan.response_operations is not None:
                block = plan.response_operations.apply(block)
            if plan.inspects_response and self._journey.inspect_response(self, head, block):
                return
        self.send_head(head.status, block, head)

    def send_head(self, status: int, block: bytes, head: ResponseHead, length: int | None = None, *, whole: bool = False) -> None:
        """Passes a response head on; `length` replaces the upstream's where the body was changed. `whole`: the rest follows at once."""
        door = self._door
        if door is not None and (whole or self.begin_answer(door)):
            self._response_sent = True
            if self.limit_lines:
                block += self.limit_lines
            door.send_head(status, block, head.length if length is None else length, head.specials)

    def begin_answer(self, door: Downstream) -> bool:
        """The first octets of an answer that takes its time are about to go: its decision is on record before them. False: refused."""
        ledger = self._journey.ledger
        if ledger is None or ledger.begun(self, door.channel):
            return True
        self.refuse(LEDGER_UNAVAILABLE)
        return False

    def _unrecorded(self, door: Downstream) -> None:
        """The record could not be written: nothing of the upstream's answer goes."""
        block, body = problem_response(LEDGER_UNAVAILABLE, self.decision_id)
        door.send_refusal(LEDGER_UNAVAILABLE, block + self.peer.answer_lines, body)
        door.exchange_over(self._request_complete)

    def _interim(self, door: Downstream, head: ResponseHead) -> None:
        if head.status == 101:
            if self.websocket is not None and self._connection is not None:
                self.status = head.status
                if self.begin_answer(door):
                    self.websocket.open(self, door, self._connection, head)
            else:
                self.upstream_failed(UPSTREAM_RESET, "switching protocols was not asked for")
            return
        self._interims += 1
        if self._interims > 16:  # a flood of interim answers keeps every deadline from running out
            self.upstream_failed(UPSTREAM_RESET, "too many interim responses")
            return
        if head.status != 100 and (self.plan is None or not self.plan.inspects_response):  # `Expect` was answered here
            door.send_interim(head.status, head.block)

    def tunnel_over(self, tunnel: Tunnel, aborted: str, detail: str) -> None:
        """The tunnel that this exchange became has ended (`net.tunnel.TunnelOwner`)."""
        self._connection = self._cluster = self._door = None
        self.request_bytes, self.response_bytes = tunnel.request_bytes, tunnel.response_bytes
        self.aborted, self.detail = aborted, detail
        self.finish()

    def dismiss(self, why: str, kind: str) -> bool:
        """An ordinary exchange has no last words, a gRPC call has its status (`net.stream.Stream`)."""
        if self.grpc_end is None or kind != "revoked":
            return False
        self.aborted = kind
        self.refuse(REASONS.get(why, IDENTITY_REVOKED), why)
        return True

    def response_data(self, data: bytes) -> None:
        self._touched = monotonic()
        if self._inspection is not None and self._inspection.takes_response(self, data):
            return
        door = self._door
        if door is not None:
            self.response_bytes += len(data)
            door.send_data(data)

    def response_end(self, trailers: bytes) -> None:
        if self._inspection is not None and self._inspection.ends_response(self):
            return
        self.complete(trailers)

    def complete(self, trailers: bytes = b"") -> None:
        """The response is whole: ends the downstream message, gives the connection back, finishes."""
        door = self._door
        self._response_complete = True
        self.release_upstream()
        if door is not None:
            keep = trailers and (self.grpc_end is not None or (self.plan is not None and self.plan.keep_trailers))
            trailers = self._inspection.trailers(self, "response", trailers) if keep and self._inspection is not None else trailers
            if self.grpc_end is not None and trailers:
                self.grpc_end = trailers
            self._door = None
            if self.finish(door):
                door.send_end(trailers if keep else b"")
                door.exchange_over(self._request_complete)
            else:
                door.reset()

    def flush_response(self) -> None:
        if self._door is not None:
            self._door.flush()

    # -- failures -------------------------------------------------------------------------------------------------------

    def refuse(self, reason: Reason, detail: str = "") -> None:
        """meshguard answers itself. After the response has begun there is only the abort, or the trailers of a gRPC call."""
        if self.ended:
            return
        if self.plan is not None and self.plan.fallback is not None and not self._response_sent:
            reason = self.plan.fallback.instead(self, reason, self._cluster is not None and bool(self._cluster.barred))
        self.refusal, self.detail = reason, detail
        self._let_go()
        door, self._door = self._door, None
        if door is None:
            self.finish()
            return
        if self._response_sent:
            self.aborted = self.aborted or "upstream"
            trailers = last_words(self, reason)
            if self.finish(door if trailers else None) and trailers:
                door.send_end(trailers)
                door.exchange_over(self._request_complete)
            else:
                door.reset()
            return
        block, body = answer_of(self, reason)
        if not self.finish(door):
            self._unrecorded(door)
            return
        door.send_refusal(reason, block, body)
        door.exchange_over(self._request_complete)

    def upstream_failed(self, reason: Reason, detail: str) -> None:
        """The upstream connection broke or broke the rules. Safe requests whose kept-alive connection died unanswered go again."""
        cluster = self._cluster
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop(reason)
        if self.ended or cluster is None:
            return
        replay = None if connection is None or self._response_sent else repeatable(connection, self.head, reason)
        if replay is not None and cluster.may_retry(self):
            if replay and (self._inspection is None or not self._inspection.keeps_request):
                self._replay = replay
            if not self._request_complete and self._door is not None:
                self._door.hold_request()
            cluster.submit(self)
            return
        self.refuse(reason, detail)

    def client_gone(self, why: str, kind: str = "client") -> None:
        """The client's connection or stream ended before the exchange was over; `kind` is who ended it."""
        if not self.ended:
            self.aborted = kind
            self.detail = why
            self._door = None
            self._let_go()
            self.finish()

    def fail(self, exc: Exception) -> None:
        """An exception that nobody foresaw: refused, never forwarded."""
        if isinstance(exc, RequestError):
            self.refuse(exc.reason, exc.detail)
            return
        told = exc if self._inspection is None else withheld(exc)
        log.error("exception in the journey", exc_info=told, extra={"decision_id": self.decision_id})
        self.refuse(INTERNAL_ERROR, type(exc).__name__)

    def _let_go(self) -> None:
        """Gives up the upstream side: a connection with half an exchange on it is never used again."""
        connection, cluster = self._connection, self._cluster
        self._connection = None
        if connection is not None:
            connection.abandon()
        elif cluster is not None:
            cluster.cancel(self)
        self._cluster = None

    # -- back-pressure --------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """The client reads slowly."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        self._touched = monotonic()
        if self._connection is not None:
            self._connection.resume_reading()

    def upstream_paused(self) -> None:
        if self._door is not None:
            self._door.hold_request()

    def upstream_resumed(self) -> None:
        self._touched = monotonic()
        if self._door is not None:
            self._door.release_request()

    # -- the end --------------------------------------------------------------------------------------------------------

    def finish(self, door: Downstream | None = None) -> bool:
        """Records the exchange, once, before the (rest of the) answer goes to `door`. False: it is not on record, so no answer may go.
        INVARIANT: every request that was parsed, refused or cut comes through here."""
        if not self.ended:
            self.ended = monotonic()
            self._head_out = b""
            inspection, self._inspection = self._inspection, None
            if inspection is not None:
                inspection.close()
            ledger = self._journey.ledger
            kept = ledger is None or ledger.append(self, None if door is None else door.channel)
            if not kept and door is not None:
                self.refusal, self.status = LEDGER_UNAVAILABLE, LEDGER_UNAVAILABLE.status
            self._journey.finished(self)
            return kept
        return True
