"""`meshguard fleet`: make the store's buckets; see which instance enforces what since when.

Exit status: 0 done, every instance is up to date; 1 somebody is stale, absent, behind, or refused by the store; 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meshguard.cli.fleet_store import Fleet, add_config, fleet_of, with_store
from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from meshguard.control.fleet.overview import Overview
    from meshguard.sources.nats_store import Store

__all__ = ["register"]

_EXAMPLES = """\
examples:
  meshguard fleet init --config sidecar.yaml
  meshguard fleet status --config sidecar.yaml
  meshguard fleet status --config sidecar.yaml --expect node-1,node-2 --json
  meshguard fleet forget node-7 --config sidecar.yaml
  meshguard bundle push shop.json fleet:prod --config sidecar.yaml
  meshguard quarantine add spiffe://shop.example/ns/prod/sa/billing --fleet --key security.key --ttl 1h --config sidecar.yaml
"""
_INSTANCES_TTL_S = 7 * 86400.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "fleet",
        help="the store that instances share: make it, see who enforces what",
        description="Makes the buckets of the fleet's store (NATS JetStream), and shows what each instance enforces.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="fleet_command", metavar="COMMAND", required=True)
    init = commands.add_parser("init", help="make the buckets that are missing")
    add_config(init)
    init.add_argument("--replicas", type=int, default=1, metavar="N", help="copies of each bucket in a NATS cluster (default 1)")
    init.set_defaults(run=_init)
    status = commands.add_parser("status", help="which instance enforces what since when; exit 1 when one is stale, absent or behind")
    add_config(status)
    status.add_argument("--expect", default="", metavar="NAME,NAME", help="instances that have to be there; or their number")
    status.add_argument("--json", action="store_true", help="machine-readable output")
    status.set_defaults(run=_status)
    forget = commands.add_parser("forget", help="remove the report of an instance that does not come back")
    add_config(forget)
    forget.add_argument("instance", metavar="NAME")
    forget.set_defaults(run=_forget)


def _init(options: argparse.Namespace) -> int:
    fleet = fleet_of(options.config)
    buckets = fleet.config.buckets
    wanted: dict[str, dict[str, Any]] = {
        buckets.bundles: {"history": 16},
        buckets.quarantine: {"history": 64},
        buckets.instances: {"history": 1, "ttl_s": _INSTANCES_TTL_S},
        buckets.checkpoints: {"history": 64},
    }

    async def work(store: Store) -> dict[str, bool]:
        made: dict[str, Any] = {}
        for name, settings in wanted.items():
            made[name] = await store.make_bucket(name, replicas=options.replicas, **settings)
        return made

    for name, fresh in with_store(fleet, work).items():
        print(f"{name}: {'made' if fresh else 'there already'}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from meshguard.control.fleet.overview import overview

    fleet = fleet_of(options.config)
    expected, count = _expected(options.expect)
    now = time.time()
    seen = with_store(fleet, lambda store: overview(store, fleet.config, now, expected, count))
    if options.json:
        print(json.dumps(seen.told(), indent=2))
    else:
        _table(fleet, seen, now)
    return 0 if seen.good else 1


def _expected(text: str) -> tuple[Sequence[str], int]:
    names = [name for name in text.split(",") if name]
    return ([], int(names[0])) if len(names) == 1 and names[0].isdecimal() else (names, 0)


def _table(fleet: Fleet, seen: Overview, now: float) -> None:
    rows: list[tuple[str, ...]] = [("INSTANCE", "STATE", "REPORTED", "POLICY", "BUNDLE", "SINCE", "QUARANTINE", "VERSION")]
    rows += [each.row(now) for each in seen.lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"fleet {fleet.config.name}: {seen.words()}")


def _forget(options: argparse.Namespace) -> int:
    from meshguard.control.fleet.instances import instances_of, report_key
    from meshguard.sources.nats_store import keyed

    fleet = fleet_of(options.config)

    async def work(store: Store) -> int:
        bucket = await store.bucket(fleet.config.buckets.instances)
        found = instances_of(fleet.config.name, await bucket.all(f"{keyed(fleet.config.name)}.>"))
        mine = [each for each in found if each.name == options.instance]
        for each in mine:
            await bucket.delete(report_key(fleet.config.name, each.name, each.worker))
        return len(mine)

    count = with_store(fleet, work)
    if not count:
        raise MeshguardError(f"no instance {options.instance} has reported")
    print(f"{options.instance}: forgotten, {count} report{'s' if count != 1 else ''}")
    return 0
