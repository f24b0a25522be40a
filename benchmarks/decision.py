"""The row `decision`: what the engine itself takes for one decision that it has not made before, with and without expressions, beside a
list of rules that is tried one by one. CPU time, measured in a process of its own (`benchmarks.micro.policy_cel`)."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks import install
from benchmarks.candidates import Candidate
from benchmarks.load import Sample

__all__ = ["measure"]

_PROGRAM = "import json; from benchmarks.micro.policy_cel import measure; print(json.dumps(measure()))"
_PATIENCE_S = 300


def measure(candidate: Candidate, kind: str, secs: float, warm: float = 0.3) -> Sample:
    """`plain_us`, `beside_us`, `cel_us`, `memo_us` and `linear_us` with 100 000 rules; the same with `_10` and `_1000` for as many."""
    command = ["taskset", "-c", str(candidate.bench.options.proxy_core), sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, cwd=install.ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    if done.returncode:
        return {"error": done.stderr[-200:]}
    sample: Sample = {"n": 1}
    for row in json.loads(done.stdout.splitlines()[-1]):
        ending = "" if row["rules"] == 100_000 else f"_{row['rules']:.0f}"
        sample |= {f"{name}_us{ending}": value for name, value in row.items() if name != "rules"}
    sample["size_ratio"] = sample["plain_us"] / sample["plain_us_10"]
    return sample
