"""How a token for Vault or OpenBao is had: given (environment, file), AppRole, Kubernetes, JWT.

What proves who we are is read anew at each login, because it rotates: service account tokens and JWT-SVIDs live for minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from meshguard.keys.http import Answer
from meshguard.keys.provider import KekError

__all__ = ["AppRoleLogin", "GivenToken", "JwtLogin", "Login", "Post", "Token"]

MAX_PROOF = 64 * 1024


@dataclass(frozen=True, slots=True)
class Token:
    """`lease_s` from `since` (monotonic seconds) on; 0.0: not known yet, inf: for ever. The repr has no token."""

    value: str
    lease_s: float
    renewable: bool
    since: float

    def __repr__(self) -> str:
        return f"Token(lease_s={self.lease_s:g}, value=<redacted>)"


Post = Callable[[str, dict[str, Any]], Awaitable[Answer]]


class Login(Protocol):
    """One way in."""

    async def enter(self, post: Post) -> Token | None:
        """A token, None when the service refuses. Raises KekError."""
        ...


class GivenToken:
    """A token from the environment variable `variable` or the file `path`."""

    def __init__(self, variable: str = "", path: Path | None = None) -> None:
        self._variable = variable
        self._path = path

    async def enter(self, post: Post) -> Token | None:
        if self._path is not None:
            value = await asyncio.to_thread(_proof, self._path)
        else:
            value = os.environ.get(self._variable, "").strip()
            if not value:
                raise KekError(f"no token: the environment variable {self._variable} is not set", away=False)
        if not value.isascii() or not value.isprintable():
            raise KekError("the token is no printable ASCII text", away=False)
        return Token(value, 0.0, False, monotonic())


class AppRoleLogin:
    """Role id and secret id, the secret id (or both) from files."""

    def __init__(self, mount: str, role_id: str, secret_id: Path | None) -> None:
        self._path = f"auth/{mount}/login"
        self._role_id = role_id
        self._secret_id = secret_id

    async def enter(self, post: Post) -> Token | None:
        body = {"role_id": self._role_id}
        if self._secret_id is not None:
            body["secret_id"] = await asyncio.to_thread(_proof, self._secret_id)
        return _token(await post(self._path, body))


class JwtLogin:
    """A JWT for a role: the Kubernetes method and the JWT method (JWT-SVID) take the same."""

    def __init__(self, mount: str, role: str, jwt: Path | Callable[[], Awaitable[str]]) -> None:
        self._path = f"auth/{mount}/login"
        self._role = role
        self._jwt = jwt

    async def enter(self, post: Post) -> Token | None:
        jwt = await asyncio.to_thread(_proof, self._jwt) if isinstance(self._jwt, Path) else await self._jwt()
        return _token(await post(self._path, {"role": self._role, "jwt": jwt}))


def _proof(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROOF).decode("ascii").strip()
    except OSError as exc:
        raise KekError(f"{path}: {exc.strerror or exc}", away=True) from exc
    except UnicodeDecodeError:
        raise KekError(f"{path}: expected ASCII text", away=False) from None


def _token(answer: Answer) -> Token | None:
    if answer.status in (400, 401, 403):
        return None
    if answer.status != 200:
        raise KekError(f"the login failed with status {answer.status}", away=answer.status in (412, 429, 472, 473) or answer.status >= 500)
    try:
        auth: Mapping[str, Any] = json.loads(answer.body)["auth"]
        value, lease_s = auth["client_token"], auth["lease_duration"]
    except (ValueError, KeyError, TypeError):
        raise KekError("the login gave no token", away=True) from None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not isinstance(lease_s, int):
        raise KekError("the login gave no token", away=True)
    return Token(value, float(lease_s) or inf, auth.get("renewable") is True, monotonic())
