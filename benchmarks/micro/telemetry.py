"""What telemetry costs a request: microseconds of CPU per record, on the path and behind it.

    python -m benchmarks.micro.telemetry [--json]

CPU time of this process, the smallest of several runs. With each figure a fixed piece of plain Python is measured (making a frozen
dataclass of eight fields); "scaled" is the figure on a machine where that takes 590 ns, as it did where the targets were set. Compare
the scaled figures of two machines, or of two moments on a shared one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvloop

from meshguard.model.reasons import NO_RULE
from meshguard.model.verdicts import Denial, NearMiss
from meshguard.telemetry.decision_log import DecisionLog
from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.observe import Consumer, Observer
from meshguard.telemetry.otlp_encoding import metrics_request, resource_message
from meshguard.telemetry.prometheus import render
from meshguard.telemetry.request_metrics import RequestMetrics
from meshguard.telemetry.span_ids import SpanIds
from meshguard.telemetry.spans import SCHEMA_URL, SpanRecorder
from meshguard.wire.trace_context import Sampling, begin, start
from tests.telemetry.records import DIGEST, Plan, Record, head

BATCH = 32
RUNS = 9
REFERENCE_US = 0.59


class Nowhere:
    """A sink that only counts: what is measured ends at the hand-over."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, lines: bytes, count: int) -> None:
        self.size += len(lines)

    add = write


def least(work: Callable[[], object], each: int, number: int) -> float:
    """Microseconds of CPU for one of `each` things that `work` does."""
    best = float("inf")
    for _ in range(RUNS):
        before = time.process_time()
        for _ in range(number):
            work()
        best = min(best, time.process_time() - before)
    return best / number / each * 1e6


@dataclass(frozen=True, slots=True)
class _Eight:
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int
    h: int


def reference() -> None:
    """Plain Python, whose cost on the machine of the design figures is known."""
    for _ in range(100):
        _Eight(1, 2, 3, 4, 5, 6, 7, 8)


def records(**changed: Any) -> list[Record]:
    """A batch in which paths differ, as they do."""
    return [
        Record(
            number=0x10000 + n, plan=Plan(path=f"/orders/{n}"), head=head(b"/orders/%d" % n), client_span_id=b"%016x" % (n + 99), **changed
        )
        for n in range(BATCH)
    ]


def on_path(consumers: list[Consumer]) -> float:
    """Microseconds for `finished` alone, as the pipeline sees it: the loop's turns behind it are measured by the others."""
    registry = Registry()

    async def run() -> float:
        observer = Observer(consumers, registry)
        finished = observer.finished
        record = Record()
        best = float("inf")
        for _ in range(RUNS):
            spent = 0.0
            for _ in range(500):
                before = time.process_time()
                for _ in range(100):
                    finished(record)
                spent += time.process_time() - before
                await asyncio.sleep(0)
                observer.flush()
            best = min(best, spent / 500 / 100 * 1e6)
        observer.close()
        return best

    return uvloop.run(run())


def whole(sampled_every: int) -> float:
    """Microseconds per record for everything: hand-over, batches on uvloop, metrics, log line, spans for one in `sampled_every`."""
    registry = Registry()
    sink = Nowhere()
    ids = SpanIds(1 << 60, ("denials", "errors"))

    async def run() -> float:
        observer = Observer([RequestMetrics(registry), DecisionLog(sink, registry, ids), SpanRecorder(sink, ids)], registry)
        finished = observer.finished
        made = [
            Record(number=n, plan=Plan(path=f"/orders/{n}"), client_span_id=b"%016x" % (n + 99), sampled=n % sampled_every == 0)
            for n in range(1, 2001)
        ]
        best = float("inf")
        for _ in range(RUNS):
            before = time.process_time()
            for number, record in enumerate(made):
                finished(record)
                if number % 8 == 0:
                    await asyncio.sleep(0)
            observer.flush()
            best = min(best, (time.process_time() - before) / len(made) * 1e6)
        observer.close()
        return best

    return uvloop.run(run())


def measure() -> list[dict[str, object]]:
    """Every figure: name, microseconds, target (0: none)."""
    found: list[dict[str, object]] = []

    def add(name: str, us: float, target: float = 0.0) -> None:
        unit = least(reference, 100, 100)
        found.append({"name": name, "us": round(us, 3), "scaled": round(us * REFERENCE_US / unit, 3), "target": target})

    bits = random.Random(1).getrandbits
    sampling = Sampling(0.01)
    parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    state = [(b"traceparent", parent), (b"tracestate", b"congo=t61rcWkgMzE")]
    add("trace context: caller's trace", least(lambda: start(parent, sampling, bits), 1, 20_000), 1.0)
    add("trace context: new trace", least(lambda: start(None, sampling, bits), 1, 20_000), 1.0)
    add("trace context: from fields, with tracestate", least(lambda: begin(state, sampling, bits), 1, 20_000))

    add("on path: finished()", on_path([]), 1.5)
    registry = Registry()
    metrics = RequestMetrics(registry)
    batch = records()
    add("batch: metrics", least(lambda: metrics.consume(batch, 1.7e9), BATCH, 500))
    sink = Nowhere()
    ids = SpanIds(1 << 60, ("denials", "errors"))
    log = DecisionLog(sink, registry, ids)
    add("batch: log line, allowed", least(lambda: log.consume(batch, 1.7e9), BATCH, 300), 3.0)
    near = NearMiss("read-orders", "method", "POST is not in GET")
    denied = records(verdict=Denial(NO_RULE, DIGEST, near_miss=near), refusal=NO_RULE, status=403, upstream="", forwarded=0.0, answered=0.0)
    quiet = DecisionLog(sink, Registry())
    add("batch: log line, denied", least(lambda: quiet.consume(denied, 1.7e9), BATCH, 300))
    spans = SpanRecorder(sink, ids)

    def record_spans(made: list[Record]) -> None:
        spans.consume(made, 1.7e9)
        spans.flush()

    sampled = records(sampled=True)
    add("batch: no span (not sampled)", least(lambda: record_spans(batch), BATCH, 500))
    add("batch: SERVER and CLIENT span", least(lambda: record_spans(sampled), BATCH, 200), 4.0)
    add("batch: SERVER span of a denial", least(lambda: record_spans(denied), BATCH, 200), 2.0)
    add("everything, 1 % sampled", whole(100))
    add("everything, all sampled", whole(1))

    many = RequestMetrics(registry2 := Registry())
    many.consume([Record(plan=Plan(route=f"r{n}", template=f"/r{n}/{{id}}"), status=200 + n % 3) for n in range(500)], 0.0)
    add("scrape: Prometheus text, a series of 500 rows", least(lambda: "".join(render(registry2.families())), 500, 3))
    resource = resource_message({"service.name": "x"})
    add(
        "export: OTLP metrics, a series of 500 rows",
        least(lambda: metrics_request(resource, "meshguard", "1", SCHEMA_URL, registry2.families(), 1, 2), 500, 3),
    )
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="CPU cost of telemetry per record")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of the table")
    arguments = parser.parse_args()
    figures = measure()
    if arguments.json:
        json.dump(figures, sys.stdout, indent=1)
        print()
        return
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, microseconds of CPU for each")
    print(f"{'':52} {'here':>8} {'scaled':>8}")
    for figure in figures:
        target = f"   target {figure['target']}" if figure["target"] else ""
        print(f"{figure['name']!s:52} {figure['us']:8.2f} {figure['scaled']:8.2f}{target}")


if __name__ == "__main__":
    main()
