"""The envelope of a protected value: JWE compact serialisation (RFC 7516 section 7.1), `alg` dir, `enc` A256GCM (RFC 7518 4.5, 5.3).

    "BASE64URL(header)..BASE64URL(nonce).BASE64URL(ciphertext).BASE64URL(tag)"       a JSON string; dir has an empty encrypted key

The plaintext is the JSON value as it was written, so a number, null or object comes back as it was. The header is the additional data
(RFC 7516 section 5.1 step 14) and binds the context: keyset and version (`kid`), field (`f`), audience (`a`) and tenant (`t`) where
the rule names them. It is constant per field and key, so it is encoded once. `kid` names the very key: `orders-pii:3`, or
`orders-pii:3:SALT` for a subkey (`material`), SALT being 16 octets in base64url.

INVARIANT: opening never looks at what a token asks for. Its header must be, octet for octet, one that this field expects, which
pins `alg`, `enc`, key and context at once (of a subkey only the salt is free); every failure is the same failure. That a key which
should open is not available is told apart, and only for headers of ours.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshguard.fields.json_scan import JsonError, validate
from meshguard.fields.keyset import DataKey, Keyset, KeyState
from meshguard.fields.material import SALT_BYTES, Sealer
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
_SALT_CHARACTERS = 22
_SALT = re.compile(rb"[A-Za-z0-9_-]{22}").fullmatch
_MAX_LEARNED = 4096


class NotOpenedError(MeshguardError):
    """A sealed value does not open. Says nothing about why: the reason would be an oracle."""

    def __init__(self) -> None:
        super().__init__("a sealed value does not open")


def header_of(keyset: str, version: int, field: str, audience: str = "", tenant: str = "", salt: bytes = b"") -> bytes:
    """The protected header as JSON without spaces: members in this order, empty `a` and `t` left out. `salt` names a subkey."""
    kid = f"{keyset}:{version}:{_encode(salt).decode()}" if salt else f"{keyset}:{version}"
    members: dict[str, str] = {"alg": "dir", "enc": "A256GCM", "kid": kid, "f": field}
    if audience:
        members["a"] = audience
    if tenant:
        members["t"] = tenant
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()


def looks_sealed(raw: bytes) -> bool:
    """True for the raw JSON text of a value in an envelope of ours, of whatever field and key."""
    return raw.startswith(_BEGIN, 1) and raw[:1] == b'"' and _SEALED(raw) is not None


class Envelope:
    """Seals and opens the values of one field under one keyset, audience and tenant. Follows the keyset when its versions change."""

    __slots__ = (
        "_audience", "_frames", "_keyset", "_learned", "_openers", "_scope", "_sealer", "_sealing", "_tenant", "_versions", "field",
        "keyset_name",
    )  # fmt: skip

    def __init__(self, keyset: Keyset, field: str, audience: str = "", tenant: str = "") -> None:
        self._keyset = keyset
        self.field = field
        self.keyset_name = keyset.name
        self._audience = audience
        self._tenant = tenant
        self._follow()

    def _follow(self) -> None:
        """Works out what belongs to the versions as they are now."""
        keyset = self._keyset
        self._versions = keyset.versions
        self._scope = keyset.scope(self._tenant)
        self._sealing: tuple[DataKey, bytes, bytes] | None = None
        self._sealer: Sealer | None = None
        # headers that name a version, and headers that name a subkey and have opened something: (version, salt)
        self._openers: dict[bytes, DataKey] = {}
        self._learned: dict[bytes, tuple[DataKey, bytes]] = {}
        # what stands before and after the salt in the header of a subkey of each version
        self._frames: list[tuple[bytes, bytes, DataKey]] = []
        for key in keyset.versions:
            if key.state is KeyState.DESTROYED:
                continue
            plain = header_of(keyset.name, key.version, self.field, self._audience, self._tenant)
            if not self._scope:  # a tenant with keys of its own has no value under the version itself
                self._openers[_encode(plain)] = key
            salted = header_of(keyset.name, key.version, self.field, self._audience, self._tenant, bytes(SALT_BYTES))
            before, _, after = salted.partition(_encode(bytes(SALT_BYTES)))
            self._frames.append((before, after, key))
            if key is keyset.primary:
                encoded = _encode(plain)
                self._sealing = (key, encoded, b'"' + encoded + b"..")

    def of_tenant(self, tenant: str) -> Envelope:
        """The same field for another tenant."""
        return Envelope(self._keyset, self.field, self._audience, tenant)

    @property
    def version(self) -> int:
        """The version that seals; 0 when none does."""
        return self._keyset.primary.version if self._keyset.primary is not None else 0

    def seal(self, raw: bytes, nonce: bytes) -> bytes:
        """`raw` (one JSON value as written) as a JSON string with its envelope. `nonce` is 12 random octets, never used before.

        Raises KeysetError when no version may seal, its key is not available or its uses are spent.
        """
        if self._versions is not self._keyset.versions:
            self._follow()
        sealing = self._sealing
        if sealing is None:
            raise KeysetError(f"keyset {self.keyset_name} has no primary version")
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"expected a nonce of {NONCE_BYTES} octets")
        key, header, prefix = sealing
        if key.salts is None:
            if self._scope:
                raise KeysetError(f"keyset {self.keyset_name} keeps tenants apart and needs subkeys")
            sealed = key.encrypt(nonce, raw, header)
        else:
            sealer = key.holder.sealer(self._scope, self._secret, key.salts)
            if sealer is not self._sealer:
                header = _encode(header_of(self.keyset_name, key.version, self.field, self._audience, self._tenant, sealer.salt))
                prefix = b'"' + header + b".."
                self._sealing, self._sealer = (key, header, prefix), sealer
            sealer.uses += 1
            sealed = sealer.cipher.encrypt(nonce, raw, header)
        # 12 octets of nonce encode to 16 characters without a remainder, so nonce and ciphertext are encoded in one call
        text = b2a_base64(nonce + sealed[:-TAG_BYTES], newline=False).rstrip(b"=")
        tag = b2a_base64(sealed[-TAG_BYTES:], newline=False)
        return prefix + (text[:16] + b"." + text[16:] + b"." + tag[:22] + b'"').translate(_TO_URL)

    def open(self, sealed: bytes) -> tuple[bytes, int]:
        """The raw JSON value in `sealed` (a JSON string for which `looks_sealed` holds) and the key version.

        Raises NotOpenedError, always the same, after the same work; KeysetError when the key that would open it is not available.
        """
        match = _SEALED(sealed)
        if match is None:
            raise NotOpenedError
        if self._versions is not self._keyset.versions:
            self._follow()
        header, nonce, text, tag = match.groups()
        key = self._openers.get(header)
        salt = b""
        if key is not None:
            cipher = key.opener()
        else:
            key, salt, cipher = self._subkey(header)
        if key is not None and key.may_open and not key.available:
            raise KeysetError(f"the key of version {key.version} is not available")
        ciphertext = _decode(text)
        try:
            # an unknown header costs a decryption too, under a key that opens nothing
            raw = (cipher or _DECOY).decrypt(_decode(nonce), ciphertext + _decode(tag), header)
        except InvalidTag:
            raise NotOpenedError from None
        # one value has one spelling: the unused bits of the last character are zero
        if cipher is None or key is None or _encode(ciphertext) != text:
            raise NotOpenedError
        if salt and header not in self._learned:
            if len(self._learned) >= _MAX_LEARNED:
                self._learned.clear()
            self._learned[header] = (key, salt)
            key.holder.remember(salt, self._scope, cipher)
        try:
            validate(raw)
        except JsonError:
            raise NotOpenedError from None
        return raw, key.version

    @property
    def renews(self) -> bool:
        """The keyset says so: what passes under an older version is to be `renewed`."""
        return self._keyset.renews

    def renewed(self, sealed: bytes, nonce: Callable[[], bytes]) -> bytes | None:
        """`sealed` under the primary version, None when it is that already, or does not open here, or cannot be sealed: then it passes as
        it is. `nonce()` gives 12 random octets, and is asked only when they are used."""
        match = _SEALED(sealed)
        if match is None:
            return None
        if self._versions is not self._keyset.versions:
            self._follow()
        key = self._openers.get(match[1]) or (self._learned.get(match[1]) or self._read(match[1]))[0]
        if key is None or key is self._keyset.primary or self._keyset.primary is None:
            return None
        try:
            return self.seal(self.open(sealed)[0], nonce())
        except (NotOpenedError, KeysetError):
            return None

    def _subkey(self, header: bytes) -> tuple[DataKey | None, bytes, AESGCM | None]:
        """The version, the salt and the cipher of a header that names a subkey of ours; None where it does not."""
        key, salt = self._learned.get(header) or self._read(header)
        if key is None or not key.may_open or not key.available:
            return key, b"", None
        try:
            return key, salt, key.holder.opener(salt, self._scope, self._secret())
        except KeysetError:
            return None, b"", None  # a tenant that is not known here, or not any more

    def _read(self, header: bytes) -> tuple[DataKey | None, bytes]:
        if len(header) % 4 == 1:
            return None, b""
        decoded = _decode(header)
        for before, after, key in self._frames:
            if len(decoded) == len(before) + _SALT_CHARACTERS + len(after) and decoded.startswith(before) and decoded.endswith(after):
                text = decoded[len(before) : len(before) + _SALT_CHARACTERS]
                if _SALT(text) and _encode(decoded) == header:
                    salt = _decode(text)
                    if _encode(salt) == text:
                        return key, salt
        return None, b""

    def _secret(self) -> bytes:
        return self._keyset.secret_of(self._tenant)

    def __repr__(self) -> str:
        return f"Envelope({self.field}, {self._keyset!r})"


def _encode(data: bytes) -> bytes:
    return b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    if len(text) % 4 == 1:
        raise NotOpenedError
    return a2b_base64(text.translate(_FROM_URL) + b"==")
