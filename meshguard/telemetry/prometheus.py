"""Prometheus text exposition of metric families: format 0.0.4 and OpenMetrics 1.0.

Names follow the OpenTelemetry specification "Prometheus and OpenMetrics compatibility": dots become underscores, the unit is spelled
out as a suffix, counters end in `_total`; so http.server.request.duration is http_server_request_duration_seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshguard.telemetry.metrics import Family, HistogramValue, Kind, Labels

__all__ = ["OPENMETRICS", "TEXT", "content_type", "prometheus_name", "render"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_UNITS = {"s": "seconds", "By": "bytes", "ms": "milliseconds", "%": "percent"}
_TYPES = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.UP_DOWN: "gauge", Kind.HISTOGRAM: "histogram"}
_LABEL_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_OVERFLOW_LABEL = 'otel_metric_overflow="true"'


def content_type(accept: str) -> str:
    """The content type to answer with for this Accept field: OpenMetrics where it is asked for and not liked less than plain text."""
    quality = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if name in quality:
            quality[name] = max(quality[name], weight)
    wanted = quality["application/openmetrics-text"]
    return OPENMETRICS if wanted > 0 and wanted >= quality["text/plain"] else TEXT


def prometheus_name(family: Family) -> str:
    """The name of the family, without the suffix `_total`."""
    name = _identifier(family.name)
    unit = _unit(family)
    return f"{name}_{unit}" if unit and not name.endswith(f"_{unit}") else name


def render(families: Iterable[Family], media_type: str = TEXT) -> Iterator[str]:
    """The exposition in pieces, a few KiB each, so that a caller on the event loop can let others run in between."""
    openmetrics = media_type == OPENMETRICS
    for family in families:
        name = prometheus_name(family)
        counter = family.kind is Kind.COUNTER
        described = f"{name}_total" if counter and not openmetrics else name
        text = family.help.translate(_LABEL_ESCAPES if openmetrics else _HELP_ESCAPES)
        unit = _unit(family)
        lines = [f"# TYPE {described} {_TYPES[family.kind]}"]
        if openmetrics and unit:
            lines.append(f"# UNIT {described} {unit}")
        lines.append(f"# HELP {described} {text}")
        names = tuple(_identifier(label) for label in family.label_names)
        for labels, value in family.samples:
            pairs = _pairs(names, labels)
            if isinstance(value, HistogramValue):
                _histogram(lines, name, pairs, value)
            else:
                braces = f"{{{pairs}}}" if pairs else ""
                lines.append(f"{name}_total{braces} {_number(value)}" if counter else f"{name}{braces} {_number(value)}")
            if len(lines) > 100:
                yield "\n".join(lines) + "\n"
                lines = []
        if lines:
            yield "\n".join(lines) + "\n"
    if openmetrics:
        yield "# EOF\n"


def _histogram(lines: list[str], name: str, pairs: str, value: HistogramValue) -> None:
    before = f"{pairs}," if pairs else ""
    running: float = 0
    for bound, count in zip(value.bounds, value.counts, strict=False):
        running += count
        lines.append(f'{name}_bucket{{{before}le="{float(bound)!r}"}} {_number(running)}')
    running += value.counts[-1]
    braces = f"{{{pairs}}}" if pairs else ""
    lines.append(f'{name}_bucket{{{before}le="+Inf"}} {_number(running)}')
    lines.append(f"{name}_sum{braces} {_number(value.total)}")
    lines.append(f"{name}_count{braces} {_number(running)}")


def _pairs(names: tuple[str, ...], labels: Labels) -> str:
    if names and not labels:
        return _OVERFLOW_LABEL
    return ",".join(f'{name}="{str(value).translate(_LABEL_ESCAPES)}"' for name, value in zip(names, labels, strict=True) if value != "")


def _identifier(name: str) -> str:
    return name.replace(".", "_").replace("-", "_")


def _unit(family: Family) -> str:
    return _UNITS.get(family.unit, "")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
