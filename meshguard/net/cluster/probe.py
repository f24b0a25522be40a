"""One health check on one open stream: an HTTP/1.1 GET, the status of its answer."""

from __future__ import annotations

import asyncio

import h11

from meshguard.net.cluster.endpoint import Address
from meshguard.net.cluster.settings import HealthSettings

__all__ = ["HEAD_BYTES", "probe"]

HEAD_BYTES = 16 * 1024
"""A longer response head is a failed check."""


async def probe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address, settings: HealthSettings) -> int:
    """The final status; the body is not read. Raises OSError, also for an answer that is no HTTP. The caller sets the deadline and
    closes the stream."""
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
    name = f"[{address.name}]" if ":" in address.name else address.name
    host = settings.host or f"{name}:{address.port}"
    headers = [("Host", host), ("User-Agent", "meshguard-health"), ("Accept", "*/*"), ("Connection", "close")]
    try:
        writer.write(client.send(h11.Request(method="GET", target=settings.path, headers=headers)) or b"")
        writer.write(client.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(HEAD_BYTES))
            elif isinstance(event, h11.Response):
                return int(event.status_code)
            elif not isinstance(event, h11.InformationalResponse):
                raise ConnectionResetError("the connection ended without a response")
    except h11.ProtocolError as error:
        raise ConnectionAbortedError(f"not a response: {error}") from error
