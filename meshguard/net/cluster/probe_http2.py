"""One health check over HTTP/2 on one open stream: a GET, or the health service of gRPC (grpc.health.v1.Health/Check)."""

from __future__ import annotations

import asyncio
from time import monotonic

from meshguard.model.messages import ResponseHead
from meshguard.net.cluster.endpoint import Address
from meshguard.net.cluster.settings import HealthSettings
from meshguard.wire.fields import field_values
from meshguard.wire.http2.client import Http2Client
from meshguard.wire.http2.engine import Http2Limits

__all__ = ["probe_http2"]

_READ_BYTES = 16 * 1024
_MOST_BYTES = 64 * 1024
"""Of an answer; more is a failed check."""
_SERVING = 1  # HealthCheckResponse.ServingStatus


class _Answer:
    """The `ClientSink` of a connection with one request."""

    def __init__(self) -> None:
        self.status = 0
        self.block = b""
        self.body = b""
        self.over = False
        self.broken = ""

    def response(self, stream: int, head: ResponseHead) -> None:
        if head.status >= 200:
            self.status = head.status
            self.block += head.block
            self.over = self.over or head.length == 0

    def data(self, stream: int, data: bytes) -> None:
        self.body += data

    def end(self, stream: int, trailers: bytes) -> None:
        self.block += trailers
        self.over = True

    def aborted(self, stream: int, code: int, by_peer: bool, detail: str) -> None:
        self.broken = detail or f"reset ({code:#x})"

    def failed(self, code: int, detail: str) -> None:
        self.broken = detail or f"error {code:#x}"

    def goaway(self, last_stream: int, code: int) -> None:
        if not last_stream:
            self.broken = f"GOAWAY ({code:#x})"

    def padding(self, stream: int, octets: int) -> None: ...
    def writable(self, stream: int) -> None: ...
    def capacity(self) -> None: ...


async def probe_http2(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address, settings: HealthSettings, scheme: bytes
) -> bool:
    """Whether the answer is a good one. Raises OSError, also for an answer that is no HTTP/2. The caller sets the deadline and closes."""
    answer = _Answer()
    engine = Http2Client(answer, Http2Limits())
    name = f"[{address.name}]" if ":" in address.name else address.name
    host = (settings.host or f"{name}:{address.port}").encode("ascii")
    engine.start()
    if settings.grpc is None:
        head = b"GET %b HTTP/1.1\r\nhost: %b\r\nuser-agent: meshguard-health\r\naccept: */*\r\n\r\n"
        engine.request(head % (settings.path.encode("ascii"), host), scheme, True)
    else:
        head = b"POST /grpc.health.v1.Health/Check HTTP/1.1\r\nhost: %b\r\ncontent-type: application/grpc\r\nte: trailers\r\n\r\n"
        stream = engine.request(head % host, scheme, False)
        engine.send_data(stream, _message(settings.grpc), True)
    while not answer.over:
        writer.write(engine.take())
        await writer.drain()
        data = await reader.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the connection ended without a response")
        engine.receive(data, monotonic())
        if answer.broken or len(answer.body) > _MOST_BYTES:
            raise ConnectionAbortedError(f"not a response: {answer.broken or 'too long'}")
        if settings.grpc is None and answer.status:
            break  # the body is not read
    if settings.grpc is None:
        return any(low <= answer.status <= high for low, high in settings.statuses)
    return answer.status == 200 and field_values(answer.block, b"grpc-status") == [b"0"] and _serving(answer.body)


def _message(service: str) -> bytes:
    """A length-prefixed HealthCheckRequest: `service` is its field 1. At most 127 octets, so that each length is one octet."""
    name = service.encode("utf-8")
    message = b"\x0a%c%b" % (len(name), name) if name else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _serving(body: bytes) -> bool:
    """The one message is a HealthCheckResponse whose only field, `status` (1), says SERVING."""
    length = int.from_bytes(body[1:5], "big")
    message = body[5:]
    return body[:1] == b"\0" and len(message) == length and message == b"\x08%c" % _SERVING
