"""The arithmetic of the benchmark: medians, ratios of rounds, verdicts, and what must not be compared."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import compare, report
from benchmarks.load import read
from benchmarks.targets import TARGETS, Target

RATIO = Target("a against b", "row", "cpu_us", "us", "b", 0.85, 0.60)


def samples(*values: float, **more: object) -> list[dict[str, Any]]:
    return [{"cpu_us": value, **more} for value in values]


def run(results: dict[str, list[dict[str, Any]]], target: Target = RATIO) -> list[compare.Comparison]:
    return compare.compare({"row": results}, "CPython 3", "OpenSSL 3", targets=[target])


def test_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The second round was disturbed on both sides alike: the ratio of the medians would be 20 / 100.
    (found,) = run({"meshguard": samples(10, 90, 20), "b": samples(20, 180, 100)})
    assert found.ratio == 0.5
    assert (found.ours, found.anchor, found.anchor_name) == (20, 100, "b")


@pytest.mark.parametrize(("ours", "verdict"), [(60, "aim"), (61, "first"), (85, "first"), (86, "short")])
def test_verdict_of_a_ratio(ours: float, verdict: str) -> None:
    assert run({"meshguard": samples(ours), "b": samples(100)})[0].verdict == verdict


def test_added_cost_is_the_median_difference_and_is_bounded_itself() -> None:
    target = Target("more", "row", "cpu_us", "us", "none", 3, 1, ours="all", kind="added")
    (found,) = run({"all": samples(12, 30, 14), "none": samples(10, 29, 11)}, target)
    assert (found.ours, found.anchor, found.ratio, found.verdict) == (2, None, None, "first")


def test_absolute_bound_needs_no_anchor_but_shows_it() -> None:
    target = Target("memory", "row", "cpu_us", "MB", "b", 55, 40, kind="absolute")
    (alone,) = run({"meshguard": samples(50)}, target)
    (beside,) = run({"meshguard": samples(50), "b": samples(70)}, target)
    assert (alone.anchor, alone.anchor_name, alone.ratio, alone.verdict) == (None, "", None, "first")
    assert (beside.anchor, beside.ratio, beside.verdict) == (70, None, "first")


def test_without_bounds_there_is_no_verdict() -> None:
    assert run({"meshguard": samples(5), "b": samples(1)}, Target("x", "row", "cpu_us", "us", "b"))[0].verdict == ""


@pytest.mark.parametrize("spoilt", ["meshguard", "b"])
def test_one_invalid_sample_spoils_the_comparison(spoilt: str) -> None:
    results = {"meshguard": samples(10, 10), "b": samples(20, 20)}
    results[spoilt][1]["error"] = "1 bad answers"
    assert run(results) == []


def test_a_log_that_misses_lines_is_a_fault() -> None:
    assert compare.faults(samples(10, log_lines=1.01)) == []
    assert compare.faults(samples(10, 10, log_lines=0.5)) == ["its log holds a line for only 50% of the requests"]


def test_a_proxy_is_not_compared_with_itself() -> None:
    assert compare.compare({"row": {"b": samples(1)}}, "", "", ours="b", targets=[RATIO]) == []


def test_latest_json_has_the_agreed_keys(tmp_path: Any) -> None:
    report.write_json(tmp_path / "out" / "latest.json", run({"meshguard": samples(1), "b": samples(3)}))
    (entry,) = json.loads((tmp_path / "out" / "latest.json").read_text())
    assert list(entry) == ["name", "ours", "anchor", "anchor_name", "unit", "ratio", "first", "aim", "python", "openssl"]
    assert entry["ratio"] == 0.3333


def test_table_and_document_name_what_falls_short() -> None:
    found = run({"meshguard": samples(90), "b": samples(100)})
    assert report.table(found)[1] == ["a against b", "90.00", "100 b", "us", "0.900", "0.850", "0.600", "SHORT"]
    document = report.results_document(found, {}, {"Envoy": "1.2.3"}, "once")
    assert "| a against b | 90.00 | 100 b | us | 0.900 | 0.850 | 0.600 | SHORT |" in document
    assert "- Envoy 1.2.3" in document


def test_bounds_are_in_order() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    for target in TARGETS:
        assert (target.first is None) == (target.aim is None)
        if target.first is not None and target.aim is not None:
            assert 0 < target.aim < target.first


REPORT = {
    "n": 1000, "bad": 0, "lost": 0, "first_bad": 0, "reconnects": 0, "secs": 2.0, "cpu_s": 0.03, "main_s": 0.02, "user_s": 0.02,
    "sys_s": 0.01, "core_s": 0.23, "backlog": 0, "p50": 100.0,
}  # fmt: skip


def test_sample_from_a_report() -> None:
    sample = read(REPORT)
    assert sample["cpu_us"] == pytest.approx(30)
    assert sample["main_us"] == pytest.approx(20)
    assert sample["rps"] == 500
    assert sample["foreign"] == pytest.approx(0.1)
    assert sample["p50_us"] == 100
    assert "error" not in sample


def test_ticks_stand_in_where_schedstat_is_not_accounted() -> None:
    assert read({**REPORT, "cpu_s": 0.0})["cpu_us"] == pytest.approx(30)


@pytest.mark.parametrize("change", [{"bad": 1}, {"lost": 1}, {"n": 0}, {"fatal": "cannot connect"}])
def test_what_makes_a_sample_invalid(change: dict[str, object]) -> None:
    assert "error" in read({**REPORT, **change})


def test_a_rate_that_was_not_kept_is_invalid() -> None:
    assert "error" not in read(REPORT, 500)
    assert "error" in read(REPORT, 700)
    assert "error" in read({**REPORT, "backlog": 11}, 500)
