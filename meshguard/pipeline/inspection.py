"""Messages that a field rule has to read, rewritten for their recipient.

Heads are rewritten at once. Bodies are gathered whole and bounded and go on with our own length, or, in formats of many records (lines,
events, gRPC messages), record by record as they pass. Only routes with a field rule come here. Fail closed: what cannot be read is refused,
never waved through; a stream that turns out so in its middle is cut so that its reader can tell.

Who is the recipient: on an inbound listener the caller reads the response and this workload the request. On an outbound one this workload
reads the response, and the request goes to another proxy, which judges its own workload: until then it is sealed (F1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from secrets import token_bytes
from time import time
from typing import TYPE_CHECKING

from meshguard.fields.transforms import WIRE, Reader, Transform, Transformed
from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.messages import CHUNKED, NO_BODY, ResponseHead
from meshguard.model.reasons import (
    BODY_OVER_LIMIT,
    INSPECTION_OVERLOADED,
    INTERNAL_ERROR,
    KEY_UNAVAILABLE,
    RESPONSE_NOT_INSPECTABLE,
    TENANT_UNKNOWN,
    Reason,
)
from meshguard.model.verdicts import Permit
from meshguard.pipeline.facts import RequestFacts
from meshguard.pipeline.inspected_heads import message_coding, representation_lines, without_old_body, without_parts
from meshguard.pipeline.slices import SLICED_FROM, STEPS
from meshguard.wire.fields import remove_fields

if TYPE_CHECKING:
    from meshguard.fields.body_stream import BodyStream
    from meshguard.fields.representation import Representation
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.journey import Journey
    from meshguard.pipeline.shadow_fields import ShadowFields
    from meshguard.pipeline.validation import BodyJudge
    from meshguard.validation.contract import Check

__all__ = ["Inspection"]

_ONE_WRITE = 32768
"""Octets up to which a rewritten answer is on record once, whole; above it, like any streamed answer, also when it begins."""

_PRIVATE = b"cache-control: private, no-cache\r\n"


class Inspection:
    """The messages of one exchange."""

    __slots__ = (
        "_block",
        "_body",
        "_facts",
        "_held",
        "_journey",
        "_judge",
        "_outbound",
        "_phase",
        "_reader",
        "_representation",
        "_request_body",
        "_response",
        "_shadow",
        "_size",
        "_stream",
        "place",
    )

    def __init__(self, journey: Journey, exchange: Exchange) -> None:
        self._journey = journey
        self._phase = ""  # what of a body comes now: "request", "response", or "-stream" of these
        self._body = bytearray()
        self._size = 0
        self._held = 0
        self._request_body: bytes | None = None
        self._response: ResponseHead | None = None
        self._representation: Representation | None = None
        self._stream: BodyStream | None = None
        self._judge: BodyJudge | None = None  # of the request's body
        self._shadow: ShadowFields | None = None
        self.place = ""  # where in the request its contract was broken
        self._block = b""
        self._facts = RequestFacts(exchange, time())
        self._outbound: bool = exchange.peer.outbound
        self._reader: Reader | None = journey.snapshot.own_reader if self._outbound else None

    # -- request --------------------------------------------------------------------------------------------------------

    def judge(self, exchange: Exchange, check: Check) -> bool:
        """Judges the head by the route's contract; True when the body has to be judged too. Raises RequestError."""
        from meshguard.pipeline.validation import InvalidRequest, judge_head

        if exchange.head is None:
            raise RequestError(INTERNAL_ERROR, "no head")
        try:
            self._judge = judge_head(check, exchange.head)
        except InvalidRequest as error:
            self._tell(exchange, error)
            raise
        return self._judge is not None

    def prepare(self, exchange: Exchange) -> None:
        """Before anything is sent: who will read the response, what the upstream is asked for, and the head of the request."""
        plan, head, table = exchange.plan, exchange.head, exchange.peer.table
        if plan is None or head is None or table is None or plan.fields is None:
            raise RequestError(INTERNAL_ERROR, "no plan")
        fields = plan.fields
        if fields.reads_response and self._reader is None:
            principal = table.principal.spiffe_id if table.principal is not None else None
            self._reader = Reader(table.binding.roles_with(self._facts.claims), principal)
        block = head.block
        if fields.response is not None:
            exchange.block = block = without_parts(block) + b"accept-encoding: identity\r\n"
        if fields.request_head is not None:
            query = plan.query
            exchange.block, rewritten, operations = fields.request_head.apply(
                block, query or b"", self._request_reader(), token_bytes, self._facts
            )
            exchange.operations = [*exchange.operations, *operations]
            if query and rewritten != query:
                target = b"?" + rewritten if rewritten else b""
                exchange.line = plan.line.replace(b"?%b HTTP/1.1\r\n" % query, target + b" HTTP/1.1\r\n", 1)
        if fields.shadow is not None:
            from meshguard.pipeline.shadow_fields import ShadowFields  # loaded by the first rule in shadow

            self._shadow = ShadowFields(self._journey, exchange, fields.shadow)
            self._shadow.request()

    def begin_request(self, exchange: Exchange) -> bool:
        """True: the exchange waits until the body is whole."""
        head, plan = exchange.head, exchange.plan
        if head is None or plan is None:
            raise RequestError(INTERNAL_ERROR, "no head or no plan")
        streams = False
        if plan.inspects_request:
            transform = self._transform(exchange, "request")
            self._representation = representation = transform.check_lines(representation_lines(b"\n" + head.block))
            streams = transform.streams(representation)
        if streams:
            limit = self._journey.budget.body_bytes
            coding = message_coding(head.block)
            self._stream = transform.stream(representation, self._request_reader(), token_bytes, limit, self._facts, coding)
            exchange.request_length = CHUNKED
        elif head.length > self._journey.budget.body_bytes:
            raise RequestError(BODY_OVER_LIMIT, f"content-length {head.length}")
        self._phase = "request-stream" if streams else "request"
        if head.expect:
            exchange.send_continue()
        return not streams

    def takes_request(self, exchange: Exchange, data: bytes) -> bool:
        if self._shadow is not None:
            self._shadow.request_data(data)
        if self._phase == "request-stream":
            self._pass_on(exchange, data)
            return True
        if self._phase != "request":
            return False
        try:
            self._gather(data)
        except RequestError as error:
            exchange.refuse(error.reason, error.detail)
        return True

    def ends_request(self, exchange: Exchange) -> bool:
        """True: what follows the end is done here."""
        if self._shadow is not None:
            self._shadow.request_end()
        if self._phase == "request-stream":
            self._phase = ""
            return not self._pass_on(exchange, None)
        if self._phase != "request":
            return False
        self._phase = ""
        try:
            self._end_request(exchange)
        except RequestError as error:
            self._refused(exchange, error)
        return True

    def _end_request(self, exchange: Exchange) -> None:
        """A contract describes the open values: it judges what the workload gets to see, or what it has written."""
        if self._judge is not None and self._outbound:
            self._judge.judge(bytes(self._body), self._journey.budget.body_bytes)
        then = partial(self._request_treated, exchange)
        if exchange.plan is not None and exchange.plan.inspects_request:
            self._treat(exchange, "request", self._request_reader(), then, partial(self._refused, exchange))
        else:
            body, self._body, self._size = bytes(self._body), bytearray(), 0
            then(Transformed(body, []))

    def _request_treated(self, exchange: Exchange, result: Transformed) -> None:
        from meshguard.pipeline.journey import inspect

        body = result.body
        if self._judge is not None and not self._outbound:
            self._judge.judge(body, self._journey.budget.body_bytes)
        exchange.operations = [*exchange.operations, *result.operations]
        exchange.request_length = len(body)
        self._request_body = body
        self._journey.resume(exchange, inspect)
        exchange.flush_request()

    def _refused(self, exchange: Exchange, error: RequestError) -> None:
        self._tell(exchange, error)
        exchange.refuse(error.reason, error.detail)

    def _tell(self, exchange: Exchange, error: RequestError) -> None:
        if exchange.plan is not None and exchange.plan.reports_place:
            self.place = getattr(error, "place", "")

    @property
    def keeps_request(self) -> bool:
        """The whole body is here, and goes to whichever connection is taken."""
        return self._request_body is not None

    def release_request(self, exchange: Exchange) -> None:
        """The upstream connection is there: the rewritten body goes."""
        if self._request_body is not None and exchange.connection is not None:
            exchange.connection.send_data(self._request_body)

    def _pass_on(self, exchange: Exchange, data: bytes | None) -> bool:
        """A piece of a streamed request (None: its end) goes on; False when it was refused."""
        stream = self._stream
        try:
            if stream is None:
                raise RequestError(INTERNAL_ERROR, "no stream")
            out = stream.finish() if data is None else stream.feed(data)
            self._hold(stream.held)
        except RequestError as error:
            exchange.refuse(error.reason, error.detail)
            return False
        if out and exchange.connection is not None:
            exchange.connection.send_data(out)
        if data is None:
            exchange.operations = [*exchange.operations, *stream.operations()]
        return True

    # -- response -------------------------------------------------------------------------------------------------------

    def begin_response(self, exchange: Exchange, head: ResponseHead, block: bytes) -> bool:
        """True: the response is taken over. Raises RequestError where it cannot be read."""
        plan = exchange.plan
        if self._shadow is not None:
            self._shadow.response(head, block)
            if plan is not None and plan.fields is not None and not plan.fields.reads_response:
                return False
        if plan is None or plan.fields is None or self._reader is None:
            raise UpstreamError(INTERNAL_ERROR, "no plan or no reader")
        rewritten = block
        if plan.fields.response_head is not None:
            try:
                rewritten, _, operations = plan.fields.response_head.apply(block, b"", self._reader, token_bytes, self._facts)
            except RequestError as error:
                raise UpstreamError(_of_response(error), error.detail) from error
            if operations:
                exchange.operations = [*exchange.operations, *operations]
                rewritten = remove_fields(rewritten, (b"cache-control",)) + _PRIVATE
        if plan.fields.response is None or head.length == NO_BODY:
            if plan.fields.response is not None:
                head.specials = [pair for pair in head.specials if pair[0] != b"content-length"]
            if rewritten is block:
                return False
            exchange.send_head(head.status, rewritten, head)
            return True
        transform = plan.fields.response
        try:
            self._representation = representation = transform.check_lines(representation_lines(b"\n" + block))
            if head.status in (206, 226):
                raise RequestError(RESPONSE_NOT_INSPECTABLE, "partial content")
            if transform.streams(representation):
                return self._begin_stream(exchange, head, rewritten, transform, representation)
            if head.length > self._journey.budget.body_bytes:
                raise RequestError(BODY_OVER_LIMIT, f"content-length {head.length}")
        except RequestError as error:
            raise UpstreamError(_of_response(error), error.detail) from error
        self._phase = "response"
        self._response = head
        self._block = rewritten
        return True

    def _begin_stream(
        self, exchange: Exchange, head: ResponseHead, block: bytes, transform: Transform, representation: Representation
    ) -> bool:
        if self._reader is None:
            raise RequestError(INTERNAL_ERROR, "no reader")
        self._stream = transform.stream(
            representation, self._reader, token_bytes, self._journey.budget.body_bytes, self._facts, message_coding(block)
        )
        self._phase = "response-stream"
        exchange.send_head(head.status, without_old_body(block) + _PRIVATE, head, length=CHUNKED)
        return True

    def takes_response(self, exchange: Exchange, data: bytes) -> bool:
        if self._shadow is not None:
            self._shadow.response_data(data)
        if self._phase == "response-stream":
            self._send_on(exchange, data)
            return True
        if self._phase != "response":
            return False
        try:
            self._gather(data)
        except RequestError as error:
            self._phase = ""
            exchange.upstream_failed(RESPONSE_NOT_INSPECTABLE if error.reason is BODY_OVER_LIMIT else error.reason, error.detail)
        return True

    def ends_response(self, exchange: Exchange) -> bool:
        """True: the answer is complete, or refused."""
        if self._shadow is not None:
            self._shadow.response_end()
        if self._phase == "response-stream":
            self._phase = ""
            return not self._send_on(exchange, None)
        if self._phase != "response":
            return False
        self._phase = ""
        if self._response is None or type(exchange.verdict) is not Permit or self._reader is None:
            exchange.refuse(INTERNAL_ERROR)
            return True
        failed = partial(self._response_failed, exchange)
        try:
            if self._treat(exchange, "response", self._reader, partial(self._response_treated, exchange), failed):
                exchange.release_upstream()
        except RequestError as error:
            failed(error)
        return True

    def _response_failed(self, exchange: Exchange, error: RequestError) -> None:
        exchange.status = 0
        exchange.upstream_failed(_of_response(error), error.detail)

    def _response_treated(self, exchange: Exchange, result: Transformed) -> None:
        head, body, operations = self._response, result.body, result.operations
        if head is None:
            raise RequestError(INTERNAL_ERROR, "no head")
        exchange.operations = [*exchange.operations, *operations]
        block = self._block
        if operations:
            # the view belongs to this caller: no shared cache may give it to another one
            block = without_old_body(block) + _PRIVATE
        exchange.response_bytes = len(body)
        exchange.send_head(head.status, block, head, length=len(body), whole=len(body) <= _ONE_WRITE)
        if body:
            exchange.send_body(body)
        exchange.complete()

    def _send_on(self, exchange: Exchange, data: bytes | None) -> bool:
        """A piece of a streamed response (None: its end) goes to the client; False when it had to be cut."""
        stream = self._stream
        try:
            if stream is None:
                raise RequestError(INTERNAL_ERROR, "no stream")
            out = stream.finish() if data is None else stream.feed(data)
            self._hold(stream.held)
        except RequestError as error:
            self._phase = "cut"
            if stream is not None:
                exchange.operations = [*exchange.operations, *stream.operations()]
            exchange.upstream_failed(_of_response(error), error.detail)
            return False
        if out:
            exchange.response_bytes += len(out)
            exchange.send_body(out)
        if data is None:
            exchange.operations = [*exchange.operations, *stream.operations()]
        return True

    # -- both -----------------------------------------------------------------------------------------------------------

    def trailers(self, exchange: Exchange, direction: str, trailers: bytes) -> bytes:
        """A trailer section without protected fields."""
        fields = exchange.plan.fields if exchange.plan is not None else None
        rules = None if fields is None else fields.request_head if direction == "request" else fields.response_head
        return trailers if rules is None else rules.without(trailers)

    def close(self) -> None:
        """Gives the budget back."""
        if self._shadow is not None:
            self._shadow.close()
        self._journey.budget.give_back(self._held)
        self._held = 0
        self._body = bytearray()
        self._request_body = None
        self._stream = None

    def _request_reader(self) -> Reader:
        return WIRE if self._outbound else self._journey.snapshot.own_reader

    def _transform(self, exchange: Exchange, direction: str) -> Transform:
        fields = exchange.plan.fields if exchange.plan is not None else None
        transform = None if fields is None else fields.request if direction == "request" else fields.response
        if transform is None:
            raise RequestError(INTERNAL_ERROR, "no field rule")
        return transform

    def _gather(self, data: bytes) -> None:
        self._size += len(data)
        self._journey.budget.take(len(data), self._size)
        self._held += len(data)
        self._body += data

    def _hold(self, held: int) -> None:
        """Accounts for what a stream holds back now."""
        if held > self._held:
            self._journey.budget.take(held - self._held, 0)
        else:
            self._journey.budget.held -= self._held - held
        self._held = held

    def _treat(
        self,
        exchange: Exchange,
        direction: str,
        reader: Reader,
        then: Callable[[Transformed], None],
        refused: Callable[[RequestError], None],
    ) -> bool:
        """Treats the gathered body and calls `then`; True when that will be later, in slices. Raises RequestError."""
        transform = self._transform(exchange, direction)
        body, self._body, self._size = bytes(self._body), bytearray(), 0
        representation = self._representation
        if not body or representation is None:
            then(Transformed(body, []))
            return False
        limit, text, coding = self._journey.budget.body_bytes, representation.text, representation.coding
        if len(body) < SLICED_FROM or representation.family != "json":
            then(transform.apply(body, text, reader, token_bytes, time(), caller=self._facts, coding=coding, limit=limit))
            return False
        job = transform.applying(body, reader, token_bytes, self._facts, coding, limit, STEPS)
        self._journey.slices.start(job, exchange, then, refused)
        return True


def _of_response(error: RequestError) -> Reason:
    """The reason of a response that cannot be treated: it is the upstream's fault, unless a key is missing or the budget is spent."""
    return error.reason if error.reason in (KEY_UNAVAILABLE, INSPECTION_OVERLOADED, TENANT_UNKNOWN) else RESPONSE_NOT_INSPECTABLE
