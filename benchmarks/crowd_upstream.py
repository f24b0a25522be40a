"""`python -m benchmarks.crowd_upstream PORT`: an HTTP/1.1 upstream that answers at once, or without end under `/endless`."""

from __future__ import annotations

import asyncio
import contextlib
import sys

PIECE = bytes(65536)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ENDLESS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"content-length: 1000000" in head.lower():
                await reader.readexactly(1_000_000)
            if head.split(b" ", 2)[1] != b"/endless":
                writer.write(ANSWER)
                await writer.drain()
                continue
            writer.write(ENDLESS)
            while True:
                writer.write(b"10000\r\n" + PIECE + b"\r\n")
                await writer.drain()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), limit=1 << 17, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
