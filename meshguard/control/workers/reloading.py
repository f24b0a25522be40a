"""A reload of all workers: checked once, prepared by all, then taken by all or by none.

    template loads and checks -> sockets of new listeners -> every worker prepares (loads the same documents, builds everything)
      all prepared  -> every worker swaps; one that does not is killed, and its replacement is forked from the new state
      one refused   -> all forget it; the old state goes on everywhere, and the reason is told once

A mix of two states lasts for as long as the swaps take (milliseconds): a worker that prepared has nothing left to do that could fail.
While this runs no worker is forked, so none can begin with a state that is about to change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from meshguard.control.workers.link import LinkClosed
from meshguard.control.workers.messages import Abort, Commit, Done, Load, Loaded, Message, Prepare, Refused
from meshguard.control.workers.slot import Slot
from meshguard.control.workers.sockets import Doors

__all__ = ["LOAD_S", "Outcome", "reload_all"]

log = logging.getLogger(__name__)

LOAD_S = 300.0
"""For reading and compiling: 100 000 rules take some ten seconds."""
_COMMIT_S = 5.0
_TRIES = 3


@dataclass(slots=True)
class Outcome:
    """What came of it: `loaded` is what is in force from now on (None: what was before), `error` why not (empty: nothing had changed)."""

    loaded: Loaded | None
    error: str = ""
    expected: bool = True


async def reload_all(
    why: str,
    ask_template: Callable[[Message, float], Awaitable[Message]],
    slots: Iterable[Slot],
    doors: Doors,
    fingerprint: str,
) -> Outcome:
    """`fingerprint` is that of the state in force; a reload because of files that did not change ends without a word."""
    everyone = list(slots)
    outcome = Outcome(None, "")
    for _ in range(_TRIES):
        outcome, again = await _once(why, ask_template, everyone, doors, fingerprint)
        if not again:
            break
    return outcome


async def _once(
    why: str, ask_template: Callable[[Message, float], Awaitable[Message]], slots: list[Slot], doors: Doors, fingerprint: str
) -> tuple[Outcome, bool]:
    try:
        loaded = await ask_template(Load(), LOAD_S)
    except (TimeoutError, LinkClosed):
        return Outcome(None, "the documents could not be checked: the process that loads them does not answer", False), False
    if not isinstance(loaded, Loaded):
        return Outcome(None, loaded.error if isinstance(loaded, Refused) else "an unknown answer"), False
    if why.startswith("files") and loaded.fingerprint == fingerprint:
        await _forget(why, "", ask_template, [])
        return Outcome(None), False
    try:
        fresh = [] if doors.closed else doors.open(loaded.listeners.values())
    except OSError as exc:
        await _forget(why, str(exc), ask_template, [])
        return Outcome(None, f"a listener cannot be opened: {exc}"), False

    def prepare(slot: Slot) -> Awaitable[Message]:
        counts, descriptors = doors.of(slot.number, fresh)
        return slot.ask(Prepare(loaded.fingerprint, counts), descriptors, timeout_s=LOAD_S)

    serving = [slot for slot in slots if slot.state == "serving"]
    answers = await asyncio.gather(*map(prepare, serving))
    refused = [
        (slot, answer) for slot, answer in zip(serving, answers, strict=True) if isinstance(answer, Refused) and slot.state == "serving"
    ]
    if refused:
        doors.close(fresh)
        slot, answer = refused[0]
        await _forget(why, answer.error, ask_template, serving)
        moved = "documents changed" in answer.error
        return Outcome(None, f"worker {slot.number}: {answer.error}", answer.expected), moved
    try:
        await ask_template(Commit(why), _COMMIT_S)
    except (TimeoutError, LinkClosed):
        doors.close(fresh)
        await _forget(why, "", ask_template, serving)
        return Outcome(None, "the process that loads documents has ended", False), False
    answers = await asyncio.gather(*(slot.ask(Commit(why), timeout_s=_COMMIT_S) for slot in serving))
    for slot, taken in zip(serving, answers, strict=True):
        if isinstance(taken, Done) and taken.policy_digest == loaded.policy_digest:
            slot.policy_digest = taken.policy_digest
        elif slot.state == "serving":
            log.error("a worker did not take the new state and is replaced", extra={"data": {"worker": slot.number}})
            slot.kill()
    for slot in slots:
        if slot.state == "starting":  # it began with the state of before
            slot.kill()
    doors.keep(loaded.listeners.values())
    return Outcome(loaded), False


async def _forget(why: str, error: str, ask_template: Callable[[Message, float], Awaitable[Message]], slots: list[Slot]) -> None:
    await asyncio.gather(*(slot.ask(Abort(why, error), timeout_s=_COMMIT_S) for slot in slots))
    try:
        await ask_template(Abort(why, error), _COMMIT_S)
    except (TimeoutError, LinkClosed):
        pass  # it is gone, and with it what it had loaded
