"""One place for a worker: what stands in it now, what is known of it, and how long to wait before the next try."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from random import uniform
from time import monotonic

from meshguard.control.admin import Status
from meshguard.control.workers.link import Link, LinkClosed
from meshguard.control.workers.messages import Message, Refused
from meshguard.telemetry.metrics import Family

__all__ = ["Backoff", "Slot"]

log = logging.getLogger(__name__)

_FIRST_S = 0.1
_LONGEST_S = 30.0
_STEADY_S = 10.0
"""A worker that served for so long did not fail because of its start."""


class Backoff:
    """Seconds before the next try: none after a steady life, then doubling from 0.1 to 30, with a quarter of chance."""

    def __init__(self) -> None:
        self.failures = 0

    def after(self, lived_s: float) -> float:
        """The wait after a worker that served for `lived_s` (0: never)."""
        if lived_s >= _STEADY_S:
            self.failures = 0
            return 0.0
        self.failures += 1
        if self.failures == 1 and lived_s:
            return 0.0
        return float(min(_FIRST_S * 2.0 ** min(self.failures - 1, 20), _LONGEST_S) * uniform(0.75, 1.0))


class Slot:
    """`state` is one of starting, serving, draining, down. `gone` is set when its worker has ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = "down"
        self.pid = 0
        self.restarts = 0
        self.policy_digest = ""
        self.status: Status | None = None
        self.families: list[Family] = []
        self.caretaker: Slot | None = None  # who accepts from its sockets meanwhile
        self.backoff = Backoff()
        self.link: Link | None = None
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.gone.set()
        self.serving_since = 0.0
        self._process = -1

    def begin(self, link: Link) -> None:
        """A new worker is being made."""
        self.state, self.link = "starting", link
        self.ready.clear()
        self.gone.clear()
        self.status, self.families, self.serving_since, self.pid = None, [], 0.0, 0

    def born(self, pid: int) -> None:
        """Its process id is known."""
        self.pid = pid
        try:
            self._process = os.pidfd_open(pid)
        except OSError:
            self._process = -1  # it has ended already

    def serves(self, policy_digest: str) -> None:
        """It is ready."""
        self.state, self.policy_digest, self.serving_since = "serving", policy_digest, monotonic()
        self.ready.set()

    def lost(self) -> None:
        """Its link is closed: it has ended, or is as good as that."""
        self.state = "down"
        self.kill()
        self.gone.set()
        self.ready.set()

    @property
    def lived_s(self) -> float:
        return monotonic() - self.serving_since if self.serving_since else 0.0

    def kill(self) -> None:
        """Ends the process at once. Harmless when it has ended; never hits another process that got its number."""
        if self._process >= 0:
            try:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            except OSError:
                pass
            os.close(self._process)
            self._process = -1

    async def ask(self, message: Message, descriptors: Sequence[int] = (), *, timeout_s: float) -> Message:
        """The answer; Refused when there is none in time or the worker has ended."""
        if self.link is None:
            return Refused("no worker")
        try:
            return await self.link.request(message, descriptors, timeout_s=timeout_s)
        except TimeoutError:
            return Refused(f"no answer within {timeout_s:g} s", expected=False)
        except LinkClosed:
            return Refused("it has ended", expected=False)

    def told(self) -> dict[str, object]:
        """For people and programs that operate this process."""
        told: dict[str, object] = {"worker": self.number, "state": self.state, "pid": self.pid, "restarts": self.restarts}
        if self.state in ("serving", "draining"):
            told["policy_digest"] = self.policy_digest
            told["for_s"] = int(self.lived_s)
        if self.status is not None:
            told["active"] = self.status.active
        if self.caretaker is not None:
            told["connections_taken_by"] = self.caretaker.number
        return told
