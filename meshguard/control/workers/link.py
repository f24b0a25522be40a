"""A link: one end of a socket pair between two processes of meshguard, on an event loop. Messages, answers, descriptors.

A message that wants an answer carries an id; `request` waits for it with a deadline. The end of the other process is the end of the link
(the kernel closes its socket): that is how a crash is noticed at once. INVARIANT: only the two processes hold the two ends.
"""

from __future__ import annotations

import array
import asyncio
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from meshguard.control.workers.messages import Frame, FrameReader, Message, ProtocolError, encode

__all__ = ["MAX_DESCRIPTORS", "Link", "LinkClosed", "receive", "send_whole"]

log = logging.getLogger(__name__)

MAX_DESCRIPTORS = 250
"""Of one message: the kernel takes at most 253 (SCM_MAX_FD)."""
_READ = 256 * 1024
_QUEUE_BYTES = 128 * 1024 * 1024
"""What may wait for a process that reads nothing; then the link is closed, and its worker replaced."""


class LinkClosed(Exception):
    """The other end is gone."""


def receive(sock: socket.socket, size: int = _READ) -> tuple[bytes, list[int]]:
    """One read: octets and descriptors, which are not inherited by children. Raises BlockingIOError, OSError."""
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(value[: len(value) - len(value) % descriptors.itemsize])
    if flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ProtocolError("descriptors were cut off")
    return data, descriptors.tolist()


def _rights(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


def send_whole(sock: socket.socket, frame: Frame) -> None:
    """Sends a frame on a blocking socket. Raises OSError."""
    data = memoryview(encode(frame))
    sent = sock.sendmsg([data], _rights(frame.descriptors))
    sock.sendall(data[sent:])


class Link:
    """`on_message(frame)` takes what is no answer; `on_closed()` is called once. Takes over `sock`, and the descriptors of what it
    sends only while it sends: the caller's stay the caller's."""

    def __init__(self, sock: socket.socket, on_message: Callable[[Frame], None], on_closed: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._out_bytes = 0
        self._emptied: asyncio.Future[None] | None = None
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, message: Message, descriptors: Sequence[int] = (), *, answers: int = 0, id: int = 0) -> None:
        """Queues a message; nothing happens on a closed link."""
        if self.closed:
            return
        frame = Frame(message, id, answers, [os.dup(descriptor) for descriptor in descriptors])
        data = memoryview(encode(frame))
        self._out.append((data, frame.descriptors))
        self._out_bytes += len(data)
        if self._out_bytes > _QUEUE_BYTES:
            log.error("a process does not read its messages")
            self.close()
        else:
            self._writable()

    async def request(self, message: Message, descriptors: Sequence[int] = (), *, timeout_s: float) -> Message:
        """Sends and waits for the answer. Raises LinkClosed, TimeoutError."""
        if self.closed:
            raise LinkClosed
        number = next(self._ids)
        future: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self.send(message, descriptors, id=number)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Ends the link, also for the other process."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, descriptors in self._out:
            _close(descriptors)
        self._out.clear()
        _close(self._reader.abandoned())
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LinkClosed())
        self._on_closed()

    async def sent(self, timeout_s: float) -> None:
        """Waits until the queue is with the kernel, for a last word before the end."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._out and not self.closed:
                    self._emptied = self._loop.create_future()
                    await self._emptied
        except TimeoutError:
            log.warning("the last word could not be said")

    def _writable(self) -> None:
        while self._out and not self.closed:
            data, descriptors = self._out[0]
            try:
                count = self._sock.sendmsg([data], _rights(descriptors))
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
                return
            except OSError:
                self.close()
                return
            _close(descriptors)
            self._out_bytes -= count
            if count == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[count:], [])
        if not self.closed:
            self._loop.remove_writer(self._sock.fileno())
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _readable(self) -> None:
        try:
            data, descriptors = receive(self._sock)
            frames = self._reader.feed(data, descriptors)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as exc:
            log.error("a link between processes broke", extra={"data": {"error": str(exc)}})
            self.close()
            return
        if not data:
            self.close()
            return
        for frame in frames:
            waiting = self._waiting.get(frame.answers) if frame.answers else None
            if waiting is not None and not waiting.done():
                waiting.set_result(frame.message)
            elif not frame.answers:
                self._on_message(frame)
            if frame.answers:
                _close(frame.descriptors)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
