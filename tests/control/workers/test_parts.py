"""The parts of the supervisor on their own: messages, links, sockets, sums of metrics, waits between tries, how many workers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meshguard.control.admin import EndpointStatus, ListenerStatus, Status
from meshguard.control.workers import merge, status_json
from meshguard.control.workers.count import available_cores, configured_workers, worker_count
from meshguard.control.workers.link import Link, LinkClosed
from meshguard.control.workers.messages import (
    MESSAGES,
    Changed,
    Done,
    Frame,
    FrameReader,
    Message,
    Prepare,
    ProtocolError,
    Refused,
    Report,
    encode,
)
from meshguard.control.workers.slot import Backoff
from meshguard.control.workers.sockets import Doors
from meshguard.telemetry.metrics import Family, HistogramValue, Kind, Registry
from tests.harness.ports import free_port

SAMPLES: dict[str, Any] = {"str": "text", "int": 7, "bool": True, "float": 1.5, "dict[str, str]": {"a": "b"}, "list[str]": ["x"]}


def sample(message: type[Message]) -> Message:
    values = {}
    for each in fields(message):
        kind = str(each.type)
        other: Any = [["127.0.0.1:1", 2]] if kind.startswith("list[tuple") else {"k": 1} if "dict" in kind else [1]
        values[each.name] = SAMPLES.get(kind, other)
    return message(**values)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_every_message_arrives_as_it_was_however_it_is_cut(message: type[Message]) -> None:
    sent = sample(message)
    data = encode(Frame(sent, 3, 4)) * 2
    for size in (1, 3, len(data)):
        reader = FrameReader()
        got = [frame for start in range(0, len(data), size) for frame in reader.feed(data[start : start + size], [])]
        assert [(frame.message, frame.id, frame.answers) for frame in got] == [(sent, 3, 4)] * 2


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"\0\0\0\2[]", b"\0\0\0\1x", encode(Frame(Done())).replace(b"Done", b"Nope"), b"\0\0\0\0"],
)
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        FrameReader().feed(data, [])


def test_descriptors_that_are_missing_are_an_error() -> None:
    with pytest.raises(ProtocolError):
        FrameReader().feed(encode(Frame(Done(), descriptors=[1])), [])


def linked(scenario: Callable[[Link, Link, asyncio.Queue[Frame]], Any]) -> None:
    async def run() -> None:
        left, right = socket.socketpair()
        got: asyncio.Queue[Frame] = asyncio.Queue()
        one = Link(left, lambda frame: None, lambda: None)
        other = Link(right, got.put_nowait, lambda: None)
        try:
            async with asyncio.timeout(10):
                await scenario(one, other, got)
        finally:
            one.close()
            other.close()

    asyncio.run(run())


def test_a_request_is_answered_and_descriptors_come_along() -> None:
    async def scenario(one: Link, other: Link, got: asyncio.Queue[Frame]) -> None:
        reader, writer = os.pipe()
        asking = asyncio.gather(one.request(Prepare("f", [("a", 1)]), [writer], timeout_s=5), one.request(Report(), timeout_s=5))
        first, second = await got.get(), await got.get()
        other.send(Done("second"), answers=second.id)
        other.send(Done("first"), answers=first.id)
        assert await asking == [Done("first"), Done("second")]
        (copy,) = first.descriptors
        assert copy != writer
        os.write(copy, b"x")
        assert os.read(reader, 1) == b"x"
        for descriptor in (reader, writer, copy):
            os.close(descriptor)

    linked(scenario)


def test_large_messages_pass_and_the_last_word_is_said() -> None:
    async def scenario(one: Link, other: Link, got: asyncio.Queue[Frame]) -> None:
        for _ in range(3):
            one.send(Changed("x" * 3_000_000))
        await one.sent(5)
        one.close()
        assert [len((await got.get()).message.why) for _ in range(3)] == [3_000_000] * 3  # type: ignore[attr-defined]

    linked(scenario)


def test_the_end_of_the_other_process_ends_every_wait() -> None:
    async def scenario(one: Link, other: Link, got: asyncio.Queue[Frame]) -> None:
        asking = asyncio.gather(one.request(Report(), timeout_s=5), return_exceptions=True)
        await got.get()
        other.close()
        (result,) = await asking
        assert isinstance(result, LinkClosed)
        assert one.closed
        with pytest.raises(LinkClosed):
            await one.request(Report(), timeout_s=5)

    linked(scenario)


def test_nobody_waits_for_ever_and_a_late_answer_is_nobodys() -> None:
    async def scenario(one: Link, other: Link, got: asyncio.Queue[Frame]) -> None:
        with pytest.raises(TimeoutError):
            await one.request(Report(), timeout_s=0.01)
        frame = await got.get()
        other.send(Refused("late"), answers=frame.id)
        answer = asyncio.gather(one.request(Report(), timeout_s=5))
        other.send(Done("in time"), answers=(await got.get()).id)
        assert await answer == [Done("in time")]

    linked(scenario)


def test_sums_of_metrics() -> None:
    def families(count: float, gauge: float, bucket: int) -> list[Family]:
        return [
            Family("c", Kind.COUNTER, "", "", ("a",), [(("x",), count), ((), 1)]),
            Family("g", Kind.GAUGE, "", "", (), [((), gauge)]),
            Family("u", Kind.UP_DOWN, "", "", (), [((), gauge)]),
            Family("h", Kind.HISTOGRAM, "", "s", (), [((), HistogramValue((1.0,), [bucket, 1], 2.5))]),
        ]

    def values(found: list[Family]) -> dict[str, Any]:
        return {
            family.name: {
                labels: (value.counts, value.total) if isinstance(value, HistogramValue) else value for labels, value in family.samples
            }
            for family in found
        }

    one, two = merge.families_of(merge.plain(families(1, 5, 3))), families(2, 6, 4)
    assert values(merge.merged({"0": one, "1": two})) == {
        "c": {("x",): 3, (): 2},
        "g": {("0",): 5, ("1",): 6},
        "u": {(): 11},
        "h": {(): ([7, 2], 5.0)},
    }
    totals = merge.Totals()
    totals.depart(one)
    totals.depart(two)
    assert values(merge.merged({"0": one}, totals.families)) == {
        "c": {("x",): 4, (): 3},
        "g": {("0",): 5},
        "u": {(): 5},
        "h": {(): ([10, 3], 7.5)},
    }


def test_all_metrics_of_a_registry_survive_the_way() -> None:
    registry = Registry()
    registry.counter("a.b", "text", "{x}", ("l",)).labels("v").value = 2
    registry.histogram("h", "text", "s", (0.1, 1.0)).labels().observe(0.5)
    before = registry.families()
    after = merge.families_of(merge.plain(before))

    def described(families: list[Family]) -> list[Any]:
        return [(family.name, family.kind, family.help, family.unit, family.label_names) for family in families]

    assert described(after) == described(before)


def test_states_together() -> None:
    up, down = EndpointStatus("a:1", True), EndpointStatus("a:1", False, "refused")
    one = Status("d1", 1, 10.0, "", "id", 500.0, (ListenerStatus("l", "x", False),), {"c": (down,)}, {"k": {"state": "fresh"}}, False, 2)
    two = Status("d2", 2, 20.0, "bad", "id", 400.0, (ListenerStatus("l", "x", True),), {"c": (up,)}, {}, False, 3)
    assert status_json.status_of(status_json.plain(one)) == one
    both = status_json.together([one, two])
    assert (both.policy_digest, both.identity_not_after, both.active, both.reload_error) == ("d2", 400.0, 5, "bad")
    assert both.listeners == (ListenerStatus("l", "x", True),)
    assert both.clusters == {"c": (up,)}
    assert status_json.together([]) == Status()


def test_waits_grow_and_a_steady_life_ends_them() -> None:
    backoff = Backoff()
    assert backoff.after(3.0) == 0.0, "the first crash of a worker that served"
    waits = [backoff.after(0.0) for _ in range(14)]
    assert all(right >= left * 0.74 for left, right in pairwise(waits))
    assert 0.1 < waits[0] <= 0.2
    assert 22 < waits[-1] <= 30
    assert backoff.after(11.0) == 0.0
    assert backoff.after(0.0) <= 0.1, "all over again"


def test_a_worker_that_never_served_waits_at_once() -> None:
    assert Backoff().after(0.0) > 0


@pytest.mark.parametrize(("workers", "given"), [(2, 2), (3, 1), (2, 5), (1, 3)])
def test_every_socket_has_somebody_who_accepts(workers: int, given: int) -> None:
    group = [socket.socket() for _ in range(given)]
    doors = Doors(workers, {"127.0.0.1:1": group})
    dealt = [doors.of(number) for number in range(workers)]
    assert {descriptor for _, descriptors in dealt for descriptor in descriptors} == {sock.fileno() for sock in group}
    for counts, descriptors in dealt:
        assert counts == [("127.0.0.1:1", len(descriptors))]
        assert descriptors
    doors.close_all()
    assert all(sock.fileno() == -1 for sock in group)


def test_an_address_that_is_taken_opens_none() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = f"127.0.0.1:{free_port()}"
        doors = Doors(2)
        with pytest.raises(OSError, match="in use"):
            doors.open([free, f"127.0.0.1:{taken.getsockname()[1]}"])
        assert doors.descriptors() == {}
        assert doors.open([free]) == [free]
        assert doors.open([free]) == []
        doors.keep([])
        assert doors.descriptors() == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listeners: {}\n", 1),
        ("workers: 3\n", 3),
        ("{workers: 4, listeners: {}}", 4),
        ("# workers: 5\nlisteners: {}\n", 1),
        ("listeners:\n  workers: {tls: none}\n", 1),
        ('workers: "${MANY}"\n', 6),
        ('workers: "${UNSET_HERE:-7}"\n', 7),
        ("workers: many\n", 1),
        ("workers: [\n", 1),
        ("workers: 0\n", 1),
    ],
)
def test_what_a_configuration_says(text: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANY", "6")
    path = tmp_path / "m.yaml"
    path.write_text(text)
    assert configured_workers(path) == expected


def test_auto_is_what_this_process_may_use(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    assert worker_count("auto") <= cores
    for text, expected in (("max 100000", cores), ("100000 100000", 1), ("50000 100000", 1), ("99900000 100000", cores), ("?", cores)):
        quota.write_text(text)
        assert available_cores(quota) == expected
    for wrong in (0, 257, "x", True, None, "-1"):
        with pytest.raises(ValueError, match=r"workers|invalid"):
            worker_count(wrong)
