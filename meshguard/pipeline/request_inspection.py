"""The body of a request that somebody has to read: a rule that decides by it (E3), the contract of the route (E5), a field rule (F1).

It is gathered whole and bounded and goes on with our own length, or, in formats of many records, record by record as it passes. Fail
closed: what cannot be read is refused, never waved through; a stream that turns out so in its middle is cut. Only routes and policies that
ask for it come here. Who reads the request: on an inbound listener this workload; on an outbound one another proxy, which judges its own
workload, so until then it is sealed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from secrets import token_bytes
from time import time
from typing import TYPE_CHECKING, cast

from meshguard.fields.transforms import WIRE, Reader, Transform, Transformed
from meshguard.model.errors import RequestError
from meshguard.model.messages import CHUNKED, NO_BODY, ResponseHead
from meshguard.model.reasons import (
    BODY_OVER_LIMIT,
    INTERNAL_ERROR,
)
from meshguard.pipeline.described import described, message_coding, without_parts
from meshguard.pipeline.facts import RequestFacts
from meshguard.pipeline.slices import SLICED_FROM, STEPS

if TYPE_CHECKING:
    from meshguard.fields.body_stream import BodyStream
    from meshguard.fields.representation import Representation
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.journey import Journey
    from meshguard.pipeline.message_judge import Chained, MessageGate, MessageJudge
    from meshguard.pipeline.plan import Plan
    from meshguard.pipeline.shadow_fields import ShadowFields
    from meshguard.pipeline.validation import BodyJudge
    from meshguard.validation.contract import Check

__all__ = ["RequestInspection"]


class RequestInspection:
    """The request of one exchange, and what `inspection.Inspection` needs for its response."""

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
        "_reserved",
        "_response",
        "_shadow",
        "_size",
        "_stream",
        "place",
    )

    def __init__(self, journey: Journey, exchange: Exchange) -> None:
        self._journey = journey
        self._phase = ""  # what of a body comes now: "decision", "request", "response", or "-stream" of these
        self._body = bytearray()
        self._size = 0
        self._held = 0
        self._reserved = 0  # octets of `_held` that were taken for a body before it came
        self._request_body: bytes | None = None
        self._response: ResponseHead | None = None
        self._representation: Representation | None = None
        self._stream: BodyStream | MessageGate | Chained | None = None
        self._judge: BodyJudge | MessageJudge | None = None  # of the request's body
        self._shadow: ShadowFields | None = None
        self.place = ""  # where in the request its contract was broken
        self._block = b""
        self._facts = RequestFacts(exchange, time())
        self._outbound: bool = exchange.peer.outbound
        self._reader: Reader | None = journey.snapshot.own_reader if self._outbound else None

    # -- decision -------------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> RequestFacts:
        """What rules look at."""
        return self._facts

    def begin_decision(self, exchange: Exchange, facts: RequestFacts) -> bool:
        """True: the exchange waits until the body is whole, for its decision. False: it has none, or none that any rule can read."""
        from meshguard.pipeline.bodies import gathers  # loaded by the first policy that asks for a body

        head = exchange.head
        if head is None:
            raise RequestError(INTERNAL_ERROR, "no head")
        self._facts = facts
        if not gathers(facts, exchange, self._journey.budget.body_bytes):
            return False
        self._phase = "decision"
        if head.expect:
            exchange.send_continue()
        return True

    def begin_shadow(self, exchange: Exchange, facts: RequestFacts) -> bool | None:
        """As `begin_decision`, for shadow rules. None: not read, because it might refuse a request that no rule refuses: a body of unknown
        length could turn out too long. What may be held is taken before, so that nothing fails later."""
        head = exchange.head
        if head is not None and head.length > 0:
            if head.length > self._journey.budget.body_bytes:
                return None
            try:
                self._journey.budget.take(head.length, head.length)
            except RequestError:
                return None
            self._held += head.length
            self._reserved = head.length
        elif head is None or head.length != NO_BODY:
            return None
        return self.begin_decision(exchange, facts)

    def _decide(self, exchange: Exchange, error: RequestError | None = None) -> None:
        """The body is whole, or `error` says why it never will be: then no rule can read it, and whatever comes of that, it is refused."""
        from meshguard.pipeline.bodies import BodyReader
        from meshguard.pipeline.journey import BODY_STAGES

        body, self._phase = bytes(self._body), ""
        path = exchange.plan.path if exchange.plan is not None else ""
        reason = None if error is None else error.reason
        self._facts.bodies = BodyReader(path, self._facts.header, body, self._journey.budget.body_bytes, reason)
        if error is None:
            exchange.request_length = len(body)
            self._request_body = body
            self._body = bytearray()
            self._journey.run(exchange, BODY_STAGES)
        else:
            self._journey.run(exchange, BODY_STAGES[:3])
            exchange.refuse(error.reason, error.detail)

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
            if self._request_body is not None:  # the decision has waited for it
                self._shadow.request_data(self._request_body)
                self._shadow.request_end()

    def begin_request(self, exchange: Exchange) -> bool:
        """True: the exchange waits until the body is whole."""
        head, plan = exchange.head, exchange.plan
        if head is None or plan is None:
            raise RequestError(INTERNAL_ERROR, "no head or no plan")
        if self._request_body is not None:
            return self._begin_whole(exchange, plan)
        judge, streams = self._judge, self._judge is not None and self._judge.streams
        if plan.inspects_request:
            transform = self._transform(exchange, "request")
            self._representation = representation = transform.check_lines(described(head.block))
            streams = transform.streams(representation) and (judge is None or streams)
        if streams:
            limit = self._journey.budget.body_bytes
            passing: list[BodyStream | MessageGate] = []
            if plan.inspects_request:
                coding = message_coding(head.block)
                passing.append(transform.stream(representation, self._request_reader(), token_bytes, limit, self._facts, coding))
                exchange.request_length = CHUNKED
            if judge is not None and judge.streams:
                passing.insert(0 if self._outbound else 1, cast("MessageJudge", judge).gate(limit))  # the contract describes open values
            self._stream = _chained(passing)
        elif head.length > self._journey.budget.body_bytes:
            raise RequestError(BODY_OVER_LIMIT, f"content-length {head.length}")
        self._phase = "request-stream" if streams else "request"
        if head.expect and (plan.inspects_request or not streams):  # else `forward` says it
            exchange.send_continue()
        return not streams

    def _begin_whole(self, exchange: Exchange, plan: Plan) -> bool:
        """The same for a body that the decision has waited for."""
        self._body, self._request_body = bytearray(self._request_body or b""), None
        if plan.inspects_request and exchange.head is not None:
            self._representation = self._transform(exchange, "request").check_lines(described(exchange.head.block))
        try:
            return not self._rewrite_request(exchange)
        except RequestError as error:
            self._tell(exchange, error)
            raise

    def _rewrite_request(self, exchange: Exchange) -> bool:
        """Treats the whole body. False: that is done later, in slices, and the journey goes on then. Raises RequestError.

        A contract describes the open values: it judges what the workload gets to see, or what it has written."""
        if self._judge is not None and self._outbound:
            self._judge.judge(bytes(self._body), self._journey.budget.body_bytes)
        if exchange.plan is not None and exchange.plan.inspects_request:
            later, refused = partial(self._request_later, exchange), partial(self._request_refused, exchange)
            result = self._treat(exchange, "request", self._request_reader(), later, refused)
            if result is None:
                return False
        else:
            result = Transformed(bytes(self._body), [])
            self._body, self._size = bytearray(), 0
        self._request_treated(exchange, result)
        return True

    def _request_treated(self, exchange: Exchange, result: Transformed) -> None:
        if self._judge is not None and not self._outbound:
            self._judge.judge(result.body, self._journey.budget.body_bytes)
        exchange.operations = [*exchange.operations, *result.operations]
        exchange.request_length = len(result.body)
        self._request_body = result.body

    def _request_later(self, exchange: Exchange, result: Transformed) -> None:
        from meshguard.pipeline.journey import inspect

        self._request_treated(exchange, result)
        self._journey.resume(exchange, inspect)
        exchange.flush_request()

    def _request_refused(self, exchange: Exchange, error: RequestError) -> None:
        self._tell(exchange, error)
        exchange.refuse(error.reason, error.detail)

    def takes_request(self, exchange: Exchange, data: bytes) -> bool:
        if self._shadow is not None:
            self._shadow.request_data(data)
        if self._phase == "request-stream":
            self._pass_on(exchange, data)
            return True
        if self._phase not in ("request", "decision"):
            return False
        try:
            self._gather(data)
        except RequestError as error:
            if self._phase == "decision":
                self._decide(exchange, error)
            else:
                exchange.refuse(error.reason, error.detail)
        return True

    def ends_request(self, exchange: Exchange) -> bool:
        """True: what follows the end is done here."""
        if self._shadow is not None:
            self._shadow.request_end()
        if self._phase == "request-stream":
            self._phase = ""
            return not self._pass_on(exchange, None)
        if self._phase == "decision":
            self._decide(exchange)
            return True
        if self._phase != "request":
            return False
        from meshguard.pipeline.journey import inspect

        self._phase = ""
        try:
            if self._rewrite_request(exchange):
                self._journey.resume(exchange, inspect)
        except RequestError as error:
            self._request_refused(exchange, error)
        return True

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
            self._tell(exchange, error)
            exchange.refuse(error.reason, error.detail)
            return False
        if out and exchange.connection is not None:
            exchange.connection.send_data(out)
        if data is None:
            exchange.operations = [*exchange.operations, *stream.operations()]
        return True

    # -- what both directions share -------------------------------------------------------------------------------------

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
        if self._size > self._reserved:
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
        later: Callable[[Transformed], None],
        refused: Callable[[RequestError], None],
    ) -> Transformed | None:
        """The gathered body for its reader; None when that takes long: then it is done in slices and given to `later`, or `refused`.

        Raises RequestError."""
        transform = self._transform(exchange, direction)
        body, self._body, self._size = bytes(self._body), bytearray(), 0
        representation = self._representation
        if not body or representation is None:
            return Transformed(body, [])
        limit, text, coding = self._journey.budget.body_bytes, representation.text, representation.coding
        if len(body) >= SLICED_FROM and representation.family == "json":
            job = transform.applying(body, reader, token_bytes, self._facts, coding, limit, STEPS)
            self._journey.budget.slices.start(job, exchange, later, refused)
            return None
        messages = message_coding(self._facts.block)
        return transform.apply(
            body, text, reader, token_bytes, time(), caller=self._facts, coding=coding, limit=limit, message_coding=messages
        )


def _chained(streams: list[BodyStream | MessageGate]) -> BodyStream | MessageGate | Chained:
    if len(streams) == 1:
        return streams[0]
    from meshguard.pipeline.message_judge import Chained

    return Chained(streams)
