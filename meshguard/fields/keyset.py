"""Keysets: the versions of one data key, what each may still do, and how often it was used.

Transitions of a version: primary -> enabled -> disabled -> destroyed, and disabled -> enabled. One primary version seals; primary and
enabled versions open; disabled ones do neither but can come back; destroyed ones have no key any more.

A version seals at most 2^32 values, because its nonces are random (NIST SP 800-38D section 8.3). Uses are counted in a range that the key
provider has written down *before* it is used (`grant`), so that a crash can only ever count too many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NoReturn

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshguard.model.errors import KeysetError

__all__ = ["KEY_BYTES", "MAX_USES", "ROTATE_AT", "DataKey", "KeyState", "Keyset", "is_keyset_name"]

KEY_BYTES = 32
"""A256GCM takes 256 bits (RFC 7518 section 5.3)."""
MAX_USES = 1 << 32
"""Random 96-bit nonces under one key: beyond this the odds of a repeated one exceed 2^-32 (NIST SP 800-38D section 8.3)."""
ROTATE_AT = 1 << 30
"""Where `needs_rotation` begins to be true: leaves three quarters of the budget for acting on it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def is_keyset_name(name: str) -> bool:
    """True for at most 64 letters, digits, `_`, `.` and `-`: what can stand in a key id without quoting."""
    return _NAME.fullmatch(name) is not None


class KeyState(Enum):
    """What a version may do: seal and open, open, nothing for now, nothing ever."""

    PRIMARY = "primary"
    ENABLED = "enabled"
    DISABLED = "disabled"
    DESTROYED = "destroyed"


class DataKey:
    """One version. `version` counts from 1, `created` is epoch seconds, `uses` how many values it may have sealed so far.

    The key itself never leaves but through `material`; repr, str and pickling do not carry it.
    """

    __slots__ = ("_cipher", "_granted", "_low", "_material", "_on_low", "_uses", "_written", "created", "state", "version")

    def __init__(
        self,
        version: int,
        state: KeyState,
        created: float,
        material: bytes | None,
        uses: int = 0,
        granted: int | None = None,
        on_low: Callable[[DataKey], None] | None = None,
    ) -> None:
        if (material is None) != (state is KeyState.DESTROYED):
            raise KeysetError(f"version {version}: a destroyed version has no key, every other has one")
        if material is not None and len(material) != KEY_BYTES:
            raise KeysetError(f"version {version}: expected a key of {KEY_BYTES} octets")
        if version < 1 or uses < 0:
            raise KeysetError(f"version {version}: expected a version from 1 and uses from 0")
        self.version = version
        self.state = state
        self.created = created
        self._material = material
        self._cipher = AESGCM(material) if material is not None else None
        self._uses = uses
        self._granted = uses if granted is None else min(granted, MAX_USES)
        self._written = self._granted
        self._on_low = on_low
        self._low = self._next_low()

    @property
    def uses(self) -> int:
        """Values sealed, counting what earlier processes may have sealed."""
        return self._uses

    @property
    def granted(self) -> int:
        """How far `uses` may go before the provider has to write down more."""
        return self._granted

    @property
    def needs_rotation(self) -> bool:
        """True from ROTATE_AT uses on, those of other processes included."""
        return max(self._uses, self._written) >= ROTATE_AT

    @property
    def material(self) -> bytes:
        """The 32 octets of the key, for the provider that stores it. Raises KeysetError when it is destroyed."""
        if self._material is None:
            raise KeysetError(f"version {self.version} is destroyed")
        return self._material

    def grant(self, upto: int, written: int | None = None) -> None:
        """Allow `uses` to reach `upto`, after that many are safely written down, and let a new low mark be reported.

        `written` is the count that the provider has written down for all who share this version: where it is higher, others
        have used the key too. May be called from another thread.
        """
        self._granted = max(self._granted, min(upto, MAX_USES))
        self._written = max(self._granted, self._written, min(written or 0, MAX_USES))
        self._low = self._next_low()

    def _next_low(self) -> int:
        """The count of uses at which the provider is asked for more: half of what is left."""
        if self._on_low is None or self._written >= MAX_USES:
            return MAX_USES + 1  # nobody to ask, or nothing more to get
        return self._uses + (self._granted - self._uses) // 2

    def encrypt(self, nonce: bytes, plaintext: bytes, data: bytes) -> bytes:
        """AES-256-GCM: ciphertext and 16 octets of tag. Counts one use. Raises KeysetError when this version may not seal."""
        cipher = self._cipher
        if cipher is None or self.state is not KeyState.PRIMARY:
            raise KeysetError(f"version {self.version} is {self.state.value}: it does not seal")
        uses = self._uses + 1
        if uses > self._low:
            self._low = MAX_USES + 1  # ask once; `grant` sets the next mark
            if self._on_low is not None:
                self._on_low(self)
        if uses > self._granted:
            if self._written >= MAX_USES:
                raise KeysetError(f"version {self.version} has sealed all the values it may ({MAX_USES}): rotate the keyset")
            raise KeysetError(f"version {self.version} has used up what was set aside for it ({self._granted} uses)")
        self._uses = uses
        return cipher.encrypt(nonce, plaintext, data)

    def opener(self) -> AESGCM | None:
        """The cipher, when this version may open."""
        return self._cipher if self.state in (KeyState.PRIMARY, KeyState.ENABLED) else None

    def __repr__(self) -> str:
        return f"DataKey(version={self.version}, state={self.state.value}, uses={self._uses}, key=<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a data key is not copied or pickled")


class Keyset:
    """The versions of one key, newest last. Exactly one is primary, unless all are disabled or destroyed."""

    __slots__ = ("name", "primary", "versions")

    def __init__(self, name: str, versions: Iterable[DataKey]) -> None:
        if not is_keyset_name(name):
            raise KeysetError("expected a keyset name of at most 64 letters, digits, '_', '.' and '-'")
        self.name = name
        self.versions = tuple(sorted(versions, key=lambda key: key.version))
        if len({key.version for key in self.versions}) != len(self.versions):
            raise KeysetError(f"keyset {name}: a version is there twice")
        primaries = [key for key in self.versions if key.state is KeyState.PRIMARY]
        if len(primaries) > 1 or (not primaries and any(key.state is KeyState.ENABLED for key in self.versions)):
            raise KeysetError(f"keyset {name}: expected exactly one primary version")
        self.primary = primaries[0] if primaries else None

    @property
    def needs_rotation(self) -> bool:
        return self.primary is not None and self.primary.needs_rotation

    def __repr__(self) -> str:
        return f"Keyset({self.name}, versions={[f'{key.version} {key.state.value}' for key in self.versions]})"
