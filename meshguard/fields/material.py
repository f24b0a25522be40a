"""The octets of one data key while they may be used, and the keys derived from them (HKDF, RFC 5869).

    absent --supply--> present --supply (confirmed)--> present
       ^                  |
       +------ drop ------+     the time to live ran out, or the version was disabled: nothing seals, nothing opens

`drop` overwrites the octets. What the cipher objects of the library keep inside cannot be overwritten from here, only let go.

Subkeys: with random nonces one key seals at most 2^32 values, and a fleet would have to count them together. So a process seals under a
subkey of its own, which its salt names; nothing has to be counted over restarts or between processes, and any process derives it again
to open:

    subkey = HKDF-SHA256(key, salt = 16 octets, info = "meshguard/seal/1" 0x00 tenant, 32 octets)

`tenant` is empty unless the keyset keeps tenants apart; where each has a secret of its own, `key` is followed by that secret.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshguard.model.errors import KeysetError

__all__ = ["KEY_BYTES", "SALT_BYTES", "KeyMaterial", "Sealer", "derive_key"]

KEY_BYTES = 32
"""A256GCM takes 256 bits (RFC 7518 section 5.3)."""
SALT_BYTES = 16
RENEW_AT = 1 << 30
"""Values after which a process takes a new subkey: a quarter of what random nonces allow (NIST SP 800-38D section 8.3)."""
MAX_REMEMBERED = 4096
"""Subkeys kept for opening and for sealing; each costs about 10 us to derive again."""
_SEAL = b"meshguard/seal/1\x00"


def derive_key(key: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), length, salt, info).derive(key)


class Sealer:
    """A subkey that seals: its `salt`, its cipher, and how many values it has sealed."""

    __slots__ = ("cipher", "salt", "uses")

    def __init__(self, salt: bytes, cipher: AESGCM) -> None:
        self.salt = salt
        self.cipher = cipher
        self.uses = 0


class KeyMaterial:
    """The key of one version. `cipher` is None while the octets are not there. Shared by all who hold the version."""

    __slots__ = ("_octets", "_sealers", "_subkeys", "cipher")

    def __init__(self, octets: bytes | bytearray | None = None) -> None:
        self._octets = bytearray()
        self.cipher: AESGCM | None = None
        self._subkeys: dict[tuple[bytes, str], AESGCM] = {}
        self._sealers: dict[str, Sealer] = {}
        if octets is not None:
            self.supply(octets)

    @property
    def present(self) -> bool:
        return self.cipher is not None

    @property
    def octets(self) -> bytes:
        """The 32 octets. Raises KeysetError while they are not there."""
        if self.cipher is None:
            raise KeysetError("the key is not available")
        return bytes(self._octets)

    def supply(self, octets: bytes | bytearray) -> None:
        """Takes the key. Raises KeysetError for another length, and for another key than before: that is no version of ours."""
        if len(octets) != KEY_BYTES:
            raise KeysetError(f"expected a key of {KEY_BYTES} octets")
        if self.cipher is not None:
            if bytes(self._octets) != bytes(octets):
                raise KeysetError("the key is another one than before")
            return
        self._octets = bytearray(octets)
        self.cipher = AESGCM(bytes(octets))

    def drop(self) -> None:
        """Forgets the key and all that came from it."""
        for index in range(len(self._octets)):
            self._octets[index] = 0
        self._octets = bytearray()
        self.cipher = None
        self.forget_subkeys()

    def forget_subkeys(self) -> None:
        """The next value is sealed under a new salt; tenants that are gone leave nothing behind."""
        self._subkeys.clear()
        self._sealers.clear()

    def derive(self, info: bytes, length: int = KEY_BYTES, salt: bytes = b"", secret: bytes = b"") -> bytes:
        """A key for another purpose, named by `info`. Raises KeysetError while the key is not there."""
        return derive_key(self.octets + secret, salt, info, length)

    def opener(self, salt: bytes, tenant: str, secret: bytes) -> AESGCM | None:
        """The cipher of a subkey, None while the key is not there. Not remembered before it has opened something: anybody can make
        up salts (`remember`)."""
        if self.cipher is None:
            return None
        return self._subkeys.get((salt, tenant)) or AESGCM(self._subkey(salt, tenant, secret))

    def remember(self, salt: bytes, tenant: str, cipher: AESGCM) -> None:
        """This subkey has opened a value: it will open others."""
        if len(self._subkeys) >= MAX_REMEMBERED:
            self._subkeys.clear()
        self._subkeys[salt, tenant] = cipher

    def sealer(self, tenant: str, secret: Callable[[], bytes], salts: Callable[[], bytes]) -> Sealer:
        """The subkey that seals for `tenant` now; a new one after RENEW_AT values. Raises KeysetError while the key is not there."""
        sealer = self._sealers.get(tenant)
        if sealer is None or sealer.uses >= RENEW_AT:
            if self.cipher is None:
                raise KeysetError("the key is not available")
            if len(self._sealers) >= MAX_REMEMBERED:
                self._sealers.clear()
            salt = salts()
            if len(salt) != SALT_BYTES:
                raise KeysetError(f"expected a salt of {SALT_BYTES} octets")
            sealer = self._sealers[tenant] = Sealer(salt, AESGCM(self._subkey(salt, tenant, secret())))
        return sealer

    def _subkey(self, salt: bytes, tenant: str, secret: bytes) -> bytes:
        return self.derive(_SEAL + tenant.encode(), salt=salt, secret=secret)

    def __repr__(self) -> str:
        return f"KeyMaterial({'present' if self.present else 'absent'}, key=<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a data key is not copied or pickled")
