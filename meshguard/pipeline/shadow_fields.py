"""Field rules in shadow, put to a copy of a message while the message itself passes untouched.

INVARIANT: nothing here raises, changes a head or a body, or takes from the budget of inspections that are enforced. What an enforced rule
would have refused is told as `would_refuse:REASON`. A copy is held up to the limit of an inspected body, and at most COPIES at one time in
a process: what comes beyond is told as `would_refuse:inspection_overloaded`, which it need not have been.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from secrets import token_bytes
from time import time
from typing import TYPE_CHECKING

from meshguard.fields.shadow import WOULD
from meshguard.fields.transforms import WIRE, Reader
from meshguard.model.errors import RequestError
from meshguard.model.messages import NO_BODY, ResponseHead
from meshguard.model.reasons import BODY_OVER_LIMIT, INSPECTION_OVERLOADED, INTERNAL_ERROR, RESPONSE_NOT_INSPECTABLE, Reason
from meshguard.model.record import FieldOperation
from meshguard.pipeline.facts import RequestFacts
from meshguard.wire.fields import field_values

if TYPE_CHECKING:
    from meshguard.fields.body_stream import BodyStream
    from meshguard.fields.heads import HeadTransform
    from meshguard.fields.plans import RoutePlan
    from meshguard.fields.representation import Representation
    from meshguard.fields.transforms import Transform
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.journey import Journey

__all__ = ["COPIES", "ShadowFields"]

log = logging.getLogger(__name__)

COPIES = 64
"""Of bodies, in one process: with the default limit of a body they are as much as all enforced inspections may hold."""


class _Copies:
    """How many there are."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


_copies = _Copies()


class ShadowFields:
    """The copies of one exchange's messages."""

    __slots__ = ("_exchange", "_facts", "_journey", "_request", "_response", "_rules")

    def __init__(self, journey: Journey, exchange: Exchange, rules: RoutePlan) -> None:
        self._journey = journey
        self._exchange = exchange
        self._rules = rules
        self._facts = RequestFacts(exchange, time())
        self._request: _Copy | None = None
        self._response: _Copy | None = None

    def request(self) -> None:
        """The head of the request is judged, and its body from here on."""
        exchange, rules = self._exchange, self._rules
        head, plan = exchange.head, exchange.plan
        if head is None or plan is None:
            return
        reader = WIRE if exchange.peer.outbound else self._journey.snapshot.own_reader
        self._head(rules.request_head, head.block, plan.query or b"", reader)
        if head.length != NO_BODY and rules.request is not None:
            self._request = copy = self._copy(rules.request, reader)
            copy.begin(head.block, head.length)

    def request_data(self, data: bytes) -> None:
        """A piece of the request's body passes."""
        if self._request is not None:
            self._request.data(data)

    def request_end(self) -> None:
        """The request's body has passed."""
        if self._request is not None:
            self._request.end()

    def response(self, head: ResponseHead, block: bytes) -> None:
        """The head of the response has come."""
        rules = self._rules
        reader = self._recipient()
        self._head(rules.response_head, block, b"", reader)
        if head.length == NO_BODY or rules.response is None:
            return
        self._response = copy = self._copy(rules.response, reader)
        if head.status in (206, 226):
            copy.refused(RESPONSE_NOT_INSPECTABLE)
        else:
            copy.begin(block, head.length)

    def response_data(self, data: bytes) -> None:
        """A piece of the response's body passes."""
        if self._response is not None:
            self._response.data(data)

    def response_end(self) -> None:
        """The response's body has passed."""
        if self._response is not None:
            self._response.end()

    def close(self) -> None:
        """The exchange is over, whatever has come of it."""
        for copy in (self._request, self._response):
            if copy is not None:
                copy.drop()

    def _recipient(self) -> Reader:
        """Who reads the response; with a token that is not valid, somebody without its roles."""
        exchange, table = self._exchange, self._exchange.peer.table
        if exchange.peer.outbound or table is None:
            return self._journey.snapshot.own_reader
        principal = table.principal.spiffe_id if table.principal is not None else None
        try:
            return Reader(table.binding.roles_with(self._facts.claims), principal)
        except RequestError:
            return Reader(table.binding.roles, principal)

    def _copy(self, transform: Transform, reader: Reader) -> _Copy:
        return _Copy(transform, reader, self._facts, self._journey.budget.body_bytes, self._tell)

    def _head(self, rules: HeadTransform | None, block: bytes, query: bytes, reader: Reader) -> None:
        if rules is None:
            return
        reason = _tried(lambda: self._tell(rules.apply(block, query, reader, token_bytes, self._facts)[2]))
        if reason is not None:
            self._tell(_refusals(rules.ids, reason))

    def _tell(self, operations: Sequence[FieldOperation]) -> None:
        if operations:
            self._exchange.operations = [*self._exchange.operations, *operations]


class _Copy:
    """A body, gathered or looked at as it passes; dropped at the first trouble."""

    __slots__ = ("_body", "_facts", "_limit", "_reader", "_representation", "_stream", "_tell", "_transform")

    def __init__(
        self, transform: Transform, reader: Reader, facts: RequestFacts, limit: int, tell: Callable[[Sequence[FieldOperation]], None]
    ) -> None:
        self._transform = transform
        self._reader = reader
        self._facts = facts
        self._limit = limit
        self._tell = tell
        self._representation: Representation | None = None
        self._stream: BodyStream | None = None
        self._body: bytearray | None = None

    def begin(self, block: bytes, length: int) -> None:
        self._try(lambda: self._begin(block, length))

    def _begin(self, block: bytes, length: int) -> None:
        types = [value.decode("latin-1") for value in field_values(block, b"content-type")]
        codings = [value.decode("latin-1") for value in field_values(block, b"content-encoding")]
        self._representation = representation = self._transform.check_headers(types, codings)
        if self._transform.streams(representation):
            grpc = ",".join(value.decode("latin-1").lower() for value in field_values(block, b"grpc-encoding"))
            self._stream = self._transform.stream(representation, self._reader, token_bytes, self._limit, self._facts, grpc)
            return
        if length > self._limit:
            raise RequestError(BODY_OVER_LIMIT)
        if _copies.held >= COPIES:
            raise RequestError(INSPECTION_OVERLOADED)
        _copies.held += 1
        self._body = bytearray()

    def data(self, data: bytes) -> None:
        stream, body = self._stream, self._body
        if stream is not None:
            self._try(lambda: stream.feed(data))
        elif body is not None:
            if len(body) + len(data) > self._limit:
                self.refused(BODY_OVER_LIMIT)
            else:
                body += data

    def end(self) -> None:
        self._try(self._end)
        self.drop()

    def _end(self) -> None:
        stream, body, representation = self._stream, self._body, self._representation
        if stream is not None:
            stream.finish()
            self._tell(stream.operations())
        elif body is not None and representation is not None:
            result = self._transform.apply(
                bytes(body),
                representation.text,
                self._reader,
                token_bytes,
                time(),
                caller=self._facts,
                coding=representation.coding,
                limit=self._limit,
            )
            self._tell(result.operations)

    def drop(self) -> None:
        if self._body is not None:
            _copies.held -= 1
        self._representation = self._stream = self._body = None

    def refused(self, reason: Reason) -> None:
        if self._stream is not None:
            self._tell(self._stream.operations())  # the records before
        self.drop()
        self._tell(_refusals(self._transform.ids, reason))

    def _try(self, work: Callable[[], object]) -> None:
        reason = _tried(work)
        if reason is not None:
            self.refused(reason)


def _tried(work: Callable[[], object]) -> Reason | None:
    """Does it; why an enforced rule would have refused, None when all went well."""
    try:
        work()
    except RequestError as error:
        return error.reason
    except Exception:
        # the outermost frame of what is only tried: nothing of it may reach the message
        log.exception("a field rule in shadow failed")
        return INTERNAL_ERROR
    return None


def _refusals(ids: Sequence[str], reason: Reason) -> list[FieldOperation]:
    return [FieldOperation(f"{WOULD}refuse:{reason.code}", field) for field in ids]
