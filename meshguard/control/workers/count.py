"""How many workers are wanted, found out without loading what only workers need."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["available_cores", "configured_workers", "worker_count"]

_MAX_BYTES = 4 * 1024 * 1024
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MOST = 256


def available_cores(quota: Path = _QUOTA) -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its control group (version 2), rounded down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, _, period = quota.read_text("ascii").partition(" ")
        if allowed != "max":
            cores = min(cores, int(allowed) // int(period))
    except (OSError, ValueError):
        pass
    return min(max(cores, 1), _MOST)


def worker_count(value: object) -> int:
    """The number that `workers: value` means. Raises ValueError for another value."""
    if value == "auto":
        return available_cores()
    number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else 0
    if not 1 <= number <= _MOST:
        raise ValueError(f"workers: a number from 1 to {_MOST}, or auto")
    return number


def configured_workers(path: str | Path) -> int:
    """The number that a configuration says; 1 where it says none or cannot be read (whoever loads it then says what is wrong)."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES)
        if b"workers" not in data:  # the usual case costs nothing
            return 1
    except OSError:
        return 1
    from meshguard.sources.yamltext import Malformed, parse_json, parse_yaml

    try:
        text = data.decode("utf-8")
        values = parse_json(text) if str(path).endswith(".json") else parse_yaml(text)
        value = values.get("workers", 1) if isinstance(values, dict) else 1
        if isinstance(value, str):
            value = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}", lambda m: os.environ.get(m[1]) or m[2] or "", value)
        return worker_count(value)
    except (ValueError, Malformed):
        return 1
