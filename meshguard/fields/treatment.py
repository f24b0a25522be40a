"""What happens to single values: each is turned into what its recipient gets, and every act is counted.

    recipient gets      plain value            protected value that opens     one-way token
    open                as it is               opened                         as it is
    mask                masked                 opened, then masked            `***`
    token               tokenised              opened, then tokenised         as it is
    ciphertext          protected              as it is                       as it is
    nothing             taken out              taken out                      taken out

null stays null unless the rule says `seal_null`. Values are raw JSON text here, whatever the format they stand in (`text` converts).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from meshguard.fields.contexts import Caller
from meshguard.fields.envelope import NONCE_BYTES, NotOpenedError
from meshguard.fields.masks import apply_mask
from meshguard.fields.protection import Form, Protection, canonical
from meshguard.fields.views import Action, FieldPlan
from meshguard.model.record import FieldOperation

__all__ = ["Work"]

NONCES_AT_ONCE = 256
_HIDDEN = b'"***"'


class Work:
    """The treatment of the values of one message (or stream of messages), and its account."""

    __slots__ = (
        "_actions", "_caller", "_counts", "_drawn", "_fields", "_left", "_nonces", "_place", "act", "changed", "opened_container", "style",
    )  # fmt: skip
    seals = True

    def __init__(
        self, fields: Sequence[FieldPlan], actions: Sequence[Action], nonces: Callable[[int], bytes], caller: Caller, count: int = 0
    ) -> None:
        self._fields = fields
        self._actions = actions
        self._nonces = nonces
        self._caller = caller
        self._left = count  # values not treated yet: no more nonces than these are ever needed
        self._drawn = b""
        self._place = 0
        self._counts: dict[tuple[str, int, int], int] = {}
        self.changed = False
        self.opened_container = False
        self.act = ""  # what was done with the value before
        self.style = 0  # how the value that was opened last had been spelled

    def expect(self, count: int) -> None:
        """So many values come now."""
        self._left = count

    def treat(self, number: int, raw: bytes, record: str = "", style: int = 0) -> bytes | None:
        """What stands in the place of `raw`, a value of field `number`; None takes it out. `record` is the record key with its type in
        front, `style` how the value was spelled."""
        field = self._fields[number]
        action = self._actions[number]
        kind = action.kind
        self._left -= 1
        if kind == "remove":
            self.changed = True
            self._count("remove", number, 0)
            return None
        protection = field.protection(self._caller, record)
        if protection is None:  # nothing was ever sealed by this rule
            return self._mask(number, action, raw, 0) if kind == "mask" else self._pass(number, raw)
        form = protection.form_of(raw)
        plain = form is Form.PLAIN
        if kind not in ("open", "mask", "token"):
            if form is Form.SEALED and kind == "ciphertext" and protection.envelope.renews and self.seals:
                renewed = protection.envelope.renewed(raw, self._nonce)
                if renewed is not None:
                    self.changed = True
                    self._count("rewrap", number, protection.envelope.version)
                    return renewed
            if not plain or (raw == b"null" and not field.seal_null):
                return self._pass(number, raw)
            return self._protect(number, kind, protection, raw, style)
        version = 0
        if form is Form.ONE_WAY:
            if kind != "mask":
                return self._pass(number, raw)
            self.changed = True
            self._count("mask", number, 0)
            return _HIDDEN
        if not plain:
            raw, self.style, version = protection.open(raw, form)
            self.changed = True
            if kind == "open":
                self.opened_container |= raw[:1] in (b"{", b"[") or raw[:1].isspace()
        if kind == "open":
            self._count("pass" if plain else "open", number, version)
            return raw
        if raw == b"null" and not field.seal_null:
            self._count("pass", number, version)
            return raw
        if kind == "mask":
            return self._mask(number, action, raw, version)
        return self._protect(number, "tokenise", protection, raw, 0)

    def text(self, number: int, text: str, style: int = 0) -> tuple[str, int] | None:
        """`treat` for formats whose values are text: what stands in its place and its style; None takes it out."""
        self.style = 0
        raw = self.treat(number, json.dumps(text, ensure_ascii=False).encode(), style=style)
        if raw is None:
            return None
        if raw[:1] == b'"':
            value: str = json.loads(raw)
            return value, self.style
        return raw.decode(), self.style

    def _protect(self, number: int, kind: str, protection: Protection, raw: bytes, style: int) -> bytes:
        field = self._fields[number]
        self.changed = True
        if kind == "ciphertext":
            if style or field.padding:
                raw = self._padded(raw, style, field.padding)
            value = protection.envelope.seal(raw, self._nonce())
            self._count("seal", number, protection.envelope.version)
            return value
        raw = canonical(raw)
        if kind == "deterministic":
            value, version = protection.deterministic.seal(self._padded(raw, 0, field.padding))
            self._count("seal", number, version)
        elif kind == "reversible":
            value, version = protection.tokens.reversible(raw)
            self._count("token", number, version)
        elif kind == "hash":
            value, version = protection.tokens.one_way(raw, "hmac")
            self._count("hash", number, version)
        elif kind == "tokenise":
            value, version = protection.tokens.one_way(raw)
            self._count("token", number, version)
        else:  # a kind that is not known here must never let a value through
            raise NotOpenedError
        return value

    def _padded(self, raw: bytes, style: int, padding: int) -> bytes:
        raw += b"\t" * style
        return raw + b" " * (-len(raw) % padding) if padding else raw

    def _mask(self, number: int, action: Action, raw: bytes, version: int) -> bytes:
        if action.mask is None:
            raise NotOpenedError
        if raw == b"null" and not self._fields[number].seal_null:
            return self._pass(number, raw)
        self.changed = True
        self._count("mask", number, version)
        return apply_mask(action.mask, raw)

    def _pass(self, number: int, raw: bytes) -> bytes:
        self._count("pass", number, 0)
        return raw

    def _nonce(self) -> bytes:
        """Random octets that are used once. Drawn for many values at a time: the call costs more than the octets."""
        place = self._place
        if place == len(self._drawn):
            self._drawn = self._nonces(NONCE_BYTES * min(max(self._left, 0) + 1, NONCES_AT_ONCE))
            place = 0
        self._place = place + NONCE_BYTES
        return self._drawn[place : self._place]

    def _count(self, operation: str, number: int, version: int) -> None:
        self.act = operation
        key = (operation, number, version)
        self._counts[key] = self._counts.get(key, 0) + 1

    def operations(self) -> list[FieldOperation]:
        """What was done, by operation, field and key version."""
        return [
            FieldOperation(operation, self._fields[number].id, self._fields[number].keyset_name if version else "", version, count)
            for (operation, number, version), count in self._counts.items()
        ]
