"""What `meshguard top` shows: two readings of the admin API as one picture, and a picture as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshguard.telemetry.live import VERDICTS, quantile

__all__ = ["picture", "text"]

_SHORTEST_S = 1e-3


def picture(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Rates (a second), quantiles (seconds, null without requests) and gauges of the time between two readings. A process that was
    replaced in between counts from nothing, so its first picture may be of less."""
    elapsed = max(after["time"] - before["time"], _SHORTEST_S)
    routes = [
        {"listener": listener, "route": route, **_rates(row, elapsed)}
        for (listener, route), row in _grown(before["routes"], after["routes"])
    ]
    callers = [{"caller": caller, **_rates(row, elapsed)} for (caller,), row in _grown(before["callers"], after["callers"])]
    whole = [sum(column) for column in zip(*(row for _, row in _grown(before["routes"], after["routes"])), strict=True)]
    return {
        "schema": "meshguard.top/1",
        "time": after["time"],
        "over_s": round(elapsed, 3),
        "version": after["version"],
        "pid": after["pid"],
        "ready": after["ready"],
        "identity": after["identity"],
        "policy": after["policy"],
        "total": _rates(whole, elapsed) if whole else _rates([], elapsed),
        "routes": routes,
        "callers": callers,
        "listeners": after["listeners"],
        "clusters": after["clusters"],
        "workers": after["workers"],
        "requests": after["requests"],
    }


def _grown(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[tuple[str, ...], list[float]]]:
    known = {tuple(names): row for *names, row in before}
    grown = []
    for *names, row in after:
        old = known.get(tuple(names))
        less = old is None or any(left > right for left, right in zip(old, row, strict=True))
        grown.append((tuple(names), list(row) if old is None or less else [right - left for left, right in zip(old, row, strict=True)]))
    return grown


def _rates(row: Sequence[float], elapsed: float) -> dict[str, Any]:
    counts = row[: len(VERDICTS)] or [0] * len(VERDICTS)
    rates = {f"{name}_per_s": round(count / elapsed, 3) for name, count in zip(VERDICTS, counts, strict=True)}
    return {
        "requests": int(sum(counts)),
        "per_s": round(sum(counts) / elapsed, 3),
        **rates,
        "p50_s": quantile(row, 0.5) if row else None,
        "p99_s": quantile(row, 0.99) if row else None,
    }


def text(shown: Mapping[str, Any], sort: str, columns: int, lines: int | None) -> list[str]:
    """Lines of at most `columns` characters; at most `lines` of them (None: all)."""
    out = [*_head(shown), ""]
    out += _table("ROUTE", shown["routes"], sort, lambda row: f"{row['listener']}/{row['route'] or '(none)'}", columns)
    out += ["", *_table("CALLER", shown["callers"], sort, lambda row: row["caller"], columns)]
    out += ["", *_clusters(shown["clusters"])]
    out += ["", *_requests(shown["requests"], columns)]
    cut = [_plain(line)[:columns] for line in out]
    return cut if lines is None else cut[:lines]


def _head(shown: Mapping[str, Any]) -> list[str]:
    total, policy = shown["total"], shown["policy"]
    state = "ready" if shown["ready"] else "NOT READY"
    digest = (policy.get("digest") or "none").removeprefix("sha256:")[:12]
    listeners = shown["listeners"].values()
    head = [
        f"meshguard {shown['version']}  pid {shown['pid']}  {state}  policy {digest} (revision {policy.get('revision')})"
        f"  {shown['identity']}",
        f"requests {total['per_s']:.1f}/s  allow {total['allow_per_s']:.1f}  deny {total['deny_per_s']:.1f}  refuse"
        f" {total['refuse_per_s']:.1f}  error {total['error_per_s']:.1f}  p50 {_time(total['p50_s'])}  p99 {_time(total['p99_s'])}"
        f"  open {sum(each['active'] for each in listeners)}  connections {sum(each['connections'] for each in listeners)}",
    ]
    workers = shown["workers"]
    if workers is not None:
        each = "  ".join(
            f"{worker['worker']}: {worker['state']} pid {worker['pid']} open {worker.get('active', '-')} restarts {worker['restarts']}"
            + ("" if worker.get("policy_digest") in (None, policy.get("digest")) else " STALE POLICY")
            for worker in workers["each"]
        )
        head.append(f"workers {workers['serving']} of {workers['configured']}  {each}")
    return head


def _table(title: str, rows: Sequence[Mapping[str, Any]], sort: str, name: Any, columns: int) -> list[str]:
    width = max(20, min(60, columns - 68))
    out = [f"{title:<{width}}{'REQ/S':>9}{'ALLOW':>9}{'DENY':>8}{'REFUSE':>8}{'ERROR':>8}{'P50':>9}{'P99':>9}"]
    keys = {
        "rate": lambda row: row["per_s"],
        "p99": lambda row: row["p99_s"] or 0.0,
        "refused": lambda row: row["deny_per_s"] + row["refuse_per_s"],
    }
    for row in sorted(rows, key=keys[sort], reverse=True)[:15]:
        label = _plain(name(row))
        label = label if len(label) < width else "…" + label[-(width - 2) :]
        out.append(
            f"{label:<{width}}{row['per_s']:>9.1f}{row['allow_per_s']:>9.1f}{row['deny_per_s']:>8.1f}{row['refuse_per_s']:>8.1f}"
            f"{row['error_per_s']:>8.1f}{_time(row['p50_s']):>9}{_time(row['p99_s']):>9}"
        )
    return out


def _clusters(clusters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    out = [f"{'CLUSTER':<24}{'USABLE':>9}{'OPEN':>7}{'CONNS':>7}{'QUEUED':>8}{'RETRIES':>9}{'FAILED DIALS':>14}"]
    for name, state in sorted(clusters.items()):
        endpoints = state["endpoints"]
        usable = f"{sum(endpoints.values())}/{len(endpoints)}"
        out.append(
            f"{name[:23]:<24}{usable:>9}{state['in_flight']:>7}{state['connections']:>7}{state['queued']:>8}{state['retries']:>9}"
            f"{state['connect_failures']:>14}"
        )
    return out


def _requests(requests: Sequence[Mapping[str, Any]], columns: int) -> list[str]:
    out = [f"{'OPEN FOR':>9}  {'STATE':<10}{'LISTENER':<12}{'METHOD':<8}{'CALLER':<40}PATH"]
    for request in requests[:20]:
        caller = request["caller"] or request["address"]
        caller = caller if len(caller) < 39 else "…" + caller[-37:]
        out.append(
            f"{_time(request['for_s']):>9}  {request['state']:<10}{request['listener'][:11]:<12}{request['method'][:7]:<8}{caller:<40}"
            f"{request['path']}"
        )
    return out


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us"
    return f"{seconds * 1e3:.1f}ms" if seconds < 1 else f"{seconds:.1f}s"


def _plain(line: str) -> str:
    """Nothing of what clients send may move the cursor of whoever watches."""
    return "".join(character if character.isprintable() else "?" for character in line)
