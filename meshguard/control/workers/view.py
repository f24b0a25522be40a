"""What the supervisor tells: the admin port, with the states and the metrics of all workers put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

from meshguard.control.admin import AdminServer, Providers, Status, WorkersStatus
from meshguard.control.live import oldest, summed
from meshguard.control.observing import observing
from meshguard.control.operations import AdminRequest, Operation, OperationError, admin_token
from meshguard.control.workers.merge import Totals, families_of, merged
from meshguard.control.workers.messages import Contain, Done, Loaded, Operate, Operated, Report, Reported
from meshguard.control.workers.slot import Slot
from meshguard.control.workers.status_json import status_of, together
from meshguard.telemetry.metrics import Family, Kind, Registry

__all__ = ["View"]

log = logging.getLogger(__name__)

_QUARANTINE = "/quarantine"
_OPERATE_S = 5.0
_REPORT_S = 2.0
"""For a report; who does not answer in time is shown as of the last one."""


class View:
    """See the module. `draining` and `reload_error` are the supervisor's own."""

    def __init__(self, slots: Sequence[Slot], registry: Registry) -> None:
        self._slots = slots
        self._registry = registry
        self._totals = Totals()
        self._digest = ""
        self._since = 0.0
        self._reloaded = 0
        self._admin: AdminServer | None = None
        self.contained: list[dict[str, Any]] = []  # the quarantine in force, for workers that begin
        self._containing = asyncio.Lock()
        self.draining = False
        self.reload_error = ""
        registry.collect(self._own)

    async def open(self, loaded: Loaded, given: socket | None, stop: asyncio.Event, drained: asyncio.Event, restart: asyncio.Event) -> None:
        """Opens the admin port. Raises OSError, DocumentError where its token cannot be used."""

        async def wait_drained() -> None:
            await drained.wait()

        token = admin_token(Path(loaded.token_file), create=True) if loaded.token_file else b""
        providers = Providers(self.status, self.families, stop.set, wait_drained, refresh=self.refresh)
        self._admin = admin = AdminServer(providers, token=lambda: token)
        for path, operation in observing(self.status, self._stats, self._requests, restart.set).items():
            admin.extend(path, operation)
        if loaded.ledger:
            from meshguard.control.ledger_query import ledger_operations

            for path, operation in ledger_operations(Path(loaded.ledger)).items():
                admin.extend(path, operation)
        admin.extend(_QUARANTINE, Operation(("GET", "POST", "DELETE"), self._contain))
        host, _, port = loaded.admin.rpartition(":")
        await admin.start(host.strip("[]"), int(port), given)

    async def _contain(self, request: AdminRequest) -> tuple[int, object]:
        """One worker carries the operation out (and keeps it, where there is a file); then it is in force in all others."""
        async with self._containing:
            serving = [slot for slot in self._slots if slot.state == "serving"]
            if not serving:
                raise OperationError(503, "no worker serves")
            operate = Operate(_QUARANTINE, request.method, dict(request.query), request.body.decode("utf-8", "replace"))
            answer = await serving[0].ask(operate, timeout_s=_OPERATE_S)
            if not isinstance(answer, Operated):
                raise OperationError(503, "the worker did not answer; ask again")
            if answer.status >= 300:
                raise OperationError(answer.status, str(answer.value))
            if request.method != "GET":
                self.contained = entries = answer.value["quarantine"]
                taken = await asyncio.gather(*(slot.ask(Contain(entries), timeout_s=_OPERATE_S) for slot in serving[1:]))
                for slot, done in zip(serving[1:], taken, strict=True):
                    if not isinstance(done, Done) and slot.state == "serving":
                        log.error("a worker did not take the quarantine and is replaced", extra={"data": {"worker": slot.number}})
                        slot.kill()
            return answer.status, answer.value

    @property
    def descriptor(self) -> int:
        return self._admin.descriptor if self._admin is not None else -1

    def stop_listening(self) -> None:
        if self._admin is not None:
            self._admin.stop_listening()

    async def close(self) -> None:
        if self._admin is not None:
            await self._admin.close()

    def in_force(self, digest: str, since: float) -> None:
        """Another state is in force."""
        self._digest, self._since = digest, since
        self._reloaded += 1
        self.reload_error = ""

    async def refresh(self) -> None:
        """Asks all workers."""
        for slot, answer in await self._ask(Report(families=True)):
            slot.families = families_of(answer.families)

    async def _stats(self) -> dict[str, Any]:
        return summed(answer.stats for _, answer in await self._ask(Report(stats=True)))

    async def _requests(self) -> list[dict[str, Any]]:
        told = await self._ask(Report(requests=True))
        return oldest({**request, "worker": slot.number} for slot, answer in told for request in answer.requests)

    async def _ask(self, report: Report) -> list[tuple[Slot, Reported]]:
        living = [slot for slot in self._slots if slot.state in ("serving", "draining")]
        answers = await asyncio.gather(*(slot.ask(report, timeout_s=_REPORT_S) for slot in living))
        told = []
        for slot, answer in zip(living, answers, strict=True):
            if isinstance(answer, Reported) and not slot.gone.is_set():
                slot.status = status_of(answer.status)
                slot.policy_digest = slot.status.policy_digest
                told.append((slot, answer))
        return told

    def drained(self, slot: Slot, families: list[Any]) -> None:
        """The last word of a worker."""
        slot.families = families_of(families)

    def departed(self, slot: Slot) -> None:
        """A worker is gone; what it had counted, as far as it was told, stays in the sums."""
        self._totals.depart(slot.families)
        slot.families = []

    def families(self) -> list[Family]:
        """Of all workers and the supervisor."""
        parts = {str(slot.number): slot.families for slot in self._slots}
        return merged({"supervisor": self._registry.families(), **parts}, self._totals.families)

    def status(self) -> Status:
        """Of the whole."""
        serving = [slot for slot in self._slots if slot.state == "serving"]
        told = [slot.status for slot in self._slots if slot.status is not None and slot.state in ("serving", "draining")]
        return replace(
            together(told),
            policy_digest=self._digest,
            policy_revision=self._reloaded,
            policy_since=self._since,
            reload_error=self.reload_error,
            draining=self.draining,
            workers=WorkersStatus(len(self._slots), len(serving), tuple(slot.told() for slot in self._slots)),
        )

    def _own(self) -> Iterator[Family]:
        serving = sum(slot.state == "serving" for slot in self._slots)
        yield Family("meshguard.workers", Kind.UP_DOWN, "Configured workers", "{worker}", (), [((), len(self._slots))])
        yield Family("meshguard.workers.serving", Kind.UP_DOWN, "Workers that serve", "{worker}", (), [((), serving)])
