"""HashiCorp Vault and OpenBao: the Transit engine wraps the data keys.

    new version   POST MOUNT/datakey/plaintext/KEY     the service makes the key; it comes back plain and wrapped
    unwrap        POST MOUNT/decrypt/KEY               with `context` and `associated_data`: the binding (keyset and version)
    wrap          POST MOUNT/encrypt/KEY               to move a data key to the newest version of the KEK

`associated_data` binds where the KEK is an AEAD key, `context` where it is derived; both are sent, the service takes what applies. A
service that ignores associated data for new data keys is noticed: what it made is unwrapped once before it is used, and wrapped again.

Every 403 is answered by one new login and one more try: tokens expire, are revoked, and lose policies. `login` is one of token, AppRole,
Kubernetes and JWT (a JWT-SVID).
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from math import inf
from time import monotonic
from typing import Any

from meshguard.fields.material import KEY_BYTES
from meshguard.keys.http import Answer, HttpClient
from meshguard.keys.provider import Binding, KekError
from meshguard.keys.vault_login import Login, Token
from meshguard.model.errors import KeysetError

__all__ = ["VaultKek"]

RENEW_AT = 0.66
"""Share of a token's life after which it is renewed; the rest is for trying again."""
_LEAST_S = 1.0


class VaultKek:
    """The Transit key `key` at `address`. `login` gives tokens."""

    def __init__(self, http: HttpClient, address: str, key: str, login: Login, *, mount: str = "transit", namespace: str = "") -> None:
        self._http = http
        self._address = address.rstrip("/")
        self._key = key
        self._mount = mount.strip("/")
        self._namespace = namespace
        self._login = login
        self._token: Token | None = None
        self._entering = asyncio.Lock()

    @property
    def place(self) -> str:
        return f"{self._address} {self._mount}/{self._key}"

    async def new_key(self, binding: Binding) -> tuple[bytes, str]:
        data = await self._transit(f"datakey/plaintext/{self._key}", {"bits": 8 * KEY_BYTES, **_bound(binding)})
        key, wrapped = self._octets(data), self._wrapped(data)
        try:
            if await self.unwrap(wrapped, binding) == key:
                return key, wrapped
        except KekError as exc:
            if exc.away:
                raise
        return key, await self.wrap(key, binding)

    async def wrap(self, key: bytes, binding: Binding) -> str:
        data = await self._transit(f"encrypt/{self._key}", {"plaintext": b64encode(key).decode(), **_bound(binding)})
        return self._wrapped(data)

    async def unwrap(self, wrapped: str, binding: Binding) -> bytes:
        return self._octets(await self._transit(f"decrypt/{self._key}", {"ciphertext": wrapped, **_bound(binding)}))

    async def tend(self) -> float:
        """Renews the token when two thirds of its life are over; one that cannot be renewed is replaced by a new login."""
        async with self._entering:
            token = self._token
            if token is None:
                return inf
            due = token.since + RENEW_AT * token.lease_s
            if monotonic() < due:
                return due - monotonic()
            renewed = await self._renew(token) if token.renewable else None
            self._token = token = renewed or await self._enter()
            return max(_LEAST_S, RENEW_AT * token.lease_s)

    async def close(self) -> None:
        self._token = None

    # -- calls ----------------------------------------------------------------------------------------------------------

    async def _transit(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        token = self._token
        async with self._entering:  # one login for all who wait
            if self._token is None or monotonic() >= self._token.since + self._token.lease_s:
                self._token = await self._enter()
            token = self._token
        answer = await self._post(f"{self._mount}/{path}", body, token)
        if answer.status == 403:
            async with self._entering:
                if self._token is token:
                    self._token = await self._enter()
                token = self._token
            answer = await self._post(f"{self._mount}/{path}", body, token)
        return self._data(answer)

    async def _enter(self) -> Token:
        """A fresh token. Raises KekError."""
        token = await self._login.enter(self._post)
        if token is None:
            raise KekError(f"{self._address}: the login was refused", away=False)
        if token.lease_s == 0.0:  # a token that was given to us: how long it lives only the service knows
            answer = await self._get("auth/token/lookup-self", token)
            data = self._data(answer)
            lease_s = data.get("ttl")
            token = Token(
                token.value, float(lease_s) or inf if isinstance(lease_s, int) else inf, data.get("renewable") is True, monotonic()
            )
        return token

    async def _renew(self, token: Token) -> Token | None:
        answer = await self._post("auth/token/renew-self", {}, token)
        if answer.status != 200:
            return None
        auth = _members(answer).get("auth") or {}
        lease_s = auth.get("lease_duration")
        if not isinstance(lease_s, int) or lease_s < 1 or lease_s < 0.1 * token.lease_s:
            return None  # at its greatest age it is renewed for ever less
        return Token(token.value, float(lease_s), auth.get("renewable") is True, monotonic())

    async def _post(self, path: str, body: dict[str, Any], token: Token | None = None) -> Answer:
        return await self._http.exchange("POST", f"{self._address}/v1/{path}", self._fields(token), json.dumps(body).encode())

    async def _get(self, path: str, token: Token) -> Answer:
        return await self._http.exchange("GET", f"{self._address}/v1/{path}", self._fields(token))

    def _fields(self, token: Token | None) -> dict[str, str]:
        fields = {"content-type": "application/json", "x-vault-request": "true"}
        if token is not None:
            fields["x-vault-token"] = token.value
        if self._namespace:
            fields["x-vault-namespace"] = self._namespace
        return fields

    def _data(self, answer: Answer) -> dict[str, Any]:
        if answer.status != 200:
            # 429 too many requests, 472/473 standby, 5xx (503: sealed): somebody else may answer later; the rest is a no
            away = answer.status in (412, 429, 472, 473) or answer.status >= 500
            errors = _members(answer).get("errors")
            told = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
            raise KekError(f"{self._address}: status {answer.status}{': ' if told else ''}{told[:300]}", away=away)
        data = _members(answer).get("data")
        if not isinstance(data, dict):
            raise KekError(f"{self._address}: an answer without data", away=True)
        return data

    def _octets(self, data: dict[str, Any]) -> bytes:
        try:
            key = b64decode(data["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise KekError(f"{self._address}: no data key of {KEY_BYTES} octets in the answer", away=False)
        return key

    def _wrapped(self, data: dict[str, Any]) -> str:
        wrapped = data.get("ciphertext")
        if not isinstance(wrapped, str) or not wrapped.startswith("vault:v") or not wrapped.isascii():
            raise KeysetError(f"{self._address}: no wrapped key in the answer")
        return wrapped


def _bound(binding: Binding) -> dict[str, str]:
    text = b64encode(binding.text.encode()).decode()
    return {"context": text, "associated_data": text}


def _members(answer: Answer) -> dict[str, Any]:
    try:
        values = json.loads(answer.body)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
