"""Upstreams that are dead, slow, flaky or full: a clear answer, no hang, no crossed answer, no repeated unsafe request."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Town
from tests.harness.client import RawClient, get
from tests.harness.upstream import Exchange, raw

Dial = Callable[..., RawClient]


def test_dead(engine: str, dial: Dial, town: Town) -> None:
    started = time.monotonic()
    with dial(engine) as client:
        answer = client.request(get("/dead/x"))
        assert (answer.status, answer.problem["code"]) in ((502, "connect_failed"), (503, "no_endpoint"))
        assert client.request(get("/open/x")).status == 200
    assert time.monotonic() - started < 3
    record = town.proxy.decision(answer.decision_id)
    assert record["why"]["verdict"] != "deny"
    assert record["why"]["rule"] == "billing-open"


def test_slow_route(engine: str, dial: Dial, town: Town) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.gone()

    with town.upstream.on("/tight/x", silent), dial(engine) as client:
        started = time.monotonic()
        answer = client.request(get("/tight/x"))
        assert (answer.status, answer.problem["code"]) == (504, "upstream_timeout")
        assert 0.4 < time.monotonic() - started < 2.2
        assert client.request(get("/open/x")).status == 200


def test_total_deadline_cuts_visibly(engine: str, dial: Dial, town: Town) -> None:
    async def trickle(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        await exchange.gone()

    from tests.harness.strict import Truncated

    with town.upstream.on("/tight/t", trickle), dial(engine) as client:
        client.send(get("/tight/t"), expect="GET")
        with pytest.raises(Truncated):
            client.response()


def test_reset_before_any_answer(engine: str, dial: Dial, town: Town) -> None:
    for method in ("POST", "PATCH"):
        mark = town.upstream.mark()
        with town.upstream.on("/open/rst", raw([], reset=True)), dial(engine) as client:
            answer = client.request(get("/open/rst", method=method, body=b"x"))
            assert (answer.status, answer.problem["code"]) == (502, "upstream_reset")
        assert len([s for s in town.upstream.since(mark) if s.target == "/open/rst"]) == 1, "an unsafe request was repeated"


def test_safe_requests_are_retried_and_bounded(engine: str, dial: Dial, town: Town) -> None:
    """Two resets, then an answer: the client sees the answer; eternal resets end as 502 after the configured attempts."""
    resets = 0

    async def flaky(exchange: Exchange) -> None:
        nonlocal resets
        await exchange.read()
        if resets < 1:
            resets += 1
            exchange.reset()
        else:
            await exchange.answer(200, b"at last")

    with town.upstream.on("/open/retry", flaky), dial(engine) as client:
        assert client.request(get("/open/before")).status == 200  # only a connection that was kept alive may have died idle
        assert client.request(get("/open/retry")).body == b"at last"
    mark = town.upstream.mark()
    with town.upstream.on("/open/retry", raw([], reset=True)), dial(engine) as client:
        assert client.request(get("/open/retry")).status == 502
    assert 1 < len([s for s in town.upstream.since(mark) if s.target == "/open/retry"]) <= 4


def test_a_request_with_a_body_is_not_retried(engine: str, dial: Dial, town: Town) -> None:
    mark = town.upstream.mark()
    with town.upstream.on("/open/once", raw([], reset=True)), dial(engine) as client:
        assert client.request(get("/open/once", method="POST", body=b"pay 100")).status == 502
    assert len([s for s in town.upstream.since(mark) if s.target == "/open/once"]) == 1


def test_an_answer_that_began_is_not_retried(engine: str, dial: Dial, town: Town) -> None:
    from tests.harness.strict import Truncated

    mark = town.upstream.mark()
    with town.upstream.on("/open/began", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", reset=True)), dial(engine) as client:
        client.send(get("/open/began"), expect="GET")
        try:
            assert client.response().status == 502
        except Truncated:
            pass
    assert len([s for s in town.upstream.since(mark) if s.target == "/open/began"]) == 1


def test_connect_failures_go_to_the_next_endpoint(engine: str, dial: Dial) -> None:
    """Round robin over a dead and a living endpoint: nothing was sent to the dead one, so even a POST may go to the next."""
    with dial(engine) as client:
        for i in range(10):
            assert client.request(get(f"/flaky/{i}")).status == 200
        for i in range(6):
            assert client.request(get(f"/flaky/post/{i}", method="POST", body=b"x")).status == 200


def test_stale_pooled_connections_are_harmless(engine: str, dial: Dial, town: Town) -> None:
    """The upstream closes each idle connection right after its answer: requests never fail for it, POST included."""

    async def then_close(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.answer(200, b"ok")
        exchange.close()

    with town.upstream.on("/open/stale", then_close), dial(engine) as client:
        for i in range(30):
            answer = client.request(get("/open/stale", method="POST" if i % 2 else "GET", body=b"x" if i % 2 else None))
            assert answer.status in (200, 502), answer
            if i % 2 == 0:
                assert answer.status == 200, "a safe request failed over a closed pooled connection"


def test_circuit_and_queue(engine: str, dial: Dial, town: Town) -> None:
    """One in flight, one in the queue, the third is refused at once; the queued one is served after the first."""
    go = town.upstream.event()

    async def held(exchange: Exchange) -> None:
        await go.wait()
        await exchange.answer(200, b"held")

    with town.upstream.on("/queued/a", held), dial(engine) as first, dial(engine) as second, dial(engine) as third:
        before = len(town.upstream.requests)
        first.send(get("/queued/a"), expect="GET")
        town.upstream.wait(lambda: len(town.upstream.requests) > before, "the first request")
        second.send(get("/queued/b"), expect="GET")
        from tests.harness.proxy import eventually

        def third_is_refused() -> bool:
            # until the second has taken the queue's place the third may take it: ask from fresh connections
            with dial(engine, deadline_s=4.0) as asking:
                answer = asking.request(get("/queued/c"))
            return answer.status == 503 and answer.problem["code"] == "circuit_open"

        eventually(third_is_refused, "a refusal by the circuit", 4)
        assert third.sock is not None
        go.set()
        assert first.response().body == b"held"
        assert second.response().status in (200, 503)


def test_upstream_that_refuses_then_recovers(engine: str, dial: Dial, town: Town) -> None:
    with dial(engine) as client:
        for _ in range(12):
            with town.upstream.on("/open/ill", raw(b"garbage\r\n\r\n", close=True)):
                assert client.request(get("/open/ill", method="POST", body=b"")).status in (502, 503)
    from tests.harness.proxy import eventually

    def well() -> bool:
        with dial(engine) as asking:
            return asking.request(get("/open/well")).status == 200

    eventually(well, "recovery: a single endpoint may not stay ejected for its last answers", 3)
