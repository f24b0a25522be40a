"""What the commands about the ledger share: where it is, which entries are meant, times as people write them."""

from __future__ import annotations

import argparse
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from meshguard.model.durations import seconds_of
from meshguard.model.errors import MeshguardError, UsageError

if TYPE_CHECKING:
    from meshguard.storage.query import Filter

__all__ = ["add_filter", "add_place", "filter_of", "moment_us", "place_of"]



def add_place(parser: argparse.ArgumentParser) -> None:
    """Adds `--ledger` and `--config`."""
    parser.add_argument("--ledger", metavar="DIR", type=Path, help="the ledger's directory (default: $MESHGUARD_LEDGER, else ./ledger)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="take the directory from this configuration")


def place_of(options: argparse.Namespace) -> Path:
    """The directory that is meant. Raises UsageError where no ledger is."""
    place: Path | None = options.ledger
    if place is None and options.config is not None:
        from meshguard.control.settings.load import load_configuration

        ledger = load_configuration(options.config, now=time.time(), files=False).configuration.ledger
        if ledger is None:
            raise UsageError(f"{options.config}: no ledger is configured")
        place = Path(ledger.directory)
    if place is None:
        place = Path(os.environ.get("MESHGUARD_LEDGER") or "ledger")
    if not (place / "shard-0").is_dir() and not (place.is_dir() and any(place.glob("shard-*"))):
        raise UsageError(f"{place}: no ledger is here; say --ledger DIR or --config FILE")
    return place


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which entries are meant."""
    group = parser.add_argument_group("which decisions")
    group.add_argument("--principal", default="", metavar="ID", help="SPIFFE ID, or its beginning with *")
    group.add_argument("--path", default="", metavar="PATH", help="canonical path; /orders/** for it and all below")
    group.add_argument("--method", default="", metavar="METHOD")
    group.add_argument("--verdict", default="", choices=("", "allow", "deny", "refuse", "error"))
    group.add_argument("--rule", default="", metavar="ID")
    group.add_argument("--reason", default="", metavar="CODE")
    group.add_argument("--route", default="", metavar="ID")
    group.add_argument("--status", type=int, metavar="CODE")
    group.add_argument("--id", default="", metavar="ID", help="decision id")
    group.add_argument("--trace", default="", metavar="ID", help="trace id")
    group.add_argument("--since", metavar="TIME", help="RFC 3339, a date, or an age such as 15m, 2h, 7d")
    group.add_argument("--until", metavar="TIME")
    group.add_argument("--events", action="store_true", help="events of the proxy and the ledger instead of decisions")
    group.add_argument("--event", default="", metavar="NAME", help="events of this name: quarantine, bundle, break_glass, reload, ...")


def filter_of(options: argparse.Namespace) -> Filter:
    """Raises MeshguardError."""
    from meshguard.storage.query import Filter

    now = time.time()
    return Filter(
        principal=options.principal,
        path=options.path,
        method=options.method,
        verdict=options.verdict,
        rule=options.rule,
        reason=options.reason,
        route=options.route,
        status=options.status,
        id=options.id,
        trace=options.trace,
        since=moment_us(options.since, now) if options.since else None,
        until=moment_us(options.until, now) if options.until else None,
        events=options.events,
        event=options.event,
    )


def moment_us(text: str, now: float) -> int:
    """Epoch microseconds of a time as people write it. Raises MeshguardError."""
    with suppress(ValueError):
        return int((now - seconds_of(text)) * 1e6)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise MeshguardError(f"{text!r}: a time such as 2027-01-31T18:00:00Z, 2027-01-31 or 2h is expected") from exc
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1e6)
