"""The listening sockets of all workers, held by the supervisor, so that none is closed while something waits in its queue.

Each address has a group of sockets, one for each worker as a rule. After a hand-over from a process with another number of workers they
are dealt out: with fewer sockets than workers some share one, with more some have several; none is left without anybody who accepts.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from meshguard.net.listening import bind

__all__ = ["Doors"]


class Doors:
    """`workers` is their number. `given` are groups of an earlier process, by address."""

    def __init__(self, workers: int, given: Mapping[str, list[socket.socket]] | None = None) -> None:
        self._workers = workers
        self._groups: dict[str, list[socket.socket]] = dict(given or {})
        self.closed = False

    def open(self, addresses: Iterable[str]) -> list[str]:
        """Takes the addresses that are not held yet; those that were taken. Raises OSError, and then none is."""
        fresh: dict[str, list[socket.socket]] = {}
        try:
            for address in addresses:
                if address not in self._groups:
                    host, _, port = address.rpartition(":")
                    group = fresh[address] = []
                    for _ in range(self._workers):
                        group.append(bind(host.strip("[]"), int(port), shared=True))
        except OSError:
            for group in fresh.values():
                _close(group)
            raise
        self._groups.update(fresh)
        self.closed = False
        return list(fresh)

    def close(self, addresses: Iterable[str]) -> None:
        """Gives addresses up."""
        for address in list(addresses):
            _close(self._groups.pop(address, []))

    def close_all(self) -> None:
        """Nobody accepts any more: clients are refused at once instead of waiting in a queue."""
        self.close(self._groups)
        self.closed = True

    def keep(self, addresses: Iterable[str]) -> None:
        """Gives up every other address."""
        wanted = set(addresses)
        self.close([address for address in self._groups if address not in wanted])

    def of(self, number: int, addresses: Iterable[str] | None = None) -> tuple[list[tuple[str, int]], list[int]]:
        """What worker `number` accepts from: [(address, count)], and the descriptors in that order."""
        counts, descriptors = [], []
        for address in self._groups if addresses is None else addresses:
            group = self._groups[address]
            own = group[number :: self._workers] or [group[number % len(group)]]
            counts.append((address, len(own)))
            descriptors += [sock.fileno() for sock in own]
        return counts, descriptors

    def descriptors(self) -> dict[str, list[int]]:
        """All of them, by address."""
        return {address: [sock.fileno() for sock in group] for address, group in self._groups.items()}


def _close(group: Iterable[socket.socket]) -> None:
    for sock in group:
        sock.close()
