"""An exchange between a door and an upstream connection: deadlines, early ends, retries. Both ends are written by the test."""

from __future__ import annotations

from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from meshguard.model.messages import CHUNKED, NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead
from meshguard.model.reasons import POLICY_DENIED, UPSTREAM_MALFORMED, UPSTREAM_RESET, Reason
from meshguard.net.limits import ConnectionLimits
from meshguard.pipeline.exchange import Exchange
from tests.wire.corpus import get
from tests.wire.drive import LIMITS, RULES


def head_of(data: bytes) -> RequestHead:
    from meshguard.wire.http1 import RequestParser

    engine = RequestParser(LIMITS, RULES)
    engine.receive(data)
    head = engine.next()
    assert isinstance(head, RequestHead)
    return head


def response(status: int = 200, length: int = NO_BODY) -> ResponseHead:
    head = ResponseHead()
    head.status, head.block, head.length, head.minor, head.keep_alive, head.specials, head.size = status, b"", length, 1, True, [], 0
    return head


class Door:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.request_held = False
        self.held_s = 0.0
        self.stream: Any = None

    def send_whole(self, status: int, block: bytes, body: bytes) -> None:
        self.log.append(f"whole {status} {body.decode()}")

    def send_interim(self, status: int, block: bytes) -> None:
        self.log.append(f"interim {status}")

    def send_continue(self) -> None:
        self.log.append("continue")

    def send_head(self, status: int, block: bytes, length: int, specials: Any) -> None:
        self.log.append(f"head {status}")

    def send_data(self, data: bytes) -> None:
        self.log.append(f"data {data.decode()}")

    def send_end(self, trailers: bytes) -> None:
        self.log.append(f"end {trailers.decode()}".rstrip())

    def send_refusal(self, reason: Reason, block: bytes, body: bytes) -> None:
        self.log.append(f"refusal {reason.code}")

    def flush(self) -> None: ...

    def reset(self) -> None:
        self.log.append("reset")

    def hold_request(self) -> None:
        self.request_held = True

    def release_request(self) -> None:
        self.request_held = False

    def exchange_over(self, complete: bool) -> None:
        self.log.append(f"over {complete}")


class Connection:
    protocol = "http/1.1"
    unprocessed = False

    def __init__(self, cluster: Cluster, *, reused: bool = False) -> None:
        self.cluster = cluster
        self.endpoint = SimpleNamespace(key="192.0.2.9:80")
        self.closed = False
        self.reused = reused
        self.answered = False
        self.closed = False
        self.log: list[str] = []

    def pause_reading(self) -> None:
        self.log.append("pause")

    def resume_reading(self) -> None:
        self.log.append("resume")

    def unused(self) -> None:
        self.cluster.release(self)

    def start(self, exchange: Any, head: bytes, method: bytes, chunked: bool) -> None:
        self.log.append(f"start {head.split()[0].decode()} {chunked}")

    def send_data(self, data: bytes) -> None:
        self.log.append(f"data {data.decode()}")

    def send_end(self, trailers: bytes) -> None:
        self.log.append(f"end {trailers.decode()}".rstrip())

    def flush(self) -> None: ...

    def finish(self, complete: bool) -> None:
        self.log.append(f"finish {complete}")

    def abandon(self) -> None:
        self.log.append("abandon")

    def drop(self, reason: Reason) -> None:
        self.log.append(f"drop {reason.code}")


class Cluster:
    def __init__(self, *, idle: bool = True, retry: bool = True, reused: bool = False) -> None:
        self.connection = Connection(self, reused=reused)
        self.idle = idle
        self.retry = retry
        self.log: list[str] = []

    def checkout(self) -> Any:
        return self.connection if self.idle else None

    def submit(self, call: Any) -> None:
        self.log.append("submit")

    def cancel(self, call: Any) -> None:
        self.log.append("cancel")

    def may_retry(self, call: Any) -> bool:
        return self.retry

    def release(self, connection: Any) -> None:
        self.log.append("release")


class World:
    """One exchange, started or not."""

    def __init__(self, data: bytes = get(b"Host: a"), *, cluster: Cluster | None = None, started: bool = True, **limits: Any) -> None:
        self.records: list[Any] = []
        self.journey: Any = SimpleNamespace(finished=self.records.append, boot_id="b", ledger=None)
        self.door = Door()
        peer: Any = SimpleNamespace(limits=ConnectionLimits(**limits), table=None, principal=None, answer_lines=b"")
        self.head = head_of(data)
        self.exchange = Exchange(self.journey, self.door, peer, self.head, 1)
        self.exchange.plan = SimpleNamespace(  # type: ignore[assignment]
            answer=None,
            location=b"",
            body_bytes=limits.get("body_bytes", 0),
            attempts=None,
            total_s=20.0, response_s=15.0, keep_trailers=False, inspects_response=False, fallback=None, inspects_request=False,
            response_operations=None, request_operations=None,
        )  # fmt: skip
        self.cluster = cluster or Cluster()
        if started:
            self.forward()

    def forward(self) -> None:
        permit: Any = SimpleNamespace()
        self.exchange.forward(permit, self.cluster, b"%b / HTTP/1.1\r\n\r\n" % self.head.method)  # type: ignore[arg-type]

    @property
    def upstream(self) -> Connection:
        return self.cluster.connection

    def expire(self, seconds: float) -> list[str]:
        self.exchange.expire(monotonic() + seconds)
        return self.door.log


POST = get(b"Host: a", b"Content-Length: 5", method=b"POST")
CHUNKS = get(b"Host: a", b"Transfer-Encoding: chunked", method=b"POST")


def test_the_usual_answer() -> None:
    world = World()
    world.exchange.response_whole(response(200, 2), b"ok")
    assert world.door.log == ["whole 200 ok", "over True"]
    assert world.upstream.log == ["start GET False", "finish True"]
    assert world.records == [world.exchange]
    assert (world.exchange.status, world.exchange.response_bytes) == (200, 2)


def test_a_body_goes_through_in_order() -> None:
    world = World(CHUNKS)
    world.exchange.request_data(b"a")
    world.exchange.request_data(b"b")
    world.exchange.request_end(b"")
    assert world.upstream.log == ["start POST True", "data a", "data b", "end"]
    world.exchange.response_head(response(200, CHUNKED))
    world.exchange.response_data(b"c")
    world.exchange.response_end(b"x: y\r\n")
    assert world.door.log == ["head 200", "data c", "end", "over True"], "trailers go on only where the route keeps them"


def test_an_early_answer_gives_the_connection_up() -> None:
    world = World(POST)
    world.exchange.request_data(b"he")
    world.exchange.response_whole(response(413, 3), b"big")
    assert world.door.log[-1] == "over False"
    assert world.upstream.log[-1] == "finish False"


def test_a_body_waits_with_the_client_until_there_is_a_connection() -> None:
    world = World(POST, cluster=Cluster(idle=False))
    assert world.door.request_held
    assert world.cluster.log == ["submit"]
    world.exchange.connected(world.upstream)  # type: ignore[arg-type]
    assert not world.door.request_held


def test_a_client_that_leaves_cancels_the_wait() -> None:
    world = World(POST, cluster=Cluster(idle=False))
    world.exchange.client_gone("closed")
    assert world.cluster.log == ["submit", "cancel"]
    assert world.records == [world.exchange]
    world.exchange.connected(world.upstream)  # type: ignore[arg-type]
    assert world.cluster.log[-1] == "release"
    assert world.upstream.log == [], "nothing is sent for a client that is gone"


def test_a_client_that_leaves_ends_the_upstream_side() -> None:
    world = World(POST)
    world.exchange.request_data(b"he")
    world.exchange.client_gone("closed")
    assert world.upstream.log[-1] == "abandon"
    assert world.door.log == []
    world.exchange.response_head(response())
    world.exchange.refuse(POLICY_DENIED)
    assert world.door.log == []
    assert len(world.records) == 1


@pytest.mark.parametrize("begun", [False, True])
def test_an_upstream_that_breaks_the_rules(begun: bool) -> None:
    world = World()
    if begun:
        world.exchange.response_head(response(200, 5))
    world.exchange.upstream_failed(UPSTREAM_MALFORMED, "x")
    assert world.upstream.log[-1] == "drop upstream_malformed"
    assert world.door.log[-1] == ("reset" if begun else "over True")
    assert ("refusal upstream_malformed" in world.door.log) is not begun
    assert len(world.records) == 1


@pytest.mark.parametrize(
    ("data", "reused", "answered", "retry", "again"),
    [
        (get(b"Host: a"), True, False, True, True),
        (get(b"Host: a", method=b"HEAD"), True, False, True, True),
        (get(b"Host: a"), False, False, True, False),
        (get(b"Host: a"), True, True, True, False),
        (get(b"Host: a"), True, False, False, False),
        (get(b"Host: a", method=b"DELETE"), True, False, True, False),
        (get(b"Host: a", method=b"get"), True, False, True, False),
        (get(b"Host: a", b"Content-Length: 5"), True, False, True, False),
        (POST, True, False, True, False),
    ],
)
def test_what_is_sent_again(data: bytes, reused: bool, answered: bool, retry: bool, again: bool) -> None:
    """Only a safe request without body whose kept connection died before it said anything."""
    world = World(data, cluster=Cluster(retry=retry, reused=reused))
    world.upstream.answered = answered
    world.exchange.upstream_failed(UPSTREAM_RESET, "closed")
    assert (world.cluster.log == ["submit"]) is again
    assert bool(world.records) is not again
    assert (world.door.log == []) is again


def test_interim_answers_are_bounded_and_continue_is_ours() -> None:
    world = World()
    world.exchange.response_head(response(100))
    world.exchange.response_head(response(103))
    assert world.door.log == ["interim 103"]
    for _ in range(20):
        world.exchange.response_head(response(103))
    assert world.door.log.count("interim 103") == 15
    assert "refusal upstream_reset" in world.door.log


def test_nobody_asked_to_switch_protocols() -> None:
    world = World()
    world.exchange.response_head(response(101))
    assert world.door.log == ["refusal upstream_reset", "over True"]


def test_a_body_above_the_limit() -> None:
    world = World(CHUNKS, body_bytes=10)
    world.exchange.request_data(b"x" * 10)
    assert world.door.log == []
    world.exchange.request_data(b"x")
    assert world.door.log == ["refusal body_too_large", "over False"]
    assert world.upstream.log[-1] == "abandon", "what was sent upstream never looks complete"


# ---- deadlines


@pytest.mark.parametrize(("seconds", "log"), [(14.9, []), (15.1, ["refusal upstream_timeout", "over True"])])
def test_the_upstream_has_a_time_to_answer(seconds: float, log: list[str]) -> None:
    world = World()
    assert world.expire(seconds) == log
    assert ("drop upstream_timeout" in world.upstream.log) is bool(log)


def test_the_time_to_answer_begins_with_the_end_of_the_request() -> None:
    world = World(POST)
    world.exchange.forwarded -= 14
    world.exchange._touched -= 8
    world.exchange.request_data(b"hello")
    world.exchange.request_end(b"")
    assert world.expire(14.9) == []


def test_the_total_time() -> None:
    world = World()
    world.exchange.response_head(response(200, UNTIL_CLOSE))
    world.exchange.started -= 19
    assert world.expire(0.5) == ["head 200"]
    assert world.expire(1.5) == ["head 200", "reset"]


def test_a_client_that_stops_in_its_body() -> None:
    world = World(POST)
    world.exchange.request_data(b"he")
    assert world.expire(9.9) == []
    assert world.expire(10.1) == ["refusal request_timeout", "over False"]
    assert world.upstream.log[-1] == "abandon"


def test_a_client_that_dribbles_its_body() -> None:
    world = World(POST, body_total_s=60.0)
    world.exchange.plan.total_s = 0.0  # type: ignore[union-attr,misc]
    world.exchange.started -= 59
    world.exchange.request_data(b"h")
    assert world.expire(0.5) == []
    assert world.expire(1.5) == ["refusal request_timeout", "over False"]


def test_a_client_that_is_held_back_is_not_slow() -> None:
    world = World(POST)
    world.exchange.upstream_paused()
    assert world.expire(14) == []


@pytest.mark.parametrize("dribbles", [False, True])
def test_a_body_that_an_inspection_waits_for_has_the_same_time(dribbles: bool) -> None:
    """Nothing is forwarded yet, so there is no upstream connection to look after; the client is as slow as elsewhere."""
    world = World(POST, started=False, body_total_s=30.0)
    world.exchange.plan.total_s = 0.0  # type: ignore[union-attr,misc]
    world.exchange._inspection = SimpleNamespace(  # type: ignore[assignment]
        takes_request=lambda exchange, data: True, close=lambda: None, place=""
    )
    world.exchange.request_data(b"h")
    if dribbles:
        world.exchange.started -= 29
        assert world.expire(0.5) == []
        assert world.expire(1.5) == ["refusal request_timeout", "over False"]
    else:
        assert world.expire(9.9) == []
        assert world.expire(10.1) == ["refusal request_timeout", "over False"]


def test_waiting_for_a_connection_is_the_clusters_affair() -> None:
    world = World(POST, cluster=Cluster(idle=False))
    world.exchange.plan.total_s = 0.0  # type: ignore[union-attr,misc]
    assert world.expire(1000) == []


def test_a_reader_that_stops() -> None:
    world = World(idle_s=60.0)
    world.exchange.plan.total_s = 0.0  # type: ignore[union-attr,misc]
    world.exchange.response_head(response(200, CHUNKED))
    world.exchange.pause()
    assert world.upstream.log[-1] == "pause"
    assert world.expire(59) == ["head 200"]
    assert world.expire(61) == ["head 200", "reset"]


def test_every_end_is_recorded_once() -> None:
    for end in ("refuse", "client_gone", "fail", "deadline", "complete"):
        world = World()
        match end:
            case "refuse":
                world.exchange.refuse(POLICY_DENIED)
            case "client_gone":
                world.exchange.client_gone("x")
            case "fail":
                world.exchange.fail(ValueError("x"))
            case "deadline":
                world.expire(100)
            case "complete":
                world.exchange.response_head(response())
                world.exchange.response_end(b"")
        world.exchange.refuse(POLICY_DENIED)
        world.exchange.client_gone("again")
        world.exchange.upstream_failed(UPSTREAM_RESET, "late")
        world.expire(1000)
        assert world.records == [world.exchange], end
        assert world.exchange.connection is None
