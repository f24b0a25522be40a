"""Workers know of each other how many connections they have: limits hold over all of them, and a heavy one passes new connections on.

`Company` is the supervisor's part: the shared counts (`net.census`) and an inbox for each worker, held here so that they outlive it.
`Colleague` is a worker's part: it gives each of its listeners its row, and takes what others pass on (`net.passing`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING

from meshguard.net.census import WORKERS, Census
from meshguard.net.passing import Passing

if TYPE_CHECKING:
    from meshguard.net.listener import Listener, ServerDoor

__all__ = ["Colleague", "Company"]


class Company:
    """Of `workers` workers, over the counts in the file `census`. Beyond what the counts have room for, each is by itself."""

    def __init__(self, workers: int, census: int) -> None:
        self._census = Census(census)
        self.generation = self._census.generation()
        self._inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers if 1 < workers <= WORKERS else 0)]

    def descriptors(self, number: int) -> dict[str, int]:
        """What worker `number` needs, by name."""
        if not self._inboxes:
            return {}
        return {"inbox": self._inboxes[number][0].fileno(), **{f"to-{n}": pair[1].fileno() for n, pair in enumerate(self._inboxes)}}

    def gone(self, pid: int) -> None:
        """A worker has ended."""
        self._census.clear(pid)


class Colleague:
    """Worker `number`, with what `Company.descriptors` gave it. `listeners` are those of this process."""

    def __init__(self, number: int, generation: int, shared: Mapping[str, int], listeners: Mapping[str, Listener[ServerDoor]]) -> None:
        self._census = Census(shared["census"], number, generation)
        self._listeners = listeners
        inbox = socket.socket(fileno=shared["inbox"])
        outboxes = [socket.socket(fileno=shared[f"to-{n}"]) for n in range(sum(name.startswith("to-") for name in shared))]
        self._passing = Passing(self._census, inbox, outboxes, self._accept)

    def join(self, listener: Listener[ServerDoor]) -> None:
        """A new listener of this worker counts with those of the others."""
        listener.row = self._census.row(listener.name)
        listener.passing = self._passing if listener.row is not None else None

    def start(self) -> None:
        """This worker serves."""
        self._census.beat(monotonic())
        self._passing.start()

    def stop(self) -> None:
        """It takes no more; what is on its way is served."""
        self._passing.stop()

    async def close(self) -> None:
        await self._passing.close()

    def _accept(self, name: str) -> Callable[[], asyncio.Protocol] | None:
        listener = self._listeners.get(name)
        return None if listener is None else listener.welcome
