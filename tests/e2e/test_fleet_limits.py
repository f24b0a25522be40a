"""Rate limits over a fleet of real processes and a real NATS server: what others let through counts, what was too much is owed, and
without the store each instance takes its share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.nats import NatsServer, needs_nats
from tests.harness.proxy import Proxy, eventually

pytestmark = needs_nats

POLICY = {"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}
NODES, BURST, HOUR = 3, 30, 3600
QUICK = {"retry_s": 0.05, "retry_max_s": 0.3, "answer_s": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("store")) as made:
        made.make_buckets()
        yield made


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, mesh: Mesh, server: NatsServer) -> Iterator[list[Proxy]]:
    made = []
    base: Path = tmp_path_factory.mktemp("limits")
    for number in range(NODES):
        directory = base / f"node{number}"
        directory.mkdir()
        limit = {"id": "all", "key": ["client_address", "header:x-k"], "requests": BURST, "per_s": HOUR, "scope": "fleet"}
        config = {
            "identity": mesh.identity(directory),
            "listeners": {"plain": {"tls": "none", "to": "app", "rate_limits": [limit]}},
            "clusters": {"app": mesh.endpoints()},
            "fleet": {"name": "prod", "servers": [server.url], "state": "fleet", "instance": f"node{number}", **QUICK},
            "drain_s": 1,
            # one of them with two processes, which share a bucket and are told once
            "workers": 2 if number == 0 else 1,
        }
        made.append(Proxy(directory, config, policies={"p.yaml": POLICY}))
    for node in made:
        node.start()
    for node in made:
        eventually(lambda node=node: told(node, "instances") >= NODES, "all instances", 15)
    yield made
    for node in made:
        node.stop()


def told(node: Proxy, name: str) -> float:
    """The largest over workers, of gauges; the sum of counters."""
    values = [0.0]
    for line in node.metrics().splitlines():
        if line.startswith(f"meshguard_fleet_limits_{name}"):
            values.append(float(line.rpartition(" ")[2]))
    return sum(values) if name.endswith("_total") else max(values)


def spend(node: Proxy, key: str, count: int) -> int:
    """How many of `count` requests pass."""
    passed = 0
    with RawClient(node.address("plain")) as client:
        for _ in range(count):
            answer = client.request(get("/", fields=[f"x-k: {key}"]))
            assert answer.status in (200, 429)
            passed += answer.status == 200
    return passed


def exchanged(nodes: list[Proxy], before: list[float], passed: list[int]) -> None:
    """Every instance has counted what the others let through."""
    for index, node in enumerate(nodes):
        wanted = before[index] + sum(passed) - passed[index]
        eventually(lambda node=node, wanted=wanted: told(node, "charged_total") >= wanted, "the exchange")


def charged(nodes: list[Proxy]) -> list[float]:
    return [told(node, "charged_total") for node in nodes]


def test_what_one_instance_lets_through_counts_in_all(nodes: list[Proxy]) -> None:
    before = charged(nodes)
    assert spend(nodes[0], "first", BURST + 5) == BURST
    exchanged(nodes, before, [BURST, 0, 0])
    for node in nodes:
        assert spend(node, "first", 3) == 0
        assert spend(node, f"other-{node.admin_port}", 1) == 1, "another key has a bucket of its own"


def test_too_much_is_bounded_and_owed(nodes: list[Proxy]) -> None:
    """All at once, before anybody could tell: at most one burst for each instance. What was too much is owed: with a rate of one each two
    minutes nobody gets anything again, neither soon nor by asking another instance."""
    before, passed = charged(nodes), [0] * NODES
    barrier = threading.Barrier(NODES)

    def run(index: int) -> None:
        barrier.wait(10)
        passed[index] = spend(nodes[index], "second", 2 * BURST)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(NODES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert BURST <= sum(passed) <= NODES * BURST
    exchanged(nodes, before, passed)
    assert [spend(node, "second", 2) for node in nodes] == [0] * NODES


def test_without_the_store_each_takes_its_share(nodes: list[Proxy], server: NatsServer) -> None:
    server.stop()
    for node in nodes:
        eventually(lambda node=node: told(node, "shares") == NODES, "the share")
    assert [spend(node, "third", BURST) for node in nodes] == [BURST // NODES] * NODES
    again: Any = nodes[1]
    again.stop()
    again.start()
    assert spend(again, "fourth", BURST) == BURST // NODES, "a start without the store knows how many there were"
    server.start()
    for node in nodes:
        eventually(lambda node=node: told(node, "shares") == 1, "the exchange again", 15)
    before = charged(nodes)
    assert spend(nodes[2], "fifth", BURST + 5) == BURST
    exchanged(nodes, before, [0, 0, BURST])
    assert spend(nodes[1], "fifth", 2) == 0
