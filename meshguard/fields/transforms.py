"""What happens to the protected values of one message: seal, open, mask, remove, for the one who receives it.

The *recipient* is judged: the caller for a response, the workload behind the proxy for a request. A value may come plain (from a
workload that knows nothing of meshguard) or already sealed (from one behind its own meshguard):

    recipient is        plain value            sealed value
    reader: open        as it is               opened
    reader: mask        masked                 opened, then masked
    other: ciphertext   sealed                 as it is
    other: mask         masked                 opened, then masked
    other: remove       taken out              taken out

null stays null unless the rule says `seal_null`; an absent member stays absent, an empty string is a value. INVARIANT: a body leaves here
either fully treated or not at all; whatever goes wrong raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshguard.fields.envelope import NONCE_BYTES, Envelope, NotOpenedError, looks_sealed
from meshguard.fields.json_locate import locate
from meshguard.fields.json_scan import JsonError
from meshguard.fields.json_splice import splice
from meshguard.fields.masks import Mask, apply_mask
from meshguard.fields.selectors import Matcher
from meshguard.model.errors import KeysetError, RequestError
from meshguard.model.reasons import BODY_INVALID, BODY_NOT_INSPECTABLE, FIELD_NOT_OPENED, KEY_UNAVAILABLE, RESPONSE_NOT_INSPECTABLE, Reason
from meshguard.model.record import FieldOperation

__all__ = ["Action", "FieldPlan", "Reader", "Transform", "Transformed"]

MAX_REMEMBERED = 1024
"""Sets of roles whose actions are remembered per transform; more start over."""

NONCES_AT_ONCE = 256

# RFC 9110 section 8.3.1. The charset of JSON is UTF-8 (RFC 8259 section 8.1); another one would be read in another way.
_NAME = r"[A-Za-z0-9!#$&^_.+-]+"
_MEDIA_TYPE = re.compile(rf"""[ \t]*({_NAME}/{_NAME})[ \t]*((?:;[ \t]*(?:{_NAME}=(?:{_NAME}|"[^"\\]*"))?[ \t]*)*+)""")
_PARAMETER = re.compile(rf""";[ \t]*({_NAME})=("[^"\\]*"|{_NAME})""")


class Reader:
    """The recipient of a message: its `roles` and, for the record, its `principal`."""

    __slots__ = ("principal", "roles")

    def __init__(self, roles: frozenset[str], principal: str | None = None) -> None:
        self.roles = roles
        self.principal = principal


class Action:
    """What a recipient gets: `kind` is `open`, `mask` (with `mask`), `ciphertext` or `remove`."""

    __slots__ = ("kind", "mask")

    def __init__(self, kind: str, mask: Mask | None = None) -> None:
        self.kind = kind
        self.mask = mask


class FieldPlan:
    """One compiled rule. `readers` are (role, action) in the order of preference: `open` first, then masks as written."""

    __slots__ = ("envelope", "id", "others", "readers", "seal_null")

    def __init__(self, id: str, envelope: Envelope, readers: Sequence[tuple[str, Action]], others: Action, seal_null: bool) -> None:
        self.id = id
        self.envelope = envelope
        self.readers = tuple(readers)
        self.others = others
        self.seal_null = seal_null

    def action(self, roles: frozenset[str]) -> Action:
        """What a recipient with these roles gets."""
        return next((action for role, action in self.readers if role in roles), self.others)


@dataclass(slots=True)
class Transformed:
    """The new body and what was done, without values; no operations: `body` is the original."""

    body: bytes
    operations: list[FieldOperation]


class Transform:
    """The field rules of one route and direction (`request` or `response`)."""

    __slots__ = ("_accepted", "_actions", "_content_types", "_fields", "_invalid", "_matcher", "direction")

    def __init__(self, direction: str, fields: Sequence[FieldPlan], matcher: Matcher, content_types: Sequence[str]) -> None:
        self.direction = direction
        self._fields = tuple(fields)
        self._matcher = matcher
        self._content_types = tuple(content_types)
        self._accepted: set[str] = set()
        self._actions: dict[frozenset[str], tuple[Action, ...]] = {}
        self._invalid: Reason = BODY_INVALID if direction == "request" else RESPONSE_NOT_INSPECTABLE

    def check_headers(self, content_types: Sequence[str], content_encodings: Sequence[str]) -> None:
        """Check every Content-Type and Content-Encoding value of a message with a body, before the body is gathered.

        Raises RequestError(BODY_NOT_INSPECTABLE): exactly one declared media type, UTF-8, no coding but identity.
        """
        if len(content_types) != 1:
            raise RequestError(BODY_NOT_INSPECTABLE, f"{len(content_types)} Content-Type fields")
        for value in content_encodings:
            if any(coding.strip(" \t").lower() not in ("", "identity") for coding in value.split(",")):
                raise RequestError(BODY_NOT_INSPECTABLE, "a content coding")
        self._check_content_type(content_types[0])

    def apply(self, body: bytes, content_type: str, reader: Reader, nonces: Callable[[int], bytes], now: float) -> Transformed:
        """Treat the whole `body` for `reader`. `nonces(n)` gives n random octets; `now` is epoch seconds, for rules that depend on it.

        Raises RequestError: BODY_NOT_INSPECTABLE, BODY_INVALID (a request) or RESPONSE_NOT_INSPECTABLE (a response), FIELD_NOT_OPENED,
        KEY_UNAVAILABLE. An empty body passes.
        """
        if not body:
            return Transformed(body, [])
        if content_type not in self._accepted:
            self._check_content_type(content_type)
        try:
            spans = locate(body, self._matcher)
            if not spans:
                return Transformed(body, [])
            work = _Work(self._fields, self._actions_for(reader.roles), nonces, len(spans))
            values = [work.treat(owner, body[start:end]) for owner, _, start, end in spans]
            result = splice(body, spans, values) if work.changed else body
            if work.opened_container:
                # an opened object or array must not bring in what another rule protects
                locate(result, self._matcher)
        except JsonError as exc:
            raise RequestError(self._invalid, str(exc)) from None
        except NotOpenedError as exc:
            raise RequestError(FIELD_NOT_OPENED, str(exc)) from None
        except KeysetError as exc:
            raise RequestError(KEY_UNAVAILABLE, str(exc)) from None
        return Transformed(result, work.operations())

    def _actions_for(self, roles: frozenset[str]) -> tuple[Action, ...]:
        actions = self._actions.get(roles)
        if actions is None:
            if len(self._actions) >= MAX_REMEMBERED:
                self._actions.clear()
            actions = self._actions[roles] = tuple(field.action(roles) for field in self._fields)
        return actions

    def _check_content_type(self, value: str) -> None:
        match = _MEDIA_TYPE.fullmatch(value)
        if match is None:
            raise RequestError(BODY_NOT_INSPECTABLE, "no valid Content-Type")
        media_type = match[1].lower()
        if media_type not in self._content_types and not (media_type.endswith("+json") and "+json" in self._content_types):
            raise RequestError(BODY_NOT_INSPECTABLE, "a content type that no field rule of this route names")
        for name, setting in _PARAMETER.findall(match[2]):
            if name.lower() == "charset" and setting.strip('"').lower() not in ("utf-8", "utf8"):
                raise RequestError(BODY_NOT_INSPECTABLE, "a charset other than UTF-8")
        if len(self._accepted) < MAX_REMEMBERED:
            self._accepted.add(value)


class _Work:
    """The treatment of the values of one body, and its account."""

    __slots__ = ("_actions", "_counts", "_drawn", "_fields", "_left", "_nonces", "_place", "changed", "opened_container")

    def __init__(self, fields: Sequence[FieldPlan], actions: Sequence[Action], nonces: Callable[[int], bytes], count: int) -> None:
        self._fields = fields
        self._actions = actions
        self._nonces = nonces
        self._left = count  # values not treated yet: no more nonces than these are ever needed
        self._drawn = b""
        self._place = 0
        self._counts: dict[tuple[str, int, int], int] = {}
        self.changed = False
        self.opened_container = False

    def treat(self, number: int, raw: bytes) -> bytes | None:
        """What stands in the place of `raw`, a value of field `number`; None takes it out."""
        field = self._fields[number]
        action = self._actions[number]
        kind = action.kind
        self._left -= 1
        if kind == "remove":
            self.changed = True
            self._count("remove", number, 0)
            return None
        sealed = looks_sealed(raw)
        if kind == "ciphertext":
            if sealed and field.envelope.renews:
                renewed = field.envelope.renewed(raw, self._nonce)
                if renewed is not None:
                    self.changed = True
                    self._count("rewrap", number, field.envelope.version)
                    return renewed
            if sealed or (raw == b"null" and not field.seal_null):
                self._count("pass", number, 0)
                return raw
            value = field.envelope.seal(raw, self._nonce())
            self.changed = True
            self._count("seal", number, field.envelope.version)
            return value
        version = 0
        if sealed:
            raw, version = field.envelope.open(raw)
            self.changed = True
            if kind == "open":
                self.opened_container |= raw[:1] in (b"{", b"[") or raw[:1].isspace()
        if kind == "open":
            self._count("open" if sealed else "pass", number, version)
            return raw
        if action.mask is None or (raw == b"null" and not field.seal_null):
            self._count("pass", number, version)
            return raw
        self.changed = True
        self._count("mask", number, version)
        return apply_mask(action.mask, raw)

    def _nonce(self) -> bytes:
        """Random octets that are used once. Drawn for many values at a time: the call costs more than the octets."""
        place = self._place
        if place == len(self._drawn):
            self._drawn = self._nonces(NONCE_BYTES * min(self._left + 1, NONCES_AT_ONCE))
            place = 0
        self._place = place + NONCE_BYTES
        return self._drawn[place : self._place]

    def _count(self, operation: str, number: int, version: int) -> None:
        key = (operation, number, version)
        self._counts[key] = self._counts.get(key, 0) + 1

    def operations(self) -> list[FieldOperation]:
        """What was done, by operation, field and key version."""
        return [
            FieldOperation(operation, self._fields[number].id, self._fields[number].envelope.keyset_name if version else "", version, count)
            for (operation, number, version), count in self._counts.items()
        ]
