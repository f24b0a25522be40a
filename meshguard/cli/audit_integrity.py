"""`meshguard audit verify, prove, verify-proof, key`: is the ledger what was written?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshguard.cli.ledger_options import add_place, place_of
from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from meshguard.ledger.notes import NoteVerifier
    from meshguard.ledger.verify import ShardReport
    from meshguard.storage.shard_reader import ShardReader

__all__ = ["add", "verifiers"]

Subparsers = Any


def add(subparsers: Subparsers) -> None:
    """Adds the commands of this module."""
    parser = subparsers.add_parser("verify", help="derive every entry and root anew; exit 1 when something was changed")
    add_place(parser)
    _keys(parser)
    parser.add_argument(
        "--checkpoint", metavar="FILE", action="append", default=[], help="a checkpoint that was kept elsewhere; repeatable"
    )
    parser.add_argument("--all-keys", action="store_true", help="each checkpoint has to be signed by every key, not by one of them")
    parser.add_argument("--fleet", action="store_true", help="also against the checkpoints in the fleet's store (needs --config)")
    parser.add_argument("--json", action="store_true", help="a JSON document instead of text")
    parser.set_defaults(run=verify)
    parser = subparsers.add_parser("prove", help="an inclusion proof of one entry, as JSON")
    add_place(parser)
    parser.add_argument("entry", metavar="ID", help="decision id, or SHARD:INDEX")
    parser.add_argument("--older", metavar="FILE", help="also prove that the ledger continues this checkpoint")
    _keys(parser)
    parser.set_defaults(run=prove)
    parser = subparsers.add_parser("verify-proof", help="check a proof without the ledger")
    parser.add_argument("proof", metavar="FILE", help="from `prove`; - for standard input")
    parser.add_argument("--key", metavar="KEY", action="append", required=True, help="verifier key, or a file that holds one; repeatable")
    parser.set_defaults(run=check_proof)
    parser = subparsers.add_parser("key", help="make a key for signing checkpoints, and print its public part")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--name", metavar="NAME", help="as in ledger.checkpoints.name")
    parser.add_argument("--trust-domain", default="localhost", help="for the default name")
    parser.add_argument("--post-quantum", action="store_true", help="ML-DSA-44, for checkpoints.post_quantum_key")
    parser.add_argument("--show", action="store_true", help="only print the public part of an existing key")
    parser.set_defaults(run=key)


def _keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key", metavar="KEY", action="append", default=[], help="verifier key, or a file that holds one (default: DIR/checkpoint.pub)"
    )


def verifiers(said: Sequence[str], directory: Path | None) -> list[NoteVerifier]:
    """The keys that were said, else that of the ledger itself. Raises MeshguardError, OSError."""
    from meshguard.ledger.notes import NoteVerifier

    texts = []
    for text in said:
        lines = [text] if "+" in text and not Path(text).exists() else Path(text).read_text("utf-8").splitlines()
        texts += [line for line in lines if line.strip()]
    if not texts and directory is not None:
        own = directory / "checkpoint.pub"
        if not own.exists():
            raise MeshguardError(f"{own}: no such key; say --key")
        texts = own.read_text("utf-8").split()
    return [NoteVerifier.parse(text) for text in texts]


def verify(options: argparse.Namespace) -> int:
    """Exit code 1 when anything is wrong."""
    from meshguard.storage.audit import verify_ledger

    directory = place_of(options)
    known = verifiers(options.key, directory)
    held = [(name, Path(name).read_text("utf-8")) for name in options.checkpoint]
    if options.fleet:
        held += _held_in_fleet(options, known)
    started = time.perf_counter()
    report = verify_ledger(directory, known, held, every=options.all_keys)
    took_s = time.perf_counter() - started
    if not report.shards:
        raise MeshguardError(f"{directory}: no shard of a ledger is here")
    if options.json:
        import orjson

        told = {
            "good": report.good,
            "entries": report.entries,
            "seconds": round(took_s, 3),
            "shards": {str(number): _structured(shard) for number, shard in report.shards.items()},
            "problems": report.strays,
        }
        sys.stdout.write(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode() + "\n")
        return 0 if report.good else 1
    for number, shard in report.shards.items():
        covered = f"{shard.signed} of {shard.size} entries under {shard.checkpoints} signed checkpoints"
        expired = f", {shard.expired} expired (hashes kept)" if shard.expired else ""
        print(f"shard {number} ({shard.origin}): {covered}{expired}")
        print(f"  root {shard.root.hex()}")
        for finding in shard.findings:
            print(f"  {finding.text()}")
    for stray in report.strays:
        print(f"checkpoint {stray}")
    rate = f"{report.entries} entries in {took_s:.2f} s"
    if report.good:
        print(f"good: {rate}")
        if not options.key:
            print("the key came from the ledger's own directory: with --key from elsewhere this says more")
        if not held:
            print("without a checkpoint that was kept elsewhere (--checkpoint) a ledger that was cut short or replaced looks good too")
        return 0
    print(f"NOT GOOD: {rate}")
    return 1


def _held_in_fleet(options: argparse.Namespace, known: Sequence[NoteVerifier]) -> list[tuple[str, str]]:
    from meshguard.cli.fleet_store import fleet_of, with_store
    from meshguard.control.fleet.checkpoints import held_checkpoints

    if options.config is None:
        raise MeshguardError("--fleet needs --config: a configuration with a `fleet` section")
    fleet = fleet_of(options.config)
    held = with_store(fleet, lambda store: held_checkpoints(store, fleet.config, known))
    if not held:
        raise MeshguardError("the fleet's store holds no checkpoint of this ledger's key")
    return held


def _structured(shard: ShardReport) -> dict[str, Any]:
    first = shard.first_bad
    return {
        "origin": shard.origin,
        "size": shard.size,
        "signed": shard.signed,
        "expired": shard.expired,
        "checkpoints": shard.checkpoints,
        "root": shard.root.hex(),
        "first_bad": first.index if first is not None else None,
        "findings": [
            {"kind": finding.kind, "index": finding.index, "exact": finding.exact, "detail": finding.detail} for finding in shard.findings
        ],
    }


def prove(options: argparse.Namespace) -> int:
    """Prints the proof."""
    import orjson

    from meshguard.ledger.bundles import make_proof
    from meshguard.ledger.checkpoints import Checkpoint
    from meshguard.ledger.notes import open_note
    from meshguard.storage.segments import shard_directories
    from meshguard.storage.shard_reader import ShardReader

    directory = place_of(options)
    readers = {number: ShardReader(number, place) for number, place in shard_directories(directory)}
    number, index, entry = _find(readers, options.entry)
    reader = readers[number]
    known = verifiers(options.key, directory)
    notes = [note for note in reader.notes() if Checkpoint.parse(open_note(note, known).text).size > index]
    if not notes:
        raise MeshguardError(f"entry {index} of shard {number} is not under a checkpoint yet; the next one comes within its interval")
    older = Path(options.older).read_text("utf-8") if options.older else ""
    try:
        proof = make_proof(index, entry, notes[-1], reader.range_root, older)
    except ValueError as exc:
        raise MeshguardError(str(exc)) from exc
    proof["shard"] = number
    sys.stdout.write(orjson.dumps(proof, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode() + "\n")
    return 0


def _find(readers: dict[int, ShardReader], wanted: str) -> tuple[int, int, bytes]:
    """(shard, index, entry). An id is that of the whole decision, not of its beginning."""
    shard, colon, place = wanted.partition(":")
    if colon and shard.isdigit() and place.isdigit() and int(shard) in readers:
        for index, entry in readers[int(shard)].entries(int(place), int(place) + 1):
            return int(shard), index, entry
        raise MeshguardError(f"entry {place} of shard {shard} is not there (any more)")
    needle = b'"id":"%b"' % wanted.encode()
    begun = None
    for number, reader in readers.items():
        for index, entry in reader.entries():
            if needle in entry:
                if b'"begun":true' not in entry:
                    return number, index, entry
                begun = (number, index, entry)
    if begun is None:
        raise MeshguardError(f"no entry has the id {wanted}")
    return begun


def check_proof(options: argparse.Namespace) -> int:
    """Exit code 1 when the proof is wrong."""
    import orjson

    from meshguard.ledger.bundles import verify_proof

    data = sys.stdin.buffer.read() if options.proof == "-" else Path(options.proof).read_bytes()
    try:
        proof = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise MeshguardError(f"{options.proof}: no JSON") from exc
    checkpoint = verify_proof(proof, verifiers(options.key, None))
    print(f"good: entry {proof['index']} of {checkpoint.origin}, under the checkpoint of {checkpoint.size} entries")
    print(proof["entry"])
    return 0


def key(options: argparse.Namespace) -> int:
    """Prints the verifier key."""
    from meshguard.control.ledger_key import default_name, make_key, read_key
    from meshguard.ledger.notes import NoteSigner

    path = Path(options.file)
    try:
        made = read_key(path) if options.show else make_key(path, quantum=options.post_quantum)
    except FileExistsError as exc:
        raise MeshguardError(f"{path}: exists already; --show prints its public part") from exc
    print(NoteSigner(options.name or default_name(options.trust_domain, made), made).verifier.render())
    return 0
