"""One measured sample: what the load generator reports, in the units of the tables."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import procs
from benchmarks.candidates import Candidate

__all__ = ["Sample", "closed_loop", "handshakes", "latency", "memory", "read", "start_up"]

Sample = dict[str, Any]
"""Metric name to value; the key `error` says why the sample does not count."""

_SHAPES: dict[str, dict[str, Any]] = {
    "h1-plain": {"mode": "h1", "conns": 32},
    "h1-mtls": {"mode": "h1", "conns": 32},
    "h2-mtls": {"mode": "h2", "conns": 8, "streams": 10},
    "grpc": {"mode": "grpc", "conns": 8, "streams": 10},
}


def read(result: dict[str, Any], rate: float | None = None) -> Sample:
    """The load generator's report as a sample. `rate`: requests a second that had to be kept (open loop)."""
    if "fatal" in result:
        return {"error": result["fatal"]}
    count, secs = result["n"], result["secs"]
    ticks = result["user_s"] + result["sys_s"]
    # Some containers do not account schedstat; the ticks are coarse but always there.
    cpu = result["cpu_s"] if result["cpu_s"] > 0.4 * ticks else ticks
    sample: Sample = {
        "n": count,
        "rps": count / secs,
        "cpu_us": cpu * 1e6 / max(1, count),
        "wall_us": secs * 1e6 / max(1, count),
        "main_us": result["main_s"] * 1e6 / max(1, count),
        "user_share": result["user_s"] / max(0.01, ticks),
        "busy": cpu / secs,
        "foreign": max(0.0, result["core_s"] - cpu) / secs,
        "reconnects": result["reconnects"],
    }
    sample |= {f"{name}_us": result[name] for name in ("p50", "p90", "p99", "p999", "max") if name in result}
    if result["bad"] or result["lost"] or not count:
        sample["error"] = f"{result['bad']} bad answers (first {result['first_bad']}), {result['lost']} lost"
    elif rate is not None:
        due = rate * secs  # Poisson arrivals: five standard deviations, and some in flight at the end
        if result["backlog"] > 0.02 * rate or count < due - 5 * due**0.5 - 64:
            sample["error"] = f"kept only {sample['rps']:.0f} requests/s, {result['backlog']} unsent"
    return sample


def _run(candidate: Candidate, kind: str, secs: float, /, due_rate: float | None = None, **settings: Any) -> Sample:
    port = candidate.port(kind)
    if port is None:
        return {"error": f"{kind} is not served"}
    log = candidate.plan.log if candidate.plan else None
    before = _lines(log)
    sample = read(candidate.bench.load(port, kind != "h1-plain", candidate.pids(), secs, **settings), due_rate)
    if log and "n" in sample:
        sample["log_lines"] = (_settled_lines(log) - before) / max(1, sample["n"])
        if log.stat().st_size > 1 << 28:
            os.truncate(log, 0)  # the writers append, so this is safe
    return sample


def _lines(log: Path | None) -> int:
    if log is None or not log.exists():
        return 0
    with log.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))


def _settled_lines(log: Path) -> int:
    """Lines when the writer has been quiet for a moment."""
    size, deadline = -1, time.monotonic() + 2
    while log.exists() and log.stat().st_size != size and time.monotonic() < deadline:
        size = log.stat().st_size
        time.sleep(0.1)
    return _lines(log)


def closed_loop(candidate: Candidate, kind: str, secs: float, warm: float = 0.3, **settings: Any) -> Sample:
    """As many requests as it can over keep-alive connections: CPU a request is the figure."""
    return _run(candidate, kind, secs, warm=warm, **{**_SHAPES[kind], **settings})


def handshakes(candidate: Candidate, kind: str, secs: float, warm: float = 0.3, **settings: Any) -> Sample:
    """Full TLS 1.3 handshakes with client certificate, one request on each, one after another."""
    return _run(candidate, "h1-mtls", secs, mode="hs", warm=warm, **settings)


def latency(candidate: Candidate, kind: str, secs: float, warm: float = 0.3, **settings: Any) -> Sample:
    """A fixed rate of Poisson arrivals over 32 connections; latency from the scheduled time."""
    rate = candidate.bench.options.rate
    return _run(candidate, "h1-mtls", secs, due_rate=rate, mode="rate", rate=rate, conns=32, warm=warm, **settings)


def start_up(candidate: Candidate, kind: str, secs: float, warm: float = 0.0, **settings: Any) -> Sample:
    """From the start of a fresh process to its first good answer."""
    candidate.stop()
    try:
        candidate.start()
    except RuntimeError as error:
        return {"error": str(error)}
    return {"n": 1, "start_s": candidate.start_s}


def memory(candidate: Candidate, kind: str, secs: float, warm: float = 0.0, **settings: Any) -> Sample:
    """A fresh process: its resident size, and what idle mTLS connections add after one request each."""
    sample = start_up(candidate, kind, secs)
    port = candidate.port("h1-mtls")
    if "error" in sample or port is None:
        return sample
    time.sleep(0.5)  # let it finish what it began after becoming ready
    idle, count = procs.memory_kib(candidate.pids()), candidate.bench.options.idle_connections
    command = candidate.bench.load_command(port, True, mode="idle", conns=count, secs=30)
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        line = holder.stdout.readline()
        opened = json.loads(line) if line else {"ready": 0, "bad": 0, "lost": count}
        time.sleep(0.5)
        loaded = procs.memory_kib(candidate.pids())
    finally:
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()
    sample |= {
        "n": opened.get("ready", 0),
        "rss_mb": idle["rss"] * 1024 / 1e6,
        "pss_mb": idle["pss"] * 1024 / 1e6,
        "connection_kib": (loaded["rss"] - idle["rss"]) / count,
    }
    if opened.get("ready") != count or opened.get("bad"):
        sample["error"] = f"{opened} of {count} idle connections"
    return sample
