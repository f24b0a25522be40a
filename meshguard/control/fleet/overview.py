"""The whole fleet as it stands: who enforces what since when, who is stale, absent or behind what the store holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from meshguard.control.fleet.edit import read_set
from meshguard.control.fleet.instances import Instance, instances_of
from meshguard.control.settings.fleet import FleetConfig
from meshguard.integrity.containment import ContainmentError
from meshguard.sources.nats_store import Store, keyed

__all__ = ["Line", "Overview", "overview"]


@dataclass(frozen=True, slots=True)
class Line:
    """One instance. `state`: current, stale (no report for too long), stopped, absent (expected, never reported), behind (an older bundle
    than others or quarantine than the store), differs (another policy than most), refusing (it has refused the newest change)."""

    name: str
    state: str
    instance: Instance | None = None

    def row(self, now: float) -> tuple[str, ...]:
        """Columns of a table: name, state, age of the report, policy, bundle, since, quarantine, version."""
        instance = self.instance
        if instance is None:
            return (self.name, self.state, "", "", "", "", "", "")
        policy, bundle, quarantine = instance.part("policy"), instance.part("bundle"), instance.part("quarantine")
        digest = str(policy.get("digest", "")).removeprefix("sha256:")[:12]
        glass = " BREAK-GLASS" if bundle.get("until") else ""
        named = f"{bundle.get('name')}@{bundle.get('version')}{glass}" if bundle else "-"
        since = policy.get("since")
        return (
            self.name,
            self.state,
            f"{max(0, now - instance.at):.0f}s ago",
            f"{digest} r{policy.get('revision', '?')}",
            named,
            datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(since, int | float) else "?",
            f"{quarantine.get('sequence', '?')} ({quarantine.get('entries', '?')})",
            str(instance.enforces.get("version", "?")),
        )

    def told(self) -> dict[str, Any]:
        """For machines."""
        instance = self.instance
        more = {"reported_at": instance.at, "enforces": dict(instance.enforces)} if instance is not None else {}
        return {"instance": self.name, "state": self.state, **more}


@dataclass(slots=True)
class Overview:
    """`problem` is what is wrong with the store itself."""

    lines: list[Line] = field(default_factory=list)
    sequence: int = 0
    problem: str = ""

    @property
    def good(self) -> bool:
        return not self.problem and all(line.state in ("current", "stopped") for line in self.lines)

    def words(self) -> str:
        """One line for people."""
        counts = Counter(line.state for line in self.lines)
        text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "nobody has reported"
        return f"{text}; {self.problem}" if self.problem else text

    def told(self) -> dict[str, Any]:
        """For machines."""
        return {
            "good": self.good,
            "problem": self.problem or None,
            "quarantine_sequence": self.sequence,
            "counts": dict(Counter(line.state for line in self.lines)),
            "instances": [line.told() for line in self.lines],
        }


async def overview(store: Store, config: FleetConfig, now: float, expected: Sequence[str] = (), count: int = 0) -> Overview:
    """Reads the store once. `expected` names instances that must be there, `count` is how many must serve. Raises StoreError."""
    bucket = await store.bucket(config.buckets.instances)
    found = instances_of(config.name, await bucket.all(f"{keyed(config.name)}.>"))
    seen = Overview()
    try:
        contained = (await read_set(store, config))[0]
        seen.sequence = contained.sequence if contained is not None else 0
    except ContainmentError as exc:
        seen.problem = f"the store's set is not acceptable: {exc}"
    newest = max((_sequence(each) for each in found), default=0)
    if not seen.problem and seen.sequence < newest:
        seen.problem = f"the store holds quarantine number {seen.sequence}, instances enforce {newest}: it was set back"
    serving = [each for each in found if each.state != "stopped" and not each.is_stale(now, config.stale_after_s)]
    usual = Counter(_policy(each) for each in serving).most_common(1)
    ahead = max((_version(each) for each in serving), default=0)
    for each in found:
        seen.lines.append(Line(each.label, _state(each, now, config, seen.sequence, usual[0][0] if usual else "", ahead), each))
    names = {each.name for each in found}
    seen.lines += [Line(name, "absent") for name in expected if name not in names]
    if len({each.name for each in serving}) < count:
        seen.problem = seen.problem or f"{count} instances were expected, {len({each.name for each in serving})} serve"
    return seen


def _state(each: Instance, now: float, config: FleetConfig, sequence: int, usual: str, ahead: int) -> str:
    if each.state == "stopped":
        return "stopped"
    if each.is_stale(now, config.stale_after_s):
        return "stale"
    if _sequence(each) < sequence or _version(each) < ahead:
        return "behind"
    if each.part("policy").get("error") or each.part("quarantine").get("refused"):
        return "refusing"
    return "current" if _policy(each) == usual or _version(each) == ahead > 0 else "differs"


def _sequence(each: Instance) -> int:
    value = each.part("quarantine").get("sequence")
    return value if isinstance(value, int) else 0


def _version(each: Instance) -> int:
    bundle = each.part("bundle")
    value = bundle.get("version")
    return value if isinstance(value, int) and not bundle.get("until") else 0


def _policy(each: Instance) -> str:
    return str(each.part("policy").get("digest", ""))
