"""PKCS#11: an AES key in an HSM wraps the data keys (CKM_AES_GCM, the binding as additional data). Needs the extra `pkcs11`.

The data key is made from the HSM's random octets. The wrapped form is `pkcs11:v1:BASE64URL(nonce ciphertext tag)`. All calls go through one
thread: the library is not safe to be called from several, and its loading and login belong together.
"""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from meshguard.fields.material import KEY_BYTES
from meshguard.keys.provider import Binding, KekError
from meshguard.model.errors import KeysetError

__all__ = ["HsmKek", "hsm_kek"]

_PREFIX = "pkcs11:v1:"
_NONCE_BYTES = 12
_T = TypeVar("_T")


class HsmKek:
    """The AES key labelled `key` in the token labelled `token`."""

    def __init__(self, module: Path, token: str, key: str, pin_file: Path, timeout_s: float) -> None:
        self._module = module
        self._token = token
        self._key = key
        self._pin_file = pin_file
        self._timeout_s = timeout_s
        self._session: Any = None
        self._refused_pin = ""
        self._thread = ThreadPoolExecutor(1, "pkcs11")

    @property
    def place(self) -> str:
        return f"{self._module} {self._token}/{self._key}"

    async def new_key(self, binding: Binding) -> tuple[bytes, str]:
        def work(session: Any) -> bytes:
            return bytes(session.generate_random(8 * KEY_BYTES))

        key = await self._in_session(work)
        if len(key) != KEY_BYTES:
            raise KekError(f"{self.place}: no {KEY_BYTES} random octets", away=False)
        return key, await self.wrap(key, binding)

    async def wrap(self, key: bytes, binding: Binding) -> str:
        def work(session: Any) -> bytes:
            nonce = bytes(session.generate_random(8 * _NONCE_BYTES))
            return nonce + bytes(self._aes(session).encrypt(key, **_gcm(nonce, binding)))

        return _PREFIX + urlsafe_b64encode(await self._in_session(work)).decode()

    async def unwrap(self, wrapped: str, binding: Binding) -> bytes:
        try:
            data = urlsafe_b64decode(wrapped.removeprefix(_PREFIX)) if wrapped.startswith(_PREFIX) else b""
        except ValueError:
            data = b""
        if len(data) != _NONCE_BYTES + KEY_BYTES + 16:
            raise KekError(f"{self.place}: no wrapped key of ours", away=False)

        def work(session: Any) -> bytes:
            return bytes(self._aes(session).decrypt(data[_NONCE_BYTES:], **_gcm(data[:_NONCE_BYTES], binding)))

        return await self._in_session(work)

    async def tend(self) -> float:
        return inf

    async def close(self) -> None:
        def work() -> None:
            if self._session is not None:
                self._session.close()
            self._session = None

        await asyncio.get_running_loop().run_in_executor(self._thread, work)
        self._thread.shutdown(wait=False)

    def _aes(self, session: Any) -> Any:
        from pkcs11 import KeyType, ObjectClass

        return session.get_key(key_type=KeyType.AES, object_class=ObjectClass.SECRET_KEY, label=self._key)

    async def _in_session(self, work: Callable[[Any], _T]) -> _T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, work)
        except TimeoutError:
            raise KekError(f"{self.place}: no answer in {self._timeout_s:g} s", away=True) from None

    def _call(self, work: Callable[[Any], _T]) -> _T:
        import pkcs11
        from pkcs11 import exceptions

        # what says no, for good; everything else (no such token, device removed, session closed) may be mended
        no: tuple[type[Exception], ...] = (exceptions.EncryptedDataInvalid, exceptions.EncryptedDataLenRange)
        no += (exceptions.PinIncorrect, exceptions.PinLocked)
        no += (exceptions.NoSuchKey, exceptions.MultipleObjectsReturned, exceptions.FunctionFailed, exceptions.GeneralError)
        try:
            if self._session is None:
                pin = self._pin_file.read_text("utf-8").strip()
                if pin == self._refused_pin:  # each try counts towards the lock of the token
                    raise KekError(f"{self.place}: the PIN was refused; it is tried again when {self._pin_file} changes", away=False)
                token = pkcs11.lib(str(self._module)).get_token(token_label=self._token)
                try:
                    self._session = token.open(user_pin=pin)
                except exceptions.PinIncorrect:
                    self._refused_pin = pin
                    raise
            return work(self._session)
        except no as exc:
            raise KekError(f"{self.place}: {type(exc).__name__}", away=False) from None
        except (exceptions.PKCS11Error, OSError, RuntimeError) as exc:
            self._session = None  # opened anew at the next call
            raise KekError(f"{self.place}: {type(exc).__name__}", away=True) from exc


def _gcm(nonce: bytes, binding: Binding) -> dict[str, Any]:
    from pkcs11 import GCMParams, Mechanism

    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(nonce, binding.text.encode(), 128)}


def hsm_kek(values: Mapping[str, Any]) -> HsmKek:
    """`values` as Pkcs11KeysetConfig has them. Raises KeysetError without the extra."""
    from importlib.util import find_spec

    if find_spec("pkcs11") is None:
        raise KeysetError("the provider pkcs11 needs an extra: pip install 'meshguard[pkcs11]'")
    return HsmKek(values["module"], values["token"], values["key"], values["pin_file"], values["timeout_s"])
