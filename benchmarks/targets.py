"""What is compared with what, and the bounds: `first` must be reached, `aim` is where we go.

Every bound is "at most". Where a target says "N times less than", the bound is 1/N.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Literal

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """`ours` and `anchor` name contestants of `row`, `metric` a key of their samples.

    kind ratio     the bounds hold for ours / anchor
         added     the bounds hold for ours - anchor, in the unit; with `per`, for that as a ratio to what the contestant `per` takes
         absolute  the bounds hold for ours, in the unit; an anchor is only for comparison, and may be missing (``)
    Without bounds (None) it is shown for information.
    """

    name: str
    row: str
    metric: str
    unit: str
    anchor: str
    first: float | None = None
    aim: float | None = None
    ours: str = "meshguard"
    kind: Literal["ratio", "added", "absolute"] = "ratio"
    per: str = ""


_MODERN = ssl.OPENSSL_VERSION_INFO >= (3, 5)
_HANDSHAKE = (1.5, 1.15) if _MODERN else (1.6, 1.5)
_CPU = "CPU us/request"



def _fields() -> tuple[Target, ...]:
    """Field protection, by size of the body and number of fields: added to the same route without rule, as such and as a ratio to parsing
    and serialising the body and to the bare AES-GCM of the values; and the whole job against Envoy with an external processor."""
    bounds: dict[tuple[str, str, str], tuple[float | None, float | None]] = {
        ("1 KB", "1 field", ""): (12, 6),
        ("100 KB", "10 fields", "orjson"): (0.5, 0.2),
    }
    found = []
    for size, row in (("1 KB", "fields-1k"), ("10 KB", "fields-10k"), ("100 KB", "fields-100k"), ("1 MB", "fields-1m")):
        for count in ("1 field", "10 fields"):
            name = f"fields, {size}, {count}"
            for per, title in (
                ("", "added"), ("orjson", "added against orjson loads + dumps"), (f"AES-GCM, {count}", "added against bare AES-GCM"),
            ):
                first, aim = bounds.get((size, count, per), (None, None))
                found.append(Target(f"{name}: {title}", row, "cpu_us", _CPU, "no rule", first, aim, count, "added", per))
            found.append(Target(f"{name}: against Envoy with ext_proc", row, "cpu_us", _CPU, f"Envoy, {count}", 0.2, 0.1, count))
        found.append(Target(f"fields, {size}: a route without rule beside them", row, "cpu_us", _CPU, "no fields at all", ours="no rule"))
    return tuple(found)


TARGETS: tuple[Target, ...] = (
    Target("h1-mtls against Envoy", "h1-mtls", "cpu_us", _CPU, "envoy", 0.85, 0.60),
    Target("h1-mtls against nginx without policy", "h1-mtls", "cpu_us", _CPU, "nginx", 1.6, 1.2),
    Target("h1-mtls against HAProxy without policy", "h1-mtls", "cpu_us", _CPU, "haproxy"),
    Target("h1-mtls against the h11 engine", "h1-mtls", "cpu_us", _CPU, "meshguard-reference", 1 / 5, 1 / 7),
    Target("h1-mtls against mitmproxy", "h1-mtls", "cpu_us", _CPU, "mitmproxy", 1 / 25, 1 / 45),
    Target("h1-mtls against Envoy, same rule order", "h1-mtls", "cpu_us", _CPU, "envoy-same"),
    Target("h1-mtls against Envoy, matching tree", "h1-mtls", "cpu_us", _CPU, "envoy-tree"),
    Target("h1-mtls against Envoy, 10 rules, no log", "h1-mtls", "cpu_us", _CPU, "envoy10"),
    Target("h1-plain against Envoy", "h1-plain", "cpu_us", _CPU, "envoy"),
    Target("h1-plain against nginx", "h1-plain", "cpu_us", _CPU, "nginx"),
    Target("h1-plain against the h11 engine", "h1-plain", "cpu_us", _CPU, "meshguard-reference"),
    Target("h1-plain against mitmproxy", "h1-plain", "cpu_us", _CPU, "mitmproxy"),
    Target("h2-mtls against Envoy", "h2-mtls", "cpu_us", _CPU, "envoy", 1.4, 0.9),
    Target("h2-mtls against nginx without policy", "h2-mtls", "cpu_us", _CPU, "nginx"),
    Target("grpc against Envoy", "grpc", "cpu_us", _CPU, "envoy", 1.6, 1.0),
    Target("handshake against Envoy", "handshake", "cpu_us", "CPU us/handshake", "envoy", *_HANDSHAKE),
    Target("handshake against nginx", "handshake", "cpu_us", "CPU us/handshake", "nginx"),
    Target("latency p50 against Envoy", "latency", "p50_us", "us", "envoy", 1.0, 0.7),
    Target("latency p99 against Envoy", "latency", "p99_us", "us", "envoy", 1.0, 0.7),
    Target("memory of an idle process", "memory", "rss_mb", "MB", "envoy", 55, 40, kind="absolute"),
    Target("memory of an idle mTLS connection", "memory", "connection_kib", "KiB", "envoy", 48, 32, kind="absolute"),
    Target("start to ready", "start-up", "start_s", "s", "envoy", 0.6, 0.3, kind="absolute"),
    Target("policy of 100 000 rules against 10", "policy-size", "cpu_us", _CPU, "meshguard-10-rules", 1.5, 1.1, "meshguard-many-rules"),
    Target("policy of 1000 rules against 10", "policy-size", "cpu_us", _CPU, "meshguard-10-rules"),
    Target("tracing every request, added on the path", "tracing", "main_us", "us", "none", 3, 1, "all", "added"),
    Target("tracing every request, added in all threads", "tracing", "cpu_us", "us", "none", ours="all", kind="added"),
    Target("two workers on one core against one process", "workers", "cpu_us", _CPU, "meshguard", ours="meshguard-two-workers"),
    Target(
        "two workers on two cores (shared with load and upstream) against one",
        "workers-two-cores",
        "wall_us",
        "us of wall clock",
        "meshguard-any-core",
        ours="meshguard-two-workers-any-core",
    ),
    Target("decision log to a file, added", "decision-log", "cpu_us", "us", "meshguard-no-log", kind="added"),
    Target("ledger, durability batch, added", "ledger", "main_us", "us", "meshguard", 6, 3, "meshguard-ledger", "added"),
    Target("a decision: 100 000 rules against 10", "decision", "size_ratio", "times", "", 1.5, 1.1, kind="absolute"),
    Target("a decision: an expression where it is used, added", "decision", "memo_us", "us", "", 6, 3, kind="absolute"),
    Target("a decision not made before, 100 000 rules", "decision", "plain_us", "us", "", kind="absolute"),
    Target("the same, expressions in rules beside", "decision", "beside_us", "us", "", kind="absolute"),
    Target("the same by a list of 100 000 rules tried in turn", "decision", "linear_us", "us", "", kind="absolute"),
    Target("100 000 rules over 10, added", "rbac", "cpu_us", "us", "meshguard-10-rules", ours="meshguard-many-rules", kind="added"),
    Target("Envoy's RBAC: 10 rules over none", "rbac", "cpu_us", "us", "envoy-no-rules", ours="envoy-10-rules", kind="added"),
    Target("Envoy's RBAC: 1000 rules over none", "rbac", "cpu_us", "us", "envoy-no-rules", ours="envoy-1000-rules", kind="added"),
    Target("Envoy's RBAC: 100 000 rules over none", "rbac", "cpu_us", "us", "envoy-no-rules", ours="envoy-many-rules", kind="added"),
    Target("p99 during reloads of 10 000 rules", "reloads", "p99_us", "us", "quiet", 1.5, 1.2, "reloading"),
    Target("quarantine of a caller with 1000 streams, p99", "quarantine", "cut_p99_ms", "ms", "", 100, 50, "meshguard-held", "absolute"),
    Target("quarantine of a caller with 1000 streams, median", "quarantine", "cut_ms", "ms", "", ours="meshguard-held", kind="absolute"),
    Target("p50 during reloads of 10 000 rules", "reloads", "p50_us", "us", "quiet", ours="reloading"),
    Target("a reload of one document of 1000 of the 10 000 rules", "reloads", "reload_s", "s", "", ours="reloading", kind="absolute"),
    Target("growth over the reloads of a round", "reloads", "growth_mb", "MB", "", 3, 1, "reloading", "absolute"),
    Target("ledger, durability request, added", "ledger", "main_us", "us", "meshguard", ours="meshguard-ledger-request", kind="added"),
    Target("ledger: append against plain JSON lines", "ledger-alone", "append_us", "CPU us", "plain", 2.5, 2.0),
    Target("ledger: verify, an entry (200 000 a second)", "ledger-alone", "verify_us", "CPU us", "plain", 5, 2.5, kind="absolute"),
    Target("ledger: slowest kind of question to 1 million", "ledger-alone", "query_ms", "ms", "plain", 50, 20, kind="absolute"),
    Target("ledger: the same, compressed segments", "ledger-alone", "packed_ms", "ms", "plain", 50, 20, kind="absolute"),
    Target("ledger: a caller's denials, against SQLite alone", "ledger-alone", "caller_ms", "ms", "plain"),
    Target("ledger: index behind at 2000 entries a second", "ledger-alone", "lag_ms", "ms", "plain", kind="absolute"),
    *_fields(),
)
