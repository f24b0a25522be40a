"""The rows: what is loaded, who takes part, and the interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks import decision, field_load, load, quarantine, reloads
from benchmarks.candidates import Candidate
from benchmarks.field_load import INLINE
from benchmarks.ledger_alone import ledger_alone
from benchmarks.load import Sample

__all__ = ["ROWS", "Contestant", "Row", "contestants", "play"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A column of a row: the candidate, and settings of the load that are its own. `label` names it in results."""

    candidate: str
    label: str = ""
    settings: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        return self.label or self.candidate


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of load.

    `measure(candidate, kind, seconds, warm, **settings)` takes one sample; `metric` is the sample's key that the table shows first.
    `ours` are the variants of meshguard that take part. `peers`: other proxies take part; `without` those that cannot.
    `fresh`: each sample starts a process of its own, so there is no warm-up round.
    """

    name: str
    kind: str
    unit: str
    metric: str
    measure: Callable[..., Sample]
    ours: tuple[Contestant, ...]
    peers: bool = True
    without: frozenset[str] = frozenset()
    fresh: bool = False
    most_rounds: int = 100
    settings: dict[str, object] = field(default_factory=dict)


_SELF = Contestant("meshguard")
_BOTH = (_SELF, Contestant("meshguard-reference"))
_CPU = "CPU us/request"

def _fields(name: str, size: int, conns: int) -> Row:
    """Bodies of one size with no, one and ten protected fields, here and in Envoy with an external processor."""
    ours = [
        Contestant("meshguard-fields", label, (("count", count),)) for label, count in (("no rule", 0), ("1 field", 1), ("10 fields", 10))
    ]
    theirs = [Contestant("envoy-ext-proc", f"Envoy, {label}", (("count", count),)) for label, count in (("1 field", 1), ("10 fields", 10))]
    inline = [Contestant("meshguard-fields", label, (("inline", label),)) for label in INLINE]
    everyone = (Contestant("meshguard", "no fields at all", (("count", 0),)), *ours, *inline, *theirs)
    settings: dict[str, object] = {"size": size, "conns": conns}
    return Row(name, "h1-mtls", _CPU, "cpu_us", field_load.measure, everyone, peers=False, settings=settings)


ROWS: tuple[Row, ...] = (
    Row("h1-mtls", "h1-mtls", _CPU, "cpu_us", load.closed_loop, _BOTH),
    Row("h1-plain", "h1-plain", _CPU, "cpu_us", load.closed_loop, _BOTH),
    Row("h2-mtls", "h2-mtls", _CPU, "cpu_us", load.closed_loop, (_SELF,)),
    Row("grpc", "grpc", _CPU, "cpu_us", load.closed_loop, (_SELF,)),
    Row("handshake", "h1-mtls", "CPU us/handshake", "cpu_us", load.handshakes, (_SELF,), without=frozenset({"mitmproxy"})),
    Row("latency", "h1-mtls", "us at a fixed rate", "p50_us", load.latency, (_SELF,), without=frozenset({"mitmproxy"})),
    Row("memory", "h1-mtls", "MB idle", "rss_mb", load.memory, (_SELF,), fresh=True, most_rounds=3),
    Row("start-up", "h1-mtls", "s to the first answer", "start_s", load.start_up, (_SELF,), fresh=True, most_rounds=5),
    Row(
        "policy-size", "h1-mtls", _CPU, "cpu_us", load.closed_loop,
        (Contestant("meshguard-10-rules"), _SELF, Contestant("meshguard-many-rules")), peers=False,
    ),
    Row(
        "tracing", "h1-mtls", _CPU, "cpu_us", load.closed_loop,
        (Contestant("meshguard", "none", (("trace", 0),)), Contestant("meshguard", "all", (("trace", 1),))), peers=False,
    ),
    Row("decision-log", "h1-mtls", _CPU, "cpu_us", load.closed_loop, (_SELF, Contestant("meshguard-no-log")), peers=False),
    Row(
        "ledger", "h1-mtls", _CPU, "cpu_us", load.closed_loop,
        (_SELF, Contestant("meshguard-ledger"), Contestant("meshguard-ledger-request")), peers=False,
    ),
    Row(
        "ledger-alone", "h1-mtls", "CPU us/entry appended", "append_us", ledger_alone,
        (_SELF, Contestant("meshguard", "plain", (("plain", True),))), peers=False, fresh=True, most_rounds=1,
        settings={"entries": 1_000_000},
    ),
    Row("workers", "h1-mtls", _CPU, "cpu_us", load.closed_loop, (_SELF, Contestant("meshguard-two-workers")), peers=False),
    Row(
        "workers-two-cores", "h1-mtls", "us of wall clock a request", "wall_us", load.closed_loop,
        (Contestant("meshguard-any-core"), Contestant("meshguard-two-workers-any-core")), peers=False,
    ),
    _fields("fields-1k", 1_000, 32),
    _fields("fields-10k", 10_000, 32),
    _fields("fields-100k", 100_000, 8),
    _fields("fields-1m", 1_000_000, 4),
    Row(
        "reloads", "h1-mtls", "us at a fixed rate", "p99_us", reloads.measure,
        (Contestant("meshguard-held", "quiet"), Contestant("meshguard-held", "reloading", (("reloads", True),))), peers=False,
    ),
    Row(
        "quarantine", "h2-mtls", "ms to the last octet", "cut_ms", quarantine.measure, (Contestant("meshguard-held"),), peers=False,
        most_rounds=1,
    ),
    Row("decision", "h1-mtls", "CPU us, 100 000 rules", "plain_us", decision.measure, (_SELF,), peers=False, fresh=True, most_rounds=1),
    Row(
        "rbac", "h1-mtls", _CPU, "cpu_us", load.closed_loop,
        (*(Contestant(f"meshguard{size}") for size in ("-10-rules", "", "-many-rules")),
         *(Contestant(f"envoy-{size}-rules") for size in ("no", "10", "1000", "many"))), peers=False,
    ),
)  # fmt: skip
"""In the order of the tables."""


def contestants(row: Row, ours: str, peers: Iterable[str]) -> list[Contestant]:
    """Who takes part. `ours` other than meshguard stands in for it, to check the harness with a proxy that is known."""
    if ours == "meshguard":
        mine = list(row.ours)
    else:
        mine = [Contestant(ours, each.label, each.settings) for each in row.ours if each.candidate == "meshguard"]
    known = {each.name for each in mine}
    others = [Contestant(name) for name in peers if row.peers and name not in row.without and name not in known]
    return mine + others


def play(row: Row, field_of: list[tuple[Contestant, Candidate]], rounds: int, seconds: float, warmup_s: float) -> dict[str, list[Sample]]:
    """Rounds of A B C A B C; a first, short one that only warms up is not counted. Contestant's name to its samples."""
    samples: dict[str, list[Sample]] = {contestant.name: [] for contestant, _ in field_of}
    rounds = min(rounds, row.most_rounds)
    for turn in range(0 if row.fresh else -1, rounds):
        for contestant, candidate in field_of:
            settings = {**row.settings, **dict(contestant.settings)}
            if turn < 0:
                row.measure(candidate, row.kind, warmup_s, 0.1, **settings)
            else:
                samples[contestant.name].append(row.measure(candidate, row.kind, seconds, **settings))
    return samples
