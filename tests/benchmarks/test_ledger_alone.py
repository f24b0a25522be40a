"""The ledger's own row: the figures of a small run have what the targets ask for."""

from __future__ import annotations

from pathlib import Path

from benchmarks.ledger_alone import plain_sample, sample_of
from benchmarks.micro.ledger import measure
from benchmarks.targets import TARGETS


def test_a_small_run_has_every_figure_that_has_a_target(tmp_path: Path) -> None:
    figures = measure(tmp_path, 1000, 3000, lag_s=0.5)
    sample, plain = sample_of(figures), plain_sample(figures)
    targets = [target for target in TARGETS if target.row == "ledger-alone"]
    assert {target.metric for target in targets} <= sample.keys()
    assert {target.metric for target in targets if target.kind == "ratio"} <= plain.keys()
    assert all(value > 0 for value in (*sample.values(), *plain.values()))
