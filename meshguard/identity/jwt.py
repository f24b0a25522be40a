"""Bearer tokens: compact JWTs (RFC 7519, RFC 8725) of one configured issuer, verified with keys and algorithms that are pinned here.

What a token says of itself selects among the pinned ones and can add nothing: `alg` must be one that is configured and that the key
fits, `kid` names a key of the issuer's own set, `jku`, `x5u`, `jwk` and `x5c` are never read, `crit` is refused. Cheap checks come first,
the signature last, and claims leave only after it. Errors have codes for the record; the client sees one and the same refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from meshguard.identity.jose import decode_base64url, parse_object
from meshguard.identity.jwk import ALGORITHMS, KeySet
from meshguard.model.errors import IdentityError

__all__ = ["LEEWAY_S", "MAX_TOKEN", "JwtIssuer"]

MAX_TOKEN = 8192
"""Characters of a token; larger ones do not fit the usual limit of a field line either."""
LEEWAY_S = 30.0
"""Seconds by which clocks may differ."""
MAX_CACHED = 1024
"""Verified tokens kept: a verification costs 60 to 300 us, a look-up 1. At most 8 KiB of text each."""
_TYPES = frozenset(("jwt", "at+jwt", "jose"))
"""`typ`, where it is given: JWT, RFC 9068 access tokens, and JOSE, which JWT-SVIDs may say. Tokens made for something else
(`dpop+jwt`, `logout+jwt`, `secevent+jwt`) are not taken for access tokens (RFC 8725 section 3.11)."""
_LATEST = float(2**53)


class JwtIssuer:
    """Verifies the tokens of `issuer` for one of `audiences`.

    `keys` may be replaced at any time (a new key set from the issuer) and is None until the first one is there. `on_unknown_key` is
    called when a token of this issuer names a key that is not in the set: the source may then fetch it anew."""

    def __init__(
        self,
        issuer: str,
        audiences: Collection[str],
        algorithms: Collection[str],
        *,
        header: str = "authorization",
        leeway_s: float = LEEWAY_S,
        keys: KeySet | None = None,
        on_unknown_key: Callable[[], None] | None = None,
    ) -> None:
        if not issuer or not audiences or not algorithms or not ALGORITHMS.issuperset(algorithms):
            raise ValueError(f"an issuer, its audiences, and algorithms of {', '.join(sorted(ALGORITHMS))}")
        self.issuer = issuer
        self.header = header.lower()
        self.on_unknown_key = on_unknown_key
        self._audiences = frozenset(audiences)
        self._algorithms = frozenset(algorithms)
        self._leeway_s = leeway_s
        self._keys = keys
        self._verified: dict[bytes, Mapping[str, object]] = {}

    @property
    def keys(self) -> KeySet | None:
        """The keys in force."""
        return self._keys

    def replace_keys(self, keys: KeySet) -> None:
        """Put a new key set in force; what the old one verified is forgotten, so a withdrawn key ends at once."""
        self._keys = keys
        self._verified = {}

    def verify(self, token: str, now: float) -> Mapping[str, object]:
        """The claims of a valid token at `now` (epoch seconds). Raises IdentityError with a stable code:
        token_too_large, malformed_token, wrong_type, critical_header, algorithm_not_allowed, wrong_issuer, wrong_audience, missing_claim,
        bad_claim, expired, not_yet_valid, issued_in_future, no_keys, unknown_key, ambiguous_key, bad_signature."""
        if len(token) > MAX_TOKEN:
            raise IdentityError("token_too_large")
        if not token.isascii():
            raise IdentityError("malformed_token")
        cache = self._verified
        fingerprint = hashlib.sha256(token.encode("ascii")).digest()
        claims = cache.get(fingerprint)
        if claims is not None:
            self._judge_times(claims, now)
            return claims
        claims = MappingProxyType(self._verify(token, now))
        if len(cache) >= MAX_CACHED:
            del cache[next(iter(cache))]
        cache[fingerprint] = claims
        return claims

    def _verify(self, token: str, now: float) -> dict[str, object]:
        parts = token.split(".")
        if len(parts) != 3:
            raise IdentityError("malformed_token", "not three parts")
        try:
            header = parse_object(decode_base64url(parts[0]))
            claims = parse_object(decode_base64url(parts[1]))
            signature = decode_base64url(parts[2])
        except ValueError as exc:
            raise IdentityError("malformed_token", str(exc)) from exc
        algorithm, kid = self._judge_header(header)
        self._judge_parties(claims)
        self._judge_times(claims, now)
        if self._keys is None:
            raise IdentityError("no_keys")
        try:
            key = self._keys.find(kid, algorithm)
        except IdentityError as exc:
            if exc.code == "unknown_key" and self.on_unknown_key is not None:
                self.on_unknown_key()
            raise
        key.verify(algorithm, signature, token[: token.rindex(".")].encode("ascii"))
        return claims

    def _judge_header(self, header: Mapping[str, object]) -> tuple[str, str | None]:
        if "crit" in header or "b64" in header:
            raise IdentityError("critical_header")  # no extension is understood here (RFC 7515 section 4.1.11, RFC 7797)
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
            raise IdentityError("wrong_type")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise IdentityError("algorithm_not_allowed")
        kid = header.get("kid")
        if kid is not None and (not isinstance(kid, str) or not kid):
            raise IdentityError("malformed_token", "kid is no text")
        return algorithm, kid

    def _judge_parties(self, claims: Mapping[str, object]) -> None:
        if "iss" not in claims:
            raise IdentityError("missing_claim", "iss")
        if claims["iss"] != self.issuer:
            raise IdentityError("wrong_issuer")
        if "aud" not in claims:
            raise IdentityError("missing_claim", "aud")
        audience = claims["aud"]
        listed = [audience] if isinstance(audience, str) else audience
        if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
            raise IdentityError("bad_claim", "aud")
        if self._audiences.isdisjoint(listed):
            raise IdentityError("wrong_audience")
        if not isinstance(claims.get("sub", ""), str):
            raise IdentityError("bad_claim", "sub")

    def _judge_times(self, claims: Mapping[str, object], now: float) -> None:
        expires = _date(claims, "exp")
        if expires is None:
            raise IdentityError("missing_claim", "exp")
        if now >= expires + self._leeway_s:
            raise IdentityError("expired")
        starts = _date(claims, "nbf")
        if starts is not None and now < starts - self._leeway_s:
            raise IdentityError("not_yet_valid")
        issued = _date(claims, "iat")
        if issued is not None:
            if now < issued - self._leeway_s:
                raise IdentityError("issued_in_future")
            if issued > expires:
                raise IdentityError("bad_claim", "iat")


def _date(claims: Mapping[str, object], name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2): a JSON number, and nothing that merely looks like one."""
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST:
        raise IdentityError("bad_claim", name)
    return value
