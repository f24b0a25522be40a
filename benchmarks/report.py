"""What people and programs read: latest.json, the printed tables, RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from benchmarks import install
from benchmarks.compare import FOREIGN_SHARE, Comparison, faults, median
from benchmarks.load import Sample
from benchmarks.rows import ROWS, Row

__all__ = ["OPENSSL", "PYTHON", "aligned", "machine", "results_document", "row_lines", "table", "versions", "write_json"]

PYTHON = f"{platform.python_implementation()} {platform.python_version()}"
OPENSSL = ssl.OPENSSL_VERSION


def write_json(path: Path, comparisons: Iterable[Comparison]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([comparison.document() for comparison in comparisons], indent=1) + "\n")


def machine() -> str:
    """Processor, cores, kernel."""
    try:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        name = None
    return f"{name[1].strip() if name else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}"


def versions(peers: Iterable[str]) -> dict[str, str]:
    """Name to version of the programs that take part."""
    asks: dict[str, Callable[[], list[str]]] = {
        "Envoy": lambda: [str(install.envoy()), "--version"],
        "nginx": lambda: [install.system_binary("nginx"), "-v"],
        "HAProxy": lambda: [install.system_binary("haproxy"), "-v"],
        "mitmproxy": lambda: [str(install.mitmdump()), "--version"],
    }
    found = {}
    for name, command in asks.items():
        if not any(peer.startswith(name.lower()) for peer in peers):
            continue
        try:
            done = subprocess.run(command(), capture_output=True, text=True, timeout=20, check=False)
        except (install.Absent, OSError, subprocess.TimeoutExpired):
            continue
        version = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        found[name] = version[0] if version else "unknown"
    return found


def row_lines(row: Row, results: Mapping[str, list[Sample]]) -> list[str]:
    """The figures of one row, a line for each contestant: medians, and the range of the main one."""
    lines = []
    for name, samples in results.items():
        wrong = faults(samples)
        if wrong:
            lines.append(f"{name:22s} INVALID: {wrong[0]}")
            continue
        values = [sample[row.metric] for sample in samples]
        text = f"{name:22s} {median(values):9.2f} [{min(values):.2f} to {max(values):.2f}]"
        for key, form in _EXTRAS:
            if key != row.metric and all(key in sample for sample in samples):
                text += "  " + form(median(sample[key] for sample in samples))
        if all("foreign" in sample for sample in samples) and (share := median(sample["foreign"] for sample in samples)) > FOREIGN_SHARE:
            text += f"  (!) others took {share:.0%} of the core"
        lines.append(text)
    return lines


_EXTRAS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("p99_us", lambda value: f"p99 {value:.0f}"),
    ("p999_us", lambda value: f"p99.9 {value:.0f}"),
    ("cpu_us", lambda value: f"{value:.1f} us CPU"),
    ("rps", lambda value: f"{value:.0f}/s"),
    ("user_share", lambda value: f"user {value:.0%}"),
    ("cut_p99_ms", lambda value: f"p99 {value:.1f} ms"),
    ("reload_s", lambda value: f"{value:.2f} s a reload"),
    ("growth_mb", lambda value: f"grown by {value:+.1f} MB"),
    ("pss_mb", lambda value: f"{value:.1f} MB proportional"),
    ("connection_kib", lambda value: f"{value:.1f} KiB a connection"),
)


def table(comparisons: Iterable[Comparison]) -> list[list[str]]:
    """Cells of the table of comparisons, headings first."""
    rows = [["", "ours", "anchor", "unit", "ratio", "first", "aim", ""]]
    for each in comparisons:
        marks = {"aim": "aim reached", "first": "reached", "short": "SHORT", "": ""}
        anchor = f"{_figure(each.anchor)} {each.anchor_name}" if each.anchor is not None else ""
        bounds = [_figure(each.ratio), _figure(each.first), _figure(each.aim)]
        rows.append([each.name, _figure(each.ours), anchor, each.unit, *bounds, marks[each.verdict]])
    return rows


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def aligned(rows: list[list[str]]) -> list[str]:
    """A table as text, columns padded."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def results_document(
    comparisons: list[Comparison], results: Mapping[str, Mapping[str, list[Sample]]], programs: Mapping[str, str], how: str
) -> str:
    """RESULTS.md: the last full run."""
    cells = table(comparisons)
    lines = [
        "# Results of the last full run",
        "",
        f"Written by `python -m benchmarks --write-results` on {time.strftime('%Y-%m-%d')}: {how}.",
        "",
        f"- Machine: {machine()}; the proxy on one core, load generator and upstream on another",
        f"- meshguard on {PYTHON} with {OPENSSL}",
        *(f"- {name} {version}" for name, version in programs.items()),
        "",
        "A ratio is ours over the anchor's, the median of the rounds' own ratios; smaller is better. Where there is no ratio the",
        "bounds hold for our own figure. *First* must be reached, *aim* is where we go.",
        "",
        "| " + " | ".join(cells[0]) + " |",
        "|" + "---|" * len(cells[0]),
        *("| " + " | ".join(row) + " |" for row in cells[1:]),
        "",
        "## All figures",
    ]
    for row in ROWS:
        if row.name in results:
            lines += ["", f"{row.name}, {row.unit}:", "", *("    " + line for line in row_lines(row, results[row.name]))]
    return "\n".join(lines) + "\n"
