"""`meshguard keys`: make, show, rotate and destroy keysets. Never prints a key.

A keyset is named by its file (keys in the clear, for development), or with `--config` by its name under `keys`: then the provider of
that section makes and wraps the keys.

Exit status: 0 done, 1 refused (a file in the way, a step that a version may not take, key rotation due), 2 wrong use or no such file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshguard.model.errors import KeysetError

if TYPE_CHECKING:
    from meshguard.control.settings.keys import KeysetConfig
    from meshguard.keys.keyset_file import KeysetRecord
    from meshguard.keys.provider import Kek

__all__ = ["register"]

_EXAMPLES = """\
examples:
  meshguard keys create keys/orders-pii.json
  meshguard keys list keys/orders-pii.json
  meshguard keys rotate keys/orders-pii.json
  meshguard keys disable keys/orders-pii.json --version 1
  meshguard keys destroy keys/orders-pii.json --version 1 --yes

with keys wrapped by a provider (vault, awskms, pkcs11, file with a kek), as the configuration says:
  meshguard keys create orders-pii --config sidecar.yaml
  meshguard keys rotate orders-pii --config sidecar.yaml --settle 5m
  meshguard keys rewrap orders-pii --config sidecar.yaml
  meshguard keys create orders-pii --config sidecar.yaml --tenant acme
  meshguard keys destroy orders-pii --config sidecar.yaml --tenant acme --yes --proof acme.jws --signer proof-key.pem
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` and its commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    parser = subparsers.add_parser(
        "keys",
        help="make, show and rotate keysets of protected fields",
        description="Make, show, rotate and destroy keysets. A key is never printed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="keys_command", metavar="COMMAND", required=True)
    create = _command(commands, "create", "make a keyset file with its first version, or the secret of a tenant", _create)
    create.add_argument("--name", help="the keyset's name (default: the file name without its suffix)")
    create.add_argument("--tenancy", choices=("shared", "derived", "own"), help="how tenants are kept apart (default: shared)")
    create.add_argument("--tenant", help="make the secret of this tenant in a keyset of tenancy own")
    _command(commands, "list", "show versions, states and uses; 1 when a rotation is due", _list)
    rotate = _command(commands, "rotate", "make a new primary version; older ones go on to open", _rotate)
    rotate.add_argument("--settle", metavar="TIME", help="when the new version begins to seal (default: `settle_s` of the configuration)")
    _command(commands, "rewrap", "wrap the keys anew under the provider's key as it is now", _rewrap)
    for name, what in (
        ("disable", "let a version open nothing, for now"),
        ("enable", "let a disabled version open again"),
        ("destroy", "delete the key of a disabled version, or of a tenant: what it sealed is lost"),
    ):
        command = _command(commands, name, what, _change)
        what_to = command.add_mutually_exclusive_group(required=True)
        what_to.add_argument("--version", type=int, metavar="N")
        if name == "destroy":
            what_to.add_argument("--tenant", help="the tenant or subject whose secret is deleted")
            command.add_argument("--yes", action="store_true", help="really delete it")
            command.add_argument("--proof", type=Path, metavar="FILE", help="write a record of the destruction here")
            command.add_argument("--signer", type=Path, metavar="PEM", help="Ed25519 private key that signs the record (JWS)")


def _command(commands: Any, name: str, what: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    command.add_argument("file", type=Path, metavar="FILE", help="the keyset file, or with --config the keyset's name")
    command.add_argument("--config", type=Path, metavar="FILE", help="the configuration whose `keys` say where the keyset is")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    command.set_defaults(run=run)
    return command


class _Target:
    """The keyset that a command line names: its file, and the section of the configuration when there is one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path = options.file
        self.name = ""
        self.config: KeysetConfig | None = None
        if options.config is None:
            return
        from meshguard.control.settings.load import load_configuration

        keys = load_configuration(options.config, now=time.time(), files=False).configuration.keys
        self.name = str(options.file)
        if self.name not in keys:
            raise KeysetError(f"{options.config}: no keyset {self.name!r} under keys (there is {', '.join(keys) or 'none'})")
        self.config = keys[self.name]
        self.path = self.config.path

    @property
    def wraps(self) -> bool:
        """A provider wraps its keys."""
        config = self.config
        return config is not None and not (config.provider == "file" and config.kek is None)

    def with_kek(self, work: Callable[[Kek], Awaitable[KeysetRecord | None]]) -> KeysetRecord:
        """Runs `work` with the KEK of the section."""
        from meshguard.control.settings.keys import provider_values
        from meshguard.keys.keyset_file import read_keyset
        from meshguard.keys.registry import kek_of

        if self.config is None or not self.wraps:
            raise KeysetError("a keyset with wrapped keys is needed: say --config, and a provider there")
        kek = kek_of(provider_values(self.config))

        async def run() -> KeysetRecord | None:
            try:
                return await work(kek)
            finally:
                await kek.close()

        return asyncio.run(run()) or read_keyset(self.path)


def _create(options: argparse.Namespace) -> int:
    from meshguard.fields.keyset import Tenancy
    from meshguard.keys.lifecycle import create
    from meshguard.keys.wrapped import add_tenant, create_wrapped

    target = _Target(options)
    now = time.time()
    if options.tenant is not None:
        return _show(options, target, target.with_kek(lambda kek: add_tenant(target.path, kek, options.tenant, now)))
    target.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if target.config is not None and target.wraps:
        provider, tenancy = target.config.provider, Tenancy(options.tenancy or "shared")
        record = target.with_kek(lambda kek: create_wrapped(target.path, target.name, provider, kek, now, tenancy))
        return _show(options, target, record)
    if options.tenancy not in (None, "shared"):
        raise KeysetError("tenants with keys of their own need a keyset with wrapped keys (--config)")
    return _show(options, target, create(target.path, options.name or target.name or target.path.stem, now))


def _list(options: argparse.Namespace) -> int:
    from meshguard.keys.keyset_file import read_keyset

    target = _Target(options)
    record = read_keyset(target.path)
    _show(options, target, record)
    return 1 if any(row["needs_rotation"] for row in _rows(target, record)) else 0


def _rotate(options: argparse.Namespace) -> int:
    from meshguard.keys.lifecycle import rotate
    from meshguard.keys.wrapped import rotate_wrapped

    target = _Target(options)
    if not target.wraps or target.config is None:
        return _show(options, target, rotate(target.path, time.time()))
    settle_s = target.config.settle_s if options.settle is None else _seconds(options.settle)
    return _show(options, target, target.with_kek(lambda kek: rotate_wrapped(target.path, kek, time.time(), settle_s)))


def _rewrap(options: argparse.Namespace) -> int:
    from meshguard.keys.wrapped import rewrap

    target = _Target(options)
    return _show(options, target, target.with_kek(lambda kek: rewrap(target.path, kek)))


def _change(options: argparse.Namespace) -> int:
    from meshguard.keys.keyset_file import read_keyset
    from meshguard.keys.lifecycle import change
    from meshguard.keys.shredding import proof_of, signed
    from meshguard.keys.wrapped import destroy_tenant

    target = _Target(options)
    destroys = options.keys_command == "destroy"
    tenant = options.tenant if destroys else None
    what = f"version {options.version}" if tenant is None else f"the key of {tenant!r}"
    if destroys and not options.yes:
        print(f"meshguard: {what} and all that it sealed would be lost: say --yes", file=sys.stderr)
        return 2
    if not destroys:
        return _show(options, target, change(target.path, options.keys_command, options.version))
    before = read_keyset(target.path)
    after = change(target.path, "destroy", options.version) if tenant is None else destroy_tenant(target.path, tenant)
    proof = proof_of(before, after, time.time())
    if options.proof is not None:
        options.proof.write_text(signed(proof, options.signer) if options.signer else json.dumps(proof) + "\n")
    # for whoever collects the standard error of jobs: the fact, never a key
    print(f"meshguard: destroyed: {json.dumps(proof)}", file=sys.stderr)
    return _show(options, target, after)


def _seconds(text: str) -> float:
    from pydantic import TypeAdapter, ValidationError

    from meshguard.control.settings.keys import Settle

    try:
        seconds: float = TypeAdapter(Settle).validate_python(text if not text.isdecimal() else float(text))
    except ValidationError:
        raise KeysetError(f"--settle {text!r}: expected a duration such as 90s, 5m or 0s, at most a day") from None
    return seconds


def _rows(target: _Target, record: KeysetRecord) -> list[dict[str, Any]]:
    from meshguard.fields.keyset import ROTATE_AT, KeyState
    from meshguard.keys.keyset_file import read_uses, uses_path
    from meshguard.keys.records import timestamp

    uses: dict[int, int] = {}
    config = target.config
    counts = not record.provider and not (config is not None and config.provider == "file" and config.subkeys)
    if counts:
        state = config.state if config is not None and config.provider == "file" else None
        try:
            uses = read_uses(target.path, record.name, uses_path(target.path, record.name, state))
        except KeysetError:
            uses = {}
    rotate_after_s = config.rotate_after if config is not None else None
    rows = []
    for key in record.keys:
        used = uses.get(key.version)
        due = key.state is KeyState.PRIMARY and counts and (used is None or used >= ROTATE_AT)
        due |= key.state is KeyState.PRIMARY and rotate_after_s is not None and time.time() - key.created >= rotate_after_s
        row = {"version": key.version, "state": key.state.value, "created": timestamp(key.created), "uses": used, "needs_rotation": due}
        rows.append(row | ({"activates": timestamp(key.activates)} if key.activates > time.time() else {}))
    return rows


def _show(options: argparse.Namespace, target: _Target, record: KeysetRecord) -> int:
    rows = _rows(target, record)
    tenants = {name: "destroyed" if not tenant.wrapped else "enabled" for name, tenant in record.tenants.items()}
    if options.json:
        told: dict[str, Any] = {"file": str(target.path), "name": record.name, "versions": rows}
        if record.provider:
            told |= {"provider": record.provider, "tenancy": record.tenancy.value, "tenants": tenants}
        print(json.dumps(told))
        return 0
    print(f"keyset {record.name} in {target.path}" + (f", wrapped by {record.provider}" if record.provider else ""))
    uses_title = "" if record.provider else f"  {'uses set aside':>14}"
    print(f"  {'version':>7}  {'state':<9}  {'created':<20}{uses_title}")
    for row in rows:
        uses = "" if record.provider else f"  {'unknown' if row['uses'] is None else row['uses']:>14}"
        note = "  rotate now" if row["needs_rotation"] else f"  seals from {row['activates']}" if "activates" in row else ""
        print(f"  {row['version']:>7}  {row['state']:<9}  {row['created']:<20}{uses}{note}")
    for name, state in tenants.items():
        print(f"  tenant {name}: {state}")
    return 0
