"""Tokens: short stand-ins for values, the same one for the same value of a field, that say nothing about it.

    tok_V_32 characters      one way: HMAC-SHA256 of context and value, 16 octets, and 8 octets of check
    hmac_V_54 characters     the same with all 32 octets of the HMAC (for keyed hashes)
    tkr_V_...                reversible: AES-SIV of the value, so readers get it back without a vault of tokens

V is the key version. Keys come from the data key by HKDF, one for each purpose and tenant. The check is an HMAC over the token under a
key of its own: only what was made here is taken for a token, so nobody passes a plain value off as one, and a value that two
proxies of a pair protect one after the other is protected once. Equality shows, within one field, audience, tenant and key version;
without the key nobody can test guesses. A reversible token also shows the length, rounded up to STEP octets.
"""

from __future__ import annotations

import hmac
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from meshguard.fields.contexts import Context
from meshguard.fields.deterministic import KEY_BYTES, DerivedKeys, decode, encode
from meshguard.fields.envelope import NotOpenedError
from meshguard.fields.json_scan import JsonError, validate
from meshguard.fields.keyset import Keyset

__all__ = ["Tokens", "looks_like_token"]

TOKEN_BYTES = 16
"""128 bits: no two values of any field share a token by chance."""
HASH_BYTES = 32
CHECK_BYTES = 8
STEP = 16

_FORM = re.compile(
    rb'"(?:(tok)_([1-9][0-9]{0,8})_([A-Za-z0-9_-]{32})|(hmac)_([1-9][0-9]{0,8})_([A-Za-z0-9_-]{54})'
    rb'|(tkr)_([1-9][0-9]{0,8})_([A-Za-z0-9_-]{22,}))"'
).fullmatch
_BEGINNINGS = (b'"tok_', b'"hmac_', b'"tkr_')


def looks_like_token(raw: bytes) -> bool:
    """True for raw JSON text in the form of a token; whether it is one, `Tokens.recognise` says."""
    return raw.startswith(_BEGINNINGS) and _FORM(raw) is not None


class Tokens:
    """Makes, recognises and reverses the tokens of one field in one context."""

    __slots__ = ("_checks", "_context", "_macs", "_reversible")

    def __init__(self, keyset: Keyset, context: Context) -> None:
        self._macs = DerivedKeys(keyset, "token", context.tenant, 32)
        self._checks = DerivedKeys(keyset, "token-check", context.tenant, 32)
        self._reversible = DerivedKeys(keyset, "token-reversible", context.tenant, KEY_BYTES)
        self._context = context

    def one_way(self, raw: bytes, kind: str = "tok") -> tuple[bytes, int]:
        """The token (or, for `hmac`, the keyed hash) of a raw JSON value as a JSON string, and the key version. Raises KeysetError."""
        key, secret = self._macs.primary()
        _, check = self._checks.primary()
        octets = hmac.digest(secret, self._context.octets(kind) + raw, "sha256")[: TOKEN_BYTES if kind == "tok" else HASH_BYTES]
        return b'"%b_%d_%b"' % (kind.encode(), key.version, encode(octets + self._check(check, kind, octets))), key.version

    def reversible(self, raw: bytes) -> tuple[bytes, int]:
        """A token that `open` reverses. Raises KeysetError."""
        key, secret = self._reversible.primary()
        padded = raw + b" " * (-len(raw) % STEP)  # white space after a JSON value is no part of it
        return b'"tkr_%d_%b"' % (key.version, encode(AESSIV(secret).encrypt(padded, [self._context.octets("tkr")]))), key.version

    def recognise(self, raw: bytes) -> str:
        """`tok`, `hmac` or `tkr` for a token of this very field and context, empty for everything else (also for what only looks so).

        Raises KeysetError when the key that would tell is not available.
        """
        match = _FORM(raw)
        if match is None:
            return ""
        kind, version, text = _groups(match)
        if kind == "tkr":
            try:
                self.open(raw)
            except NotOpenedError:
                return ""
            return kind
        check = self._checks.of(version)
        try:
            octets = decode(text)
        except NotOpenedError:
            return ""
        if check is None or not hmac.compare_digest(self._check(check, kind, octets[:-CHECK_BYTES]), octets[-CHECK_BYTES:]):
            return ""
        return kind

    def open(self, raw: bytes) -> tuple[bytes, int]:
        """The raw JSON value (with white space behind it) of a reversible token and the key version. Raises NotOpenedError, KeysetError."""
        match = _FORM(raw)
        kind, version, text = _groups(match) if match is not None else ("", 0, b"")
        if kind != "tkr":
            raise NotOpenedError
        secret = self._reversible.of(version)
        try:
            value = AESSIV(secret if secret is not None else bytes(KEY_BYTES)).decrypt(decode(text), [self._context.octets("tkr")])
            validate(value)
        except (InvalidTag, JsonError):
            raise NotOpenedError from None
        if secret is None:
            raise NotOpenedError
        return value, version

    def _check(self, key: bytes, kind: str, octets: bytes) -> bytes:
        return hmac.digest(key, self._context.octets(kind) + octets, "sha256")[:CHECK_BYTES]

    def __repr__(self) -> str:
        return f"Tokens({self._context.field})"


def _groups(match: re.Match[bytes]) -> tuple[str, int, bytes]:
    kind, version, text = (part for part in match.groups() if part is not None)
    return kind.decode(), int(version), text
