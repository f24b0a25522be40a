"""One field in one context: how its values are protected, recognised and opened, whichever form they have.

    plain            anything that is none of the others
    sealed           JWE, AES-GCM (`envelope`)
    deterministic    AES-SIV (`deterministic`)
    reversible       `tkr_` token (`tokens`)
    one-way          `tok_` or `hmac_` token

What comes in may be in any of these forms, whatever the rule says today: a rule that changes from `encrypt` to `tokenise` still reads
what was stored before. The plaintext inside is one JSON value and then white space, which JSON allows there: tabs tell how a value was
spelled where the format has several spellings (`form`), spaces pad its length.
"""

from __future__ import annotations

import json
from enum import Enum

from meshguard.fields.contexts import Context
from meshguard.fields.deterministic import BEGIN as _DETERMINISTIC
from meshguard.fields.deterministic import Deterministic, looks_deterministic
from meshguard.fields.envelope import Envelope, NotOpenedError, looks_sealed
from meshguard.fields.keyset import Keyset
from meshguard.fields.tokens import Tokens, looks_like_token

__all__ = ["Form", "Protection", "canonical"]

# A string that begins otherwise is plain; the rest is decided by expressions.
_MAYBE = (b'"eyJhbGciOiJkaXIiLCJlbmMiOiJB', b'"tok_', b'"tkr_', b'"hmac_')
_ANY_ENVELOPE = _MAYBE[0]


class Form(Enum):
    """The form in which a value comes."""

    PLAIN = "plain"
    SEALED = "sealed"
    DETERMINISTIC = "deterministic"
    REVERSIBLE = "reversible"
    ONE_WAY = "one-way"


def canonical(raw: bytes) -> bytes:
    """The spelling of a value under which equal strings are equal octets; numbers and containers stay as written."""
    if raw[:1] == b'"' and b"\\" in raw:
        return json.dumps(json.loads(raw), ensure_ascii=False).encode()
    return raw


class Protection:
    """See the module. Everything but the envelope is made when it is first needed."""

    __slots__ = ("_context", "_deterministic", "_keyset", "_tokens", "envelope")

    def __init__(self, keyset: Keyset, context: Context) -> None:
        self._keyset = keyset
        self._context = context
        self.envelope = Envelope(keyset, context.field, context.audience, context.tenant)
        self._deterministic: Deterministic | None = None
        self._tokens: Tokens | None = None

    @property
    def deterministic(self) -> Deterministic:
        if self._deterministic is None:
            self._deterministic = Deterministic(self._keyset, self._context)
        return self._deterministic

    @property
    def tokens(self) -> Tokens:
        if self._tokens is None:
            self._tokens = Tokens(self._keyset, self._context)
        return self._tokens

    def form_of(self, raw: bytes) -> Form:
        """The form of a raw JSON value. Raises KeysetError when only a key that is not available could tell."""
        if not raw.startswith(_MAYBE):
            return Form.PLAIN
        if raw.startswith(_ANY_ENVELOPE):
            if looks_sealed(raw):
                return Form.SEALED
            return Form.DETERMINISTIC if raw.startswith(_DETERMINISTIC, 1) and looks_deterministic(raw) else Form.PLAIN
        if not looks_like_token(raw):
            return Form.PLAIN
        match self.tokens.recognise(raw):
            case "":
                return Form.PLAIN
            case "tkr":
                return Form.REVERSIBLE
            case _:
                return Form.ONE_WAY

    def open(self, raw: bytes, form: Form) -> tuple[bytes, int, int]:
        """The raw JSON value without what is behind it, its number of tabs, and the key version. Raises NotOpenedError, KeysetError."""
        if form is Form.SEALED:
            value, version = self.envelope.open(raw)
        elif form is Form.DETERMINISTIC:
            value, version = self.deterministic.open(raw)
        elif form is Form.REVERSIBLE:
            value, version = self.tokens.open(raw)
        else:
            raise NotOpenedError
        if value[-1:] in (b" ", b"\t"):
            stripped = value.rstrip(b" \t")
            return stripped, value.count(b"\t", len(stripped)), version
        return value, 0, version

    def __repr__(self) -> str:
        return f"Protection({self._context.field}, {self._keyset!r})"
