"""Buckets that are shared by exchange: how much too much can pass, and that it is owed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.pipeline.limit_table import LimitTable, new_table_file

BURST, INTERVAL = 10, 1.0
CAPACITY = BURST * INTERVAL

STEPS = st.lists(
    st.tuples(st.sampled_from(("take", "tell", "wait")), st.integers(0, 3), st.integers(1, 12)),
    max_size=200,
)


class Node:
    """An instance: its bucket, what it let through, and what it has not told each of the others."""

    def __init__(self, count: int) -> None:
        self.region = LimitTable(new_table_file(), shared=False).region("r")
        self.handle = self.region.handle(b"key")
        self.untold = [0] * count
        self.passed = 0


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 4), STEPS)
def test_too_much_is_what_was_not_told_yet(count: int, steps: list[tuple[str, int, int]]) -> None:
    """INVARIANT: whenever an instance lets a request through, all that passed in the fleet is at most burst + rate * time + what the
    others had let through and not told it."""
    nodes, begun = [Node(count) for _ in range(count)], 100.0
    now = begun
    for step, index, amount in steps:
        index %= count
        node = nodes[index]
        if step == "wait":
            now += amount / 4
        elif step == "tell":
            for other in range(count):
                if other != index and node.untold[other]:
                    nodes[other].region.charge(nodes[other].handle, now, node.untold[other] * INTERVAL, count * CAPACITY)
                    node.untold[other] = 0
        else:
            for _ in range(amount):
                if node.region.take(node.handle, now, INTERVAL, CAPACITY) >= 0.0:
                    node.passed += 1
                    node.untold = [each + 1 for each in node.untold]
                    pending = sum(other.untold[index] for other in nodes if other is not node)
                    assert pending <= (count - 1) * (BURST + (now - begun) / INTERVAL)
                    assert sum(each.passed for each in nodes) <= BURST + (now - begun) / INTERVAL + pending + 1e-6


def test_what_was_too_much_is_owed_up_to_a_burst_of_each() -> None:
    region = LimitTable(new_table_file(), shared=False).region("r")
    handle = region.handle(b"key")
    for _ in range(BURST):
        assert region.take(handle, 100.0, INTERVAL, CAPACITY) >= 0.0
    region.charge(handle, 100.0, 2 * CAPACITY, 3 * CAPACITY)
    assert region.take(handle, 100.0 + 2 * CAPACITY, INTERVAL, CAPACITY) < 0.0, "two bursts of others are paid back first"
    assert region.take(handle, 101.0 + 2 * CAPACITY, INTERVAL, CAPACITY) >= 0.0
    region.charge(handle, 200.0, 1e9, 3 * CAPACITY)
    assert region.take(handle, 201.0 + 2 * CAPACITY, INTERVAL, CAPACITY) >= 0.0, "nonsense closes a bucket for so long at most"


def test_a_charge_never_takes_a_debt_away() -> None:
    region = LimitTable(new_table_file(), shared=False).region("r")
    handle = region.handle(b"key")
    region.charge(handle, 100.0, 5 * CAPACITY, 5 * CAPACITY)
    region.charge(handle, 100.0, 1.0, 2 * CAPACITY)
    assert region.take(handle, 100.0 + 3 * CAPACITY, INTERVAL, CAPACITY) < 0.0
