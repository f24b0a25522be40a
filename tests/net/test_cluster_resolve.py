"""Name resolution: answers that change, fail, come late."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Sequence

import pytest

from meshguard.model.reasons import NO_ENDPOINT
from meshguard.net.cluster import resolve
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.resolve import is_literal, lookup
from meshguard.net.cluster.settings import CircuitSettings, ClusterSettings
from tests.net.cluster_parts import Asking, Network, balanced, run, turns

NAMED = ClusterSettings(endpoints=("orders.shop:80",), resolve="dns", refresh_s=0.02)


class Zone:
    """A name server: `answers` by name; a missing one fails, `gate` holds answers back."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers = {name.replace("_", "."): value for name, value in answers.items()}
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None
        self._served = asyncio.Condition()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if self.gate is not None:
            await self.gate.wait()
        try:
            if host not in self.answers:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return list(self.answers[host])
        finally:
            async with self._served:
                self._served.notify_all()

    async def served(self, times: int = 2) -> None:
        """Wait until the name was asked `times` times more and the answers have had their effect."""
        target = len(self.asked) + times
        async with asyncio.timeout(5), self._served:
            await self._served.wait_for(lambda: len(self.asked) >= target)
        await turns()


def build(settings: ClusterSettings, zone: Zone) -> tuple[Cluster, Network]:
    network = Network()
    cluster = Cluster("app", settings, network.connect, find=zone)
    network.cluster = cluster
    return cluster, network


def keys(cluster: Cluster) -> list[str]:
    return list(cluster.members.endpoints)


def test_every_address_of_a_name_becomes_an_endpoint() -> None:
    async def story() -> None:
        zone = Zone(orders_shop=["10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.1"])
        cluster, _ = build(NAMED, zone)
        assert not cluster.snapshot().ready
        cluster.start()
        await turns()
        assert keys(cluster) == ["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"]
        assert {endpoint.address.name for endpoint in cluster.members.endpoints.values()} == {"orders.shop"}
        assert cluster.snapshot().ready
        await cluster.close()

    run(story())


def test_changes_are_applied_and_what_stays_keeps_its_connections() -> None:
    async def story() -> None:
        zone = Zone(orders_shop=["10.0.0.1", "10.0.0.2"])
        cluster, network = build(dataclasses.replace(NAMED, balance="round_robin"), zone)
        cluster.start()
        await turns()
        calls = [Asking() for _ in range(4)]
        for call in calls:
            cluster.submit(call)
            await turns()
        for call in calls[:2]:
            cluster.release(call.conn)
        zone.answers["orders.shop"] = ["10.0.0.2", "10.0.0.3"]
        await zone.served()
        assert keys(cluster) == ["10.0.0.2:80", "10.0.0.3:80"]
        assert [(wire.endpoint.key, wire.closed) for wire in network.opened] == [
            ("10.0.0.1:80", True),  # idle and gone
            ("10.0.0.2:80", False),
            ("10.0.0.1:80", False),  # busy and gone: finishes
            ("10.0.0.2:80", False),
        ]
        for call in calls[2:]:
            cluster.release(call.conn)
        assert network.opened[2].closed
        balanced(cluster)
        await cluster.close()

    run(story())


def test_a_failed_refresh_keeps_the_last_good_set() -> None:
    async def story() -> None:
        zone = Zone(orders_shop=["10.0.0.1"])
        cluster, _ = build(NAMED, zone)
        cluster.start()
        await turns()
        del zone.answers["orders.shop"]
        await zone.served()
        assert keys(cluster) == ["10.0.0.1:80"]
        zone.answers["orders.shop"] = []  # an empty answer is no answer
        await zone.served()
        assert keys(cluster) == ["10.0.0.1:80"]
        await cluster.close()

    run(story())


def test_a_name_that_never_resolved_is_tried_again_and_calls_are_refused_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        zone = Zone()
        cluster, _ = build(dataclasses.replace(NAMED, refresh_s=0.05), zone)
        cluster.start()
        await turns()
        call = Asking()
        cluster.submit(call)
        assert call.reason is NO_ENDPOINT
        zone.answers["orders.shop"] = ["10.0.0.1"]
        await zone.served(1)
        late = Asking()
        cluster.submit(late)
        await turns()
        assert late.conn.endpoint.key == "10.0.0.1:80"
        await cluster.close()

    monkeypatch.setattr(resolve, "FIRST_RETRY_S", 0.01)
    run(story())


def test_the_pause_after_failures_grows_up_to_the_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 8:
            raise asyncio.CancelledError
        await turns(1)

    async def story() -> None:
        cluster, _ = build(dataclasses.replace(NAMED, refresh_s=10), Zone())
        cluster.start()
        await turns(60)
        await cluster.close()

    monkeypatch.setattr(resolve, "asyncio", _Patched(sleep))
    run(story())
    assert [round(pause, 9) for pause in pauses] == [pytest.approx(due, rel=0.11) for due in (0.25, 0.5, 1, 2, 4, 8, 10, 10)]


class _Patched:
    """asyncio with another sleep."""

    def __init__(self, sleep: object) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> object:
        return getattr(asyncio, name)


def test_calls_wait_for_the_first_answer() -> None:
    async def story() -> None:
        zone = Zone(orders_shop=["10.0.0.1"])
        zone.gate = asyncio.Event()
        cluster, _ = build(NAMED, zone)
        cluster.start()
        call = Asking()
        cluster.submit(call)
        await turns()
        assert call.answers == 0
        zone.gate.set()
        await turns(10)
        assert call.conn.endpoint.key == "10.0.0.1:80"
        balanced(cluster)
        await cluster.close()

    run(story())


def test_calls_that_waited_for_a_first_answer_learn_of_its_failure() -> None:
    async def story() -> None:
        zone = Zone()
        zone.gate = asyncio.Event()
        cluster, _ = build(NAMED, zone)
        cluster.start()
        call = Asking()
        cluster.submit(call)
        await turns()
        zone.gate.set()
        await turns(10)
        assert call.reason is NO_ENDPOINT
        await cluster.close()

    run(story())


def test_the_wait_for_a_first_answer_is_bounded() -> None:
    async def story() -> None:
        zone = Zone()
        zone.gate = asyncio.Event()
        cluster, _ = build(dataclasses.replace(NAMED, circuit=CircuitSettings(queue_timeout_s=0.05)), zone)
        cluster.start()
        call = Asking()
        cluster.submit(call)
        await call.done.wait()
        assert call.refusals
        await cluster.close()

    run(story())


def test_names_and_literals_mix_and_one_broken_name_hurts_no_other() -> None:
    async def story() -> None:
        zone = Zone(b_shop=["10.0.0.7"])
        mixed = dataclasses.replace(NAMED, endpoints=("a.shop:80", "b.shop:81", "127.0.0.1:82"))
        cluster, _ = build(mixed, zone)
        cluster.start()
        await turns()
        assert keys(cluster) == ["10.0.0.7:81", "127.0.0.1:82"]
        assert not {"127.0.0.1"} & set(zone.asked)
        await cluster.close()

    run(story())


def test_literals_need_no_task() -> None:
    async def story() -> None:
        cluster, _ = build(dataclasses.replace(NAMED, endpoints=("127.0.0.1:80", "[::1]:80")), Zone())
        assert cluster.snapshot().ready
        cluster.start()
        assert len(asyncio.all_tasks()) == 1
        assert keys(cluster) == ["127.0.0.1:80", "[::1]:80"]
        await cluster.close()

    run(story())


def test_a_reload_does_not_forget_what_was_resolved() -> None:
    async def story() -> None:
        zone = Zone(orders_shop=["10.0.0.1"])
        cluster, network = build(NAMED, zone)
        cluster.start()
        await turns()
        call = Asking()
        cluster.submit(call)
        await turns()
        cluster.release(call.conn)
        del zone.answers["orders.shop"]
        cluster.reconfigure(dataclasses.replace(NAMED, endpoints=("orders.shop:80", "billing.shop:80")))
        await turns()
        assert keys(cluster) == ["10.0.0.1:80"]
        assert cluster.checkout() is network.opened[0]
        zone.answers["billing.shop"] = ["10.0.0.9"]
        await zone.served(4)
        assert keys(cluster) == ["10.0.0.1:80", "10.0.0.9:80"]
        cluster.reconfigure(dataclasses.replace(NAMED, endpoints=("10.0.0.5:80",), resolve="static"))
        await turns()
        assert keys(cluster) == ["10.0.0.5:80"]
        assert len(asyncio.all_tasks()) == 1
        await cluster.close()

    run(story())


def test_a_resolver_that_hangs_or_raises_oddly_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        zone = Zone(orders_shop=["10.0.0.1"])
        zone.gate = asyncio.Event()  # never set: only the look-up's own deadline helps
        cluster, _ = build(NAMED, zone)
        cluster.start()
        async with asyncio.timeout(5):
            while len(zone.asked) < 3:  # noqa: ASYNC110 (the gate is shut, nothing reports)
                await asyncio.sleep(0.005)
        zone.gate.set()
        await zone.served(1)
        assert keys(cluster) == ["10.0.0.1:80"]
        await cluster.close()

    monkeypatch.setattr(resolve, "LOOKUP_S", 0.02)
    monkeypatch.setattr(resolve, "FIRST_RETRY_S", 0.01)
    run(story())


def test_the_system_resolver() -> None:
    async def story() -> None:
        assert set(await lookup("localhost", 80)) & {"127.0.0.1", "::1"}
        with pytest.raises(socket.gaierror):
            await lookup("does-not-exist.invalid", 80)

    run(story())


def test_literals() -> None:
    assert is_literal("127.0.0.1")
    assert is_literal("::1")
    assert not is_literal("localhost")
    assert not is_literal("127.1")
