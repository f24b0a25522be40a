"""Metrics of many processes as those of one: counters and histograms are added up, gauges stand for each worker.

A sum must never fall: what a worker that ended had counted goes on counting (`Totals.depart`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshguard.telemetry.metrics import Family, HistogramValue, Kind, Labels

__all__ = ["Totals", "families_of", "merged", "plain"]

WORKER = "worker"
"""Label of a gauge that cannot be added up."""


def plain(families: Iterable[Family]) -> list[Any]:
    """As JSON values: [name, kind, help, unit, label names, [[labels, number or [bounds, counts, total]]]]."""
    return [
        [
            family.name,
            family.kind.value,
            family.help,
            family.unit,
            family.label_names,
            [
                [labels, [value.bounds, value.counts, value.total] if isinstance(value, HistogramValue) else value]
                for labels, value in family.samples
            ],
        ]
        for family in families
    ]


def families_of(values: Iterable[Any]) -> list[Family]:
    """The way back."""
    return [
        Family(
            name,
            Kind(kind),
            text,
            unit,
            tuple(label_names),
            [
                (tuple(labels), HistogramValue(tuple(value[0]), value[1], value[2]) if isinstance(value, list) else value)
                for labels, value in samples
            ],
        )
        for name, kind, text, unit, label_names, samples in values
    ]


def merged(parts: Mapping[str, Iterable[Family]], departed: Iterable[Family] = ()) -> list[Family]:
    """`parts` by worker; `departed` are sums of workers that are gone. Families come by name."""
    found: dict[str, _Sum] = {}
    for worker, families in (("", departed), *parts.items()):
        for family in families:
            total = found.get(family.name)
            if total is None:
                total = found[family.name] = _Sum(family)
            total.add(worker, family)
    return [found[name].family() for name in sorted(found)]


class Totals:
    """What workers that are gone have counted."""

    def __init__(self) -> None:
        self.families: list[Family] = []

    def depart(self, families: Iterable[Family]) -> None:
        """Keeps what only goes up; a gauge and a number of things in progress end with their process."""
        lasting = [family for family in families if family.kind in (Kind.COUNTER, Kind.HISTOGRAM)]
        self.families = merged({"": lasting}, self.families)


class _Sum:
    __slots__ = ("_first", "_per_worker", "_samples")

    def __init__(self, first: Family) -> None:
        self._first = first
        self._per_worker = first.kind is Kind.GAUGE
        self._samples: dict[Labels, float | HistogramValue] = {}

    def add(self, worker: str, family: Family) -> None:
        samples = self._samples
        for labels, value in family.samples:
            if self._per_worker:
                labels = (*labels, worker) if labels or not family.label_names else labels
            before = samples.get(labels)
            if before is None:
                samples[labels] = value
            elif isinstance(before, HistogramValue) and isinstance(value, HistogramValue):
                counts = [left + right for left, right in zip(before.counts, value.counts, strict=True)]
                samples[labels] = HistogramValue(before.bounds, counts, before.total + value.total)
            elif not isinstance(before, HistogramValue) and not isinstance(value, HistogramValue):
                samples[labels] = before + value

    def family(self) -> Family:
        first = self._first
        names = (*first.label_names, WORKER) if self._per_worker else first.label_names
        return Family(first.name, first.kind, first.help, first.unit, names, list(self._samples.items()))
