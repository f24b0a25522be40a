"""The ledger without a proxy around it (`benchmarks.micro.ledger`), as a sample of a row: what appending, verifying and asking cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

from benchmarks import install
from benchmarks.candidates import Candidate
from benchmarks.load import Sample

__all__ = ["ledger_alone", "plain_sample", "sample_of"]

_DEADLINE_S = 1800.0


def ledger_alone(candidate: Candidate, kind: str, secs: float, warm: float = 0.0, *, entries: int, plain: bool = False) -> Sample:
    """With `entries` for verifying and asking. `plain`: what a file of JSON lines and SQLite alone cost in the same run. The process that
    is measured is the benchmark's own, not the candidate's."""
    try:
        figures = _figures(entries)
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {_DEADLINE_S:g} s"}
    except subprocess.CalledProcessError as exc:
        return {"error": exc.stderr.strip().rpartition("\n")[2]}
    return plain_sample(figures) if plain else sample_of(figures)


@cache
def _figures(entries: int) -> dict[str, float]:
    """Of one run, which both columns of the row show."""
    command = [sys.executable, "-m", "benchmarks.micro.ledger", "--json", f"--index={entries}"]
    done = subprocess.run(command, cwd=install.ROOT, env=os.environ, capture_output=True, text=True, timeout=_DEADLINE_S, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def sample_of(figures: dict[str, float]) -> Sample:
    """The ledger's figures that have a bound."""
    asked = {name: value for name, value in figures.items() if name.startswith("query: ") and "target" in name}
    packed = [value for name, value in asked.items() if name.endswith("of compressed segments")]
    return {
        "n": 1,
        "append_us": figures["ledger: record to JSON, hash, write(2), tree, commits"],
        "verify_us": 1e6 / figures["verify: entries a second of CPU (target 200000)"],
        "query_ms": max(value for name, value in asked.items() if not name.endswith("of compressed segments")),
        "packed_ms": max(packed),
        "caller_ms": figures["query: caller and denied, ms (target 50)"],
        "lag_ms": figures["index: behind at 2000 entries a second, median, ms"],
    }


def plain_sample(figures: dict[str, float]) -> Sample:
    """What they are held against."""
    return {
        "n": 1,
        "append_us": figures["plain JSON lines: record to JSON, write(2)"],
        "caller_ms": figures["query: caller and denied, SQLite alone, ms"],
    }
