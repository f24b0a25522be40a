"""Key sets of token issuers: fetched from a file or an https URL, kept fresh, and kept when the issuer does not answer.

    start -> fetch -> publish -> wait (Cache-Control, between MIN_REFRESH_S and MAX_REFRESH_S) -> fetch (ETag) -> ...
                  \\-> failed: the last good set stays in force; next try after a jittered back-off
    a token with an unknown kid wakes the wait, at most once in UNKNOWN_KEY_S: a new key is found without letting callers, who can
    invent kids, turn us into a flood on the issuer

Over the network: HTTPS with verified certificates (plain HTTP only to this machine's own loopback), deadlines on everything, at most
MAX_OCTETS, no redirect to another origin, no content coding. What comes back is parsed by `identity.jwk` before it replaces anything.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult

import h11

from meshguard.identity.jwk import KeySet, parse_jwks
from meshguard.model.errors import IdentityError
from meshguard.sources.https import checked_url, fetch

__all__ = ["MAX_OCTETS", "MAX_REFRESH_S", "MIN_REFRESH_S", "UNKNOWN_KEY_S", "JwksSource"]

MAX_OCTETS = 1 << 20
"""Of a key set; the largest in public use have some tens of KiB."""
MIN_REFRESH_S = 60.0
MAX_REFRESH_S = 3600.0
"""A withdrawn key is gone after at most this, whatever the issuer's Cache-Control says."""
DEFAULT_REFRESH_S = 300.0
UNKNOWN_KEY_S = 30.0
"""Least time between two fetches that unknown kids cause."""
FETCH_S = 10.0
"""Deadline of a whole fetch, redirects included."""
FIRST_RETRY_S = 1.0
MAX_RETRY_S = 300.0
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)


class _Answer(NamedTuple):
    """A fetched document; `body` None means unchanged."""

    body: bytes | None
    etag: str
    fresh_s: float


class JwksSource:
    """Keeps the key set of one issuer. `location` is a path or a URL; `publish` gets each new set (`JwtIssuer.replace_keys`).

    `failures` counts failed fetches since the last good one, `problem` says what went wrong last (for people who run it),
    `fetched_at` is the `clock` time of the last good answer (0.0: never)."""

    def __init__(
        self,
        location: str,
        publish: Callable[[KeySet], None],
        *,
        context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        fetch_s: float = FETCH_S,
    ) -> None:
        self.location = location
        self.failures = 0
        self.problem = ""
        self.fetched_at = 0.0
        self._url = checked_url(location) if "://" in location else None
        self._publish = publish
        self._context = context
        self._clock = clock
        self._jitter = jitter
        self._fetch_s = fetch_s
        self._etag = ""
        self._octets = b""
        self._wanted = asyncio.Event()
        self._asked_at = -UNKNOWN_KEY_S

    def unknown_key(self) -> None:
        """A token of this issuer named a key that the set does not hold: fetch soon, at most once in UNKNOWN_KEY_S."""
        now = self._clock()
        if now - self._asked_at >= UNKNOWN_KEY_S:
            self._asked_at = now
            self._wanted.set()

    async def refresh(self) -> float:
        """Fetch once and publish what is new. Returns the seconds for which the answer is fresh. Raises IdentityError
        (`key_set_unavailable`, `bad_key_set`); the set in force stays then."""
        try:
            async with asyncio.timeout(self._fetch_s):
                answer = await (self._read_file() if self._url is None else self._fetch(self._url))
            if answer.body is not None and answer.body != self._octets:
                keys = await asyncio.to_thread(parse_jwks, answer.body)
                self._publish(keys)
                self._octets = answer.body
            self._etag = answer.etag
        except TimeoutError as exc:
            raise self._failed(IdentityError("key_set_unavailable", f"no answer in {self._fetch_s:g} s")) from exc
        except (OSError, h11.ProtocolError, ValueError) as exc:  # ssl.SSLError is an OSError
            raise self._failed(IdentityError("key_set_unavailable", str(exc) or type(exc).__name__)) from exc
        except IdentityError as exc:
            raise self._failed(exc) from None
        self.failures = 0
        self.problem = ""
        self.fetched_at = self._clock()
        return answer.fresh_s

    async def run(self) -> None:
        """Keep the set fresh until cancelled. Failures are kept in `failures` and `problem`; they never end it."""
        while True:
            self._wanted.clear()
            try:
                wait_s = await self.refresh()
            except IdentityError:
                # full jitter: a fleet that lost its issuer at the same moment must not come back at the same moment
                ceiling = min(MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self.failures - 1, 16))
                wait_s = max(FIRST_RETRY_S / 2, ceiling * self._jitter())
            try:
                async with asyncio.timeout(wait_s):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    def _failed(self, error: IdentityError) -> IdentityError:
        self.failures += 1
        self.problem = str(error)
        return error

    async def _read_file(self) -> _Answer:
        def read() -> bytes:
            with Path(self.location).open("rb") as file:
                return file.read(MAX_OCTETS + 1)

        octets = await asyncio.to_thread(read)
        if len(octets) > MAX_OCTETS:
            raise ValueError(f"more than {MAX_OCTETS} bytes")
        return _Answer(octets, "", MIN_REFRESH_S)

    async def _fetch(self, url: SplitResult) -> _Answer:
        if self._context is None and url.scheme == "https":
            self._context = ssl.create_default_context()
        answer = await fetch(url, self._etag, "application/jwk-set+json, application/json", MAX_OCTETS, self._context)
        return _Answer(answer.body, answer.etag, _fresh_s(answer.cache_control))


def _fresh_s(cache_control: str) -> float:
    if re.search(r"\bno-(?:store|cache)\b", cache_control, re.IGNORECASE):
        return MIN_REFRESH_S
    match = _MAX_AGE.search(cache_control)
    return DEFAULT_REFRESH_S if match is None else min(MAX_REFRESH_S, max(MIN_REFRESH_S, float(match.group(1))))
