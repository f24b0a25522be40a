"""Messages that a field rule has to read, rewritten for their recipient.

Heads are rewritten at once. Bodies are gathered whole and bounded and go on with our own length, or, in formats of many records (lines,
events, gRPC messages), record by record as they pass. Only routes with a field rule come here. Fail closed: what cannot be read is refused,
never waved through; a stream that turns out so in its middle is cut so that its reader can tell.

Who is the recipient: on an inbound listener the caller reads the response and this workload the request. On an outbound one this workload
reads the response, and the request goes to another proxy, which judges its own workload: until then it is sealed (F1).
"""

from __future__ import annotations

from functools import partial
from secrets import token_bytes
from typing import TYPE_CHECKING

from meshguard.fields.transforms import Transform, Transformed
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
from meshguard.pipeline.described import described, message_coding, without_old_body
from meshguard.pipeline.request_inspection import RequestInspection
from meshguard.wire.fields import remove_fields

if TYPE_CHECKING:
    from meshguard.fields.representation import Representation
    from meshguard.pipeline.exchange import Exchange

__all__ = ["Inspection"]

_ONE_WRITE = 32768
"""Octets up to which a rewritten answer is on record once, whole; above it, like any streamed answer, also when it begins."""

_PRIVATE = b"cache-control: private, no-cache\r\n"


class Inspection(RequestInspection):
    """The messages of one exchange."""

    __slots__ = ()

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
            self._representation = representation = transform.check_lines(described(block))
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
        later, failed = partial(self._response_treated, exchange), partial(self._response_failed, exchange)
        try:
            result = self._treat(exchange, "response", self._reader, later, failed)
        except RequestError as error:
            failed(error)
            return True
        if result is None:
            exchange.release_upstream()
        else:
            self._response_treated(exchange, result)
        return True

    def _response_failed(self, exchange: Exchange, error: RequestError) -> None:
        exchange.status = 0
        exchange.upstream_failed(_of_response(error), error.detail)

    def _response_treated(self, exchange: Exchange, result: Transformed) -> None:
        head, body = self._response, result.body
        if head is None:
            raise RequestError(INTERNAL_ERROR, "no head")
        exchange.operations = [*exchange.operations, *result.operations]
        block = self._block
        if result.operations:
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


def _of_response(error: RequestError) -> Reason:
    """The reason of a response that cannot be treated: it is the upstream's fault, unless a key is missing or the budget is spent."""
    return error.reason if error.reason in (KEY_UNAVAILABLE, INSPECTION_OVERLOADED, TENANT_UNKNOWN) else RESPONSE_NOT_INSPECTABLE
