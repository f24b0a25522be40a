"""The ledger without a proxy around it (`benchmarks.micro.ledger`), as a sample of a row: what appending, verifying and asking cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks import install
from benchmarks.candidates import Candidate
from benchmarks.load import Sample

__all__ = ["ledger_alone", "sample_of"]

_DEADLINE_S = 1800.0


def ledger_alone(candidate: Candidate, kind: str, secs: float, warm: float = 0.0, *, entries: int) -> Sample:
    """With `entries` for verifying and asking. The process that is measured is the benchmark's own, not the candidate's."""
    command = [sys.executable, "-m", "benchmarks.micro.ledger", "--json", f"--index={entries}"]
    try:
        done = subprocess.run(command, cwd=install.ROOT, env=os.environ, capture_output=True, text=True, timeout=_DEADLINE_S, check=True)
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {_DEADLINE_S:g} s"}
    except subprocess.CalledProcessError as exc:
        return {"error": exc.stderr.strip().rpartition("\n")[2]}
    return sample_of(json.loads(done.stdout))


def sample_of(figures: dict[str, float]) -> Sample:
    """The figures that have a bound, and those that explain them."""
    asked = {name.removeprefix("query: "): value for name, value in figures.items() if name.startswith("query: ")}
    ours = {name: value for name, value in asked.items() if "target" in name}
    packed = {name: value for name, value in ours.items() if name.endswith("of compressed segments")}
    alone = {name.partition(", SQLite")[0]: value for name, value in asked.items() if "alone" in name}
    plain = {name.partition(", ms")[0]: value for name, value in ours.items() if name not in packed}
    ratios = [value / alone[name] for name, value in plain.items() if name in alone]
    return {
        "n": 1,
        "append_ratio": figures["ratio: append to plain JSON lines (target 2.5)"],
        "append_us": figures["ledger: what it adds to a decision log"],
        "verify_us": 1e6 / figures["verify: entries a second of CPU (target 200000)"],
        "query_ms": max(plain.values()),
        "packed_ms": max(packed.values()),
        "query_ratio": max(ratios),
        "lag_ms": figures["index: behind at 2000 entries a second, median, ms"],
    }
