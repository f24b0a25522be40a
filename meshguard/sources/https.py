"""One document over HTTPS: verified certificates, conditional requests, bounds on everything.

Plain HTTP only to this machine's own loopback; at most `max_octets`; no redirect to another origin; no content coding. The caller
sets the deadline.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from meshguard.wire.one_exchange import Answer, OneExchange, is_loopback, port_of

__all__ = ["Fetched", "checked_url", "fetch"]

_REDIRECTS = 3


class Fetched(NamedTuple):
    """`body` None: unchanged since the ETag that was sent."""

    body: bytes | None
    etag: str
    cache_control: str


async def fetch(url: SplitResult, etag: str, accept: str, max_octets: int, context: ssl.SSLContext | None = None) -> Fetched:
    """GET `url`, with If-None-Match when there is an `etag`. Raises OSError, ValueError with words, h11.ProtocolError."""
    for _ in range(_REDIRECTS + 1):
        answer = await _get(url, etag, accept, max_octets, context)
        if isinstance(answer, Fetched):
            return answer
        following = checked_url(urljoin(url.geturl(), answer))
        if (following.scheme, following.hostname, port_of(following)) != (url.scheme, url.hostname, port_of(url)):
            raise ValueError("a redirect to another origin")
        url = following
    raise ValueError("too many redirects")


async def _get(url: SplitResult, etag: str, accept: str, max_octets: int, context: ssl.SSLContext | None) -> Fetched | str:
    """One exchange: the answer, or the Location of a redirect."""
    context = (context or ssl.create_default_context()) if url.scheme == "https" else None
    reader, writer = await asyncio.open_connection(url.hostname, port_of(url), ssl=context, limit=64 * 1024)
    try:
        fields = {"accept": accept, "user-agent": "meshguard", **({"if-none-match": etag} if etag else {})}
        exchange = OneExchange("GET", url, fields, b"", max_octets)
        writer.write(exchange.request)
        await writer.drain()
        while (answer := exchange.receive(await reader.read(64 * 1024))) is None:
            pass
        return _judged(answer, etag)
    finally:
        writer.transport.abort()  # the exchange is over or broken: nothing is waited for


def _judged(answer: Answer, sent: str) -> Fetched | str:
    fields = answer.fields
    if answer.status in (301, 302, 303, 307, 308) and "location" in fields:
        return fields["location"]
    etag, cache_control = fields.get("etag", ""), fields.get("cache-control", "")
    if answer.status == 304 and sent:
        return Fetched(None, etag or sent, cache_control)
    if answer.status != 200:
        raise ValueError(f"status {answer.status}")
    if fields.get("content-encoding", "identity").lower() != "identity":
        raise ValueError("a content coding that was not asked for")
    return Fetched(answer.body, etag, cache_control)


def checked_url(text: str) -> SplitResult:
    """An https URL, or an http URL of this machine's own loopback. Raises ValueError."""
    url = urlsplit(text)
    if not url.hostname or url.username is not None or url.password is not None or url.fragment:
        raise ValueError("a URL with a host and without user and fragment")
    if not all(0x21 <= ord(char) < 0x7F for char in text):
        raise ValueError("a URL of printable ASCII characters")
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname)):
        raise ValueError("an https URL (http only for loopback)")
    port_of(url)
    return url
