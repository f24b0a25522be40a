"""Bodies that a field rule has to read: gathered whole and bounded, rewritten for their recipient, sent on with our own length.

Only routes with a field rule come here; every other body streams. Fail closed: what cannot be read is refused, never waved through.
"""

from __future__ import annotations

from secrets import token_bytes
from time import time
from typing import TYPE_CHECKING

from meshguard.fields.transforms import Reader, Transform
from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.messages import NO_BODY, ResponseHead
from meshguard.model.reasons import (
    BODY_OVER_LIMIT,
    INSPECTION_OVERLOADED,
    INTERNAL_ERROR,
    KEY_UNAVAILABLE,
    RESPONSE_NOT_INSPECTABLE,
)
from meshguard.model.record import FieldOperation
from meshguard.model.verdicts import Permit
from meshguard.pipeline.facts import RequestFacts
from meshguard.wire.fields import field_values, remove_fields

if TYPE_CHECKING:
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.journey import Journey

__all__ = ["Inspection", "InspectionBudget"]

_ONE_WRITE = 32768
"""Octets up to which a rewritten answer is on record once, whole; above it, like any streamed answer, also when it begins."""

# A changed body makes these untrue (RFC 9110 section 8.8.3, RFC 9530).
_OF_THE_OLD_BODY = (
    *(b"etag", b"last-modified", b"accept-ranges", b"cache-control"),
    *(b"content-md5", b"digest", b"content-digest", b"repr-digest"),
)
# A part of a document cannot be judged, and a coded one only after decoding: ask the upstream for the whole, as it is.
_REPRESENTATION = (b"range", b"if-range", b"accept-encoding", b"if-none-match", b"if-modified-since")


class InspectionBudget:
    """Octets held for inspection, over all exchanges of a process."""

    __slots__ = ("body_bytes", "held", "total_bytes")

    def __init__(self, body_bytes: int = 1 << 20, total_bytes: int = 64 << 20) -> None:
        self.body_bytes = body_bytes
        self.total_bytes = total_bytes
        self.held = 0

    def take(self, count: int, size: int) -> None:
        """`count` more octets for a body that then has `size`. Raises RequestError."""
        if size > self.body_bytes:
            raise RequestError(BODY_OVER_LIMIT, f"more than {self.body_bytes} octets")
        if self.held + count > self.total_bytes:
            raise RequestError(INSPECTION_OVERLOADED)
        self.held += count


class Inspection:
    """The bodies of one exchange."""

    __slots__ = ("_block", "_body", "_held", "_journey", "_phase", "_reader", "_request_body", "_response", "_size")

    def __init__(self, journey: Journey) -> None:
        self._journey = journey
        self._phase = ""
        self._body = bytearray()
        self._size = 0
        self._held = 0
        self._request_body: bytes | None = None
        self._response: ResponseHead | None = None
        self._reader: Reader | None = None
        self._block = b""

    # -- request --------------------------------------------------------------------------------------------------------

    def prepare(self, exchange: Exchange) -> None:
        """Before anything is sent: who will read the response, and what the upstream is asked for."""
        plan, head, table = exchange.plan, exchange.head, exchange.peer.table
        if plan is not None and head is not None and table is not None and plan.inspects_response:
            facts = RequestFacts(exchange, time())
            principal = table.principal.spiffe_id if table.principal is not None else None
            self._reader = Reader(table.binding.roles_with(facts.claims), principal)
            exchange.block = remove_fields(head.block, _REPRESENTATION) + b"accept-encoding: identity\r\n"

    def begin_request(self, exchange: Exchange) -> bool:
        """True: the exchange waits until the body is whole."""
        head, transform = exchange.head, self._transform(exchange, "request")
        if head is None:
            raise RequestError(INTERNAL_ERROR, "no head")
        transform.check_headers(*_representation(head.block))
        if head.length > self._journey.budget.body_bytes:
            raise RequestError(BODY_OVER_LIMIT, f"content-length {head.length}")
        self._phase = "request"
        if head.expect:
            exchange.send_continue()
        return True

    def takes_request(self, exchange: Exchange, data: bytes) -> bool:
        if self._phase != "request":
            return False
        try:
            self._gather(data)
        except RequestError as error:
            exchange.refuse(error.reason, error.detail)
        return True

    def ends_request(self, exchange: Exchange) -> bool:
        if self._phase != "request":
            return False
        from meshguard.pipeline.journey import inspect

        self._phase = ""
        head = exchange.head
        try:
            transform = self._transform(exchange, "request")
            content_type = field_values(head.block if head is not None else b"", b"content-type")
            reader = self._journey.snapshot.own_reader
            body, operations = self._apply(transform, content_type, reader)
        except RequestError as error:
            exchange.refuse(error.reason, error.detail)
            return True
        exchange.operations = [*exchange.operations, *operations]
        exchange.request_length = len(body)
        self._request_body = body
        self._journey.resume(exchange, inspect)
        return True

    def release_request(self, exchange: Exchange) -> None:
        """The upstream connection is there: the rewritten body goes."""
        if self._request_body is not None and exchange.connection is not None:
            exchange.connection.send_data(self._request_body)

    # -- response -------------------------------------------------------------------------------------------------------

    def begin_response(self, exchange: Exchange, head: ResponseHead, block: bytes) -> bool:
        """True: the response is gathered. Raises RequestError where it cannot be read."""
        if head.length == NO_BODY:
            head.specials = [pair for pair in head.specials if pair[0] != b"content-length"]
            return False
        transform = self._transform(exchange, "response")
        try:
            transform.check_headers(*_representation(block))
            if head.length > self._journey.budget.body_bytes:
                raise RequestError(BODY_OVER_LIMIT, f"content-length {head.length}")
        except RequestError as error:
            raise UpstreamError(RESPONSE_NOT_INSPECTABLE, error.detail) from error
        if head.status in (206, 226):
            raise UpstreamError(RESPONSE_NOT_INSPECTABLE, "partial content")
        self._phase = "response"
        self._response = head
        self._block = block
        return True

    def takes_response(self, exchange: Exchange, data: bytes) -> bool:
        if self._phase != "response":
            return False
        try:
            self._gather(data)
        except RequestError as error:
            self._phase = ""
            exchange.upstream_failed(RESPONSE_NOT_INSPECTABLE if error.reason is BODY_OVER_LIMIT else error.reason, error.detail)
        return True

    def ends_response(self, exchange: Exchange) -> bool:
        if self._phase != "response":
            return False
        self._phase = ""
        head = self._response
        if head is None or type(exchange.verdict) is not Permit:
            exchange.refuse(INTERNAL_ERROR)
            return True
        try:
            transform = self._transform(exchange, "response")
            if self._reader is None:
                raise RequestError(INTERNAL_ERROR, "no reader")
            body, operations = self._apply(transform, field_values(self._block, b"content-type"), self._reader)
        except RequestError as error:
            reason = error.reason if error.reason is KEY_UNAVAILABLE else RESPONSE_NOT_INSPECTABLE
            exchange.status = 0
            exchange.upstream_failed(reason, error.detail)
            return True
        exchange.operations = [*exchange.operations, *operations]
        block = self._block
        if operations:
            # the view belongs to this caller: no shared cache may give it to another one
            block = remove_fields(block, _OF_THE_OLD_BODY) + b"cache-control: private, no-cache\r\n"
        exchange.response_bytes = len(body)
        exchange.send_head(head.status, block, head, length=len(body), whole=len(body) <= _ONE_WRITE)
        if body:
            exchange.send_body(body)
        exchange.complete()
        return True

    # -- both -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Gives the budget back."""
        self._journey.budget.held -= self._held
        self._held = 0
        self._body = bytearray()
        self._request_body = None

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

    def _apply(self, transform: Transform, content_type: list[bytes], reader: Reader) -> tuple[bytes, list[FieldOperation]]:
        body = bytes(self._body)
        self._body = bytearray()
        self._size = 0
        if not body:
            return body, []
        text = content_type[0].decode("latin-1") if content_type else ""
        result = transform.apply(body, text, reader, token_bytes, time())
        return result.body, list(result.operations)


def _representation(block: bytes) -> tuple[list[str], list[str]]:
    """The values of Content-Type and of Content-Encoding."""
    return (
        [value.decode("latin-1") for value in field_values(block, b"content-type")],
        [value.decode("latin-1") for value in field_values(block, b"content-encoding")],
    )
