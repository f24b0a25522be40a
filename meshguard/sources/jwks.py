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
import ipaddress
import random
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from meshguard.identity.jwk import KeySet, parse_jwks
from meshguard.model.errors import IdentityError

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
_REDIRECTS = 3
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
        self._url = _checked_url(location) if "://" in location else None
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
        for _ in range(_REDIRECTS + 1):
            answer = await self._get(url)
            if isinstance(answer, _Answer):
                return answer
            following = _checked_url(urljoin(url.geturl(), answer))
            if (following.scheme, following.hostname, _port(following)) != (url.scheme, url.hostname, _port(url)):
                raise ValueError("a redirect to another origin")
            url = following
        raise ValueError("too many redirects")

    async def _get(self, url: SplitResult) -> _Answer | str:
        """One exchange: the answer, or the Location of a redirect."""
        context = None
        if url.scheme == "https":
            if self._context is None:
                self._context = ssl.create_default_context()
            context = self._context
        reader, writer = await asyncio.open_connection(url.hostname, _port(url), ssl=context, limit=64 * 1024)
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=32 * 1024)
            headers = [
                ("host", url.netloc),
                ("accept", "application/jwk-set+json, application/json"),
                ("accept-encoding", "identity"),
                ("user-agent", "meshguard"),
                ("connection", "close"),
            ]
            if self._etag:
                headers.append(("if-none-match", self._etag))
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            request = connection.send(h11.Request(method="GET", target=target, headers=headers))
            writer.write((request or b"") + (connection.send(h11.EndOfMessage()) or b""))
            await writer.drain()
            return await self._receive(connection, reader)
        finally:
            writer.transport.abort()  # the exchange is over or broken: nothing is waited for

    async def _receive(self, connection: h11.Connection, reader: asyncio.StreamReader) -> _Answer | str:
        response: h11.Response | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(64 * 1024))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_OCTETS:
                    raise ValueError(f"more than {MAX_OCTETS} bytes")
            elif isinstance(event, h11.EndOfMessage) and response is not None:
                return self._answer(response, bytes(body))
            elif not isinstance(event, h11.InformationalResponse):
                raise ValueError("the connection ended early")

    def _answer(self, response: h11.Response, body: bytes) -> _Answer | str:
        fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
        if response.status_code in (301, 302, 303, 307, 308) and "location" in fields:
            return fields["location"]
        etag = fields.get("etag", "")
        fresh_s = _fresh_s(fields.get("cache-control", ""))
        if response.status_code == 304 and self._etag:
            return _Answer(None, etag or self._etag, fresh_s)
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}")
        if fields.get("content-encoding", "identity").lower() != "identity":
            raise ValueError("a content coding that was not asked for")
        return _Answer(body, etag, fresh_s)


def _checked_url(text: str) -> SplitResult:
    """An https URL, or an http URL of this machine's own loopback. Raises ValueError."""
    url = urlsplit(text)
    if not url.hostname or url.username is not None or url.password is not None or url.fragment:
        raise ValueError("a URL with a host and without user and fragment")
    if not all(0x21 <= ord(char) < 0x7F for char in text):
        raise ValueError("a URL of printable ASCII characters")
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.hostname)):
        raise ValueError("an https URL (http only for loopback)")
    _port(url)
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _fresh_s(cache_control: str) -> float:
    if re.search(r"\bno-(?:store|cache)\b", cache_control, re.IGNORECASE):
        return MIN_REFRESH_S
    match = _MAX_AGE.search(cache_control)
    return DEFAULT_REFRESH_S if match is None else min(MAX_REFRESH_S, max(MIN_REFRESH_S, float(match.group(1))))
