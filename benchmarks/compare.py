"""The arithmetic: from the rounds' samples to medians, ratios and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.load import Sample
from benchmarks.targets import TARGETS, Target

__all__ = ["Comparison", "Verdict", "compare", "faults", "median", "paired"]

LOG_SHARE = 0.95
"""A log that holds fewer lines than this share of the requests did not do the work that its figures claim. (Writers buffer.)"""
FOREIGN_SHARE = 0.05
"""More than this share of the proxy's core taken by others makes a figure doubtful."""

Verdict = str
"""`aim`, `first` (reached, the aim not), `short` (not even that), or `` where there is no bound."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One entry of latest.json. Where `ratio` is null the bounds `first` and `aim` hold for `ours`, else for `ratio`; both mean at most."""

    name: str
    ours: float
    anchor: float | None
    anchor_name: str
    unit: str
    ratio: float | None
    first: float | None
    aim: float | None
    python: str
    openssl: str

    @property
    def verdict(self) -> Verdict:
        if self.first is None or self.aim is None:
            return ""
        value = self.ours if self.ratio is None else self.ratio
        return "aim" if value <= self.aim else "first" if value <= self.first else "short"

    def document(self) -> dict[str, Any]:
        """The JSON object, figures rounded to what they mean."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def faults(samples: Iterable[Sample]) -> list[str]:
    """Why these samples must not be compared; empty when they are good."""
    found = [str(sample["error"]) for sample in samples if "error" in sample]
    shares = [sample["log_lines"] for sample in samples if "log_lines" in sample]
    if not found and shares and median(shares) < LOG_SHARE:
        found.append(f"its log holds a line for only {median(shares):.0%} of the requests")
    return found


def median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def paired(ours: list[Sample], anchor: list[Sample], metric: str, combine: Callable[[float, float], float]) -> float | None:
    """The median of the rounds' own values: what hits a whole round (another process, a clock change) hits both sides of it."""
    values = [combine(a[metric], b[metric]) for a, b in zip(ours, anchor, strict=False) if metric in a and metric in b]
    return median(values) if values else None


def compare(
    results: Mapping[str, Mapping[str, list[Sample]]],
    python: str,
    openssl: str,
    ours: str = "meshguard",
    targets: Iterable[Target] = TARGETS,
) -> list[Comparison]:
    """Every target for which both sides have good samples. `results`: row to contestant to samples."""
    found = []
    for target in targets:
        row = results.get(target.row, {})
        name = ours if target.ours == "meshguard" else target.ours
        mine, other = row.get(name, []), row.get(target.anchor, [])
        if not mine or faults(mine) or name == target.anchor:
            continue
        has_anchor = bool(other) and not faults(other) and target.metric in other[0]
        if target.kind != "absolute" and not has_anchor:
            continue
        value: float | None = median(sample[target.metric] for sample in mine)
        anchor = median(sample[target.metric] for sample in other) if has_anchor else None
        ratio = None
        if target.kind == "ratio":
            ratio = paired(mine, other, target.metric, lambda a, b: a / b if b else float("inf"))
        elif target.kind == "added":
            value, anchor = paired(mine, other, target.metric, lambda a, b: a - b), None
            if target.per:
                unit = row.get(target.per, [])
                if not unit or faults(unit) or value is None:
                    continue
                anchor = median(sample[target.metric] for sample in unit)
                added = [{target.metric: a[target.metric] - b[target.metric]} for a, b in zip(mine, other, strict=False)]
                ratio = paired(added, unit, target.metric, lambda a, b: a / b if b else float("inf"))
        if value is not None:
            anchor_name = (target.per or target.anchor) if anchor is not None else ""
            found.append(Comparison(target.name, value, anchor, anchor_name, target.unit, ratio, target.first, target.aim, python, openssl))
    return found
