"""Runs one of seal, open and rewrap over a file or a stream: batches of lines, worker processes, an output that appears whole.

The result is gathered in OUTPUT.partial and takes its name when all of it is there. `OUTPUT.partial.state` says how far it is (after an
fsync), so that `--resume` goes on from there; it belongs to one operation on one input, and is refused for any other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from secrets import token_bytes
from typing import Any, BinaryIO

from meshguard.cli.progress import Progress
from meshguard.fields.at_rest import AtRest, rules_at_rest
from meshguard.model.errors import MeshguardError, RequestError

__all__ = ["run"]

BATCH_BYTES = 256 * 1024
"""Lines that one worker gets at once: some milliseconds of work, so the way between the processes does not count."""
MAX_DOCUMENT_BYTES = 64 << 20
CHECKPOINT_BYTES = 16 << 20
_KEY_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker has to know: it reads the configuration and unwraps the keys itself, no key is handed from process to process."""

    operation: str
    config: Path
    rules: tuple[str, ...]
    tenant: str
    keep_going: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """The treated lines, the counts, and the failures: (index of the line in its batch, why)."""

    data: bytes
    lines: int
    counts: dict[tuple[str, str, str, int], int]
    failures: list[tuple[int, str]]


class NotTreatedError(MeshguardError):
    """A document could not be treated; says which and why, never its content."""


def run(options: argparse.Namespace) -> int:
    """One command line of `meshguard fields seal|open|rewrap`."""
    task = Task(options.fields_command, options.config, tuple(options.rule), options.tenant, options.keep_going)
    job = _Job(options, task)
    try:
        failed = job.run()
    except BaseException:
        job.give_up()
        raise
    job.tell("done")
    return 1 if failed else 0


def new_worker(task: Task) -> AtRest:
    """The rules of the task with their keys. Raises MeshguardError."""
    from meshguard.control.keyring import Keyring
    from meshguard.control.settings.load import load_configuration
    from meshguard.policy.documents import PolicyDocument
    from meshguard.sources.documents import load_documents

    configuration = load_configuration(task.config, now=time.time(), files=False).configuration
    keyring = Keyring()
    keys = keyring.load(configuration.keys, create=False)
    asyncio.run(keyring.start(keys))
    documents = load_documents(configuration.policies, PolicyDocument)
    transform = rules_at_rest(documents, keys.keysets, task.rules, task.tenant)
    return AtRest(task.operation, transform, keys.keysets, token_bytes)


def treat_lines(worker: AtRest, data: bytes, keep_going: bool) -> Batch:
    """Treats each line that is not blank. With `keep_going` a line that fails stays as it is; else NotTreatedError names it."""
    worker.counts = {}
    out = []
    failures = []
    lines = data.split(b"\n")
    for index, line in enumerate(lines):
        if not line.strip():
            out.append(line)
            continue
        try:
            out.append(_treated(worker, line))
        except RequestError as exc:
            failures.append((index, exc.reason.code))
            if not keep_going:
                break
            out.append(line)
    return Batch(b"\n".join(out), len(lines), worker.counts, failures)


def _treated(worker: AtRest, document: bytes) -> bytes:
    deadline = time.monotonic() + _KEY_WAIT_S
    while True:
        try:
            return worker.treat(document, time.time())
        except RequestError as exc:
            # a count of uses is written down by a thread: sealing may outrun it
            if exc.reason.code != "key_unavailable" or "set aside" not in exc.detail or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


_worker: AtRest | None = None


def _start_worker(task: Task) -> None:
    global _worker
    _worker = new_worker(task)


def _work(data: bytes, keep_going: bool) -> Batch:
    if _worker is None:
        raise NotTreatedError("the worker has no keys")
    return treat_lines(_worker, data, keep_going)


class _Job:
    def __init__(self, options: argparse.Namespace, task: Task) -> None:
        self._task = task
        self._workers = max(1, options.workers)
        self._source = None if options.file == "-" else Path(options.file)
        self._output: Path | None = self._source if options.in_place else options.output
        if options.in_place and self._source is None:
            raise NotTreatedError("--in-place needs a file")
        suffix = self._source.suffix if self._source is not None else ""
        self._whole = options.format == "json" or (options.format is None and suffix == ".json")
        self._resume = options.resume
        if self._resume and (self._output is None or self._source is None or self._whole):
            raise NotTreatedError("--resume needs an NDJSON file and an output file")
        self._counts: dict[tuple[str, str, str, int], int] = {}
        self._line = 0
        self._failed = 0
        self._read = 0
        self._written = 0
        self._begun = False
        self.resumable = False

    # -- the run --------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Returns how many documents were passed on untreated."""
        with ExitStack() as stack:
            source: BinaryIO = stack.enter_context(self._source.open("rb")) if self._source is not None else sys.stdin.buffer
            size = os.fstat(source.fileno()).st_size if self._source is not None else 0
            # before anything is opened for writing: the keys must be there
            worker = new_worker(self._task) if self._workers == 1 or self._whole else None
            target = stack.enter_context(self._open_output(source)) if self._output is not None else sys.stdout.buffer
            progress = stack.enter_context(Progress(self._task.operation, size, sys.stderr))
            progress.advance(self._read)
            if self._whole:
                self._run_whole(source, target, worker)
            else:
                self._run_lines(source, target, worker, progress, stack)
            target.flush()
            if self._output is not None:
                os.fsync(target.fileno())
        if self._output is not None:
            self._partial.replace(self._output)
            self._state.unlink(missing_ok=True)
        return self._failed

    def _run_whole(self, source: BinaryIO, target: BinaryIO, worker: AtRest | None) -> None:
        data = source.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise NotTreatedError(f"a document of more than {MAX_DOCUMENT_BYTES} octets: use NDJSON")
        if worker is not None and data.strip():
            try:
                data = _treated(worker, data)
            except RequestError as exc:
                raise NotTreatedError(f"the document could not be treated: {exc.reason.code}") from None
            self._add(worker.counts)
        target.write(data)

    def _run_lines(self, source: BinaryIO, target: BinaryIO, worker: AtRest | None, progress: Progress, stack: ExitStack) -> None:
        checkpoint = self._written
        for size, batch in self._batches(source, worker, stack):
            self._add(batch.counts)
            if batch.failures and not self._task.keep_going:
                index, reason = batch.failures[0]
                raise NotTreatedError(f"line {self._line + index + 1} could not be treated: {reason} (--keep-going passes such lines on)")
            self._failed += len(batch.failures)
            for index, reason in batch.failures[:10]:
                print(f"meshguard: line {self._line + index + 1} is passed on as it is: {reason}", file=sys.stderr)
            self._line += batch.lines - 1
            target.write(batch.data)
            self._read += size
            self._written += len(batch.data)
            progress.advance(size)
            if self._output is not None and self._written - checkpoint >= CHECKPOINT_BYTES:
                checkpoint = self._written
                self._checkpoint(target)

    def _batches(self, source: BinaryIO, worker: AtRest | None, stack: ExitStack) -> Iterator[tuple[int, Batch]]:
        """(octets of input, result) in the order of the input; at most twice as many batches as workers are under way."""
        pieces = _pieces(source)
        if worker is not None:
            for data in pieces:
                yield len(data), treat_lines(worker, data, self._task.keep_going)
            return
        pool = stack.enter_context(
            ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(self._task,))
        )
        waiting: list[tuple[int, Future[Batch]]] = []
        try:
            for data in pieces:
                waiting.append((len(data), pool.submit(_work, data, self._task.keep_going)))
                if len(waiting) >= 2 * self._workers:
                    size, future = waiting.pop(0)
                    yield size, future.result()
            for size, future in waiting:
                yield size, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _add(self, counts: dict[tuple[str, str, str, int], int]) -> None:
        for key, count in counts.items():
            self._counts[key] = self._counts.get(key, 0) + count

    # -- output and state -----------------------------------------------------------------------------------------------

    @property
    def _partial(self) -> Path:
        return Path(f"{self._output}.partial")

    @property
    def _state(self) -> Path:
        return Path(f"{self._output}.partial.state")

    def _open_output(self, source: BinaryIO) -> BinaryIO:
        opened = self._task.operation == "open"
        mode = 0o600 if opened else os.fstat(source.fileno()).st_mode & 0o666
        state = self._saved() if self._resume else None
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if state else os.O_TRUNC)
        descriptor = os.open(self._partial, flags, 0o600)
        self._begun, self.resumable = True, state is not None
        target = os.fdopen(descriptor, "wb", buffering=1 << 20)
        os.fchmod(descriptor, mode if self._source is not None else 0o600)
        if state is not None:
            self._read, self._written, self._line, self._failed = (state[name] for name in ("read", "written", "line", "failed"))
            for item in state["counts"]:
                self._counts[(item[0], item[1], item[2], item[3])] = item[4]
            source.seek(self._read)
            target.truncate(self._written)
            target.seek(self._written)
        return target

    def _identity(self) -> dict[str, Any]:
        status = os.stat(self._source) if self._source is not None else None
        task = self._task
        found = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns] if status is not None else []
        return {
            "operation": task.operation,
            "config": str(task.config.resolve()),
            "rules": list(task.rules),
            "tenant": task.tenant,
            "input": found,
        }

    def _saved(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads(self._state.read_bytes())
            size = self._partial.stat().st_size
        except FileNotFoundError:
            return None
        except ValueError:
            raise NotTreatedError(f"{self._state}: not a state of ours") from None
        if state.get("of") != self._identity() or size < state["written"]:
            raise NotTreatedError(f"{self._state}: belongs to another run (remove it, or leave --resume out)")
        return state

    def _checkpoint(self, target: BinaryIO) -> None:
        target.flush()
        os.fsync(target.fileno())
        counts = [[*key, count] for key, count in self._counts.items()]
        state = {
            "of": self._identity(),
            "read": self._read,
            "written": self._written,
            "line": self._line,
            "failed": self._failed,
            "counts": counts,
        }
        fresh = Path(f"{self._state}.new")
        fresh.write_text(json.dumps(state))
        fresh.replace(self._state)
        self.resumable = True

    def give_up(self) -> None:
        """What this run has begun stays only where `--resume` can go on from it."""
        if self._begun and not self.resumable:
            self._partial.unlink(missing_ok=True)
            self._state.unlink(missing_ok=True)
        self.tell("stopped, --resume goes on" if self.resumable else "stopped, nothing was changed")

    def tell(self, how: str) -> None:
        """The account, for people and for the record of decryptions: one line of JSON on standard error, without values."""
        acts = [
            {"operation": operation, "field": field, **({"keyset": keyset, "version": version} if version else {}), "count": count}
            for (operation, field, keyset, version), count in sorted(self._counts.items())
        ]
        told = {"event": f"fields.{self._task.operation}", "how": how, "user": os.geteuid(), "untreated": self._failed, "fields": acts}
        print(f"meshguard: {json.dumps(told)}", file=sys.stderr)


def _pieces(source: BinaryIO, read: Callable[[int], bytes] | None = None) -> Iterator[bytes]:
    """The input in pieces of whole lines, each with its line end, of about BATCH_BYTES."""
    read = read or source.read
    rest = b""
    while True:
        data = read(BATCH_BYTES)
        if not data:
            if rest:
                yield rest
            return
        end = data.rfind(b"\n")
        if end < 0:
            rest += data
            if len(rest) > MAX_DOCUMENT_BYTES:
                raise NotTreatedError(f"a line of more than {MAX_DOCUMENT_BYTES} octets")
            continue
        yield rest + data[: end + 1]
        rest = data[end + 1 :]
