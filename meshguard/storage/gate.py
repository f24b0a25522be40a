"""The ledger's gate on the request path: no answer leaves before its entry is written, none is written twice.

`append` is called by the journey before an answer's octets go to the connection. By `durability`:

    batch     the record is written (write(2)) in the call; a commit (fdatasync, leaf hashes, checkpoint) follows within `batch_s`
    request   the same, and the connection is corked until a commit has covered the record. Records of a turn, and all that come while
              a commit runs, share the next one

    open  --(a write fails: no room)-->   the reserve is given up; `refuse`: no request is admitted any more; `degrade`: they go on
    open  --(anything else fails)-->      shut: what cannot be written is not answered (`refuse`) or is counted (`degrade`)
    shut  --(mended, reserve made anew)-> open, with the gap on record

INVARIANT: with `refuse`, an answer whose entry was not written does not reach its client.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from meshguard.ledger.entries import decision_entry, event_entry, rfc3339
from meshguard.model.reasons import LEDGER_UNAVAILABLE
from meshguard.model.record import RequestRecord
from meshguard.storage.commit import Commit
from meshguard.storage.shard import FULL, Shard

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["Corkable", "Counts", "Gate"]

log = logging.getLogger(__name__)

CLOCK_STEP_S = 0.5
"""A change of the wall clock against the monotonic one from which it is on record."""
MEND_S = 1.0
"""Between two tries to mend."""
MAX_UNSYNCED = 1 << 16
"""Records that may wait for a commit; then the disk counts as failed (it hangs)."""


class Corkable(Protocol):
    """A connection whose writes can be held back (`net.channel.Channel`)."""

    def cork(self) -> None:
        """What is written from now on waits for one `uncork`, behind what waits already."""

    def uncork(self) -> None:
        """Lets go what was written after the oldest `cork`."""

    def abort(self) -> None: ...


class Counts(Protocol):
    """A counter or gauge of the metrics."""

    value: float


class Gate:
    """See the module. `encode(record, clock_offset)` gives a record's canonical JSON object; `feed` takes the same octets for the
    decision log; `report(commit)` is told of each checkpoint, in the thread. `refusing`: no request is to be admitted."""

    def __init__(
        self,
        shard: Shard,
        encode: Callable[[RequestRecord, float], bytes],
        feed: Callable[[bytes], None] | None,
        *,
        durability: str,
        refuse: bool,
        batch_s: float,
        checkpoint_s: float,
        count: Callable[[str], Counts],
        report: Callable[[Commit], None] | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refusing = False
        self.shard = shard
        self._encode = encode
        self._feed = feed
        self._corks = durability == "request"
        self._refuse = refuse
        self._batch_s = batch_s
        self._checkpoint_s = checkpoint_s
        self._report = report
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._armed = False
        self._timer: asyncio.TimerHandle | None = None
        self._owed: asyncio.TimerHandle | None = None  # a checkpoint without new entries
        self._commit: Commit | None = None
        self._corked: list[Corkable] = []
        self._covered: list[Corkable] = []  # by the commit under way
        self._signed_at = float("-inf")
        self._waiting = 0  # records since the last commit began
        self._shut = False
        self._mending = False
        self._trouble_since = 0.0
        self._lost = self._refused = 0
        self._closing = False
        self._entries = count("entries")
        self._lost_total = count("lost")
        self._failures = count("failures")
        self._state = count("state")

    # -- the path -------------------------------------------------------------------------------------------------------

    def begun(self, record: RequestRecord, channel: Corkable | None) -> bool:
        """The head of a streamed answer is about to go. False: it must not."""
        return self._put(record, channel, True)

    def append(self, record: RequestRecord, channel: Corkable | None) -> bool:
        """A request is over, its answer (or the rest of it) about to go. False: it must not."""
        return self._put(record, channel, False)

    def _put(self, record: RequestRecord, channel: Corkable | None, begun: bool) -> bool:
        monotonic = self._monotonic()
        offset = self._wall() - monotonic
        if not -CLOCK_STEP_S < offset - self._offset < CLOCK_STEP_S:
            self._clock_stepped(offset)
            monotonic = self._monotonic()
        line = self._encode(record, offset)
        if not begun and self._feed is not None:
            self._feed(line)
        if self.refusing and record.refusal is LEDGER_UNAVAILABLE:
            self._refused += 1  # told as one number when it is over: the reserve is not for these
            return True
        if not self._write(decision_entry(line, int(monotonic * 1e6), begun=begun)):
            self._lost += 1
            self._lost_total.value += 1
            return not self._refuse
        if self._corks and channel is not None:
            channel.cork()
            self._corked.append(channel)
        return True

    def event(self, event: str, data: Mapping[str, Any]) -> bool:
        """Puts an event on record; False when it could not be."""
        monotonic = self._monotonic()
        return self._write(event_entry(event, data, int(monotonic * 1e6), self._wall()))

    def _write(self, entry: bytes) -> bool:
        shard = self.shard
        try:
            shard.append(entry)
        except OSError as exc:
            if not self._failed(exc, entry):
                return False
        self._entries.value += 1
        self._waiting += 1
        if not self._armed:
            self._arm()
        elif self._waiting > MAX_UNSYNCED and not self._shut:
            self._enter(OSError(errno.ETIMEDOUT, "the disk does not finish"), shut=True)
        return True

    def _clock_stepped(self, offset: float) -> None:
        before, self._offset = self._offset, offset
        step = {"offset_before_us": int(before * 1e6), "offset_us": int(offset * 1e6), "step_us": int((offset - before) * 1e6)}
        self.event("clock", step)

    # -- commits --------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        loop = self._running()
        if loop is None:
            return  # before the loop runs, and after it: `close` commits
        self._armed = True
        if self._corks:
            loop.call_soon(self._tick)
        else:
            self._timer = loop.call_later(self._batch_s, self._tick)

    def _running(self) -> asyncio.AbstractEventLoop | None:
        if self._loop is None:
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                pass
        return self._loop

    def _tick(self) -> None:
        self._armed = False
        self._timer = None
        if self._commit is not None or self.shard.broken or self._closing:
            return  # the end of the commit, or of the mending, goes on
        now = self._monotonic()
        due = now - self._signed_at >= self._checkpoint_s
        self._waiting = 0
        self._covered, self._corked = self._corked, []
        self._commit = commit = self.shard.begin(int(self._wall()), checkpoint=due)
        if commit.checkpoint is not None:
            self._signed_at = now
        self._run(self._committing(commit), self._committed)

    def _committing(self, commit: Commit) -> Callable[[], object]:
        report = self._report

        def work() -> None:
            commit.run()
            if report is not None and commit.note:
                report(commit)

        return work

    def _committed(self, outcome: object) -> None:
        commit, self._commit = self._commit, None
        covered, self._covered = self._covered, []
        if commit is None:
            return
        error = outcome if isinstance(outcome, OSError) else None
        self.shard.end(commit, error)
        if error is not None:
            self._corked = covered + self._corked  # answered when the new segment holds their records
            self._enter(error, shut=True)
            return
        for channel in covered:
            channel.uncork()
        if self._waiting:
            if not self._armed:
                self._arm()
        elif self.shard.dirty and self._owed is None and self._loop is not None:
            self._owed = self._loop.call_later(self._checkpoint_s, self._pay)

    def _pay(self) -> None:
        self._owed = None
        if not self._armed:
            self._tick()

    def _run(self, work: Callable[[], object], then: Callable[[object], None]) -> None:
        """`work` in the thread; `then` on the loop with what it returned or raised."""
        loop = self._loop
        if loop is None:
            return
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(1, thread_name_prefix="meshguard.ledger")
        commit = self._commit

        def guarded() -> object:
            try:
                return work()
            except OSError as exc:
                return exc
            except Exception as exc:  # outermost loop of the thread: whatever it was, the ledger does not go on as if nothing were
                log.exception("the ledger's thread failed")
                return OSError(errno.EIO, type(exc).__name__)

        def done() -> None:
            outcome = guarded()
            if commit is not None and isinstance(outcome, OSError):
                commit.failed = outcome
            if not self._closing:
                try:
                    loop.call_soon_threadsafe(then, outcome)
                except RuntimeError:
                    pass  # the loop has ended; `close` does what is left

        self._pool.submit(done)

    # -- trouble --------------------------------------------------------------------------------------------------------

    def _failed(self, exc: OSError, entry: bytes) -> bool:
        """True when the entry was written after all."""
        if exc.errno in FULL and not self.shard.broken and not self._shut and self.shard.release_reserve():
            try:
                self.shard.append(entry)
            except OSError as again:
                exc = again
            else:
                self._enter(exc, shut=False)
                return True
        if not self._shut:
            self._enter(exc, shut=True)
        return False

    def _enter(self, exc: OSError, *, shut: bool) -> None:
        """Trouble begins, or gets worse."""
        name = errno.errorcode.get(exc.errno or 0, "unknown")
        self._failures.value += 1
        if not self._trouble_since:
            self._trouble_since = self._wall()
            log.error(
                "the ledger cannot be written",
                extra={"data": {"error": name, "requests": "refused" if self._refuse else "go on unrecorded once the reserve is used"}},
            )
        self._state.value = 2 if shut else 1
        self.refusing = self._refuse
        if shut:
            self._shut = True
        else:
            self.event("trouble", {"error": name, "requests": "refused" if self._refuse else "recorded while the reserve lasts"})
        loop = self._running()
        if loop is not None and not self._mending:
            self._mending = True
            loop.call_later(0 if self.shard.broken else MEND_S, self._mend)

    def _mend(self) -> None:
        if self._closing:
            return
        if self._commit is not None:
            self._again()
            return
        shard, now = self.shard, int(self._wall())

        def work() -> object:
            adopt = shard.mend(now) if shard.broken else None
            return (adopt, shard.make_reserve())

        self._run(work, self._mended)

    def _mended(self, outcome: object) -> None:
        adopt, room = outcome if isinstance(outcome, tuple) else (None, False)
        corked, self._corked = self._corked, []
        if adopt is not None:
            adopt()
        elif self.shard.broken and self._refuse:
            for channel in corked:
                channel.abort()  # their records are still only in memory
            corked = []
        if adopt is not None or self.shard.broken:
            for channel in corked:
                channel.uncork()
        else:
            self._corked = corked
        if not room:
            self._again()
            return
        self._mending = False
        since, self._trouble_since = self._trouble_since, 0.0
        lost, refused = self._lost, self._refused
        self._shut = False
        self._lost = self._refused = 0
        if lost and not self.event("gap", {"count": lost, "since": rfc3339(since), "until": rfc3339(self._wall())}):
            self._lost += lost
            return
        self.event("recovered", {"lost": lost, "refused": refused, "since": rfc3339(since)})
        if not self._shut:
            self.refusing = False
            self._state.value = 0
            log.warning("the ledger is written again", extra={"data": {"lost": lost, "refused": refused}})

    def _again(self) -> None:
        if self._loop is not None:
            self._loop.call_later(MEND_S, self._mend)

    # -- the end --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """A last commit and checkpoint, waited for. Later records are lost and counted."""
        if self._closing:
            return
        self._closing = True
        for timer in (self._timer, self._owed):
            if timer is not None:
                timer.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        shard = self.shard
        try:
            if self._commit is not None:  # the thread has finished it
                shard.end(self._commit, self._commit.failed)
                self._commit = None
            if self._shut or shard.broken:
                if shard.broken:
                    shard.mend(int(self._wall()))()
                self._shut = False
            if self._lost:
                self.event("gap", {"count": self._lost, "since": rfc3339(self._trouble_since), "until": rfc3339(self._wall())})
            self.event("stop", {})
            commit = shard.begin(int(self._wall()), checkpoint=True)
            try:
                self._committing(commit)()
            finally:
                shard.end(commit, None)
            shard.close()
        except OSError as exc:
            log.error("the ledger could not be closed in order", extra={"data": {"error": str(exc), "lost": self._lost}})
        for channel in (*self._covered, *self._corked):
            channel.uncork()
        self._shut = True
