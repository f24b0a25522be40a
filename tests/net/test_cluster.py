"""Checkout, submit, release: who gets which connection, with a steered network and a fake clock."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections import Counter

import pytest

from meshguard.model.errors import UpstreamError
from meshguard.model.reasons import (
    CIRCUIT_OPEN,
    CONNECT_FAILED,
    CONNECT_TIMEOUT,
    NO_ENDPOINT,
    UPSTREAM_RESET,
    UPSTREAM_TLS_FAILED,
    Reason,
)
from meshguard.net.cluster.cluster import Cluster
from meshguard.net.cluster.endpoint import Connection, Endpoint, parse_address
from meshguard.net.cluster.pool import MAX_DIALS
from meshguard.net.cluster.settings import CircuitSettings, ClusterSettings, RetrySettings, TimeoutSettings
from meshguard.net.cluster.tasks import Tasks
from tests.net.cluster_parts import Asking, Wire, balanced, build, run, turns

A, B, C = "127.0.0.1:80", "127.0.0.2:80", "127.0.0.3:80"
ONE = ClusterSettings(endpoints=(A,))
TWO = ClusterSettings(endpoints=(A, B))


def ends(cluster: Cluster, key: str) -> Endpoint:
    return cluster.members.endpoints[key]


async def ask(cluster: Cluster, *, excluded: frozenset[Endpoint] = frozenset()) -> Asking:
    call = Asking()
    call.excluded = excluded
    cluster.submit(call)
    await turns()
    return call


def limited(**circuit: float) -> ClusterSettings:
    return dataclasses.replace(ONE, circuit=dataclasses.replace(CircuitSettings(), **circuit))  # type: ignore[arg-type]


class TestPool:
    def test_the_first_request_dials_and_the_next_reuses(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE)
            assert cluster.checkout() is None
            call = await ask(cluster)
            cluster.release(call.conn)
            assert cluster.checkout() is call.conn
            assert network.dials == 1
            balanced(cluster)
            await cluster.close()

        run(story())

    @pytest.mark.parametrize("balance", ["least_request", "round_robin"])
    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_one_request_after_another_uses_every_endpoint(self, balance: str, count: int) -> None:
        async def story() -> None:
            keys = tuple(f"127.0.0.{n}:80" for n in range(1, count + 1))
            cluster, _, _ = build(ClusterSettings(endpoints=keys, balance=balance))  # type: ignore[arg-type]
            used: Counter[str] = Counter()
            for _ in range(10 * count):
                conn = cluster.checkout()
                if conn is None:
                    conn = (await ask(cluster)).conn
                used[conn.endpoint.key] += 1
                cluster.release(conn)
            assert used == dict.fromkeys(keys, 10)
            await cluster.close()

        run(story())

    def test_the_freshest_connection_goes_first(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(ONE)
            calls = [await ask(cluster) for _ in range(3)]
            for call in calls:
                cluster.release(call.conn)
            assert [cluster.checkout() for _ in range(3)] == [call.conn for call in reversed(calls)]
            await cluster.close()

        run(story())

    def test_a_connection_that_died_in_the_pool_is_never_handed_out(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE)
            first, second = await ask(cluster), await ask(cluster)
            cluster.release(first.conn)
            cluster.release(second.conn)
            network.opened[1].closed = True  # the loss was not reported yet
            assert cluster.checkout() is first.conn
            assert not cluster.lost(second.conn)
            cluster.release(first.conn)
            network.opened[0].peer_closes()
            assert cluster.checkout() is None
            balanced(cluster)
            assert cluster.books().connections == 0
            await cluster.close()

        run(story())

    def test_a_second_release_cannot_put_a_connection_into_the_pool_twice(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(ONE)
            call = await ask(cluster)
            cluster.release(call.conn)
            cluster.release(call.conn)
            assert call.conn.closed
            assert cluster.checkout() is None
            assert cluster.strays == 1
            assert cluster.books().connections == cluster.books().in_flight == 0
            cluster.discard(call.conn)
            assert cluster.strays == 2
            await cluster.close()

        run(story())

    def test_a_stray_leaves_the_pool_even_when_its_close_reports_nothing(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE)
            network.cluster = None
            call = await ask(cluster)
            cluster.release(call.conn)
            cluster.release(call.conn)
            assert not ends(cluster, A).idle
            assert cluster.books().connections == 0
            await cluster.close()

        run(story())

    def test_discard_and_a_closed_connection_free_their_place(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE)
            first, second = await ask(cluster), await ask(cluster)
            cluster.discard(first.conn)
            network.opened[1].closed = True
            cluster.release(second.conn)
            assert first.conn.closed
            assert cluster.books()[:2] == (0, 0)
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_the_idle_pool_is_bounded(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(limited(max_idle=2))
            for call in [await ask(cluster) for _ in range(5)]:
                cluster.release(call.conn)
            assert [wire.closed for wire in network.opened] == [False, False, True, True, True]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_the_sweep_closes_what_was_idle_for_too_long_and_nothing_else(self) -> None:
        async def story() -> None:
            cluster, network, clock = build(dataclasses.replace(ONE, timeouts=TimeoutSettings(idle_s=60)))
            calls = [await ask(cluster) for _ in range(3)]
            cluster.release(calls[0].conn)
            clock.now += 30
            cluster.sweep(clock.now)
            cluster.release(calls[1].conn)
            clock.now += 30
            cluster.sweep(clock.now)
            assert [wire.closed for wire in network.opened] == [True, False, False]
            clock.now += 30
            cluster.sweep(clock.now)
            assert [wire.closed for wire in network.opened] == [True, True, False]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_checkout_respects_the_limit_in_flight(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(limited(max_in_flight=2))
            calls = [await ask(cluster) for _ in range(2)]
            cluster.release(calls[0].conn)
            cluster.reconfigure(limited(max_in_flight=1))
            assert cluster.checkout() is None
            cluster.release(calls[1].conn)
            assert cluster.checkout() is not None
            await cluster.close()

        run(story())


class TestLine:
    def test_a_released_connection_goes_to_the_oldest_waiting_call(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(limited(max_connections=1, queue=3))
            held = await ask(cluster)
            waiting = [await ask(cluster) for _ in range(3)]
            refused = await ask(cluster)
            assert refused.reason is CIRCUIT_OPEN
            conn = held.conn
            for call in waiting:
                assert call.answers == 0
                cluster.release(conn)
                assert call.conn is conn
            assert network.dials == 1
            assert cluster.snapshot().circuit_rejections == 1
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_call_does_not_wait_for_its_dial_when_a_connection_comes_free(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE, automatic=False)
            first, second, third = Asking(), Asking(), Asking()
            cluster.submit(first)
            await turns()
            network.finish()
            await turns()
            cluster.submit(second)
            await turns()
            cluster.release(first.conn)
            assert second.conn is first.conn
            balanced(cluster)
            cluster.submit(third)  # takes over the spare dial
            await turns()
            assert network.dials == 2
            network.finish()
            await turns()
            assert third.conn is network.opened[1]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_dial_taken_over_may_fail_without_failing_who_took_it(self) -> None:
        """It had used up its time for somebody else; but only once, so that a dead endpoint is known at last."""

        async def story() -> None:
            cluster, network, _ = build(ONE, automatic=False)
            first, second, third, fourth = Asking(), Asking(), Asking(), Asking()
            cluster.submit(first)
            await turns()
            network.finish()
            await turns()
            for late, answers in ((third, True), (fourth, False)):
                cluster.submit(second)
                await turns()
                cluster.release(first.conns[-1])  # to the second; its dial is spare
                first.conns.append(second.conns[-1])
                cluster.submit(late)  # takes it over
                await turns()
                network.finish(error=TimeoutError())
                await turns()
                assert late.answers == 0
                balanced(cluster)
                network.finish(error=None if answers else TimeoutError())
                await turns()
                assert (len(late.conns), len(late.refusals)) == ((1, 0) if answers else (0, 1))
                if answers:
                    cluster.discard(late.conn)
            assert network.dials == 5
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_cancelled_call_leaves_its_dial_to_the_pool(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE, automatic=False)
            call = Asking()
            cluster.submit(call)
            await turns()
            cluster.cancel(call)
            cluster.cancel(call)
            assert cluster.books().in_flight == 0
            balanced(cluster)
            network.finish()
            await turns()
            assert call.answers == 0
            assert cluster.checkout() is network.opened[0]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_the_next_in_line_takes_over_the_dial_of_a_cancelled_call(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(limited(max_in_flight=1), automatic=False)
            gone, follower = Asking(), Asking()
            cluster.submit(gone)
            cluster.submit(follower)
            await turns()
            assert cluster.books().queued == 1
            cluster.cancel(gone)
            assert cluster.books().queued == 0
            balanced(cluster)
            network.finish()
            await turns()
            assert follower.conn is network.opened[0]
            assert network.dials == 1
            await cluster.close()

        run(story())

    def test_a_spare_connection_does_not_lift_a_lowered_limit(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(limited(max_in_flight=3), automatic=False)
            calls = [Asking() for _ in range(3)]
            for call in calls:
                cluster.submit(call)
            await turns()
            network.finish()
            network.finish()
            await turns()
            cluster.cancel(calls[2])
            cluster.reconfigure(limited(max_in_flight=1))
            waiting = Asking()
            cluster.submit(waiting)
            network.finish()
            await turns()
            assert waiting.answers == 0
            cluster.release(calls[0].conn)
            assert waiting.answers == 0
            cluster.release(calls[1].conn)
            assert waiting.conn is calls[1].conn
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_cancel_frees_the_place_in_the_queue(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(limited(max_connections=1, queue=1))
            held = await ask(cluster)
            gone = await ask(cluster)
            cluster.cancel(gone)
            follower = await ask(cluster)
            cluster.release(held.conn)
            assert follower.conn is held.conn
            assert gone.answers == 0
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_call_waits_no_longer_than_the_queue_allows(self) -> None:
        async def story() -> None:
            cluster, _, clock = build(limited(max_in_flight=1, queue=5, queue_timeout_s=2.0))
            held = await ask(cluster)
            early = await ask(cluster)
            clock.now += 1.5
            late = await ask(cluster)
            clock.now += 0.6
            cluster.expire()
            assert early.reason is CIRCUIT_OPEN
            cluster.release(held.conn)
            assert late.conn is held.conn
            assert cluster.snapshot().queue_timeouts == 1
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_the_queue_deadline_has_a_real_timer(self) -> None:
        async def story() -> None:
            loop = asyncio.get_running_loop()
            network_cluster = Cluster("app", limited(max_in_flight=1, queue_timeout_s=0.05), _open, loop.time)
            held, waiting = Asking(), Asking()
            network_cluster.submit(held)
            await held.done.wait()
            started = loop.time()
            network_cluster.submit(waiting)
            await waiting.done.wait()
            assert waiting.reason is CIRCUIT_OPEN
            assert 0.04 < loop.time() - started < 2
            await network_cluster.close()

        run(story())

    def test_waiting_calls_use_the_room_that_discard_makes(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(limited(max_connections=1))
            held = await ask(cluster)
            waiting = await ask(cluster)
            cluster.discard(held.conn, UPSTREAM_RESET)
            await turns()
            assert waiting.conn is network.opened[1]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_answers_do_not_nest_however_long_the_line(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(limited(max_connections=1, queue=3000))
            held = await ask(cluster)
            order: list[int] = []

            def give_back(number: int, conn: Connection) -> None:
                order.append(number)
                cluster.release(conn)

            for number in range(3000):
                cluster.submit(Asking(lambda conn, number=number: give_back(number, conn)))  # type: ignore[misc]
            cluster.release(held.conn)
            assert order == list(range(3000))
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_call_cancelled_between_grant_and_answer_gives_its_connection_on(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(limited(max_connections=2), automatic=False)
            second, third = Asking(), Asking()

            def first_takes_both(conn: Connection) -> None:
                # both releases are granted before either call hears of it
                cluster.cancel(second)

            blocker = [Asking(), Asking()]
            for call in blocker:
                cluster.submit(call)
            await turns()
            network.finish()
            network.finish()
            await turns()
            first = Asking(lambda conn: (cluster.release(blocker[1].conn), first_takes_both(conn))[0])  # type: ignore[func-returns-value]
            for call in (first, second, third):
                cluster.submit(call)
            cluster.release(blocker[0].conn)
            assert second.answers == 0
            assert first.conn is blocker[0].conn
            assert third.conn is blocker[1].conn
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_call_that_raises_hurts_nobody_and_leaks_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        async def story() -> None:
            cluster, _, _ = build(limited(max_connections=1))
            held = await ask(cluster)

            def explode(conn: Connection) -> None:
                raise ValueError("a broken exchange")

            cluster.submit(Asking(explode))
            follower = await ask(cluster)
            cluster.release(held.conn)  # does not raise
            await turns()
            assert held.conn.closed
            assert follower.conn is not held.conn
            balanced(cluster)
            await cluster.close()

        run(story())
        assert "a broken exchange" in caplog.text

    def test_a_waiting_call_cannot_be_submitted_again(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(ONE, automatic=False)
            call = Asking()
            cluster.submit(call)
            with pytest.raises(RuntimeError, match="waiting"):
                cluster.submit(call)
            await cluster.close()

        run(story())

    def test_a_storm_dials_a_bounded_number_at_once(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE, automatic=False)
            calls = [Asking() for _ in range(500)]
            for call in calls:
                cluster.submit(call)
            widest = 0
            while any(call.answers == 0 for call in calls):
                await turns()
                widest = max(widest, len(network.pending))
                balanced(cluster)
                for _ in range(len(network.pending)):
                    network.finish()
            assert widest == MAX_DIALS
            assert len({call.conn for call in calls}) == 500
            await cluster.close()

        run(story())


async def _open(endpoint: Endpoint) -> Connection:
    return Wire(endpoint)


class TestConnectFailures:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (ConnectionRefusedError(111, "Connection refused"), CONNECT_FAILED),
            (TimeoutError(110, "timed out"), CONNECT_TIMEOUT),
            (ssl.SSLCertVerificationError("unable to verify"), UPSTREAM_TLS_FAILED),
            (UpstreamError(UPSTREAM_TLS_FAILED, "wrong SPIFFE ID"), UPSTREAM_TLS_FAILED),
            (ZeroDivisionError("a bug"), CONNECT_FAILED),
        ],
    )
    def test_each_failure_has_its_reason(self, error: Exception, reason: Reason) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE, automatic=False)
            call = Asking()
            cluster.submit(call)
            await turns()
            network.finish(error=error)
            await turns()
            assert call.reason is reason
            assert cluster.books() == (0, 0, 0, 0, 0, 1)
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_dial_that_is_cancelled_from_outside_answers_its_call(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE, automatic=False)
            call = Asking()
            cluster.submit(call)
            await turns()
            network.finish(error=asyncio.CancelledError())
            await turns()
            assert call.reason is CONNECT_FAILED
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_dial_has_a_deadline_and_is_cancelled_by_it(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(dataclasses.replace(ONE, timeouts=TimeoutSettings(connect_s=0.03)), automatic=False)
            call = Asking()
            cluster.submit(call)
            await call.done.wait()
            assert call.reason is CONNECT_TIMEOUT
            assert not network.pending
            await cluster.close()

        run(story())

    def test_another_endpoint_is_tried(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(dataclasses.replace(TWO, balance="round_robin"))
            network.down = {A}
            calls = [await ask(cluster) for _ in range(4)]
            await turns(20)
            assert {call.conn.endpoint.key for call in calls} == {B}
            assert cluster.snapshot().retries == 2
            assert cluster.snapshot().connect_failures == 2
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_all_endpoints_down_gives_the_last_reason_once(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(TWO)
            network.down = {A, B}
            call = await ask(cluster)
            await turns(20)
            assert call.reason is CONNECT_FAILED
            assert call.answers == 1
            assert network.dials == 2
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_connect_retries_stay_within_attempts(self) -> None:
        async def story() -> None:
            five = tuple(f"127.0.0.{n}:80" for n in range(1, 6))
            cluster, network, _ = build(ClusterSettings(endpoints=five, retries=RetrySettings(attempts=2)))
            network.down = set(five)
            call = await ask(cluster)
            await turns(30)
            assert call.reason is CONNECT_FAILED
            assert network.dials == 3
            await cluster.close()

        run(story())

    def test_connect_retries_stay_within_the_budget(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(dataclasses.replace(TWO, balance="round_robin"), automatic=False)
            network.down = {A}
            calls = [Asking() for _ in range(40)]
            for call in calls:
                cluster.submit(call)
            await turns()
            for _ in range(len(network.pending)):
                if network.pending[0][0].key == A:
                    network.finish()
                else:
                    network.pending.append(network.pending.pop(0))
            await turns()
            # 20 of 40 dials failed at once; 20 % of those in flight may be retried, and the share shrinks with each refusal
            refused = sum(1 for call in calls if call.refusals)
            assert 3 <= cluster.budget.active <= 8
            assert refused == 20 - cluster.budget.active
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_connection_that_is_closed_at_birth_is_a_failure(self) -> None:
        async def story() -> None:
            async def stillborn(endpoint: Endpoint) -> Connection:
                wire = Wire(endpoint)
                wire.close()
                return wire

            cluster = Cluster("app", ONE, stillborn)
            call = await ask(cluster)
            assert call.reason is CONNECT_FAILED
            balanced(cluster)
            await cluster.close()

        run(story())


class TestRetry:
    def test_a_retry_gets_a_new_connection_and_counts_until_it_is_over(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE)
            first, other = await ask(cluster), await ask(cluster)
            cluster.release(first.conn)
            cluster.release(other.conn)
            conn = cluster.checkout()
            assert conn is not None
            cluster.discard(conn)
            call = Asking()
            assert cluster.may_retry(call)
            cluster.submit(call)
            await turns()
            assert call.conn is network.opened[2]  # not the other pooled one
            assert cluster.budget.active == 1
            balanced(cluster)
            cluster.release(call.conn)
            assert cluster.budget.active == 0
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_the_budget_bounds_retries_in_flight(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(dataclasses.replace(ONE, retries=RetrySettings(attempts=1, budget_percent=20)))
            for _ in range(30):
                await ask(cluster)
            granted = []
            for _ in range(20):
                call = Asking()
                if cluster.may_retry(call):
                    cluster.submit(call)
                    granted.append(call)
                await turns()
            # n retries on top of 30 calls: the last is granted while n - 1 < 20 % of 30 + n - 1
            assert len(granted) == 7
            assert not cluster.may_retry(granted[0])
            cluster.discard(granted[0].conn)
            assert not cluster.may_retry(granted[0])  # its attempts are used up
            assert cluster.may_retry(Asking())
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_excluded_endpoints_are_avoided_while_there_are_others(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(TWO)
            away = [await ask(cluster, excluded=frozenset({ends(cluster, A)})) for _ in range(6)]
            assert {call.conn.endpoint.key for call in away} == {B}
            everywhere = await ask(cluster, excluded=frozenset({ends(cluster, A), ends(cluster, B)}))
            assert everywhere.conn.endpoint.key in {A, B}
            await cluster.close()

        run(story())

    def test_a_waiting_call_is_not_given_a_connection_of_an_excluded_endpoint(self) -> None:
        async def story() -> None:
            settings = dataclasses.replace(TWO, circuit=CircuitSettings(max_connections=1))
            cluster, _, _ = build(settings)
            held = await ask(cluster, excluded=frozenset({ends(cluster, B)}))
            assert held.conn.endpoint.key == A
            waiting = await ask(cluster, excluded=frozenset({ends(cluster, A)}))
            cluster.release(held.conn)
            await turns()
            assert held.conn.closed  # made room
            assert waiting.conn.endpoint.key == B
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_idle_connections_elsewhere_make_room(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(dataclasses.replace(TWO, circuit=CircuitSettings(max_connections=2)))
            for call in [await ask(cluster, excluded=frozenset({ends(cluster, B)})) for _ in range(2)]:
                cluster.release(call.conn)
            call = await ask(cluster, excluded=frozenset({ends(cluster, A)}))
            assert call.conn.endpoint.key == B
            assert [wire.closed for wire in network.opened] == [True, False, False]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_the_longest_idle_connection_makes_room_first(self) -> None:
        async def story() -> None:
            circuit = CircuitSettings(max_connections=2)
            cluster, network, clock = build(ClusterSettings(endpoints=(A, B, C), circuit=circuit))
            first, second = await ask(cluster), await ask(cluster)
            cluster.release(second.conn)
            clock.now += 5
            cluster.sweep(clock.now)
            cluster.release(first.conn)
            third = next(iter({A, B, C} - {first.conn.endpoint.key, second.conn.endpoint.key}))
            others = frozenset({first.conn.endpoint, second.conn.endpoint})
            call = await ask(cluster, excluded=others)
            assert call.conn.endpoint.key == third
            assert [wire.closed for wire in network.opened] == [False, True, False]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_who_waits_for_another_endpoint_keeps_its_turn(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(dataclasses.replace(TWO, circuit=CircuitSettings(max_connections=1)))
            held = await ask(cluster, excluded=frozenset({ends(cluster, B)}))
            picky = await ask(cluster, excluded=frozenset({ends(cluster, A)}))
            easy = await ask(cluster)
            cluster.release(held.conn)
            await turns()
            assert picky.conn.endpoint.key == B
            assert easy.answers == 0
            cluster.release(picky.conn)
            assert easy.conn is picky.conn
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_connection_to_an_endpoint_that_fell_out_goes_to_nobody(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(dataclasses.replace(TWO, circuit=CircuitSettings(max_connections=1)))
            held = await ask(cluster, excluded=frozenset({ends(cluster, B)}))
            waiting = await ask(cluster)
            cluster._verdict(ends(cluster, A), False)
            cluster.release(held.conn)
            await turns()
            assert waiting.conn.endpoint.key == B
            assert held.conn.closed  # evicted for it
            balanced(cluster)
            await cluster.close()

        run(story())


class TestChanges:
    def test_endpoints_that_stay_keep_their_pool_and_those_that_go_finish(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(dataclasses.replace(TWO, balance="round_robin"))
            calls = {call.conn.endpoint.key: call for call in [await ask(cluster) for _ in range(2)]}
            idle = {call.conn.endpoint.key: call for call in [await ask(cluster) for _ in range(2)]}
            for call in idle.values():
                cluster.release(call.conn)
            cluster.reconfigure(dataclasses.replace(cluster.settings, endpoints=(B, C)))
            assert idle[A].conn.closed
            assert not calls[A].conn.closed
            assert not idle[B].conn.closed
            assert {state.key: state.state for state in cluster.snapshot().endpoints} == {B: "unknown", C: "unknown", A: "leaving"}
            balanced(cluster)
            cluster.release(calls[A].conn)
            assert calls[A].conn.closed
            assert A not in cluster.members.leaving
            assert {conn for _ in range(2) if (conn := cluster.checkout())} == {idle[B].conn}
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_call_whose_endpoint_goes_while_it_dials_is_placed_again(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE, automatic=False)
            call = Asking()
            cluster.submit(call)
            await turns()
            cluster.reconfigure(dataclasses.replace(ONE, endpoints=(B,)))
            await turns()
            assert [endpoint.key for endpoint, _ in network.pending] == [B]
            network.finish()
            await turns()
            assert call.conn.endpoint.key == B
            assert call.attempts == 0
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_no_endpoint_left_fails_those_who_wait(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(ONE, automatic=False)
            call = Asking()
            cluster.submit(call)
            await turns()
            cluster.reconfigure(dataclasses.replace(ONE, endpoints=()))
            assert call.reason is NO_ENDPOINT
            assert (await ask(cluster)).reason is NO_ENDPOINT
            assert not cluster.snapshot().ready
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_new_transport_retires_every_open_connection(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE, automatic=False)
            busy, idle, dialling = Asking(), Asking(), Asking()
            for call in (busy, idle):
                cluster.submit(call)
                await turns()
                network.finish()
                await turns()
            cluster.release(idle.conn)
            cluster.submit(dialling)
            assert dialling.conn is idle.conn
            cluster.release(dialling.conn)
            waiting = Asking()
            waiting.attempts = 1  # a retry: dials although there is an idle connection
            cluster.submit(waiting)
            await turns()
            renewed: list[Wire] = []

            async def connect(endpoint: Endpoint) -> Connection:
                renewed.append(Wire(endpoint))
                return renewed[-1]

            cluster.reconfigure(ONE, connect)
            await turns()
            assert idle.conn.closed
            assert not network.pending
            assert waiting.conn is renewed[0]
            assert not busy.conn.closed
            balanced(cluster)
            cluster.release(busy.conn)
            assert busy.conn.closed
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_wider_limits_serve_those_who_wait_at_once(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(limited(max_connections=1))
            await ask(cluster)
            waiting = await ask(cluster)
            cluster.reconfigure(limited(max_connections=2))
            await turns()
            assert waiting.answers == 1
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_smaller_idle_pool_closes_the_oldest(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(ONE)
            for call in [await ask(cluster) for _ in range(4)]:
                cluster.release(call.conn)
            cluster.reconfigure(limited(max_idle=1))
            assert [wire.closed for wire in network.opened] == [True, True, True, False]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_a_dial_that_was_given_up_but_succeeds_is_closed(self) -> None:
        async def story() -> None:
            opened: list[Wire] = []
            gate = asyncio.Event()

            async def stubborn(endpoint: Endpoint) -> Connection:
                wire = Wire(endpoint)
                opened.append(wire)
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    if len(opened) > 1:
                        raise
                return wire

            cluster = Cluster("app", ONE, stubborn)
            call = await ask(cluster)
            cluster.recycle()
            gate.set()
            await turns()
            assert opened[0].closed
            assert call.conn is opened[1]
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_drain_serves_to_the_end_and_pools_nothing(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(ONE)
            busy, idle = await ask(cluster), await ask(cluster)
            cluster.release(idle.conn)
            draining = asyncio.ensure_future(cluster.drain())
            await turns()
            assert idle.conn.closed
            late = await ask(cluster)
            cluster.release(busy.conn)
            await turns()
            assert not draining.done()
            cluster.release(late.conn)
            await asyncio.wait_for(draining, 1)
            assert late.conn.closed
            balanced(cluster)
            await cluster.close()

        run(story())

    def test_drain_of_a_quiet_cluster_returns(self) -> None:
        async def story() -> None:
            cluster, _, _ = build(ONE)
            await asyncio.wait_for(cluster.drain(), 1)
            await cluster.close()

        run(story())

    def test_close_answers_everybody_and_leaves_no_task(self) -> None:
        async def story() -> None:
            cluster, network, _ = build(limited(max_connections=3), automatic=False)
            held = Asking()
            cluster.submit(held)
            await turns()
            network.finish()
            await turns()
            calls = [Asking() for _ in range(5)]
            for call in calls:
                cluster.submit(call)
            await turns()
            await cluster.close()
            assert not network.pending
            assert len(asyncio.all_tasks()) == 1
            assert [call.reason for call in calls] == [NO_ENDPOINT] * 5
            assert held.conn.closed
            cluster.discard(held.conn)
            assert (await ask(cluster)).reason is NO_ENDPOINT
            assert cluster.books()[:4] == (0, 0, 0, 0)
            with pytest.raises(RuntimeError, match="closed"):
                cluster.reconfigure(ONE)

        run(story())


@pytest.mark.parametrize(
    ("text", "host", "port", "key"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80, "127.0.0.1:80"),
        ("[::1]:8443", "::1", 8443, "[::1]:8443"),
        ("Orders.Shop.:80", "orders.shop", 80, "orders.shop:80"),
    ],
)
def test_addresses(text: str, host: str, port: int, key: str) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.key) == (host, port, key)


@pytest.mark.parametrize(
    "text",
    ["", "a", "a:", ":80", "a:0", "a:65536", "a:+80", "a:٣", "::1:80", "[a]:80", "a b:80", "u@h:80", "a/b:80", "ä:80", ".:80", "a:8_0"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        ClusterSettings(endpoints=(text,))


class TestTasks:
    def test_one_failure_is_logged_and_takes_no_other_down(self, caplog: pytest.LogCaptureFixture) -> None:
        async def story() -> None:
            tasks = Tasks("owner")
            ended = asyncio.Event()

            async def fails() -> None:
                raise ValueError("a broken service")

            async def goes_on() -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

            tasks.spawn(fails(), "first")
            tasks.spawn(goes_on(), "second")
            await turns()
            assert len(tasks) == 1
            await tasks.close()
            assert ended.is_set()
            assert len(tasks) == 0
            with pytest.raises(RuntimeError, match="closed"):
                tasks.spawn(goes_on(), "third")

        run(story())
        assert "a broken service" in caplog.text

    def test_close_lets_a_cancellation_through(self) -> None:
        async def story() -> None:
            tasks = Tasks("owner")
            release = asyncio.Event()

            async def slow_to_end() -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    await release.wait()

            tasks.spawn(slow_to_end(), "slow")
            await turns()
            closing = asyncio.ensure_future(tasks.close())
            await turns()
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            release.set()
            await tasks.close()
            assert len(tasks) == 0

        run(story())
