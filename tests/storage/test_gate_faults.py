"""A disk that fails in any way at any moment, and clocks that jump: what was let through is on record, once; what is not is counted.

The story of a seed is random: requests come one by one or many in a turn, with and without a connection, operations of the disk begin to
fail with one error or another and heal again, the wall clock jumps by hours.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshguard.storage import gate as gate_module
from meshguard.storage.audit import verify_ledger
from tests.storage.ledgers import SIGNER, closed, opened
from tests.storage.test_gate import Connection, Place, until

CALLS = ("write", "sync", "create", "truncate", "append_to", "rename", "sync_directory", "reserve")
CODES = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


async def story(place: Place, chance: random.Random, clock: SimpleNamespace) -> tuple[set[str], int]:
    """The ids of what was let through, and how many requests were refused or cut."""
    passed: set[str] = set()
    waiting: list[tuple[str, Connection]] = []
    turned_away = 0
    for _ in range(chance.randrange(30, 120)):
        what = chance.random()
        if what < 0.15:
            place.disk.fail(chance.choice(CALLS), chance.choice(CODES))
        elif what < 0.2:
            place.disk.room = chance.randrange(3000)
        elif what < 0.4:
            place.disk.heal()
        elif what < 0.45:
            clock.offset += chance.choice((-3600, -0.7, 0.1, 7200))
        for _ in range(chance.choice((0, 1, 1, 5, 40))):
            if place.gate.refusing:
                turned_away += 1
                continue
            channel = chance.choice((None, Connection()))
            let_through = place.put(channel)
            name = f"r{place.number}"
            if let_through and channel is not None and channel.corked:
                waiting.append((name, channel))
            elif let_through:
                passed.add(name)
            else:
                turned_away += 1
        await asyncio.sleep(chance.choice((0, 0, 0.001, 0.03)))
    place.disk.heal()
    await until(lambda: place.counts["state"].value == 0)
    place.put()
    passed.add(f"r{place.number}")
    await until(lambda: not any(channel.corked and not channel.aborted for _, channel in waiting))
    passed |= {name for name, channel in waiting if not channel.aborted}
    return passed, turned_away + sum(channel.aborted for _, channel in waiting)


@pytest.mark.parametrize("refuse", [True, False], ids=["refuse", "degrade"])
@pytest.mark.parametrize("durability", ["batch", "request"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_in_silence(tmp_path: Path, seed: int, durability: str, refuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "MEND_S", 0.005)
    chance = random.Random(f"{seed} {durability} {refuse}")
    clock = SimpleNamespace(offset=1_800_000_000.0)
    place = Place(
        tmp_path, durability=durability, refuse=refuse, batch_s=0.002, checkpoint_s=0.003, wall=lambda: time.monotonic() + clock.offset,
        segment_bytes=4096,
    )  # fmt: skip
    outcome: list[tuple[set[str], int]] = []

    async def main() -> None:
        outcome.append(await story(place, chance, clock))
        place.close()  # verifies it

    asyncio.run(main())
    ((passed, turned_away),) = outcome
    found = Counter(place.ids())
    assert max(found.values()) == 1
    lost = passed - set(found)
    told = sum(data["count"] for event, data in place.events() if event == "gap")
    assert told == place.counts["lost"].value
    if refuse:
        assert lost == set()
    else:
        assert turned_away == 0 or durability == "request"
        assert len(lost) == told
    order = [int(name[1:]) for name in place.ids()]
    assert order == sorted(order)
    again = opened(tmp_path, segment_bytes=4096)
    assert again.repaired == []
    closed(again)
    assert verify_ledger(tmp_path, [SIGNER.verifier]).good
