"""Deterministic sealing: equal values of one field give equal ciphertext, so that a store can look them up without reading them.

AES-SIV (RFC 5297, the AEAD that IANA calls AEAD_AES_SIV_CMAC_512) in the compact form of a JWE (RFC 7516 section 7.1) with an empty
nonce: the synthetic IV is the tag. JOSE registers no such `enc`, so the header names the AEAD by its collision-resistant IANA name
(RFC 7516 section 4.1.2).

    "BASE64URL(header)...BASE64URL(ciphertext).BASE64URL(siv)"

Its key is derived from the data key (HKDF, `material`), so it needs no nonces and no count of uses. What it leaks, on purpose: which
values of one field (of one audience and tenant, under one key version) are equal, and how long they are. Whoever can guess values
*and* have them sealed can test guesses; a field with few possible values is better encrypted or tokenised for readers who must not know.
"""

from __future__ import annotations

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from meshguard.fields.contexts import Context
from meshguard.fields.envelope import NotOpenedError
from meshguard.fields.json_scan import JsonError, validate
from meshguard.fields.keyset import DataKey, Keyset
from meshguard.model.errors import KeysetError

__all__ = ["BEGIN", "DerivedKeys", "Deterministic", "decode", "encode", "looks_deterministic"]

SIV_BYTES = 16
KEY_BYTES = 64
"""Two AES-256 keys, one for the authentication and one for the encryption (RFC 5297 section 6.3)."""
_ENC = "AEAD_AES_SIV_CMAC_512"
_SEALED = re.compile(rb'"(eyJ[A-Za-z0-9_-]{17,4096}+)\.\.\.([A-Za-z0-9_-]*+)\.([A-Za-z0-9_-]{21}[AQgw])"').fullmatch
BEGIN = b2a_base64(b'{"alg":"dir","enc":"AEAD', newline=False)
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")
_DECOY = AESSIV(bytes(KEY_BYTES))


def looks_deterministic(raw: bytes) -> bool:
    """True for the raw JSON text of a value in this form, of whatever field and key."""
    return raw.startswith(BEGIN, 1) and _SEALED(raw) is not None


def encode(data: bytes) -> bytes:
    """base64url without padding."""
    return b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=")


def decode(text: bytes) -> bytes:
    """The octets of base64url without padding. Raises NotOpenedError for text with another spelling too: one value, one spelling."""
    try:
        data = a2b_base64(text.translate(_FROM_URL) + b"==") if len(text) % 4 != 1 else None
    except Base64Error:
        data = None
    if data is None or encode(data) != text:
        raise NotOpenedError
    return data


class DerivedKeys:
    """The keys for one purpose and tenant, derived from the versions of a keyset on demand, and forgotten when a version's key is."""

    __slots__ = ("_keyset", "_known", "_length", "_purpose", "_tenant")

    def __init__(self, keyset: Keyset, purpose: str, tenant: str, length: int) -> None:
        self._keyset = keyset
        self._purpose = purpose
        self._tenant = tenant
        self._length = length
        self._known: dict[int, tuple[object, bytes]] = {}

    def primary(self) -> tuple[DataKey, bytes]:
        """The version that protects new values and its derived key. Raises KeysetError."""
        key = self._keyset.primary
        if key is None:
            raise KeysetError(f"keyset {self._keyset.name} has no primary version")
        return key, self._derived(key)

    def of(self, version: int) -> bytes | None:
        """The derived key of a version that may open, None when there is none. Raises KeysetError when its key is not available."""
        key = next((key for key in self._keyset.versions if key.version == version), None)
        if key is None or not key.may_open:
            return None
        return self._derived(key)

    def _derived(self, key: DataKey) -> bytes:
        cipher = key.holder.cipher
        if cipher is None or not key.may_open:
            self._known.pop(key.version, None)
            raise KeysetError(f"the key of version {key.version} is not available")
        secret = self._keyset.secret_of(self._tenant)  # asked every time: a tenant whose secret is destroyed has no keys any more
        found = self._known.get(key.version)
        if found is None or found[0] is not cipher:
            info = f"meshguard/{self._purpose}/1\0{self._keyset.scope(self._tenant)}".encode()
            found = self._known[key.version] = (cipher, key.holder.derive(info, self._length, secret=secret))
        return found[1]


class Deterministic:
    """Seals and opens the values of one field in one context."""

    __slots__ = ("_ciphers", "_context", "_headers", "_keys", "_keyset")

    def __init__(self, keyset: Keyset, context: Context) -> None:
        self._keyset = keyset
        self._context = context
        self._keys = DerivedKeys(keyset, "deterministic", context.tenant, KEY_BYTES)
        self._headers: dict[int, bytes] = {}
        self._ciphers: dict[bytes, AESSIV] = {}

    def seal(self, raw: bytes) -> tuple[bytes, int]:
        """`raw` (one JSON value) as a JSON string, and the key version. Raises KeysetError."""
        key, derived = self._keys.primary()
        header = self._header(key.version)
        sealed = self._cipher(derived).encrypt(raw, [header])
        return b'"%b...%b.%b"' % (header, encode(sealed[SIV_BYTES:]), encode(sealed[:SIV_BYTES])), key.version

    def open(self, sealed: bytes) -> tuple[bytes, int]:
        """The raw JSON value and the key version. Raises NotOpenedError, always the same; KeysetError when the key is not available."""
        match = _SEALED(sealed)
        if match is None:
            raise NotOpenedError
        header, text, siv = match.groups()
        version = next((key.version for key in self._keyset.versions if self._header(key.version) == header), 0)
        derived = self._keys.of(version) if version else None
        cipher = self._cipher(derived) if derived is not None else _DECOY
        try:
            raw = cipher.decrypt(decode(siv) + decode(text), [header])
            validate(raw)
        except (InvalidTag, JsonError):
            raise NotOpenedError from None
        if derived is None:
            raise NotOpenedError
        return raw, version

    def _cipher(self, derived: bytes) -> AESSIV:
        cipher = self._ciphers.get(derived)
        if cipher is None:
            self._ciphers.clear() if len(self._ciphers) > len(self._keyset.versions) else None
            cipher = self._ciphers[derived] = AESSIV(derived)
        return cipher

    def _header(self, version: int) -> bytes:
        header = self._headers.get(version)
        if header is None:
            context = self._context
            members = {"alg": "dir", "enc": _ENC, "kid": f"{self._keyset.name}:{version}", "f": context.field}
            if context.audience:
                members["a"] = context.audience
            if context.tenant:
                members["t"] = context.tenant
            header = self._headers[version] = encode(json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode())
        return header

    def __repr__(self) -> str:
        return f"Deterministic({self._context.field}, {self._keyset!r})"
