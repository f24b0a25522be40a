"""A light metrics registry: counters, gauges and histograms are plain slots that the hot path adds to.

Metrics are named the OpenTelemetry way (`meshguard.requests`, unit `{request}`); `telemetry.prometheus` and `telemetry.otlp_encoding`
turn the same `Family` values into their formats. Cardinality is bounded: each metric has at most `SERIES_CAP` label sets, what comes
after them is counted in one overflow series (OpenTelemetry SDK specification, cardinality limits), so a total stays a total.

One thread writes a slot; any thread may read. The registry knows no format, no clock and no request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Generic, TypeVar

__all__ = [
    "OVERFLOW",
    "SERIES_CAP",
    "Counter",
    "Family",
    "Gauge",
    "Histogram",
    "HistogramSlot",
    "HistogramValue",
    "Kind",
    "LabelValue",
    "Labels",
    "Registry",
    "Slot",
    "UpDownCounter",
]

SERIES_CAP = 2000
"""Label sets of one metric: the default cardinality limit of the OpenTelemetry SDK specification."""

LabelValue = str | int
Labels = tuple[LabelValue, ...]
"""Values in the order of the family's label names; "" means that the label is absent."""

OVERFLOW: Labels = ()
"""In place of the values of a metric that has label names: everything past the cap."""


class Kind(Enum):
    """What a family measures; it selects the type in the exposition. UP_DOWN is a sum that also falls (adds up over instances)."""

    COUNTER = "counter"
    GAUGE = "gauge"
    UP_DOWN = "up_down"
    HISTOGRAM = "histogram"


class HistogramValue:
    """A histogram at one moment: `counts[i]` values were <= `bounds[i]` and over the bound before; the last count is everything above."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...], counts: Sequence[float], total: float) -> None:
        self.bounds = bounds
        self.counts = counts
        self.total = total

    @property
    def count(self) -> int:
        """How many values were observed."""
        return int(sum(self.counts))


class Family:
    """One metric and all its series at one moment. `unit` is a UCUM code (`s`, `By`, `1`, `{request}`) or empty."""

    __slots__ = ("help", "kind", "label_names", "name", "samples", "unit")

    def __init__(
        self,
        name: str,
        kind: Kind,
        help: str,
        unit: str = "",
        label_names: tuple[str, ...] = (),
        samples: list[tuple[Labels, float | HistogramValue]] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self.unit = unit
        self.label_names = label_names
        self.samples: list[tuple[Labels, float | HistogramValue]] = [] if samples is None else samples


class Slot:
    """One series of a counter or gauge: the owner writes `value` itself (`slot.value += 1` costs 30 ns, a call 60)."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class HistogramSlot:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts: list[float] = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count `value` in its bucket; an upper bound belongs to its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


_SlotType = TypeVar("_SlotType", Slot, HistogramSlot)


class _Metric(Generic[_SlotType]):
    """The series of one metric by their label values."""

    __slots__ = ("_cap", "_make", "_slots", "help", "label_names", "name", "unit")
    kind: Kind

    def __init__(
        self, name: str, help: str, unit: str, label_names: tuple[str, ...], make: Callable[[], _SlotType], cap: int = SERIES_CAP
    ) -> None:
        self.name = name
        self.help = help
        self.unit = unit
        self.label_names = label_names
        self._make: Callable[[], _SlotType] = make
        self._cap = cap
        self._slots: dict[Labels, _SlotType] = {}
        if not label_names:
            self._slots[()] = make()  # a metric without labels exists from the start, so that a rate over it does too

    def labels(self, *values: LabelValue) -> _SlotType:
        """The slot of these label values, made on first use; the overflow slot when the cap is reached.

        Keep the slot where it is used often. Raises ValueError when the number of values is not that of the names.
        """
        slot = self._slots.get(values)
        if slot is not None and (values or not self.label_names):
            return slot
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}, not {len(values)}")
        if len(self._slots) >= self._cap:
            values = OVERFLOW
            slot = self._slots.get(values)
        if slot is None:
            slot = self._slots[values] = self._make()
        return slot

    def _items(self) -> list[tuple[Labels, _SlotType]]:
        return list(self._slots.items())  # one C call: safe while another thread adds a series


class Counter(_Metric[Slot]):
    """A sum that only goes up."""

    __slots__ = ()
    kind = Kind.COUNTER

    def __init__(self, name: str, help: str, unit: str = "", label_names: tuple[str, ...] = (), cap: int = SERIES_CAP) -> None:
        super().__init__(name, help, unit, label_names, Slot, cap)

    def family(self) -> Family:
        """The series as they are now."""
        return Family(self.name, self.kind, self.help, self.unit, self.label_names, [(key, slot.value) for key, slot in self._items()])


class Gauge(Counter):
    """A value that goes up and down."""

    __slots__ = ()
    kind = Kind.GAUGE


class UpDownCounter(Counter):
    """A number of things that come and go (requests in progress): it adds up over instances, which a gauge need not."""

    __slots__ = ()
    kind = Kind.UP_DOWN


class Histogram(_Metric[HistogramSlot]):
    """Values counted in buckets with these upper `bounds` (ascending, without infinity)."""

    __slots__ = ("bounds",)
    kind = Kind.HISTOGRAM

    def __init__(
        self,
        name: str,
        help: str,
        unit: str,
        bounds: tuple[float, ...],
        label_names: tuple[str, ...] = (),
        cap: int = SERIES_CAP,
    ) -> None:
        if list(bounds) != sorted(set(bounds)):
            raise ValueError(f"{name}: the bounds must ascend")
        self.bounds = bounds
        super().__init__(name, help, unit, label_names, lambda: HistogramSlot(bounds), cap)

    def family(self) -> Family:
        """The series as they are now."""
        return Family(
            self.name,
            self.kind,
            self.help,
            self.unit,
            self.label_names,
            [(key, HistogramValue(slot.bounds, slot.counts.copy(), slot.total)) for key, slot in self._items()],
        )


class Registry:
    """Every metric of the process. Metrics register here once, by name; a collector adds families that are computed when asked for."""

    def __init__(self) -> None:
        self._metrics: dict[str, Counter | Histogram] = {}
        self._collectors: list[Callable[[], Iterable[Family]]] = []
        self._failures = 0

    def counter(self, name: str, help: str, unit: str = "", label_names: tuple[str, ...] = (), cap: int = SERIES_CAP) -> Counter:
        """Register a counter. Raises ValueError when the name is taken."""
        metric = Counter(name, help, unit, label_names, cap)
        self._add(metric)
        return metric

    def gauge(self, name: str, help: str, unit: str = "", label_names: tuple[str, ...] = (), cap: int = SERIES_CAP) -> Gauge:
        """Register a gauge. Raises ValueError when the name is taken."""
        metric = Gauge(name, help, unit, label_names, cap)
        self._add(metric)
        return metric

    def up_down(self, name: str, help: str, unit: str = "", label_names: tuple[str, ...] = (), cap: int = SERIES_CAP) -> UpDownCounter:
        """Register a number of things that come and go. Raises ValueError when the name is taken."""
        metric = UpDownCounter(name, help, unit, label_names, cap)
        self._add(metric)
        return metric

    def histogram(
        self, name: str, help: str, unit: str, bounds: tuple[float, ...], label_names: tuple[str, ...] = (), cap: int = SERIES_CAP
    ) -> Histogram:
        """Register a histogram. Raises ValueError when the name is taken or the bounds do not ascend."""
        metric = Histogram(name, help, unit, bounds, label_names, cap)
        self._add(metric)
        return metric

    def collect(self, collector: Callable[[], Iterable[Family]]) -> None:
        """Ask `collector` for its families at each reading. It may be called from the exporter's thread."""
        self._collectors.append(collector)

    def families(self) -> list[Family]:
        """All metrics as they are now, by name. A collector that raises is left out: one broken source hides no other."""
        found = [metric.family() for metric in list(self._metrics.values())]
        for collector in list(self._collectors):
            try:
                found.extend(collector())
            except Exception:  # outermost loop of a scrape
                self._failures += 1
        failures: list[tuple[Labels, float | HistogramValue]] = [((), self._failures)]
        found.append(Family("meshguard.metrics.collector_failures", Kind.COUNTER, "Metric sources that raised when read", samples=failures))
        found.sort(key=lambda family: family.name)
        return found

    def _add(self, metric: Counter | Histogram) -> None:
        if metric.name in self._metrics:
            raise ValueError(f"the metric {metric.name} exists already")
        self._metrics[metric.name] = metric
