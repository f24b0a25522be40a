"""Passive health: ejection, its growth and end, its limits, and panic."""

from __future__ import annotations

import dataclasses

import pytest

from meshguard.model.reasons import (
    BODY_TOO_LARGE,
    CIRCUIT_OPEN,
    CONNECT_FAILED,
    NO_ENDPOINT,
    UPSTREAM_RESET,
    UPSTREAM_TIMEOUT,
    Reason,
)
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.ejection import BLAMED
from meshguard.net.cluster.settings import ClusterSettings, EjectionSettings
from tests.net.cluster_parts import Asking, Clock, balanced, build, run, turns

KEYS = tuple(f"127.0.0.{n}:80" for n in range(1, 5))
FOUR = ClusterSettings(endpoints=KEYS, ejection=EjectionSettings(consecutive_failures=3, eject_s=10, max_percent=50))


def states(cluster: Cluster) -> list[str]:
    return [endpoint.state for endpoint in cluster.snapshot().endpoints]


def fail(cluster: Cluster, key: str, times: int = 3, reason: Reason | None = UPSTREAM_RESET) -> None:
    for _ in range(times):
        cluster.failed(cluster.members.endpoints[key], reason)


def pass_time(cluster: Cluster, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    cluster.sweep(clock.now)


def test_failures_in_a_row_eject_and_time_brings_back() -> None:
    cluster, _, clock = build(FOUR)
    fail(cluster, KEYS[0])
    assert states(cluster) == ["ejected", "unknown", "unknown", "unknown"]
    assert [endpoint.key for endpoint in cluster.members.usable] == list(KEYS[1:])
    pass_time(cluster, clock, 9.9)
    assert states(cluster)[0] == "ejected"
    pass_time(cluster, clock, 0.1)
    assert states(cluster)[0] == "unknown"
    assert len(cluster.members.usable) == 4


def test_a_success_in_between_counts_from_the_start() -> None:
    cluster, _, _ = build(FOUR)
    endpoint = cluster.members.endpoints[KEYS[0]]
    fail(cluster, KEYS[0], 2)
    cluster.answered(endpoint, 200)
    fail(cluster, KEYS[0], 2)
    assert endpoint.usable
    cluster.answered(endpoint, 500)  # the application's own failure: it was reached
    assert endpoint.failures == 0


def test_gateway_statuses_count_as_configured() -> None:
    cluster, _, _ = build(dataclasses.replace(FOUR, ejection=dataclasses.replace(FOUR.ejection, statuses=frozenset({503}))))
    endpoint = cluster.members.endpoints[KEYS[0]]
    for status in (502, 503, 503, 502, 503, 503):
        cluster.answered(endpoint, status)
    assert endpoint.usable
    cluster.answered(endpoint, 503)
    assert not endpoint.usable


@pytest.mark.parametrize("reason", [CIRCUIT_OPEN, BODY_TOO_LARGE, NO_ENDPOINT])
def test_other_peoples_faults_do_not_count(reason: Reason) -> None:
    cluster, _, _ = build(FOUR)
    fail(cluster, KEYS[0], 10, reason)
    assert states(cluster)[0] == "unknown"


@pytest.mark.parametrize("reason", [pytest.param(reason, id=reason.code) for reason in sorted(BLAMED, key=lambda reason: reason.code)])
def test_the_endpoints_faults_count(reason: Reason) -> None:
    cluster, _, _ = build(FOUR)
    fail(cluster, KEYS[0], 3, reason)
    assert states(cluster)[0] == "ejected"


def test_each_ejection_lasts_longer_up_to_a_cap_and_calm_forgives() -> None:
    cluster, _, clock = build(FOUR)
    endpoint = cluster.members.endpoints[KEYS[0]]
    lasted = []
    for _ in range(6):
        fail(cluster, KEYS[0])
        lasted.append(endpoint.ejected_until - clock.now)
        pass_time(cluster, clock, lasted[-1])
        assert endpoint.usable
    assert lasted == [10, 20, 40, 80, 100, 100]
    level = endpoint.ejection_level
    pass_time(cluster, clock, 10)
    assert endpoint.ejection_level == level - 1
    for _ in range(20):
        pass_time(cluster, clock, 10)
    fail(cluster, KEYS[0])
    assert endpoint.ejected_until - clock.now == 10


def test_no_more_than_max_percent_are_ejected() -> None:
    cluster, _, clock = build(FOUR)
    for key in KEYS:
        fail(cluster, key)
    assert states(cluster) == ["ejected", "ejected", "unknown", "unknown"]
    pass_time(cluster, clock, 10)
    fail(cluster, KEYS[2], 1)  # its failures stand, and now there is room
    assert states(cluster) == ["unknown", "unknown", "ejected", "unknown"]


def test_the_only_endpoint_stays_unless_all_may_go() -> None:
    one = dataclasses.replace(FOUR, endpoints=KEYS[:1])
    cluster, _, _ = build(one)
    fail(cluster, KEYS[0], 50)
    assert states(cluster) == ["unknown"]
    cluster.reconfigure(dataclasses.replace(one, ejection=dataclasses.replace(one.ejection, max_percent=100)))
    fail(cluster, KEYS[0], 1)
    assert states(cluster) == ["ejected"]


def test_unhealthy_endpoints_leave_less_room_for_ejection() -> None:
    cluster, _, _ = build(FOUR)
    for key in KEYS[:2]:
        cluster._verdict(cluster.members.endpoints[key], False)
    fail(cluster, KEYS[2])
    assert states(cluster) == ["unhealthy", "unhealthy", "unknown", "unknown"]


def test_an_unhealthy_endpoint_is_ejected_without_taking_room() -> None:
    cluster, _, _ = build(dataclasses.replace(FOUR, endpoints=KEYS[:2]))
    cluster._verdict(cluster.members.endpoints[KEYS[0]], False)
    fail(cluster, KEYS[0])
    cluster._verdict(cluster.members.endpoints[KEYS[0]], True)
    assert states(cluster) == ["ejected", "unknown"]


def test_an_endpoint_that_came_back_has_a_fresh_count() -> None:
    cluster, _, clock = build(FOUR)
    fail(cluster, KEYS[0])
    fail(cluster, KEYS[0], 2)  # requests that were under way
    pass_time(cluster, clock, 10)
    fail(cluster, KEYS[0], 2)
    assert states(cluster)[0] == "unknown"
    fail(cluster, KEYS[0], 1)
    assert states(cluster)[0] == "ejected"


def test_zero_turns_it_off() -> None:
    cluster, _, _ = build(dataclasses.replace(FOUR, ejection=EjectionSettings(consecutive_failures=0)))
    fail(cluster, KEYS[0], 100)
    assert states(cluster)[0] == "unknown"


def test_the_idle_connections_of_an_ejected_endpoint_are_closed() -> None:
    async def story() -> None:
        cluster, network, _ = build(FOUR)
        calls = [Asking() for _ in range(8)]
        for call in calls:
            cluster.submit(call)
            await turns()
        for call in calls:
            cluster.release(call.conn)
        fail(cluster, KEYS[0])
        assert {wire.endpoint.key for wire in network.opened if wire.closed} == {KEYS[0]}
        balanced(cluster)
        await cluster.close()

    run(story())


def test_failed_dials_eject() -> None:
    async def story() -> None:
        cluster, network, _ = build(FOUR)
        network.down = {KEYS[0]}
        for _ in range(40):
            call = Asking()
            cluster.submit(call)
            await turns(10)
            cluster.release(call.conn)
            cluster.recycle()
        assert states(cluster)[0] == "ejected"
        assert cluster.snapshot().connect_failures == 3
        assert cluster.snapshot().ejections == 1
        await cluster.close()

    run(story())


def test_all_out_is_a_refusal() -> None:
    async def story() -> None:
        cluster, network, clock = build(dataclasses.replace(FOUR, ejection=dataclasses.replace(FOUR.ejection, max_percent=100)))
        for key in KEYS:
            fail(cluster, key, 3, UPSTREAM_TIMEOUT)
        assert cluster.checkout() is None
        call = Asking()
        cluster.submit(call)
        assert call.reason is NO_ENDPOINT
        assert network.dials == 0
        assert not cluster.snapshot().ready
        clock.now += 10.0  # comes back without waiting for the sweep
        late = Asking()
        cluster.submit(late)
        await turns()
        assert late.answers == 1
        assert network.dials == 1
        await cluster.close()

    run(story())


def test_panic_uses_all_when_too_few_are_left() -> None:
    cluster, _, _ = build(dataclasses.replace(FOUR, panic_percent=50))
    for key in KEYS[:2]:
        cluster._verdict(cluster.members.endpoints[key], False)
    assert len(cluster.members.usable) == 2
    assert not cluster.snapshot().panic
    cluster._verdict(cluster.members.endpoints[KEYS[2]], False)
    assert len(cluster.members.usable) == 4
    assert cluster.snapshot().panic
    cluster._verdict(cluster.members.endpoints[KEYS[2]], True)
    assert [endpoint.key for endpoint in cluster.members.usable] == [KEYS[2], KEYS[3]]


def test_flapping_dns_does_not_wipe_an_ejection() -> None:
    async def story() -> None:
        cluster, _, _ = build(FOUR)
        call = Asking()
        call.excluded = {cluster.members.endpoints[key] for key in KEYS[1:]}
        cluster.submit(call)
        await turns()
        fail(cluster, KEYS[0])
        cluster.reconfigure(dataclasses.replace(FOUR, endpoints=KEYS[1:]))
        assert states(cluster) == ["unknown", "unknown", "unknown", "leaving"]
        cluster.reconfigure(FOUR)
        assert states(cluster) == ["ejected", "unknown", "unknown", "unknown"]
        balanced(cluster)
        await cluster.close()

    run(story())


def test_connect_failed_of_a_leaving_endpoint_changes_nothing() -> None:
    async def story() -> None:
        cluster, _, _ = build(FOUR)
        endpoint = cluster.members.endpoints[KEYS[0]]
        cluster.reconfigure(dataclasses.replace(FOUR, endpoints=KEYS[1:]))
        for _ in range(5):
            cluster.failed(endpoint, CONNECT_FAILED)
        assert states(cluster) == ["unknown"] * 3
        await cluster.close()

    run(story())
