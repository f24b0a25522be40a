"""A worker: the proxy process without an admin port and without a will of its own about reloads; the supervisor has both.

`handlers` is the table of what the supervisor may ask. A handler returns the answer; what it raises is answered as Refused. When the
supervisor is gone, nobody could tell this process of a reload or a quarantine any more: it drains and ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from meshguard.control.change import Change
from meshguard.control.handover import Inheritance
from meshguard.control.inputs import Inputs
from meshguard.control.live import live_requests, live_stats
from meshguard.control.operations import AdminRequest, OperationError
from meshguard.control.pacing import loop_first, paced
from meshguard.control.process import Process
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.control.workers import status_json
from meshguard.control.workers.agreement import Unsettled, load_settled
from meshguard.control.workers.company import Colleague
from meshguard.control.workers.link import Link
from meshguard.control.workers.merge import plain
from meshguard.control.workers.messages import (
    Abort,
    Adopt,
    Changed,
    Commit,
    Contain,
    Done,
    Drain,
    Drained,
    Frame,
    Message,
    Operate,
    Operated,
    Prepare,
    Ready,
    Record,
    Refused,
    Release,
    Reopen,
    Report,
    Reported,
    Watch,
)
from meshguard.control.workers.template import Birth
from meshguard.model.errors import MeshguardError
from meshguard.sources.bundles import BundleKeeper
from meshguard.sources.watch import watch
from meshguard.telemetry.logs import LineHandler
from meshguard.telemetry.metrics import Registry

__all__ = ["NUMBER", "run_worker"]

log = logging.getLogger(__name__)

NUMBER = "MESHGUARD_WORKER"
"""Environment variable of a worker: its number, 0 to N - 1. A replacement has the number of the one it replaces, so that whatever
exists once for each worker (a ledger shard) goes on."""
_HELD_S = 60.0
"""For how long a prepared change may keep others waiting when the supervisor says nothing."""
_LAST_WORD_S = 2.0
_SUPERVISORS = frozenset({"meshguard.reload.done"})
"""Metrics that the supervisor has itself: a reload of all workers is one."""


def run_worker(birth: Birth, load: Callable[[], LoadedConfiguration], registry: Registry, handler: LineHandler) -> int:
    """Runs in the forked child until drained; its exit status."""
    import uvloop

    os.environ[NUMBER] = str(birth.number)
    os.dup(birth.link.fileno())  # never closed: only the end of the process, after its last line of log, ends the link
    loop_first()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Worker(birth, load, registry, handler).main(None))
    return 0


class Worker(Process):
    """See the module."""

    def __init__(self, birth: Birth, load: Callable[[], LoadedConfiguration], registry: Registry, handler: LineHandler) -> None:
        super().__init__(load, registry, Inheritance(birth.sockets, shared=birth.shared), handler)
        self._birth = birth
        self._colleague: Colleague | None = None
        if "inbox" in birth.shared:
            self._colleague = colleague = Colleague(birth.number, birth.generation, birth.shared, self._runtime.listeners)
            self._runtime.on_listener = colleague.join
        self._runtime.upstreams.workers = birth.workers
        self._fingerprint = birth.fingerprint
        self._prepared: tuple[Change, str] | None = None
        self._held: asyncio.TimerHandle | None = None
        self._adopted: dict[int, list[tuple[str, asyncio.Server]]] = {}
        self._watching = asyncio.Event()
        self._moved = asyncio.Event()  # other files are to be watched
        self._requests: asyncio.Queue[Frame] = asyncio.Queue()
        self._grace: Drain | None = None
        self.handlers: dict[type[Message], Callable[[Any, list[int]], Awaitable[Message]]] = {
            Prepare: self._prepare,
            Commit: self._commit,
            Abort: self._abort,
            Reopen: self._reopen,
            Watch: self._watch,
            Adopt: self._adopt,
            Release: self._release,
            Operate: self._operate,
            Contain: self._contain,
            Record: self._record,
            Drain: self._drain,
        }

    # -- one of many --------------------------------------------------------------------------------------------------------

    async def _first_bundles(self) -> BundleKeeper | None:
        return self._birth.bundles

    def _first_inputs(self, bundles: BundleKeeper | None) -> Inputs:
        return self._birth.inputs

    def _contain_more(self) -> None:
        if self._birth.contained and not self._quarantine.current:  # a file is the truth
            self._quarantine.take(self._birth.contained)

    def _parts(self, inputs: Inputs) -> list[Coroutine[None, None, None]]:
        return [self._watch_when_told(), self._serve_supervisor()]

    async def _open(self, configuration: Configuration) -> None:
        self._link = Link(self._birth.link, self._asked, self._orphaned)
        if self._colleague is not None:
            self._colleague.start()
        self._link.send(Ready(self._runtime.state.policy_digest, self._fingerprint))

    async def _close(self) -> None:
        if self._colleague is not None:
            await self._colleague.close()
        # the link goes with the process, after its last word

    async def _changed(self, why: str) -> None:
        self._link.send(Changed(why))

    def _grace_s(self) -> float:
        if self._colleague is not None:
            self._colleague.stop()
        if self._grace is None:
            return super()._grace_s()
        self._gentle_s = self._grace.gentle_s
        return self._grace.grace_s

    async def _last_word(self) -> None:
        self._link.send(Drained(self._families_told()))
        await self._link.sent(_LAST_WORD_S)

    def _signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # for the supervisor, who says what it means
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)

    def _orphaned(self) -> None:
        if not self._stop.is_set():
            log.error("the supervisor is gone: this worker drains")
            ledger = self._inheritance.shared.pop("ledger", -1)
            if ledger >= 0:
                os.close(ledger)  # so that another supervisor can begin meanwhile; our shard's own lock stays
            self._stop.set()

    async def _watch_when_told(self) -> None:
        await self._watching.wait()
        while True:
            self._moved.clear()
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self._follow(self._runtime.inputs.files))
                await self._moved.wait()
                task.cancel()

    async def _follow(self, files: tuple[Path, ...]) -> None:
        async with aclosing(watch(files)) as changes:
            following = anext(changes)
            await self._changed("files are watched")  # what changed before; nothing, as a rule
            while True:
                await following
                await self._changed("files changed")
                following = anext(changes)

    def _asked(self, frame: Frame) -> None:
        if isinstance(frame.message, Report):  # does not wait for a reload that takes seconds
            self._link.send(self._report(frame.message), answers=frame.id)
        else:
            self._requests.put_nowait(frame)

    async def _serve_supervisor(self) -> None:
        """One request after the other, in their order."""
        while True:
            frame = await self._requests.get()
            try:
                answer = await self.handlers[type(frame.message)](frame.message, frame.descriptors)
            except Exception as exc:
                # the outermost loop: whatever a command does wrong, the supervisor is told and decides
                expected = isinstance(exc, (MeshguardError, OSError, ValueError))
                if not expected:
                    log.exception("a command of the supervisor failed")
                answer = Refused(str(exc) or type(exc).__name__, expected)
            if frame.id:
                self._link.send(answer, answers=frame.id)

    # -- commands -------------------------------------------------------------------------------------------------------------

    def _done(self) -> Done:
        return Done(self._runtime.state.policy_digest)

    async def _prepare(self, message: Prepare, descriptors: list[int]) -> Message:
        self._forget()
        rest = iter([socket.socket(fileno=descriptor) for descriptor in descriptors])
        given = {address: [next(rest) for _ in range(count)] for address, count in message.sockets}
        self._runtime.given.update(given)
        loaded = ""

        bundles = self._runtime.bundles
        if bundles is not None:
            await bundles.fetch_first()

        def load() -> Inputs:
            nonlocal loaded
            inputs, loaded = load_settled(self._load_configuration, self._runtime.keyring, bundles, paced())
            if loaded != message.fingerprint:
                raise Unsettled("the documents changed since they were checked")
            return inputs

        try:
            change = await self._runtime.prepare(load)
        finally:
            for address in given:
                for sock in self._runtime.given.pop(address, ()):  # only where nobody took them
                    sock.close()
        self._prepared = (change, loaded)
        self._held = asyncio.get_running_loop().call_later(_HELD_S, self._forget)
        return self._done()

    async def _commit(self, message: Commit, descriptors: list[int]) -> Message:
        if self._prepared is None:
            return Refused("nothing is prepared")
        (change, fingerprint), self._prepared = self._prepared, None
        self._unhold()
        files = self._runtime.inputs.files
        await self._runtime.take(change, message.why)
        self._fingerprint = fingerprint
        if change.inputs.files != files:
            self._moved.set()
        return self._done()

    async def _abort(self, message: Abort, descriptors: list[int]) -> Message:
        self._forget()
        return self._done()

    def _forget(self) -> None:
        self._unhold()
        if self._prepared is not None:
            (change, _), self._prepared = self._prepared, None
            self._runtime.give_up(change)

    def _unhold(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held = None

    def _report(self, message: Report) -> Message:
        if message.stats and self._telemetry is not None:
            self._telemetry.observer.flush()
        return Reported(
            status_json.plain(self._status()),
            self._families_told() if message.families else [],
            live_stats(self._runtime) if message.stats else {},
            live_requests(self._runtime) if message.requests else [],
        )

    def _families_told(self) -> list[Any]:
        if self._telemetry is not None:
            self._telemetry.observer.flush()
        return plain(family for family in self._registry.families() if family.name not in _SUPERVISORS)

    async def _reopen(self, message: Reopen, descriptors: list[int]) -> Message:
        self._runtime.telemetry.reopen()
        return self._done()

    async def _watch(self, message: Watch, descriptors: list[int]) -> Message:
        self._watching.set()
        return self._done()

    async def _adopt(self, message: Adopt, descriptors: list[int]) -> Message:
        """The queue of a worker that is gone is emptied here, so that no client waits for its replacement."""
        rest = iter(descriptors)
        names = {str(self._runtime.inputs.configuration.listeners[name].address): name for name in self._runtime.listeners}
        kept = self._adopted.setdefault(message.number, [])
        for address, count in message.sockets:
            for _ in range(count):
                sock = socket.socket(fileno=next(rest))
                sock.setblocking(False)
                listener = self._runtime.listeners.get(names.get(address, ""))
                if listener is None or self._stop.is_set():
                    sock.close()
                else:
                    kept.append((listener.name, await listener.adopt(sock)))
        return self._done()

    async def _release(self, message: Release, descriptors: list[int]) -> Message:
        for name, server in self._adopted.pop(message.number, ()):
            listener = self._runtime.listeners.get(name)
            if listener is not None:
                listener.let_go(server)
        return self._done()

    async def _operate(self, message: Operate, descriptors: list[int]) -> Message:
        operation = self._quarantine.operation()
        try:
            status, value = await operation.handle(AdminRequest(message.method, message.query, message.body.encode()))
        except OperationError as exc:
            return Operated(exc.status, exc.title)
        except ValueError as exc:
            return Operated(400, str(exc))
        return Operated(status, value)

    async def _contain(self, message: Contain, descriptors: list[int]) -> Message:
        self._quarantine.take(message.entries)
        return self._done()

    async def _record(self, message: Record, descriptors: list[int]) -> Message:
        self._runtime.telemetry.event(message.event, message.data)
        return self._done()

    async def _drain(self, message: Drain, descriptors: list[int]) -> Message:
        self._forget()
        self._grace = message
        self._stop.set()
        return self._done()
