"""Keysets: the versions of one data key, what each may still do, and how often it was used.

Transitions of a version: primary -> enabled -> disabled -> destroyed, and disabled -> enabled. One primary version seals; primary and
enabled versions open; disabled ones do neither but can come back; destroyed ones have no key any more.

A version seals at most 2^32 values, because its nonces are random (NIST SP 800-38D section 8.3). Uses are counted in a range that the key
provider has written down *before* it is used (`grant`), so that a crash can only ever count too many. A version with `salts` counts
nothing: each process seals under subkeys of its own (`material`).

A keyset lives on while its versions change (`adopt`): who holds it sees a rotation without a reload.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NoReturn

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshguard.fields.material import KEY_BYTES, KeyMaterial
from meshguard.model.errors import KeysetError

__all__ = ["KEY_BYTES", "MAX_USES", "ROTATE_AT", "DataKey", "KeyState", "Keyset", "Tenancy", "is_keyset_name"]

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


class Tenancy(Enum):
    """How a keyset keeps tenants apart: not at all by keys (only by the header), by derivation, or by a secret for each."""

    SHARED = "shared"
    DERIVED = "derived"
    OWN = "own"


class DataKey:
    """One version. `version` counts from 1, `created` is epoch seconds, `uses` how many values it may have sealed so far.

    `material` is the key, or where it will be supplied. With `salts` (16 random octets at each call) it seals under subkeys. The key
    itself never leaves but through `material`; repr, str and pickling do not carry it.
    """

    __slots__ = ("_granted", "_low", "_material", "_on_low", "_uses", "_written", "created", "salts", "state", "version")

    def __init__(
        self,
        version: int,
        state: KeyState,
        created: float,
        material: bytes | KeyMaterial | None,
        uses: int = 0,
        granted: int | None = None,
        on_low: Callable[[DataKey], None] | None = None,
        salts: Callable[[], bytes] | None = None,
    ) -> None:
        if (material is None) != (state is KeyState.DESTROYED):
            raise KeysetError(f"version {version}: a destroyed version has no key, every other has one")
        if isinstance(material, bytes) and len(material) != KEY_BYTES:
            raise KeysetError(f"version {version}: expected a key of {KEY_BYTES} octets")
        if version < 1 or uses < 0:
            raise KeysetError(f"version {version}: expected a version from 1 and uses from 0")
        self.version = version
        self.state = state
        self.created = created
        self._material = material if isinstance(material, KeyMaterial) else KeyMaterial(material)
        self.salts = salts
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
        """The 32 octets of the key, for the provider that stores it. Raises KeysetError when it is destroyed or not there."""
        if self.state is KeyState.DESTROYED:
            raise KeysetError(f"version {self.version} is destroyed")
        return self._material.octets

    @property
    def holder(self) -> KeyMaterial:
        """Where the octets are while they may be used: subkeys come from there."""
        return self._material

    @property
    def may_open(self) -> bool:
        """By its state; its key may still be missing (`available`)."""
        return self.state is KeyState.PRIMARY or self.state is KeyState.ENABLED

    @property
    def available(self) -> bool:
        """The key is there."""
        return self._material.cipher is not None

    def derive(self, purpose: str, tenant: str = "", length: int = KEY_BYTES) -> bytes:
        """A key for something else than sealing with random nonces (deterministic mode, tokens): HKDF-SHA256 with info
        `meshguard/PURPOSE/1 0x00 tenant`. Raises KeysetError when this version may not open or its key is not there."""
        if not self.may_open:
            raise KeysetError(f"version {self.version} is {self.state.value}")
        return self._material.derive(f"meshguard/{purpose}/1\0{tenant}".encode(), length)

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
        if self.state is not KeyState.PRIMARY:
            raise KeysetError(f"version {self.version} is {self.state.value}: it does not seal")
        cipher = self._material.cipher
        if cipher is None:
            raise KeysetError(f"the key of version {self.version} is not available")
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
        return self._material.cipher if self.may_open else None

    def __repr__(self) -> str:
        return f"DataKey(version={self.version}, state={self.state.value}, uses={self._uses}, key=<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a data key is not copied or pickled")


class Keyset:
    """The versions of one key, newest last. Exactly one is primary, unless all are disabled or destroyed.

    `tenancy` says how tenants are kept apart; `tenants` are the secrets of those that have one (Tenancy.OWN). `renews`: values that
    pass under an older version are sealed anew under the primary one.
    """

    __slots__ = ("name", "primary", "renews", "tenancy", "tenants", "versions")

    def __init__(
        self,
        name: str,
        versions: Iterable[DataKey],
        tenancy: Tenancy = Tenancy.SHARED,
        tenants: Mapping[str, KeyMaterial] | None = None,
    ) -> None:
        if not is_keyset_name(name):
            raise KeysetError("expected a keyset name of at most 64 letters, digits, '_', '.' and '-'")
        self.name = name
        self.renews = False
        self.tenancy = tenancy
        self.tenants: Mapping[str, KeyMaterial] = {}
        self.adopt(versions, tenants or {})

    def adopt(self, versions: Iterable[DataKey], tenants: Mapping[str, KeyMaterial] | None = None) -> None:
        """Takes over other versions (and secrets of tenants) at once. Raises KeysetError, and then nothing has changed."""
        taken = tuple(sorted(versions, key=lambda key: key.version))
        if len({key.version for key in taken}) != len(taken):
            raise KeysetError(f"keyset {self.name}: a version is there twice")
        primaries = [key for key in taken if key.state is KeyState.PRIMARY]
        if len(primaries) > 1 or (not primaries and any(key.state is KeyState.ENABLED for key in taken)):
            raise KeysetError(f"keyset {self.name}: expected exactly one primary version")
        self.versions = taken
        self.primary = primaries[0] if primaries else None
        if tenants is not None:
            self.tenants = dict(tenants)
            for key in taken:
                key.holder.forget_subkeys()  # nothing of a tenant that is gone stays behind

    def scope(self, tenant: str) -> str:
        """What of `tenant` goes into its keys."""
        return "" if self.tenancy is Tenancy.SHARED else tenant

    def secret_of(self, tenant: str) -> bytes:
        """The secret of a tenant; empty where tenants have none. Raises KeysetError for one that was never made or is destroyed."""
        if self.tenancy is not Tenancy.OWN:
            return b""
        secret = self.tenants.get(tenant)
        if secret is None or secret.cipher is None:
            raise KeysetError(f"keyset {self.name} has no key for this tenant")
        return secret.octets

    @property
    def needs_rotation(self) -> bool:
        return self.primary is not None and self.primary.salts is None and self.primary.needs_rotation

    def __repr__(self) -> str:
        return f"Keyset({self.name}, versions={[f'{key.version} {key.state.value}' for key in self.versions]})"
