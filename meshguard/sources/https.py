"""One document over HTTPS: verified certificates, conditional requests, bounds on everything.

Plain HTTP only to this machine's own loopback; at most `max_octets`; no redirect to another origin; no content coding. The caller
sets the deadline.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

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
        if (following.scheme, following.hostname, _port(following)) != (url.scheme, url.hostname, _port(url)):
            raise ValueError("a redirect to another origin")
        url = following
    raise ValueError("too many redirects")


async def _get(url: SplitResult, etag: str, accept: str, max_octets: int, context: ssl.SSLContext | None) -> Fetched | str:
    """One exchange: the answer, or the Location of a redirect."""
    context = (context or ssl.create_default_context()) if url.scheme == "https" else None
    reader, writer = await asyncio.open_connection(url.hostname, _port(url), ssl=context, limit=64 * 1024)
    try:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=32 * 1024)
        headers = [
            ("host", url.netloc),
            ("accept", accept),
            ("accept-encoding", "identity"),
            ("user-agent", "meshguard"),
            ("connection", "close"),
        ]
        if etag:
            headers.append(("if-none-match", etag))
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        request = connection.send(h11.Request(method="GET", target=target, headers=headers))
        writer.write((request or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        return await _receive(connection, reader, etag, max_octets)
    finally:
        writer.transport.abort()  # the exchange is over or broken: nothing is waited for


async def _receive(connection: h11.Connection, reader: asyncio.StreamReader, etag: str, max_octets: int) -> Fetched | str:
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
            if len(body) > max_octets:
                raise ValueError(f"more than {max_octets} bytes")
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            return _answer(response, bytes(body), etag)
        elif not isinstance(event, h11.InformationalResponse):
            raise ValueError("the connection ended early")


def _answer(response: h11.Response, body: bytes, sent: str) -> Fetched | str:
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    if response.status_code in (301, 302, 303, 307, 308) and "location" in fields:
        return fields["location"]
    etag, cache_control = fields.get("etag", ""), fields.get("cache-control", "")
    if response.status_code == 304 and sent:
        return Fetched(None, etag or sent, cache_control)
    if response.status_code != 200:
        raise ValueError(f"status {response.status_code}")
    if fields.get("content-encoding", "identity").lower() != "identity":
        raise ValueError("a content coding that was not asked for")
    return Fetched(body, etag, cache_control)


def checked_url(text: str) -> SplitResult:
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
