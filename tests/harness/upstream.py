"""A recording upstream: one asyncio loop in one thread, strict about every byte it receives, programmable in what it answers.

Scripts are coroutines `async def script(exchange)`; they are chosen by the path of the request (without query). Without a script
the request is read whole and echoed as JSON, so that a client sees from its answer which request it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson

from tests.harness.strict import Data, End, Head, Parser, Truncated, Violation

KEEP_BYTES = 1 << 20


class Seen:
    """One request as it arrived. `complete` says that its end came."""

    def __init__(self, head: Head, connection: int) -> None:
        self.head = head
        self.connection = connection
        self.body = bytearray()
        self.body_bytes = 0
        self.digest = hashlib.sha256()
        self.trailers: list[tuple[str, str]] = []
        self.complete = False
        self.aborted = False

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def target(self) -> str:
        return self.head.target

    @property
    def path(self) -> str:
        return self.head.target.split("?", 1)[0]

    def __repr__(self) -> str:
        return f"<{self.method} {self.target} body={self.body_bytes} complete={self.complete}>"


class Exchange:
    """What a script works with: the request and its connection."""

    def __init__(self, upstream: Upstream, connection: _Connection, seen: Seen) -> None:
        self.upstream = upstream
        self.connection = connection
        self.request = seen

    async def piece(self) -> bytes:
        """The next bytes of the request body; b"" at its end. Raises `Truncated` when the peer went away before it."""
        while not self.request.complete:
            event = await self.connection.pull()
            seen = self.request
            if isinstance(event, End):
                seen.trailers = event.trailers
                seen.complete = True
                self.upstream.changed()
                return b""
            assert isinstance(event, Data)
            seen.body_bytes += len(event.data)
            seen.digest.update(event.data)
            if len(seen.body) < KEEP_BYTES:
                seen.body += event.data
            self.upstream.changed()
            return event.data
        return b""

    async def read(self) -> bytes:
        while await self.piece():
            pass
        return bytes(self.request.body)

    async def send(self, data: bytes) -> None:
        self.connection.writer.write(data)
        await self.connection.writer.drain()

    async def answer(self, status: int = 200, body: bytes = b"", *fields: str, reason: str = "OK") -> None:
        lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}", *fields]
        payload = body if self.request.method != "HEAD" else b""
        await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + payload)

    async def gone(self) -> None:
        """Waits until the peer ends the connection (reads and records whatever still comes)."""
        with contextlib.suppress(Truncated, Violation):
            while True:
                await self.connection.pull()

    def close(self) -> None:
        self.connection.closing = True
        self.connection.writer.close()

    def reset(self) -> None:
        self.connection.closing = True
        transport = self.connection.writer.transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


Script = Callable[[Exchange], Awaitable[None]]


class _Connection:
    def __init__(self, upstream: Upstream, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.upstream = upstream
        self.number = number
        self.reader = reader
        self.writer = writer
        self.parser = Parser("request")
        self.raw = bytearray()
        self.closing = False
        self.ended = False
        self.certificate: bytes | None = None
        self._events: list[Head | Data | End] = []

    async def pull(self) -> Head | Data | End:
        while not self._events:
            try:
                data = await self.reader.read(65536)
            except (ConnectionError, ssl.SSLError) as exc:
                self.ended = True
                self.upstream.changed()
                raise Truncated("reset") from exc
            if not data:
                self.ended = True
                self.upstream.changed()
                self.parser.eof()
                raise Truncated("end of connection")
            self.upstream.total_bytes += len(data)
            if len(self.raw) < KEEP_BYTES:
                self.raw += data
            try:
                self._events += self.parser.feed(data)
            except Violation as exc:
                self.upstream.violations.append(f"{exc} in {bytes(self.raw[-400:])!r}")
                self.upstream.changed()
                raise
        return self._events.pop(0)


async def echo(exchange: Exchange) -> None:
    """The default answer: what was received, as JSON."""
    await exchange.read()
    seen = exchange.request
    body = orjson.dumps(
        {
            "method": seen.method,
            "target": seen.target,
            "connection": seen.connection,
            "fields": seen.head.fields,
            "body_bytes": seen.body_bytes,
            "sha256": seen.digest.hexdigest(),
            "trailers": seen.trailers,
        }
    )
    await exchange.answer(200, body, "Content-Type: application/json", f"X-Seen-Target: {seen.target}")


class Upstream:
    """Listens on a loopback port from construction to `close`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Seen] = []
        self.connections: list[_Connection] = []
        self.violations: list[str] = []
        self.errors: list[str] = []
        self.total_bytes = 0
        self.scripts: dict[str, Script] = {}
        self.default: Script = echo
        self._tls = tls
        self._changed = threading.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(5)

    # ---- in the loop's thread
    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=1 << 16))
        self.port = self._server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, len(self.connections), reader, writer)
        if self._tls is not None:
            connection.certificate = writer.get_extra_info("ssl_object").getpeercert(True)
        self.connections.append(connection)
        self.changed()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        seen: Seen | None = None
        try:
            while not connection.closing:
                head = await connection.pull()
                assert isinstance(head, Head), head
                seen = Seen(head, connection.number)
                self.requests.append(seen)
                self.changed()
                exchange = Exchange(self, connection, seen)
                script = self.scripts.get(seen.path, self.default)
                await script(exchange)
                if not connection.closing:
                    await exchange.read()
                seen = None
        except (Truncated, Violation, ConnectionError):
            if seen is not None and not seen.complete:
                seen.aborted = True
        except asyncio.CancelledError:
            return  # the test is over
        except Exception as exc:
            self.errors.append(repr(exc))
        finally:
            connection.ended = True
            self._tasks.discard(task)
            self.changed()
            with contextlib.suppress(Exception):
                writer.close()

    def changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # ---- for the tests
    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def on(self, path: str, script: Script) -> Iterator[None]:
        """Answers `path` by `script` inside the block."""
        self.scripts[path] = script
        try:
            yield
        finally:
            self.scripts.pop(path, None)

    def settle(self) -> None:
        """Everything that had reached the sockets when this was called is read afterwards."""

        async def turns() -> None:
            for _ in range(4):
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(turns(), self._loop).result(5)

    def mark(self) -> tuple[int, int, int]:
        self.settle()
        return len(self.requests), self.total_bytes, len(self.violations)

    def since(self, mark: tuple[int, int, int]) -> list[Seen]:
        self.settle()
        return self.requests[mark[0] :]

    def bytes_since(self, mark: tuple[int, int, int]) -> int:
        self.settle()
        return self.total_bytes - mark[1]

    def violations_since(self, mark: tuple[int, int, int]) -> list[str]:
        return self.violations[mark[2] :]

    def wait(self, predicate: Callable[[], Any], what: str, deadline_s: float = 20.0) -> Any:
        """Waits until `predicate()` is true, woken by everything that arrives."""
        with self._changed:
            result = self._changed.wait_for(predicate, deadline_s)
        assert result, f"upstream: {what} did not happen within {deadline_s} s"
        return result

    def event(self) -> LoopEvent:
        return LoopEvent(self._loop)


class LoopEvent:
    """An event that scripts await and tests set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()

    async def wait(self, deadline_s: float = 15.0) -> None:
        await asyncio.wait_for(self._event.wait(), deadline_s)

    def set(self) -> None:
        self._loop.call_soon_threadsafe(self._event.set)


def raw(data: bytes | list[bytes], *, read: bool = True, close: bool = False, reset: bool = False) -> Script:
    """A script that answers exact bytes (in segments), then may close or reset."""

    async def script(exchange: Exchange) -> None:
        if read:
            await exchange.read()
        for part in [data] if isinstance(data, bytes) else data:
            await exchange.send(part)
        if reset:
            exchange.reset()
        elif close:
            exchange.close()

    return script
