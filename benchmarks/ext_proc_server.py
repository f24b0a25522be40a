"""An external processor for Envoy that protects fields of response bodies: what one would write to get meshguard's work done there.

    python -m benchmarks.ext_proc_server PORT

It speaks `envoy.service.ext_proc.v3.ExternalProcessor/Process` by its wire form: of each message one field matters, so there is no
generated code. It is given every advantage: grpc's C core, one call a request (response bodies only, buffered by Envoy), and
meshguard's own treatment of the document instead of parsing and serialising it.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from benchmarks.documents import PREFIXES, field_rules
from benchmarks.micro.fields import transform_for
from meshguard.fields.transforms import Reader, Transform

__all__ = ["PATH_HEADER", "Processor", "body_of_request", "response_with"]

PATH_HEADER = "x-document"
"""Envoy tells by it, as gRPC metadata of the call, which rule applies."""
_RESPONSE_BODY = 5  # ProcessingRequest.response_body
_NOBODY = Reader(frozenset())


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        octet = data[position]
        position += 1
        value |= (octet & 127) << shift
        if octet < 128:
            return value, position
        shift += 7


def _member(data: bytes, wanted: int) -> bytes | None:
    """The length-delimited field `wanted` of a message."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag & 7 == 2:
            size, position = _varint(data, position)
            if tag >> 3 == wanted:
                return data[position : position + size]
            position += size
        elif tag & 7 == 0:
            _, position = _varint(data, position)
        else:
            position += 8 if tag & 7 == 1 else 4
    return None


def body_of_request(message: bytes) -> bytes | None:
    """HttpBody.body of ProcessingRequest.response_body; None for a message of another kind."""
    found = _member(message, _RESPONSE_BODY)
    return None if found is None else _member(found, 1) or b""


def _field(number: int, data: bytes) -> bytes:
    size, length = len(data), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return bytes((number << 3 | 2,)) + bytes(length) + data


def response_with(body: bytes) -> bytes:
    """ProcessingResponse.response_body with a CommonResponse that replaces the body and says its new length."""
    header = _field(1, b"content-length") + _field(3, b"%d" % len(body))  # HeaderValue key, raw_value
    option = _field(1, header) + b"\x18\x02"  # HeaderValueOption: append_action OVERWRITE_IF_EXISTS_OR_ADD is 2
    common = _field(2, _field(1, option)) + _field(3, _field(1, body))
    return _field(4, _field(1, common))


class Processor:
    """Treats each response body by the rule of its path."""

    def __init__(self) -> None:
        self._transforms: dict[str, Transform] = {
            PREFIXES[count]: transform_for(rule) for count, rule in zip((1, 10), field_rules(), strict=True)
        }

    async def process(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        prefix = next((str(value) for name, value in context.invocation_metadata() if name == PATH_HEADER), "")
        async for message in requests:
            body = body_of_request(message)
            if body is None:
                continue
            transform = self._transforms.get(prefix)
            if transform is None:
                yield _field(4, b"")  # an answer of Envoy itself: as it is
            else:
                yield response_with(transform.apply(body, "application/json", _NOBODY, secrets.token_bytes, 0.0).body)


async def serve(port: int) -> None:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=unlimited)
    handler = grpc.stream_stream_rpc_method_handler(Processor().process)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("envoy.service.ext_proc.v3.ExternalProcessor", {"Process": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
