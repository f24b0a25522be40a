"""Gathered octets as the bodies that rules ask for (E3): told by one Content-Type, decoded within limits, read in one way or not at all.

Which formats count is the rule's word, never the request's: a body that is declared as something else than what the rule reads cannot be
read by it, because upstreams that look at no Content-Type would read it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshguard.fields.codings import CodingError, TooMuchError, UnavailableCodingError, decode_body
from meshguard.fields.form import FormError, read_pairs
from meshguard.fields.protobuf_values import MessageError
from meshguard.fields.protobuf_wire import ProtobufError
from meshguard.fields.representation import NotReadableError, Representation, parse_representation
from meshguard.fields.streams import RecordTooLongError
from meshguard.model.messages import NO_BODY
from meshguard.model.reasons import BODY_INVALID, BODY_NOT_INSPECTABLE, BODY_OVER_LIMIT, Reason
from meshguard.policy.bodies import VEILED, Body, Reading, Repeated, names_in
from meshguard.validation.json_text import read_document
from meshguard.validation.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.facts import RequestFacts

__all__ = ["MAX_VALUES", "BodyReader", "gathers", "kind_of"]

MAX_VALUES = 50_000
"""Values of one body: reading and judging more of them would hold the loop for longer than a tenth of a second."""
_PROTOBUF = ("application/protobuf", "application/x-protobuf")
_GRPC = ("application/grpc", "application/grpc+proto")


def gathers(facts: RequestFacts, exchange: Exchange, limit: int) -> bool:
    """Whether the request has a body that some rule could read: only then is it gathered. Otherwise the facts know it already."""
    head, plan = exchange.head, exchange.plan
    path = plan.path if plan is not None else ""
    octets: bytes | None = b""
    fault: Reason | None = None
    if head is None or head.length in (NO_BODY, 0) or any(name in (b"upgrade", b":protocol") for name, _ in head.specials):
        octets = None
    elif head.length > limit:
        fault = BODY_OVER_LIMIT
    else:
        try:
            if kind_of(parse_representation(facts.header("content-type"), facts.header("content-encoding")).media_type):
                return True
        except NotReadableError:
            pass
        fault = BODY_NOT_INSPECTABLE
    facts.bodies = BodyReader(path, facts.header, octets, limit, fault)
    return False


class _Unread(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.code)
        self.reason = reason


def kind_of(media_type: str) -> str:
    """`json`, `form`, `protobuf`, or "" for what no rule can read. `media_type` in lower case."""
    if media_type == "application/json" or media_type.endswith("+json"):
        return "json"
    if media_type == "application/x-www-form-urlencoded":
        return "form"
    return "protobuf" if media_type in _GRPC or media_type in _PROTOBUF else ""


class BodyReader:
    """The body of one request. `octets` None: there is none; `fault`: why there are no octets, where it has one that cannot be had."""

    __slots__ = ("_bodies", "_fault", "_limit", "_lines", "_octets", "_path", "_representation")

    def __init__(self, path: str, lines: Callable[[str], list[str]], octets: bytes | None, limit: int, fault: Reason | None = None) -> None:
        self._path = path
        self._lines = lines
        self._octets = octets
        self._limit = limit
        self._fault = fault
        self._representation: Representation | None = None
        self._bodies: dict[Reading, Body] = {}

    def read(self, readings: Sequence[Reading]) -> Body:
        """The body in the first of these readings that its Content-Type names. Each is read once."""
        if self._fault is not None:
            return Body(reason=self._fault)
        if not self._octets:
            return Body()
        try:
            kind = kind_of(self._described().media_type)
        except NotReadableError:
            return Body(reason=BODY_NOT_INSPECTABLE)
        reading = next((reading for reading in readings if reading.kind == kind), None)
        if reading is None:
            return Body(reason=BODY_NOT_INSPECTABLE)
        body = self._bodies.get(reading)
        if body is None:
            try:
                value, names = self._value(reading, self._octets)
                veiled = _veil(value)
                body = Body(reading, veiled, names=names)
                body.is_plain = veiled is value and reading.kind == "json"
            except _Unread as exc:
                body = Body(reason=exc.reason)
            self._bodies[reading] = body
        return body

    def _described(self) -> Representation:
        if self._representation is None:
            self._representation = parse_representation(self._lines("content-type"), self._lines("content-encoding"))
        return self._representation

    def _value(self, reading: Reading, octets: bytes) -> tuple[object, frozenset[str]]:
        described = self._described()
        try:
            plain = decode_body(described.coding, octets, self._limit) if described.coding else octets
            if reading.kind == "json":
                if plain.count(b",") + plain.count(b"[") + plain.count(b"{") > MAX_VALUES:
                    raise TooMuchError("values")
                return read_document(plain)
            if reading.kind == "form":
                if plain.count(b"&") > MAX_VALUES:
                    raise TooMuchError("values")
                return _form(read_pairs(plain))
            if reading.messages is None:
                raise _Unread(BODY_NOT_INSPECTABLE)
            message = self._message(plain) if described.media_type in _GRPC else plain
            value = reading.messages.read(self._path, message)
            return value, frozenset(names_in(value))
        except (TooMuchError, RecordTooLongError):
            raise _Unread(BODY_OVER_LIMIT) from None
        except LookupError:  # no message that the descriptor set knows, or a stream of them
            raise _Unread(BODY_NOT_INSPECTABLE) from None
        except UnavailableCodingError:
            raise _Unread(BODY_NOT_INSPECTABLE) from None
        except MessageError as exc:
            raise _Unread(BODY_OVER_LIMIT if exc.too_large else BODY_INVALID) from None
        except (Violation, FormError, ProtobufError, CodingError, ValueError):
            raise _Unread(BODY_INVALID) from None

    def _message(self, plain: bytes) -> bytes:
        """The one message of a gRPC call."""
        from meshguard.fields.grpc_frames import unframe

        messages = unframe(plain, ",".join(self._lines("grpc-encoding")).lower(), self._limit)
        if len(messages) != 1:
            raise ProtobufError("one message in a call that takes one")
        return messages[0]


_MARKS = ("eyJ", "tok_", "tkr_", "hmac_")
"""How envelopes and tokens of field rules begin."""


def _veil(value: object) -> object:
    """The value with what is sealed in it, or a token, made unreadable to rules; the very object where nothing is."""
    stack, marked = [value], False
    while stack and not marked:
        each = stack.pop()
        if isinstance(each, str):
            marked = each.startswith(_MARKS)
        elif isinstance(each, dict):
            stack += each.values()
        elif isinstance(each, list):
            stack += each
    return _veiled(value) if marked else value


def _veiled(value: object) -> object:
    from meshguard.fields.protobuf_body import looks_protected  # few bodies have anything that is

    if isinstance(value, str):
        return VEILED if value.startswith(_MARKS) and looks_protected(value.encode()) else value
    if isinstance(value, dict):
        return type(value)({key: _veiled(each) for key, each in value.items()})
    return type(value)(map(_veiled, value)) if isinstance(value, list) else value


def _form(pairs: Sequence[tuple[str, str]]) -> tuple[object, frozenset[str]]:
    values: dict[str, object] = {}
    for name, value in pairs:
        held = values.get(name)
        if held is None:
            values[name] = value
        elif isinstance(held, Repeated):
            held.append(value)
        else:
            values[name] = Repeated((held, value))
    return values, frozenset(values)
