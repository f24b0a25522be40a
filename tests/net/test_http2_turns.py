"""Whose turn it is on a full connection: everybody's, in turn, and the one that holds them all up ends."""

from __future__ import annotations

from typing import Any, cast

from meshguard.net.http2_turns import AT_A_LOOK, Turns


class Exchange:
    def __init__(self, door: Door) -> None:
        self._door = door

    def resume(self) -> None:
        self._door.turns += 1


class Door:
    """What `Turns` sees of a stream."""

    def __init__(self, id: int, *, waits: int = 0, stalled: bool = True) -> None:
        self.id = id
        self.waits = waits
        self.stalled = stalled
        self.turns = 0
        self.stream: Exchange | None = Exchange(self)


def streams(doors: list[Door]) -> Any:
    return cast(Any, doors)


def test_everybody_has_a_turn_before_anybody_has_a_second() -> None:
    doors = [Door(number) for number in range(1, 101, 2)]
    turns = Turns(False)
    for look in range(1, 30):
        turns.let_through(streams(doors))
        assert sum(door.turns for door in doors) == AT_A_LOOK * look
        for door in doors:
            door.stalled = True  # everything was paused again meanwhile
        assert max(door.turns for door in doors) - min(door.turns for door in doors) <= 1


def test_new_streams_do_not_push_in() -> None:
    doors = [Door(number) for number in range(1, 41, 2)]
    turns = Turns(False)
    for look in range(20):
        turns.let_through(streams(doors))
        for door in doors:
            door.stalled = True
        doors += [Door(1001 + 20 * look + 2 * number) for number in range(4)]
    assert all(door.turns for door in doors if door.id < 1000)


def test_those_with_something_waiting_or_over_have_none() -> None:
    waiting, over, free = Door(1, waits=5), Door(3), Door(5)
    over.stream = None
    Turns(False).let_through(streams([waiting, over, free]))
    assert (waiting.turns, free.turns) == (0, 1)
    full = Turns(True)
    free.stalled = True
    full.let_through(streams([free]))
    assert free.turns == 1


def test_the_longest_unread_ends_once_it_keeps_others_waiting() -> None:
    first, second, other = Door(1, waits=100, stalled=False), Door(3, waits=100, stalled=False), Door(5)
    turns = Turns(True)

    def look(now: float, *, others: bool = False) -> int:
        found = turns.unread(streams([first, second, other]), others, now - 10, now)
        return found.id if found is not None else 0

    assert look(0.0) == 0
    first.waits = 90  # it is read
    assert look(5.0) == 0
    assert look(10.5) == 3
    assert look(14.0) == 3
    assert look(15.5) == 3  # the other one is too late as well by now, but not as late
    other.stalled = False
    assert look(16.0) == 0  # nobody waits
    assert look(16.5, others=True) == 3  # new requests do
    turns.rises(False)
    assert look(17.0, others=True) == 0  # there is room


def test_a_rise_is_told_once() -> None:
    turns = Turns(False)
    assert [turns.rises(brimful) for brimful in (False, True, True, False, True)] == [False, True, False, False, True]
