"""A strict reader of the Prometheus text formats, written from their grammar: what is not exactly right raises ValueError."""

from __future__ import annotations

import re

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _number(text: str) -> float:
    if not re.fullmatch(r"[+-]?(Inf|[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?)|NaN", text):
        raise ValueError(f"not a number: {text!r}")
    return float(text)


def _labels(text: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        if found:
            if text[position] != ",":
                raise ValueError(f"labels: {text!r}")
            position += 1
        match = _LABEL.match(text, position)
        if match is None:
            raise ValueError(f"labels: {text!r}")
        found.append((match[1], re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], match[2])))
        position = match.end()
    if len({name for name, _ in found}) != len(found):
        raise ValueError(f"a label comes twice: {text!r}")
    return tuple(sorted(found))


def parse(text: str, *, openmetrics: bool = False) -> Series:
    """Every sample by name and labels. Checks types, order, duplicates, histogram consistency and the end mark."""
    if not text.endswith("\n"):
        raise ValueError("the last line is not ended")
    lines = text.split("\n")[:-1]
    if openmetrics and lines.pop() != "# EOF":
        raise ValueError("no end mark")
    samples: Series = {}
    families: set[str] = set()
    family = kind = ""
    for line in lines:
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            if not re.fullmatch(_NAME, family) or kind not in _SUFFIXES or family in families:
                raise ValueError(line)
            families.add(family)
        elif line.startswith(("# HELP ", "# UNIT ")):
            _, word, name, rest = line.split(" ", 3)
            if name != family or not rest:
                raise ValueError(line)
            if word == "UNIT" and not (openmetrics and name.endswith(f"_{rest}")):
                raise ValueError(line)
        else:
            match = _SAMPLE.fullmatch(line)
            if match is None:
                raise ValueError(f"not a sample: {line!r}")
            base = family.removesuffix("_total") if not openmetrics else family
            if match[1] not in [base + suffix for suffix in _SUFFIXES[kind]]:
                raise ValueError(f"{match[1]} is not of {kind} {family}")
            key = (match[1], _labels(match[2] or ""))
            if key in samples:
                raise ValueError(f"twice: {key}")
            samples[key] = _number(match[3])
    _check_histograms(samples)
    return samples


def _check_histograms(samples: Series) -> None:
    last: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float, float]] = {}
    for (name, labels), value in samples.items():
        if name.endswith("_bucket"):
            bound = float(dict(labels)["le"])
            key = (name.removesuffix("_bucket"), tuple(pair for pair in labels if pair[0] != "le"))
            before = last.get(key, (float("-inf"), 0.0))
            if bound <= before[0] or value < before[1]:
                raise ValueError(f"buckets do not ascend: {key}")
            last[key] = (bound, value)
    for (name, labels), (bound, value) in last.items():
        if bound != float("inf") or samples[(f"{name}_count", labels)] != value or (f"{name}_sum", labels) not in samples:
            raise ValueError(f"an incomplete histogram: {name}")
