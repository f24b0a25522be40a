"""One HTTP/1.1 exchange with a key service: a connection of its own, one deadline for all of it, a bound on the answer.

HTTPS with verified certificates; plain HTTP only to this machine's own loopback and to the link-local address of the instance metadata
service. Redirects are an error: a credential must not follow one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import h11

from meshguard.keys.provider import KekError
from meshguard.wire.one_exchange import Answer, OneExchange, is_loopback, port_of

__all__ = ["MAX_ANSWER", "Answer", "HttpClient"]

MAX_ANSWER = 1 << 20
"""Octets of an answer's body; a data key takes some hundreds."""
_METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23")


class HttpClient:
    """Talks to one service. `ca` replaces the system's certificate authorities; `timeout_s` is the deadline of an exchange."""

    def __init__(self, timeout_s: float, ca: Path | None = None) -> None:
        self._timeout_s = timeout_s
        self._ca = ca
        self._context: ssl.SSLContext | None = None

    async def exchange(self, method: str, url: str, fields: Mapping[str, str], body: bytes = b"", timeout_s: float | None = None) -> Answer:
        """One request and its answer, of whatever status. Raises KekError (away) when there is none in time."""
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                return await self._exchange(method, url, fields, body)
        except TimeoutError:
            raise KekError(f"{_origin(url)}: no answer in {timeout_s or self._timeout_s:g} s", away=True) from None
        except (OSError, h11.ProtocolError, ValueError) as exc:  # ssl.SSLError is an OSError
            raise KekError(f"{_origin(url)}: {exc or type(exc).__name__}", away=True) from exc

    async def _exchange(self, method: str, url: str, fields: Mapping[str, str], body: bytes) -> Answer:
        parts = urlsplit(url)
        host = parts.hostname or ""
        context = None
        if parts.scheme == "https":
            if self._context is None:
                self._context = await asyncio.to_thread(self._new_context)
            context = self._context
        elif parts.scheme != "http" or not may_be_plain(host):
            raise ValueError("an https URL is needed (http only for loopback)")
        reader, writer = await asyncio.open_connection(host, port_of(parts), ssl=context, limit=64 * 1024)
        try:
            exchange = OneExchange(method, parts, fields, body, MAX_ANSWER)
            writer.write(exchange.request)
            await writer.drain()
            while (answer := exchange.receive(await reader.read(64 * 1024))) is None:
                pass
            return answer
        finally:
            writer.transport.abort()  # the exchange is over or broken: nothing is waited for

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._ca) if self._ca is not None else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def may_be_plain(host: str) -> bool:
    """Loopback and instance metadata: what is sent there does not leave the machine."""
    return host in _METADATA or is_loopback(host)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port}" if parts.port else f"{parts.scheme}://{parts.hostname}"
