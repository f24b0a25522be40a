"""`meshguard bundle`: the policy of a mesh as one signed file with a version that only goes forward.

Exit status: 0 done, 1 the documents have problems, a test failed or the bundle is not acceptable, 2 wrong use or an unusable file.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from meshguard.model.durations import seconds_of
from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from meshguard.integrity.bundle import Bundle

__all__ = ["register"]

_EXAMPLES = """\
examples:
  openssl genpkey -algorithm ed25519 -out release.key && openssl pkey -in release.key -pubout -out release.pub
  meshguard bundle build policies/ --name shop --version 7 --expires 30d --out shop.json
  meshguard bundle sign shop.json --key release.key
  meshguard bundle verify shop.json --key release.pub --key security.pub --threshold 2
  meshguard bundle push shop.json /var/www/bundles/shop.json
  meshguard bundle push shop.json fleet:prod --config sidecar.yaml
  meshguard bundle build emergency/ --name shop --version 7 --break-glass "payment outage 4711" --until 2h --out glass.json
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bundle",
        help="build, sign and verify the policy as one signed, versioned file",
        description="Builds, signs and verifies bundles: DSSE envelopes that a node with a `bundle` section takes its policy from.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="bundle_command", metavar="COMMAND", required=True)
    build = commands.add_parser("build", help="compile the documents, run their tests, write an unsigned bundle")
    build.add_argument("files", nargs="+", type=Path, metavar="FILE", help="policy documents, or directories of them")
    build.add_argument(
        "--include", action="append", default=[], type=Path, metavar="FILE", help="carry this file too: a contract that nodes validate by"
    )
    build.add_argument("--name", required=True, help="what the nodes of one mesh or environment agree on")
    build.add_argument("--version", required=True, type=_version, metavar="N", help="goes forward only")
    build.add_argument("--expires", type=_duration, default=90 * 86400.0, metavar="TIME", help="after which no node takes it (default 90d)")
    build.add_argument("--break-glass", metavar="REASON", help="an emergency: takes two signatures, may be older, ends by itself")
    build.add_argument("--until", type=_duration, metavar="TIME", help="how long break-glass lasts, at most 24h")
    build.add_argument("--out", required=True, type=Path, metavar="FILE")
    build.set_defaults(run=_build)
    sign = commands.add_parser("sign", help="add a signature")
    sign.add_argument("file", type=Path, metavar="FILE")
    sign.add_argument("--key", required=True, type=Path, metavar="FILE", help="private key, PEM: Ed25519, ECDSA on P-256 or P-384")
    sign.add_argument("--ask-password", action="store_true", help="the key is encrypted")
    sign.set_defaults(run=_sign)
    verify = commands.add_parser("verify", help="check signatures, expiry and, against another bundle, that it goes forward")
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.add_argument("--key", required=True, action="append", type=Path, metavar="FILE", help="trusted public keys, PEM")
    verify.add_argument("--threshold", type=int, default=1, metavar="N", help="so many of them must have signed")
    verify.add_argument("--after", type=Path, metavar="FILE", help="the bundle that is in force")
    verify.add_argument("--json", action="store_true", help="machine-readable output")
    verify.set_defaults(run=_verify)
    push = commands.add_parser("push", help="put it where nodes look, whole or not at all")
    push.add_argument("file", type=Path, metavar="FILE")
    what = "a file, replaced atomically, an https URL that takes PUT, or fleet:KEY in the fleet's store"
    push.add_argument("to", metavar="PATH_OR_URL", help=what)
    push.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token for the URL")
    push.add_argument("--config", type=Path, metavar="FILE", help="with a `fleet` section: where the store is")
    push.set_defaults(run=_push)


def _version(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**53:
        raise argparse.ArgumentTypeError("a positive whole number")
    return int(text)


def _duration(text: str) -> float:
    try:
        seconds = float(text) if text.isdecimal() else seconds_of(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3660 * 86400:
        raise argparse.ArgumentTypeError("a time such as 90s, 15m, 2h or 30d")
    return seconds


def _build(options: argparse.Namespace) -> int:
    from meshguard.cli.test import run_files
    from meshguard.integrity.bundle import MAX_BREAK_GLASS_S, Bundle, encode
    from meshguard.sources.documents import find_documents

    if (options.break_glass is None) != (options.until is None):
        raise MeshguardError("--break-glass and --until belong together")
    if options.until is not None and (options.until > MAX_BREAK_GLASS_S or not options.break_glass.strip()):
        raise MeshguardError("break-glass needs a reason and lasts 24h at most")
    found = find_documents(options.files)
    run = run_files(found)
    for result in run.results:
        if not result.passed:
            print(f"failed: {result}", file=sys.stderr)
    if run.failed:
        raise MeshguardError(f"{run.failed} of {len(run.results)} tests fail, nothing was written")
    documents: dict[str, str] = {}
    for path in found:
        name = next((path.relative_to(root).as_posix() for root in options.files if root.is_dir() and path.is_relative_to(root)), path.name)
        if name in documents:
            raise MeshguardError(f"two documents are called {name}")
        documents[name] = path.read_text("utf-8")
    files = _named_files(found, documents)
    for path in options.include:
        name = next((path.relative_to(root).as_posix() for root in options.files if root.is_dir() and path.is_relative_to(root)), path.name)
        if files.setdefault(name, path.read_bytes()) != path.read_bytes() or name in documents:
            raise MeshguardError(f"two files are called {name}")
    now = float(int(time.time()))
    glass = {"reason": options.break_glass, "until": now + options.until} if options.until is not None else {}
    bundle = Bundle(options.name, options.version, now, now + options.expires, documents, files=files, **glass)
    _write(options.out, encode(bundle).encode())
    carried = f"{len(files)} files, " if files else ""
    done = f"{len(documents)} documents, {carried}{len(run.results)} tests passed, not signed yet"
    print(f"{options.out}: {bundle.name} version {bundle.version}, {done}")
    return 0


def _named_files(found: Sequence[Path], documents: Mapping[str, str]) -> dict[str, bytes]:
    """The descriptor sets that the documents name, by their names in the bundle: beside the document, as on disk."""
    from posixpath import normpath

    from meshguard.policy.documents import PolicyDocument
    from meshguard.sources.documents import load_documents

    files: dict[str, bytes] = {}
    loaded = load_documents(found, PolicyDocument)
    for document, path, name in zip(loaded, found, documents, strict=True):
        rules = [rule.body.protobuf.descriptor for rule in document.value.rules if rule.body is not None and rule.body.protobuf is not None]
        fields = [entry["protobuf"].get("descriptor") for entry in document.value.fields if isinstance(entry.get("protobuf"), Mapping)]
        for descriptor in dict.fromkeys((*rules, *(each for each in fields if isinstance(each, str)))):
            carried = normpath(f"{name.rpartition('/')[0]}/{descriptor}" if "/" in name else descriptor)
            if carried.startswith(("..", "/")):
                raise MeshguardError(f"{path}: {descriptor} leads out of the bundle: put it beside the documents")
            files[carried] = (path.parent / descriptor).read_bytes()
    return files


def _sign(options: argparse.Namespace) -> int:
    from meshguard.integrity.bundle import PAYLOAD_TYPE
    from meshguard.integrity.dsse import load_private_key, parse_envelope, sign

    password = getpass.getpass("password of the key: ").encode() if options.ask_password else None
    key = load_private_key(options.key.read_bytes(), password)
    envelope = sign(parse_envelope(options.file.read_bytes(), PAYLOAD_TYPE), key)
    _write(options.file, envelope.encode())
    print(f"{options.file}: signed by {envelope.signatures[-1][0][:16]}, {len(envelope.signatures)} in all")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from meshguard.integrity.bundle import BundleError, accept, open_bundle
    from meshguard.integrity.dsse import load_public_keys

    keys = [key for file in options.key for key in load_public_keys(file.read_bytes())]
    try:
        bundle = open_bundle(options.file.read_bytes(), keys, options.threshold)
        held = open_bundle(options.after.read_bytes(), keys, 1) if options.after is not None else None
        accept(bundle, held, time.time())
    except BundleError as exc:
        if options.json:
            print(json.dumps({"ok": False, "code": exc.code, "error": str(exc)}))
            return 1
        raise
    _show(options, bundle)
    return 0


def _show(options: argparse.Namespace, bundle: Bundle) -> None:
    told = {
        "ok": True,
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "expires": _time(bundle.expires),
        "signers": sorted(bundle.signers),
        "documents": list(bundle.documents),
        "files": {name: "sha256:" + hashlib.sha256(data).hexdigest() for name, data in bundle.files.items()},
        "break_glass": {"reason": bundle.reason, "until": _time(bundle.until)} if bundle.is_break_glass else None,
    }
    if options.json:
        print(json.dumps(told, indent=2))
        return
    print(f"{bundle.name} version {bundle.version}, {bundle.digest}")
    for name, data in bundle.files.items():
        print(f"carries {name}, sha256:{hashlib.sha256(data).hexdigest()}")
    print(f"expires {told['expires']}, signed by {', '.join(key[:16] for key in sorted(bundle.signers))}")
    if bundle.is_break_glass:
        print(f"break-glass until {_time(bundle.until)}: {bundle.reason}")


def _push(options: argparse.Namespace) -> int:
    data = options.file.read_bytes()
    if options.to.startswith("fleet:"):
        return _push_to_fleet(options, data)
    if "://" not in options.to:
        _write(Path(options.to), data)
        print(f"{options.to}: {len(data)} octets")
        return 0
    import http.client
    import ssl

    from meshguard.sources.https import checked_url

    url = checked_url(options.to)
    headers = {"content-type": "application/vnd.dsse.envelope.v1+json"}
    if options.token_file is not None:
        headers["authorization"] = f"Bearer {options.token_file.read_text('ascii').strip()}"
    host = url.hostname or ""
    connection = (
        http.client.HTTPSConnection(host, url.port, timeout=30, context=ssl.create_default_context())
        if url.scheme == "https"
        else http.client.HTTPConnection(host, url.port, timeout=30)
    )
    try:
        connection.request("PUT", url.path or "/", data, headers)
        answer = connection.getresponse()
        answer.read()
    except http.client.HTTPException as exc:
        raise MeshguardError(f"{options.to}: {exc}") from exc
    finally:
        connection.close()
    if answer.status >= 300:
        raise MeshguardError(f"{options.to}: status {answer.status}")
    print(f"{options.to}: {len(data)} octets, status {answer.status}")
    return 0


def _push_to_fleet(options: argparse.Namespace, data: bytes) -> int:
    from meshguard.cli.fleet_store import fleet_of, with_store
    from meshguard.integrity.bundle import PAYLOAD_TYPE
    from meshguard.integrity.dsse import parse_envelope
    from meshguard.sources.nats_store import Store

    if options.config is None:
        raise MeshguardError("fleet:KEY needs --config: a configuration with a `fleet` section, or a document with only that section")
    if not parse_envelope(data, PAYLOAD_TYPE).signatures:
        raise MeshguardError(f"{options.file}: not signed, no instance would take it")
    fleet, key = fleet_of(options.config), options.to.removeprefix("fleet:")

    async def work(store: Store) -> int:
        return await (await store.bucket(fleet.config.buckets.bundles)).put(key, data)

    revision = with_store(fleet, work)
    print(f"{options.to}: {len(data)} octets, revision {revision}; `meshguard fleet status` shows who enforces it")
    return 0


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(data)
    except FileNotFoundError as exc:  # the directory: what is told is the file that was asked for
        raise FileNotFoundError(exc.errno, exc.strerror, str(path)) from exc
    fresh.replace(path)


def _time(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
