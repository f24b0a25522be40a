"""The envelope of a protected value: JWE compact serialisation (RFC 7516 section 7.1), `alg` dir, `enc` A256GCM (RFC 7518 4.5, 5.3).

    "BASE64URL(header)..BASE64URL(nonce).BASE64URL(ciphertext).BASE64URL(tag)"       a JSON string; dir has an empty encrypted key

The plaintext is the JSON value as it was written, so a number, null or object comes back as it was. The header is the additional data
(RFC 7516 section 5.1 step 14) and binds the context: keyset and version (`kid`), field (`f`), audience (`a`) and tenant (`t`) where
the rule names them. It is constant per field and key version, so it is encoded once.

INVARIANT: opening never looks at what a token asks for. Its header must be, octet for octet, one that this field expects, which
pins `alg`, `enc`, key and context at once; every failure is the same failure.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshguard.fields.json_scan import JsonError, validate
from meshguard.fields.keyset import DataKey, Keyset, KeyState
from meshguard.model.errors import KeysetError, MeshguardError

__all__ = ["NONCE_BYTES", "Envelope", "NotOpenedError", "header_of", "looks_sealed"]

NONCE_BYTES = 12
"""96 bits (RFC 7518 section 5.3)."""
TAG_BYTES = 16

# RFC 7515 appendix C: URL-safe alphabet, no padding. 12 octets are 16 characters; 16 octets are 22, of which the last holds two bits.
_SEALED = re.compile(rb'"(eyJ[A-Za-z0-9_-]{17,4096}+)\.\.([A-Za-z0-9_-]{16})\.([A-Za-z0-9_-]++)\.([A-Za-z0-9_-]{21}[AQgw])"').fullmatch
# Every header of ours begins with these octets, and 24 of them are a whole number of base64 groups.
_BEGIN = b2a_base64(b'{"alg":"dir","enc":"A256', newline=False)
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")
_DECOY = AESGCM(bytes(32))


class NotOpenedError(MeshguardError):
    """A sealed value does not open. Says nothing about why: the reason would be an oracle."""

    def __init__(self) -> None:
        super().__init__("a sealed value does not open")


def header_of(keyset: str, version: int, field: str, audience: str = "", tenant: str = "") -> bytes:
    """The protected header as JSON without spaces: members in this order, empty `a` and `t` left out."""
    members: dict[str, str] = {"alg": "dir", "enc": "A256GCM", "kid": f"{keyset}:{version}", "f": field}
    if audience:
        members["a"] = audience
    if tenant:
        members["t"] = tenant
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()


def looks_sealed(raw: bytes) -> bool:
    """True for the raw JSON text of a value in an envelope of ours, of whatever field and key."""
    return raw.startswith(_BEGIN, 1) and raw[:1] == b'"' and _SEALED(raw) is not None


class Envelope:
    """Seals and opens the values of one field under one keyset, audience and tenant."""

    __slots__ = ("_keyset", "_openers", "_sealing", "field", "keyset_name")

    def __init__(self, keyset: Keyset, field: str, audience: str = "", tenant: str = "") -> None:
        self._keyset = keyset
        self.field = field
        self.keyset_name = keyset.name
        openers: dict[bytes, DataKey] = {}
        self._sealing: tuple[DataKey, bytes, bytes] | None = None
        for key in keyset.versions:
            if key.state is KeyState.DESTROYED:
                continue
            encoded = _encode(header_of(keyset.name, key.version, field, audience, tenant))
            openers[encoded] = key
            if key is keyset.primary:
                self._sealing = (key, encoded, b'"' + encoded + b"..")
        self._openers: Mapping[bytes, DataKey] = openers

    @property
    def version(self) -> int:
        """The version that seals; 0 when none does."""
        return self._sealing[0].version if self._sealing is not None else 0

    def seal(self, raw: bytes, nonce: bytes) -> bytes:
        """`raw` (one JSON value as written) as a JSON string with its envelope. `nonce` is 12 random octets, never used before.

        Raises KeysetError when no version may seal or its uses are spent.
        """
        sealing = self._sealing
        if sealing is None:
            raise KeysetError(f"keyset {self.keyset_name} has no primary version")
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"expected a nonce of {NONCE_BYTES} octets")
        key, header, prefix = sealing
        sealed = key.encrypt(nonce, raw, header)
        # 12 octets of nonce encode to 16 characters without a remainder, so nonce and ciphertext are encoded in one call
        text = b2a_base64(nonce + sealed[:-TAG_BYTES], newline=False).rstrip(b"=")
        tag = b2a_base64(sealed[-TAG_BYTES:], newline=False)
        return prefix + (text[:16] + b"." + text[16:] + b"." + tag[:22] + b'"').translate(_TO_URL)

    def open(self, sealed: bytes) -> tuple[bytes, int]:
        """The raw JSON value in `sealed` (a JSON string for which `looks_sealed` holds) and the key version.

        Raises NotOpenedError, always the same, after the same work.
        """
        match = _SEALED(sealed)
        if match is None:
            raise NotOpenedError
        header, nonce, text, tag = match.groups()
        key = self._openers.get(header)
        cipher = key.opener() if key is not None else None
        ciphertext = _decode(text)
        try:
            # an unknown header costs a decryption too, under a key that opens nothing
            raw = (cipher or _DECOY).decrypt(_decode(nonce), ciphertext + _decode(tag), header)
        except InvalidTag:
            raise NotOpenedError from None
        # one value has one spelling: the unused bits of the last character are zero
        if cipher is None or key is None or _encode(ciphertext) != text:
            raise NotOpenedError
        try:
            validate(raw)
        except JsonError:
            raise NotOpenedError from None
        return raw, key.version

    def __repr__(self) -> str:
        return f"Envelope({self.field}, {self._keyset!r})"


def _encode(data: bytes) -> bytes:
    return b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    if len(text) % 4 == 1:
        raise NotOpenedError
    return a2b_base64(text.translate(_FROM_URL) + b"==")
