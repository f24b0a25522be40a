"""Balance: how requests spread, with few endpoints and with many."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshguard.net.cluster.balance import FEW, Balancer, LeastRequest, RoundRobin
from meshguard.net.cluster.endpoint import Endpoint, parse_address


def endpoints(loads: list[int]) -> list[Endpoint]:
    made = []
    for number, load in enumerate(loads):
        endpoint = Endpoint(parse_address(f"10.0.{number >> 8}.{number & 255}:80"))
        endpoint.in_flight = load
        made.append(endpoint)
    return made


@given(st.lists(st.integers(0, 5), min_size=1, max_size=FEW), st.integers(0, 40))
def test_few_endpoints_get_the_exact_minimum(loads: list[int], turns: int) -> None:
    balancer = LeastRequest()
    among = endpoints(loads)
    for _ in range(turns):
        balancer.pick(among)
    assert balancer.pick(among).in_flight == min(loads)


@given(st.lists(st.integers(1, 5), min_size=FEW + 1, max_size=60), st.randoms(use_true_random=False))
def test_many_endpoints_never_get_the_worse_of_the_two_looked_at(loads: list[int], chance: random.Random) -> None:
    drawn: list[float] = []

    def draw() -> float:
        drawn.append(chance.random())
        return drawn[-1]

    balancer = LeastRequest(draw)
    among = endpoints(loads)
    for _ in range(2 * len(loads)):
        turn = (balancer._turn + 1) % len(among)
        drawn.clear()
        picked = balancer.pick(among)
        other = among[turn - 1 - int(drawn[0] * (len(among) - 1))]
        assert other is not among[turn]
        assert picked in (among[turn], other)
        assert picked.in_flight == min(among[turn].in_flight, other.in_flight)


@pytest.mark.parametrize("balancer", [LeastRequest(), RoundRobin()])
@pytest.mark.parametrize("count", [1, 2, 16, 100])
def test_an_idle_cluster_is_used_evenly(balancer: Balancer, count: int) -> None:
    among = endpoints([0] * count)
    counts = Counter(balancer.pick(among).key for _ in range(count * 10))
    assert set(counts.values()) == {10}


@pytest.mark.parametrize("count", [5, 16, 100])
def test_load_stays_level_when_requests_last_long(count: int) -> None:
    """Requests of very different length; the fullest endpoint stays near the average, as two choices promise."""
    chance = random.Random(7)
    balancer = LeastRequest(chance.random)
    among = endpoints([0] * count)
    running: list[Endpoint] = []
    for _ in range(count * 200):
        if len(running) >= count * 8:
            ended = running.pop(chance.randrange(len(running)))
            ended.in_flight -= 1
        picked = balancer.pick(among)
        picked.in_flight += 1
        running.append(picked)
    assert max(endpoint.in_flight for endpoint in among) <= 8 + 3


def test_a_slow_endpoint_gets_less() -> None:
    chance = random.Random(7)
    balancer = LeastRequest(chance.random)
    among = endpoints([0] * 4)
    running: list[tuple[int, Endpoint]] = []
    counts: Counter[str] = Counter()
    for now in range(4000):
        for entry in [entry for entry in running if entry[0] <= now]:
            running.remove(entry)
            entry[1].in_flight -= 1
        picked = balancer.pick(among)
        picked.in_flight += 1
        counts[picked.key] += 1
        running.append((now + (40 if picked is among[0] else 4), picked))
    slow = counts.pop(among[0].key)
    assert slow < min(counts.values()) / 2


def test_round_robin_keeps_its_place_when_the_set_shrinks() -> None:
    balancer = RoundRobin()
    among = endpoints([0] * 3)
    assert [balancer.pick(among) for _ in range(3)] == among
    assert balancer.pick(among[:2]) is among[0]
    assert balancer.pick(among[:1]) is among[0]
