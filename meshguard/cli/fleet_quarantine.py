"""`meshguard quarantine ... --fleet`: the same for every instance at once, through the fleet's store."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from meshguard.cli.fleet_store import Fleet
    from meshguard.control.fleet.edit import Edit, Spread
    from meshguard.integrity.containment import ContainmentSet, Member
    from meshguard.integrity.dsse import PrivateKey
    from meshguard.sources.nats_store import Store

__all__ = ["add", "listed", "remove", "restore"]

_MAX_REASON = 500


def add(options: argparse.Namespace) -> int:
    """Exit code 1 when an instance has not taken it in time."""
    from meshguard.integrity.containment import Member
    from meshguard.policy.quarantine import parse_target

    try:
        parse_target(options.target)
    except ValueError as exc:
        raise MeshguardError(f"{options.target}: {exc} was expected") from exc
    now = time.time()
    until = now + options.ttl if options.ttl else 0.0
    fresh = Member(options.target, options.reason[:_MAX_REASON], getpass.getuser(), now, until)
    return _change(options, lambda members: (*(each for each in members if each.target != fresh.target), fresh))


def remove(options: argparse.Namespace) -> int:
    """The same for letting in again."""

    def without(members: tuple[Member, ...]) -> tuple[Member, ...]:
        kept = tuple(each for each in members if each.target != options.target)
        if len(kept) == len(members):
            raise MeshguardError("this target is not quarantined in the fleet")
        return kept

    return _change(options, without)


def restore(options: argparse.Namespace) -> int:
    """Puts the set that an instance has kept back into a store that has lost it."""
    from meshguard.control.fleet.edit import restore_set

    data = options.file.read_bytes()
    return _run(options, lambda store, fleet: restore_set(store, fleet.config, data))


def listed(options: argparse.Namespace) -> int:
    """What the store says."""
    from meshguard.cli.fleet_store import with_store
    from meshguard.control.fleet.edit import read_set

    fleet = _fleet(options)
    found = with_store(fleet, lambda store: read_set(store, fleet.config))[0]
    members = [each for each in found.members if not each.until or time.time() < each.until] if found is not None else []
    if options.json:
        told = {"fleet": fleet.config.name, "sequence": found.sequence if found else 0, "quarantine": [asdict(each) for each in members]}
        print(json.dumps(told, indent=2))
        return 0
    for each in members:
        until = f"until {_time(each.until)}" if each.until else "until it is removed"
        print(f"{each.target}  since {_time(each.since)} {until}  by {each.by}  {each.reason}".rstrip())
    if not members:
        print("nobody is quarantined in the fleet")
    return 0


def _fleet(options: argparse.Namespace) -> Fleet:
    from meshguard.cli.fleet_store import fleet_of

    if options.config is None:
        raise MeshguardError("--fleet needs --config: a configuration with a `fleet` section, or a document with nothing but that section")
    return fleet_of(options.config)


def _change(options: argparse.Namespace, edit: Edit) -> int:
    from meshguard.control.fleet.edit import change_set

    keys = _keys(options)

    async def work(store: Store, fleet: Fleet) -> ContainmentSet:
        if fleet.config.quarantine.signers and not keys:
            raise MeshguardError("this fleet takes signed changes only: say --key FILE (a private key of fleet.quarantine.signers)")
        return await change_set(store, fleet.config, edit, keys, time.time(), discard=options.discard)

    return _run(options, work)


def _keys(options: argparse.Namespace) -> list[PrivateKey]:
    from meshguard.integrity.dsse import load_private_key

    keys = []
    for path in options.key:
        password = getpass.getpass(f"password of {path}: ").encode() if options.ask_password else None
        keys.append(load_private_key(path.read_bytes(), password))
    return keys


def _run(options: argparse.Namespace, work: Any) -> int:
    from meshguard.cli.fleet_store import with_store
    from meshguard.control.fleet.edit import spread

    fleet = _fleet(options)

    async def both(store: Store) -> tuple[ContainmentSet, Spread]:
        made = await work(store, fleet)
        return made, await spread(store, fleet.config, made.sequence, options.wait)

    made, reached = with_store(fleet, both)
    late = [each.label for each in reached.missing]
    count = len(reached.taken) + len(late)
    if options.json:
        told = {"fleet": made.fleet, "sequence": made.sequence, "quarantine": [asdict(each) for each in made.members]}
        print(json.dumps({**told, "instances": count, "taken_s": round(reached.took_s, 3), "missing": late}, indent=2))
        return 1 if late else 0
    print(f"number {made.sequence}, {len(made.members)} quarantined: in force on {len(reached.taken)} of {count} living instances")
    if late:
        print(f"NOT YET: {', '.join(late)}; `meshguard fleet status` shows when they have it", file=sys.stderr)
    return 1 if late else 0


def _time(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
