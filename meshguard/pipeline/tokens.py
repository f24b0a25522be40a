"""End-user tokens: which issuer's token is in a request, verified with that issuer's pinned algorithms and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from meshguard.model.errors import IdentityError

__all__ = ["Issuer", "TokenVerifier"]


class Issuer(Protocol):
    """One configured issuer. `verify` gives the claims or raises IdentityError."""

    @property
    def header(self) -> str: ...

    def verify(self, token: str, now: float) -> Mapping[str, object]: ...


class TokenVerifier:
    """The configured issuers. A token that no issuer accepts is an error, never just ignored."""

    __slots__ = ("_issuers",)

    def __init__(self, issuers: tuple[Issuer, ...]) -> None:
        self._issuers = issuers

    def claims(self, header: Callable[[str], list[str]], now: float) -> Mapping[str, object] | None:
        """Verified claims of the one token in the request, None when there is none. Raises IdentityError."""
        found = [(name, value) for name in dict.fromkeys(issuer.header for issuer in self._issuers) for value in header(name)]
        if not found:
            return None
        if len(found) > 1:
            raise IdentityError("several_tokens", ", ".join(name for name, _ in found))
        name, value = found[0]
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise IdentityError("not_a_bearer_token", name)
        failure = IdentityError("no_keys")
        for issuer in self._issuers:
            if issuer.header == name:
                try:
                    return issuer.verify(token.strip(" "), now)
                except IdentityError as exc:
                    failure = exc
        raise failure
