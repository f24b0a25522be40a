"""The template: a process that holds the last good state, checks a next one, and makes workers by forking.

It reads, validates and compiles all documents *once* before any worker is asked to take them, and it never serves. A worker that has to be
replaced is forked from it: it starts in milliseconds, with the state that is in force even while the files on disk are broken, and shares
the memory of that state with the others.

INVARIANT: one thread, no event loop that runs, no lock held, no listening socket kept: so forking is sound. Its own log lines are
written directly for the same reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshguard.control.inputs import Inputs, bundle_keeper
from meshguard.control.judgements import refuse_restart_only
from meshguard.control.keyring import Keyring
from meshguard.control.memory import release_start_pages
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.control.workers.agreement import load_settled
from meshguard.control.workers.link import receive, send_whole
from meshguard.control.workers.messages import (
    Abort,
    Commit,
    Done,
    Exited,
    Fork,
    Forked,
    Frame,
    FrameReader,
    Load,
    Loaded,
    Message,
    Refused,
)
from meshguard.model.errors import MeshguardError
from meshguard.sources.bundles import BundleKeeper

__all__ = ["Birth", "serve_template"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Birth:
    """What a new worker begins with. `sockets` by listener address, `shared` descriptors by name."""

    number: int
    inputs: Inputs
    fingerprint: str
    link: socket.socket
    sockets: dict[str, list[socket.socket]]
    shared: dict[str, int]
    bundles: BundleKeeper | None
    contained: list[dict[str, Any]]
    workers: int = 1
    generation: int = 0


def serve_template(control: socket.socket, load: Callable[[], LoadedConfiguration], work: Callable[[Birth], int]) -> int:
    """Answers the supervisor until it is gone. `work` runs a worker, in the child, and gives its exit status."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a terminal tells the whole group; the supervisor says what it means
    return _Template(control, load, work).run()


class _Template:
    def __init__(self, control: socket.socket, load: Callable[[], LoadedConfiguration], work: Callable[[Birth], int]) -> None:
        self._control = control
        self._load_configuration = load
        self._work = work
        self._good: tuple[Inputs, str] | None = None
        self._next: tuple[Inputs, str] | None = None
        self._keyring = Keyring()
        self._bundles: BundleKeeper | None = None

    def run(self) -> int:
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._wakes = (wake, waker)
        reader = FrameReader()
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == wake:
                    os.read(wake, 4096)
                    self._reap()
                    continue
                data, descriptors = receive(self._control)
                if not data:  # the supervisor is gone: its workers see the same and end in order
                    return 0
                for frame in reader.feed(data, descriptors):
                    self._answer(frame)

    def _say(self, message: Message, answers: int = 0) -> None:
        send_whole(self._control, Frame(message, answers=answers))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._say(Exited(pid, os.waitstatus_to_exitcode(status)))

    def _answer(self, frame: Frame) -> None:
        message = frame.message
        if isinstance(message, Load):
            self._say(self._load(message), frame.id)
        elif isinstance(message, Commit):
            if self._next is not None:
                self._good, self._next = self._next, None
                self._enforced(self._good[0])
                _settle()
            self._say(Done(), frame.id)
        elif isinstance(message, Abort):
            self._next = None
            self._say(Done(), frame.id)
        elif isinstance(message, Fork):
            self._fork(message, frame)

    def _load(self, message: Load) -> Message:
        try:
            fresh = load_settled(self._load_configuration, self._keyring, self._fetched())
            if self._good is not None:
                refuse_restart_only(self._good[0], fresh[0])
        except Exception as exc:
            # the outermost loop: whatever is wrong with a state, it is refused and the last good one stays
            expected = isinstance(exc, (MeshguardError, OSError, ValueError))
            if not expected:
                log.exception("documents could not be loaded")
            return Refused(str(exc), expected)
        inputs, fingerprint = fresh
        if self._good is None and message.in_force in ("", fingerprint):
            self._good = fresh
            for note in inputs.loaded.notes:
                log.warning(note)
            self._enforced(inputs)
            _settle()
        else:
            self._next = fresh
        configuration = inputs.configuration
        return Loaded(
            fingerprint,
            inputs.policy.digest,
            0 if configuration.workers == "auto" else configuration.workers,
            str(configuration.admin.address),
            {name: str(listener.address) for name, listener in configuration.listeners.items()},
            configuration.drain_s,
            configuration.restart_s,
            inputs.policy.rule_count,
            str(configuration.admin.token_file or ""),
            str(configuration.ledger.directory) if configuration.ledger is not None else "",
            self._bundles.refused if self._bundles is not None else "",
        )

    def _fetched(self) -> BundleKeeper | None:
        """The bundles, asked for anew where they come from a URL. A loop of its own, which leaves nothing running."""
        configuration = self._load_configuration().configuration
        if configuration.bundle is None:
            return None
        if self._bundles is None:
            self._bundles = bundle_keeper(configuration)
        asyncio.run(self._bundles.fetch_first())
        return self._bundles

    def _enforced(self, inputs: Inputs) -> None:
        """From now on the version of the bundle may not go back."""
        if inputs.candidate is not None and self._bundles is not None:
            with contextlib.suppress(OSError):  # workers keep it too, and tell
                self._bundles.commit(inputs.candidate)

    def _fork(self, message: Fork, frame: Frame) -> None:
        if self._good is None:
            self._say(Refused("nothing is loaded"), frame.id)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            for descriptor in frame.descriptors:
                os.close(descriptor)
            self._say(Forked(message.number, pid), frame.id)
            return
        status = 1
        try:
            self._control.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in self._wakes:
                os.close(descriptor)
            status = self._work(_birth(message, frame.descriptors, self._good, self._bundles))
            sys.stdout.flush()
        except BaseException as exc:
            # the outermost frame of the worker: it must never return into the template's loop
            logging.getLogger(__name__).exception("a worker failed")
            status = exc.code if isinstance(exc, SystemExit) and isinstance(exc.code, int) else 1
        finally:
            os._exit(status)


def _birth(message: Fork, descriptors: list[int], good: tuple[Inputs, str], bundles: BundleKeeper | None) -> Birth:
    rest = iter(descriptors)
    link = socket.socket(fileno=next(rest))
    sockets = {address: [socket.socket(fileno=next(rest)) for _ in range(count)] for address, count in message.sockets}
    shared = {name: next(rest) for name in message.shared}
    return Birth(message.number, good[0], good[1], link, sockets, shared, bundles, message.contained, message.workers, message.generation)


def _settle() -> None:
    """What is loaded is shared with every child: out of the collector's way, it stays shared."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    release_start_pages()
