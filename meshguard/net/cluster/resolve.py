"""Host names of a cluster, looked up again and again; what an answer changes is the cluster's business.

    unknown --answer--> known --refresh_s--> look up --answer--> known (the new set)
       |                                        +---failure--> known (the last good set), next try after refresh_s
       +--failure--> unknown, next try after FIRST_RETRY_S, doubled each time up to refresh_s

A name that is known never becomes empty: a failed look-up says that DNS is broken, not that the service is gone.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

from meshguard.net.cluster.endpoint import Address
from meshguard.net.cluster.tasks import Tasks

__all__ = ["FIRST_RETRY_S", "LOOKUP_S", "Lookup", "Names", "is_literal", "lookup"]

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""All textual addresses of (host, port); raises OSError."""

FIRST_RETRY_S = 0.25
"""First pause after a failed first look-up; a sidecar often starts before the network is up."""
LOOKUP_S = 5.0
"""A look-up that takes longer has failed (glibc's resolver gives up after 5 s for each server)."""
_SPREAD = 0.1
"""Pauses vary by this share, so that a fleet does not ask in step."""

_log = logging.getLogger(__name__)


def is_literal(host: str) -> bool:
    """True for an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def lookup(host: str, port: int) -> Sequence[str]:
    """The system's resolver, in a thread: every A and AAAA record in its order of preference (RFC 6724)."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


class Names:
    """Watches the host names among `addresses` and calls `changed(all addresses)` after each answer that changes something, and
    once more when the last name was tried for the first time. Address literals need no task."""

    __slots__ = ("_changed", "_found", "_lookup", "_refresh_s", "_tasks", "_tried", "_wanted")

    def __init__(
        self, addresses: Iterable[Address], refresh_s: float, tasks: Tasks, changed: Callable[[list[Address]], None], lookup: Lookup
    ) -> None:
        self._wanted = list(addresses)
        self._refresh_s = refresh_s
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = changed
        self._lookup = lookup
        self._found: dict[Address, list[Address]] = {}
        self._tried: set[Address] = set()
        for address in self._wanted:
            if is_literal(address.host):
                self._found[address] = [address]
                self._tried.add(address)
            elif address not in self._found:
                self._tasks.append(tasks.spawn(self._watch(address), f"resolve {address.host}"))

    @property
    def pending(self) -> bool:
        """Some name has not been tried yet."""
        return len(self._tried) < len(set(self._wanted))

    def addresses(self) -> list[Address]:
        """Everything known, in the order of the configuration."""
        return [found for address in self._wanted for found in self._found.get(address, ())]

    def inherit(self, former: Names) -> None:
        """Start from what `former` knows of the same names, so that a reload does not forget the last good set."""
        for address in self._wanted:
            if address not in self._found and address in former._found:
                self._found[address] = former._found[address]
                self._tried.add(address)

    def stop(self) -> None:
        """End the look-ups."""
        for task in self._tasks:
            task.cancel()

    async def _watch(self, address: Address) -> None:
        pause_s = min(FIRST_RETRY_S, self._refresh_s)
        while True:
            found = await self._ask(address)
            first = self.pending
            self._tried.add(address)
            before = self._found.get(address)
            if found and (before is None or set(found) != set(before)):
                self._found[address] = found
                self._changed(self.addresses())
            elif first and not self.pending:
                self._changed(self.addresses())
            if address in self._found:
                wait_s = self._refresh_s
            else:
                wait_s = pause_s
                pause_s = min(pause_s * 2, self._refresh_s)
            await asyncio.sleep(wait_s * (1 + random.uniform(-_SPREAD, _SPREAD)))

    async def _ask(self, address: Address) -> list[Address]:
        try:
            async with asyncio.timeout(LOOKUP_S):
                hosts = await self._lookup(address.host, address.port)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that is too long for IDNA; TimeoutError is an OSError
            _log.warning("looking up %s failed: %s", address.host, error or type(error).__name__)
            return []
        return [Address(host, address.port, address.name) for host in dict.fromkeys(hosts)]
