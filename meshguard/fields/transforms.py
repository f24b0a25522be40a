"""What happens to the bodies of one route in one direction, for the one who receives them.

The *recipient* is judged: the caller for a response, the workload behind the proxy for a request, nobody yet (`views.WIRE`) for a
request on its way to another proxy. A value may come plain (from a workload that knows nothing of meshguard) or already protected (from
one behind its own meshguard); `treatment` has the table of what is made of it.

INVARIANT: a body, or a record of a streamed body, leaves here either fully treated or not at all; whatever goes wrong raises.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshguard.fields.codings import CodingError, TooMuchError, UnavailableCodingError, decode_body, encode_body
from meshguard.fields.contexts import Caller, Unidentified
from meshguard.fields.envelope import NotOpenedError
from meshguard.fields.form import FormError, rewrite_pairs
from meshguard.fields.json_body import JsonRules
from meshguard.fields.json_scan import JsonError
from meshguard.fields.multipart import MultipartError, boundary_of, rewrite_parts
from meshguard.fields.protobuf_wire import ProtobufError
from meshguard.fields.reader import Reader
from meshguard.fields.representation import STREAMED, NotReadableError, Representation, parse_representation
from meshguard.fields.streams import RecordTooLongError
from meshguard.fields.treatment import Work
from meshguard.fields.views import WIRE, Action, FieldPlan
from meshguard.model.errors import KeysetError, RequestError
from meshguard.model.reasons import (
    BODY_INVALID,
    BODY_NOT_INSPECTABLE,
    BODY_OVER_LIMIT,
    FIELD_NOT_OPENED,
    KEY_UNAVAILABLE,
    RESPONSE_NOT_INSPECTABLE,
    Reason,
)
from meshguard.model.record import FieldOperation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshguard.fields.body_stream import BodyStream
    from meshguard.fields.protobuf_body import ProtobufRules

__all__ = ["NOBODY_KNOWN", "WIRE", "Action", "BodyRules", "FieldPlan", "Reader", "Transform", "Transformed", "failures"]

MAX_REMEMBERED = 1024
"""Sets of roles whose actions, and spellings of Content-Type whose meaning is remembered per transform; more start over."""
DECODED_LIMIT = 1 << 20
NOBODY_KNOWN: Caller = Unidentified()


@dataclass(slots=True)
class Transformed:
    """The new body and what was done, without values; no operations: `body` is the original."""

    body: bytes
    operations: list[FieldOperation]


@dataclass(slots=True)
class BodyRules:
    """Where the rules of a route look, by family of formats: None, or empty, for families that no rule names."""

    json: JsonRules | None = None
    form: Mapping[str, int] | None = None
    protobuf: ProtobufRules | None = None


@contextmanager
def failures(invalid: Reason) -> Iterator[None]:
    """Turns what formats and keys raise into the reasons of `model.reasons`; `invalid` is the one for documents."""
    try:
        yield
    except (RecordTooLongError, TooMuchError) as exc:
        raise RequestError(BODY_OVER_LIMIT, str(exc)) from None
    except (JsonError, FormError, MultipartError, ProtobufError, CodingError) as exc:
        raise RequestError(invalid, str(exc)) from None
    except (NotReadableError, UnavailableCodingError) as exc:
        raise RequestError(BODY_NOT_INSPECTABLE, str(exc)) from None
    except NotOpenedError as exc:
        raise RequestError(FIELD_NOT_OPENED, str(exc)) from None
    except KeysetError as exc:
        raise RequestError(KEY_UNAVAILABLE, str(exc)) from None


class Transform:
    """The field rules of one route and direction (`request` or `response`)."""

    __slots__ = ("_accepted", "_actions", "_content_types", "_fields", "_known", "_work", "direction", "invalid", "rules")

    def __init__(
        self,
        direction: str,
        fields: Sequence[FieldPlan],
        rules: BodyRules,
        content_types: Sequence[str],
        work: type[Work] = Work,
    ) -> None:
        self._work = work
        self.direction = direction
        self.rules = rules
        self.invalid: Reason = BODY_INVALID if direction == "request" else RESPONSE_NOT_INSPECTABLE
        self._fields = tuple(fields)
        self._content_types = frozenset(content_types)
        self._accepted: dict[str, Representation] = {}
        self._known: dict[tuple[tuple[bytes, bytes], ...], Representation] = {}
        self._actions: dict[frozenset[str], tuple[Action, ...]] = {}

    @property
    def ids(self) -> tuple[str, ...]:
        """Of its field rules."""
        return tuple(field.id for field in self._fields)

    def check_headers(self, content_types: Sequence[str], content_encodings: Sequence[str]) -> Representation:
        """Check every Content-Type and Content-Encoding value of a message with a body, before the body is gathered.

        Raises RequestError(BODY_NOT_INSPECTABLE): exactly one declared media type, UTF-8, at most one coding, and one that is handled.
        """
        with failures(self.invalid):
            found = parse_representation(content_types, content_encodings)
            self._check_type(found)
        return found

    def check_lines(self, lines: Sequence[tuple[bytes, bytes]]) -> Representation:
        """`check_headers` of the lines themselves, each (`type` or `encoding` in any case, value): equal ones are parsed once."""
        key = tuple(lines)
        found = self._known.get(key)
        if found is None:
            values: dict[bytes, list[str]] = {b"type": [], b"encoding": []}
            for name, value in lines:
                values[name.lower()].append(value.rstrip(b" \t").decode("latin-1"))
            found = self.check_headers(values[b"type"], values[b"encoding"])
            if len(self._known) < MAX_REMEMBERED:
                self._known[key] = found
        return found

    def streams(self, representation: Representation) -> bool:
        """True for bodies that are treated as they pass (`stream`), false for those that are gathered (`apply`)."""
        return representation.family in STREAMED

    def stream(
        self,
        representation: Representation,
        reader: Reader,
        nonces: Callable[[int], bytes],
        limit: int,
        caller: Caller = NOBODY_KNOWN,
        message_coding: str = "",
    ) -> BodyStream:
        """The treatment of a body as it passes, holding at most about `limit` octets. `message_coding` is gRPC's."""
        from meshguard.fields.body_stream import BodyStream

        with failures(self.invalid):
            return BodyStream(self, representation, self.work(reader, nonces, caller), limit, message_coding)

    def work(self, reader: Reader, nonces: Callable[[int], bytes], caller: Caller) -> Work:
        """The treatment of single values for `reader`."""
        return self._work(self._fields, self._actions_for(reader), nonces, caller)

    def apply(
        self,
        body: bytes,
        content_type: str,
        reader: Reader,
        nonces: Callable[[int], bytes],
        now: float,
        *,
        caller: Caller = NOBODY_KNOWN,
        coding: str = "",
        limit: int = DECODED_LIMIT,
        message_coding: str = "",
    ) -> Transformed:
        """Treat the whole `body` for `reader`. `nonces(n)` gives n random octets; `now` is epoch seconds, for rules that depend on it;
        `caller` chooses the tenant; a body in a `coding` may have `limit` octets without it; `message_coding` is gRPC's.

        Raises RequestError: BODY_NOT_INSPECTABLE, BODY_INVALID (a request) or RESPONSE_NOT_INSPECTABLE (a response), FIELD_NOT_OPENED,
        KEY_UNAVAILABLE, TENANT_UNKNOWN. An empty body passes.
        """
        if not body:
            return Transformed(body, [])
        try:
            representation = self._accepted.get(content_type)
            if representation is None:
                representation = parse_representation((content_type,))
                self._check_type(representation)
            plain = decode_body(coding, body, limit) if coding else body
            work = self._work(self._fields, self._actions_for(reader), nonces, caller)
            rules = self.rules.json
            if representation.family == "json" and rules is not None:
                result = rules.treat(plain, work)
            else:
                result = self._other(plain, representation, work, limit, message_coding)
            if not work.changed:
                return Transformed(body, work.operations())
            return Transformed(encode_body(coding, result) if coding else result, work.operations())
        except RequestError:
            raise
        except Exception as exc:
            with failures(self.invalid):
                raise exc
            raise

    def applying(
        self, body: bytes, reader: Reader, nonces: Callable[[int], bytes], caller: Caller, coding: str, limit: int, slice_: int
    ) -> Generator[None, None, Transformed]:
        """`apply` for a JSON body, pausing after about `slice_` steps of 1 us each."""
        rules = self.rules.json
        work = self._work(self._fields, self._actions_for(reader), nonces, caller)
        with failures(self.invalid):
            if rules is None:
                raise NotReadableError("a format that no field rule of this route looks into")
            plain = decode_body(coding, body, limit) if coding else body
            result = yield from rules.treating(plain, work, slice_)
            if not work.changed:
                return Transformed(body, work.operations())
            return Transformed(encode_body(coding, result) if coding else result, work.operations())

    def _other(self, body: bytes, representation: Representation, work: Work, limit: int, message_coding: str) -> bytes:
        family = representation.family
        if family in STREAMED:
            from meshguard.fields.body_stream import new_cutter

            cutter = new_cutter(self, representation, work, limit, message_coding)
            return cutter.feed(body) + cutter.finish()
        if family == "form" and self.rules.form:
            return rewrite_pairs(body, self.rules.form, work)
        if family == "multipart" and self.rules.form:
            return rewrite_parts(body, boundary_of(representation.text), self.rules.form, work)
        if family == "protobuf" and self.rules.protobuf is not None:
            return self.rules.protobuf.treat(body, work)
        raise NotReadableError("a format that no field rule of this route looks into")

    def _actions_for(self, reader: Reader) -> tuple[Action, ...]:
        actions = self._actions.get(reader.roles)
        if actions is None:
            if len(self._actions) >= MAX_REMEMBERED:
                self._actions.clear()
            actions = self._actions[reader.roles] = tuple(field.action(reader) for field in self._fields)
        return actions

    def _check_type(self, representation: Representation) -> None:
        media_type = representation.media_type
        if media_type not in self._content_types and not (
            representation.family == "json" and media_type.endswith("+json") and "+json" in self._content_types
        ):
            raise NotReadableError("a content type that no field rule of this route names")
        if len(self._accepted) < MAX_REMEMBERED:
            self._accepted[representation.text] = representation
