"""The file provider's KEK: 32 octets in a private file, AES-256-GCM. For development, and where a Secret holds the KEK and a ConfigMap
the wrapped keyset. The wrapped form is `local:v1:BASE64URL(nonce ciphertext tag)`."""

from __future__ import annotations

import asyncio
import os
import stat
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from math import inf
from pathlib import Path
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshguard.fields.material import KEY_BYTES
from meshguard.keys.provider import Binding, KekError

__all__ = ["LocalKek"]

_PREFIX = "local:v1:"
_NONCE_BYTES = 12


class LocalKek:
    """The KEK in the file `path`: 32 octets, as they are or in base64. It is read at each use: a replaced file is the new KEK."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def place(self) -> str:
        return str(self._path)

    async def new_key(self, binding: Binding) -> tuple[bytes, str]:
        key = token_bytes(KEY_BYTES)
        return key, await self.wrap(key, binding)

    async def wrap(self, key: bytes, binding: Binding) -> str:
        cipher = AESGCM(await asyncio.to_thread(self._read))
        nonce = token_bytes(_NONCE_BYTES)  # a KEK wraps some hundreds of keys in its life
        return _PREFIX + urlsafe_b64encode(nonce + cipher.encrypt(nonce, key, binding.text.encode())).decode()

    async def unwrap(self, wrapped: str, binding: Binding) -> bytes:
        cipher = AESGCM(await asyncio.to_thread(self._read))
        try:
            if not wrapped.startswith(_PREFIX):
                raise ValueError
            data = urlsafe_b64decode(wrapped.removeprefix(_PREFIX))
            return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], binding.text.encode())
        except (ValueError, InvalidTag):
            raise KekError(f"{self._path}: does not unwrap version {binding.version} of keyset {binding.keyset}", away=False) from None

    async def tend(self) -> float:
        return inf

    async def close(self) -> None:
        pass

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o027:
                    raise KekError(
                        f"{self._path}: a key-encryption key that others can read or its group can change (chmod 600)", away=False
                    )
                data = file.read(1024)
        except OSError as exc:
            raise KekError(f"{self._path}: {exc.strerror or exc}", away=True) from exc
        if len(data) != KEY_BYTES:
            try:
                data = b64decode(data.strip(), validate=True)
            except ValueError:
                data = b""
        if len(data) != KEY_BYTES:
            raise KekError(f"{self._path}: expected {KEY_BYTES} octets, as they are or in base64", away=False)
        return data
