"""The supervisor: N workers behind one port, kept alive; one admin port; signals and reloads for all of them.

    supervisor -- starts --> template -- forks --> worker 0 .. N-1
        |  holds the listening sockets, the admin port, a link to each

It loads no policy and touches no request: what it does cannot be wrong because of what a request contains. A worker's end is the end of its
link, so it is noticed at once: another worker accepts from its sockets too until the replacement serves, and without any worker the
sockets are closed, so that clients are refused instead of waiting in a queue that nobody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from random import uniform
from time import time

from meshguard.control.handover import (
    GENTLE_S,
    Estate,
    Inheritance,
    SuccessorFailed,
    read_contained,
    spawn_again,
    start_successor,
    write_contained,
)
from meshguard.control.workers.company import Company
from meshguard.control.workers.link import Link, LinkClosed
from meshguard.control.workers.messages import (
    Adopt,
    Changed,
    Done,
    Drain,
    Drained,
    Exited,
    Fork,
    Forked,
    Frame,
    Load,
    Loaded,
    Message,
    Ready,
    Record,
    Refused,
    Release,
    Reopen,
    Report,
    Watch,
)
from meshguard.control.workers.reloading import LOAD_S, reload_all
from meshguard.control.workers.slot import Slot
from meshguard.control.workers.sockets import Doors
from meshguard.control.workers.view import View
from meshguard.model.errors import MeshguardError
from meshguard.storage.claim import claim_shared
from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.write_lock import new_lock_file

__all__ = ["TEMPLATE", "Supervisor"]

log = logging.getLogger(__name__)

TEMPLATE = "MESHGUARD_TEMPLATE"
"""Environment variable that makes the same command line the template: the descriptor of its link."""
_FORK_S = 60.0
"""A template that is loading forks only after that."""
_START_S = 60.0
_COMMAND_S = 10.0
_END_S = 5.0
_HEARTBEAT_S = 5.0
_STUCK_S = 20.0
"""A worker that says nothing for so long serves nobody either."""
_REFUSE_AFTER_S = 1.0
"""Without any worker, and the next try farther away than this, connections are refused."""
_TEMPLATE_RETRY_S = (1.0, 30.0)


class Supervisor:
    """`workers` is their number."""

    def __init__(self, workers: int, registry: Registry, inheritance: Inheritance) -> None:
        self._registry = registry
        self._inheritance = inheritance
        self._slots = [Slot(number) for number in range(workers)]
        self._doors = Doors(workers, inheritance.sockets)
        self._template: Link | None = None
        self._template_process: subprocess.Popen[bytes] | None = None
        self._template_gone = asyncio.Event()
        self._loaded: Loaded | None = None
        self._changing = asyncio.Lock()  # a reload; no worker is forked meanwhile
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._why = "signal"
        self._restart = asyncio.Event()
        self._drained = asyncio.Event()
        self._gentle_s = 0.0
        self._watcher: Slot | None = None
        self._former: set[int] = set()  # workers that have ended
        self._shared = dict(inheritance.shared)
        for name in ("log", "decisions", "limits", "census"):  # files in memory, laid out by whoever uses them
            self._shared.setdefault(name, new_lock_file(name))
        self._company = Company(workers, self._shared["census"])
        self.view = View(self._slots, registry)
        contained = self._shared.pop("quarantine", -1)
        if contained >= 0:
            self.view.contained = read_contained(contained)
        self._reloads = registry.counter("meshguard.reload.done", "Changes that were taken over", "{change}").labels()
        self._failures = registry.counter("meshguard.reload.failures", "Changes that were refused", "{change}").labels()
        self._restarts = registry.counter("meshguard.worker.restarts", "Workers that ended and were replaced", "{worker}", ("worker",))
        self._restart_failures = registry.counter(
            "meshguard.restart.failures", "Rolling restarts whose new process did not become ready", "{restart}"
        ).labels()

    @property
    def log_lock(self) -> int:
        """Descriptor of the lock for standard error."""
        return self._shared["log"]

    async def main(self) -> None:
        """Until SIGTERM or SIGINT. Raises MeshguardError, OSError at the start."""
        self._signals()
        try:
            await self._start_template()
            answer = await self._ask_template(Load(), LOAD_S)
            if not isinstance(answer, Loaded):
                raise MeshguardError(answer.error if isinstance(answer, Refused) else "the documents could not be loaded")
            self._in_force(answer)
            claim_shared(answer.ledger, self._shared)
            self._doors.keep(answer.listeners.values())
            self._doors.open(answer.listeners.values())
            await self._start_slot(self._slots[0])
            await self._first(self._slots[0])
            async with asyncio.TaskGroup() as group:
                await self.view.open(answer, self._inheritance.admin, self._stop, self._drained, self._restart)
                work = [group.create_task(self._keep(slot)) for slot in self._slots]
                work += [group.create_task(part) for part in (self._keep_template(), self._reload_when_told(), self._restart_when_told())]
                for slot in self._slots:
                    await slot.ready.wait()
                data = {"workers": len(self._slots), "serving": self._serving(), "policy_digest": self._loaded_now.policy_digest}
                log.info("all workers serve" if self._serving() == len(self._slots) else "workers are missing", extra={"data": data})
                if self._serving() == len(self._slots):
                    self._inheritance.tell_ready()
                await self._stop.wait()
                await self._drain()
                for task in work:
                    task.cancel()
        finally:
            await self.view.close()
            self._end()

    @property
    def _loaded_now(self) -> Loaded:
        if self._loaded is None:
            raise MeshguardError("nothing is loaded")
        return self._loaded

    def _serving(self) -> int:
        return sum(slot.state == "serving" for slot in self._slots)

    def _in_force(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.view.in_force(loaded.policy_digest, time())

    # -- signals ------------------------------------------------------------------------------------------------------------

    def _signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._ask_reload, "signal")
        loop.add_signal_handler(signal.SIGUSR2, self._restart.set)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def _reap(self) -> None:
        """Workers are the template's children. Should it end before them, and this be process 1, they have become ours."""
        for pid in list(self._former):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
                continue
            self._former.discard(pid)

    def _ask_reload(self, why: str) -> None:
        if not self._reload.is_set() or why == "signal":
            self._why = why
        self._reload.set()

    # -- the template -------------------------------------------------------------------------------------------------------

    async def _start_template(self) -> None:
        ours, theirs = socket.socketpair()
        self._template_process = spawn_again({TEMPLATE: str(theirs.fileno())}, [theirs.fileno()])
        theirs.close()
        self._template_gone.clear()
        self._template = Link(ours, self._template_said, self._template_gone.set)

    def _template_said(self, frame: Frame) -> None:
        message = frame.message
        if isinstance(message, Exited):
            level = logging.INFO if message.status == 0 else logging.ERROR
            log.log(level, "a worker has ended", extra={"data": {"pid": message.pid, "status": message.status}})

    async def _ask_template(self, message: Message, timeout_s: float) -> Message:
        if self._template is None:
            raise LinkClosed
        return await self._template.request(message, timeout_s=timeout_s)

    async def _keep_template(self) -> None:
        """Without a template nothing can be loaded or replaced, but everything goes on: it is started again until it holds a good state,
        and workers are brought to that state."""
        while True:
            await self._template_gone.wait()
            log.error("the template has ended; it is started again")
            delay = _TEMPLATE_RETRY_S[0]
            while True:
                if self._template_process is not None:
                    self._template_process.poll()
                await self._start_template()
                try:
                    answer = await self._ask_template(Load(self._loaded_now.fingerprint), LOAD_S)
                except (TimeoutError, LinkClosed):
                    answer = Refused("it ended", False)
                if isinstance(answer, Loaded):
                    if answer.fingerprint != self._loaded_now.fingerprint:
                        self._ask_reload("the template was started again")
                    break
                log.error("workers cannot be replaced: no good state", extra={"data": {"error": getattr(answer, "error", "")}})
                if self._template is not None:
                    self._template.close()
                await asyncio.sleep(delay * uniform(0.75, 1.0))
                delay = min(delay * 2, _TEMPLATE_RETRY_S[1])

    # -- workers --------------------------------------------------------------------------------------------------------------

    async def _first(self, slot: Slot) -> None:
        """The first worker shows whether this configuration can be served at all: port, identity, keys."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await slot.ready.wait()
        if slot.state != "serving":
            slot.kill()
            raise MeshguardError("the first worker did not become ready; its log line says why")

    async def _start_slot(self, slot: Slot) -> None:
        """Has the worker forked. Raises MeshguardError, OSError when that is not possible now."""
        if self._doors.closed:
            self._doors.open(self._loaded_now.listeners.values())
        ours, theirs = socket.socketpair()
        link = Link(ours, lambda frame: self._worker_said(slot, frame), lambda: self._worker_lost(slot))
        slot.begin(link)
        counts, descriptors = self._doors.of(slot.number)
        shared = {**self._shared, **self._company.descriptors(slot.number)}
        message = Fork(slot.number, counts, list(shared), self.view.contained, len(self._slots), self._company.generation)
        try:
            if self._template is None:
                raise LinkClosed
            answer = await self._template.request(message, [theirs.fileno(), *descriptors, *shared.values()], timeout_s=_FORK_S)
        except (TimeoutError, LinkClosed) as exc:
            link.close()
            raise MeshguardError("no worker can be made: the template does not answer") from exc
        finally:
            theirs.close()
        if not isinstance(answer, Forked):
            link.close()
            raise MeshguardError(answer.error if isinstance(answer, Refused) else "no worker was made")
        slot.born(answer.pid)

    def _worker_said(self, slot: Slot, frame: Frame) -> None:
        message = frame.message
        if isinstance(message, Ready):
            slot.serves(message.policy_digest)
        elif isinstance(message, Changed):
            self._ask_reload(message.why)
        elif isinstance(message, Drained):
            self.view.drained(slot, message.families)

    def _worker_lost(self, slot: Slot) -> None:
        self.view.departed(slot)
        self._company.gone(slot.pid)
        slot.lost()
        self._former.add(slot.pid)
        self._reap()

    async def _keep(self, slot: Slot) -> None:
        """Keeps a worker in this slot."""
        if slot.gone.is_set():
            await self._try(slot)
        while True:
            if slot.state == "starting":
                await self._wait_ready(slot)
            if slot.state == "serving":
                await self._welcome(slot)
            await self._until_gone(slot)
            if self._stop.is_set():
                return
            lived_s = slot.lived_s
            delay = slot.backoff.after(lived_s)
            slot.restarts += 1
            self._restarts.labels(str(slot.number)).value += 1
            data = {"worker": slot.number, "pid": slot.pid, "lived_s": round(lived_s, 1), "again_in_s": round(delay, 2)}
            log.error("a worker is gone and is replaced", extra={"data": data})
            await self._care_for(slot)
            if not self._serving() and delay > _REFUSE_AFTER_S:
                self._doors.close_all()
            if delay:
                await asyncio.sleep(delay)
            await self._try(slot)

    async def _until_gone(self, slot: Slot) -> None:
        """Waits for the end of the worker, and makes one where it answers nothing any more (a stopped or a spinning process)."""
        while True:
            try:
                async with asyncio.timeout(_HEARTBEAT_S):
                    await slot.gone.wait()
                return
            except TimeoutError:
                answer = await slot.ask(Report(), timeout_s=_STUCK_S)
                if isinstance(answer, Refused) and slot.state == "serving":
                    log.error("a worker does not answer and is killed", extra={"data": {"worker": slot.number, "pid": slot.pid}})
                    slot.kill()

    async def _try(self, slot: Slot) -> None:
        async with self._changing:
            if self._stop.is_set():
                return
            try:
                await self._start_slot(slot)
            except (MeshguardError, OSError) as exc:
                log.error("a worker could not be started", extra={"data": {"worker": slot.number, "error": str(exc)}})
                slot.lost()

    async def _wait_ready(self, slot: Slot) -> None:
        try:
            async with asyncio.timeout(_START_S):
                await slot.ready.wait()
        except TimeoutError:
            log.error("a worker was not ready in time", extra={"data": {"worker": slot.number}})
            slot.kill()

    async def _welcome(self, slot: Slot) -> None:
        caretaker, slot.caretaker = slot.caretaker, None
        if caretaker is not None:
            await caretaker.ask(Release(slot.number), timeout_s=_COMMAND_S)
        watcher = self._watcher
        if watcher is None or watcher.state != "serving" or watcher is slot:
            self._watcher = slot
            await slot.ask(Watch(), timeout_s=_COMMAND_S)

    async def _care_for(self, slot: Slot) -> None:
        """Another worker accepts for the one that is gone, and looks after the files if that was its task."""
        serving = [other for other in self._slots if other.state == "serving"]
        if not serving or self._stop.is_set() or self._doors.closed:
            return
        if self._watcher is slot:
            self._watcher = serving[0]
            await serving[0].ask(Watch(), timeout_s=_COMMAND_S)
        caretaker = min(serving, key=lambda other: sum(each.caretaker is other for each in self._slots))
        counts, descriptors = self._doors.of(slot.number)
        slot.caretaker = caretaker
        await caretaker.ask(Adopt(slot.number, counts), descriptors, timeout_s=_COMMAND_S)

    # -- changes --------------------------------------------------------------------------------------------------------------

    async def _reload_when_told(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            why = self._why
            if why == "signal":
                await asyncio.gather(*(slot.ask(Reopen(), timeout_s=_COMMAND_S) for slot in self._slots if slot.state == "serving"))
            async with self._changing:
                outcome = await reload_all(why, self._ask_template, self._slots, self._doors, self._loaded_now.fingerprint)
            if outcome.loaded is not None:
                self._in_force(outcome.loaded)
                self._reloads.value += 1
                data = {"why": why, "policy_digest": outcome.loaded.policy_digest, "workers": self._serving()}
                log.info("reloaded by all workers", extra={"data": data})
                if outcome.loaded.refused:  # each worker has it on record
                    self._refused(why, outcome.loaded.refused)
            elif outcome.error:
                self._refused(why, outcome.error)
                await self._record("reload", {"outcome": "refused", "why": why, "error": outcome.error, **self._enforced()})

    def _refused(self, why: str, error: str) -> None:
        self._failures.value += 1
        self.view.reload_error = error
        log.error("change refused, the last good state goes on", extra={"data": {"why": why, "error": error}})

    def _enforced(self) -> dict[str, str]:
        return {"policy_digest": self._loaded_now.policy_digest}

    async def _record(self, event: str, data: dict[str, object]) -> None:
        """By the first worker that serves."""
        for slot in self._slots:
            if slot.state == "serving" and isinstance(await slot.ask(Record(event, data), timeout_s=_COMMAND_S), Done):
                return

    async def _restart_when_told(self) -> None:
        while True:
            await self._restart.wait()
            self._restart.clear()
            log.info("new processes are being started")
            try:
                if os.getpid() == 1:
                    raise SuccessorFailed("this is process 1, whose end ends the container: replace the container")
                contained = {"quarantine": write_contained(self.view.contained)}
                estate = Estate(self._doors.descriptors(), self.view.descriptor, {**self._shared, **contained})
                pid = await start_successor(estate, self._loaded_now.restart_s)
            except (MeshguardError, OSError) as exc:
                self._restart_failures.value += 1
                log.error("RESTART FAILED: the new processes do not serve, these go on", extra={"data": {"error": str(exc)}})
                continue
            log.info("the new processes serve", extra={"data": {"pid": pid}})
            self._gentle_s = GENTLE_S
            self.view.stop_listening()
            self._stop.set()

    # -- the end --------------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        self.view.draining = True
        grace_s = self._loaded_now.drain_s
        log.info("draining", extra={"data": {"grace_s": grace_s}})
        living = [slot for slot in self._slots if not slot.gone.is_set()]
        for slot in living:
            slot.state = "draining"
        await asyncio.gather(*(slot.ask(Drain(grace_s, self._gentle_s), timeout_s=_COMMAND_S) for slot in living))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + _END_S):
                for slot in living:
                    await slot.gone.wait()
        self._drained.set()

    def _end(self) -> None:
        for slot in self._slots:
            slot.kill()
        if self._template is not None:
            self._template.close()
        process = self._template_process
        if process is not None:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
