"""`meshguard identity`: a development CA, and what a certificate says and why it is or is not accepted.

Exit status: 0 done or accepted, 1 not accepted, 2 wrong use or a file that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshguard.model.durations import seconds_of
from meshguard.model.errors import DocumentError, IdentityError, MeshguardError

if TYPE_CHECKING:
    from meshguard.identity.material import Material
    from meshguard.identity.trust import TrustStore

__all__ = ["register"]

_EXAMPLES = """\
examples:
  meshguard identity init ./identity --trust-domain shop.example
  meshguard identity issue ./identity --path /ns/dev/sa/billing --out ./billing
  meshguard identity renew ./identity ./billing
  meshguard identity show ./billing/svid.pem --bundle shop.example=./identity/bundle.pem
  meshguard identity verify ./billing/svid.pem --bundle shop.example=./identity/bundle.pem && echo accepted
  curl --cacert ./identity/bundle.pem --cert ./billing/svid.pem --key ./billing/svid.key https://localhost:8443/
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `identity` and its commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    parser = subparsers.add_parser(
        "identity",
        help="make a development CA and identities, inspect certificates",
        description="Make identities with a development CA; show what a certificate contains and why it is or is not accepted.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="identity_command", metavar="COMMAND", required=True)

    init = _command(
        commands, "init", "make a development CA in a directory, or say what is there", "init ./identity --trust-domain shop.example"
    )
    init.add_argument("directory", type=Path, help="made with mode 0700 when it does not exist")
    init.add_argument("--trust-domain", required=True, metavar="NAME", help="lower case, for example shop.example")
    init.set_defaults(run=_init)

    issue = _command(
        commands,
        "issue",
        "write an SVID, its key and the bundle for a workload",
        "issue ./identity --path /ns/dev/sa/billing --out ./billing",
        "issue ./identity --path /ns/dev/sa/web --out ./web --dns web.local --address 10.0.0.7 --life 1h",
    )
    issue.add_argument("directory", type=Path, help="directory of the development CA")
    issue.add_argument("--path", required=True, metavar="PATH", help="SPIFFE path of the workload, for example /ns/dev/sa/billing")
    issue.add_argument("--out", type=Path, required=True, metavar="DIR", help="receives svid.pem, svid.key (mode 0600) and bundle.pem")
    issue.add_argument("--dns", action="append", metavar="NAME", help="DNS name of a server (repeatable; default localhost)")
    issue.add_argument("--address", action="append", metavar="IP", help="address of a server (repeatable; default 127.0.0.1 and ::1)")
    issue.add_argument("--life", type=_duration, default=86400.0, metavar="TIME", help="for example 90s, 15m, 24h, 7d (default 24h)")
    issue.set_defaults(run=_issue)

    renew = _command(
        commands,
        "renew",
        "replace an SVID when half of its life is over",
        "renew ./identity ./billing",
        "renew ./identity ./billing --force",
    )
    renew.add_argument("directory", type=Path, help="directory of the development CA")
    renew.add_argument("out", type=Path, help="directory with svid.pem, as `issue` has written it")
    renew.add_argument("--force", action="store_true", help="also when less than half of its life is over")
    renew.set_defaults(run=_renew)

    show = _command(
        commands,
        "show",
        "show a certificate, each rule for it, and with bundles the verdict on its chain",
        "show svid.pem",
        "show svid.pem --bundle shop.example=ca.pem --bundle partner.example=p.pem --crl revoked.crl",
        "show svid.pem --bundle shop.example=ca.pem --at 2027-01-01T00:00:00Z --json",
    )
    _verification_arguments(show)
    show.add_argument("--json", action="store_true", help="one JSON document on standard output")
    show.set_defaults(run=_show)

    verify = _command(
        commands,
        "verify",
        "verify a chain against trust bundles; prints the SPIFFE ID, or the reason on standard error",
        "verify svid.pem --bundle shop.example=ca.pem",
        "verify svid.pem --workload-api unix:///run/spire/agent.sock",
    )
    _verification_arguments(verify)
    verify.add_argument("--workload-api", metavar="ADDRESS", help="take the bundles from this SPIFFE Workload API")
    verify.set_defaults(run=_verify)


def _command(commands: Any, name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
    lines = "\n".join(f"  meshguard identity {example}" for example in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _verification_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="certificate chain, PEM or DER, leaf first")
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="DOMAIN=FILE", help="CA certificates of a trust domain (repeatable)"
    )
    parser.add_argument("--crl", action="append", default=[], type=Path, metavar="FILE", help="revocation list (repeatable)")
    parser.add_argument("--at", type=_moment, metavar="TIME", help="judge at this time (ISO 8601 or epoch seconds) instead of now")


def _init(arguments: argparse.Namespace) -> int:
    from meshguard.sources.development_ca import DevelopmentAuthority

    existed = (arguments.directory / "ca.pem").exists()
    try:
        authority = DevelopmentAuthority(arguments.directory, arguments.trust_domain).open()
    except MeshguardError as exc:
        return _failed(exc)
    print(f"{'found' if existed else 'made'} the development CA of {authority.trust_domain} in {arguments.directory}")
    print(f"bundle: {arguments.directory / 'bundle.pem'}; renewed after {_shown(authority.renew_at)}")
    return 0


def _issue(arguments: argparse.Namespace) -> int:
    from meshguard.sources.development_ca import SERVER_ADDRESSES, SERVER_DNS, DevelopmentAuthority

    try:
        authority = DevelopmentAuthority(arguments.directory, _domain_of(arguments.directory)).open()
        material = authority.issue(
            arguments.path,
            life_s=arguments.life,
            dns=arguments.dns or SERVER_DNS,
            addresses=arguments.address or SERVER_ADDRESSES,
        )
        _write(arguments.out, material, authority.bundle())
    except (MeshguardError, OSError) as exc:
        return _failed(exc)
    print(f"{material.spiffe_id} until {_shown(material.not_after)} in {arguments.out}")
    return 0


def _renew(arguments: argparse.Namespace) -> int:
    from cryptography import x509

    from meshguard.identity.svid import extension, load_certificate
    from meshguard.sources.development_ca import BACKDATE_S, DevelopmentAuthority
    from meshguard.sources.files import load_material_files

    try:
        old = load_material_files(arguments.out / "svid.pem", arguments.out / "svid.key")
        if not arguments.force and time.time() < (old.not_before + old.not_after) / 2:
            print(f"{old.spiffe_id} is good until {_shown(old.not_after)}: not renewed")
            return 0
        authority = DevelopmentAuthority(arguments.directory, _domain_of(arguments.directory)).open()
        if old.trust_domain != authority.trust_domain:
            raise IdentityError("development_ca", f"{old.spiffe_id} is not of the trust domain {authority.trust_domain}")
        names = extension(load_certificate(old.chain[0]), x509.SubjectAlternativeName)
        material = authority.issue(
            old.spiffe_id.removeprefix(f"spiffe://{old.trust_domain}"),
            life_s=old.not_after - old.not_before - BACKDATE_S,
            dns=names.value.get_values_for_type(x509.DNSName) if names else (),
            addresses=[str(value) for value in names.value.get_values_for_type(x509.IPAddress)] if names else (),
        )
        _write(arguments.out, material, authority.bundle())
    except (MeshguardError, OSError) as exc:
        return _failed(exc)
    print(f"{material.spiffe_id} until {_shown(material.not_after)} in {arguments.out}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from meshguard.identity.svid import describe

    now = arguments.at if arguments.at is not None else time.time()
    try:
        chain = _chain(arguments.file)
        description = describe(chain[0], now)
        store = _store(arguments.bundle, arguments.crl) if arguments.bundle else None
    except (MeshguardError, OSError) as exc:
        return _failed(exc)
    verdict: dict[str, str] | None = None
    if store is not None:
        try:
            principal = store.verify(chain, now)
            verdict = {"outcome": "accepted", "spiffe_id": principal.spiffe_id, "until": _shown(principal.not_after)}
        except IdentityError as exc:
            verdict = {"outcome": "refused", "code": exc.code, "detail": exc.detail}
    accepted = description.acceptable and (verdict is None or verdict["outcome"] == "accepted")
    if arguments.json:
        document = {
            "file": str(arguments.file),
            "certificates": len(chain),
            "spiffe_id": description.spiffe_id.uri if description.spiffe_id else None,
            "facts": description.facts,
            "rules": [{"code": rule.code, "rule": rule.title, "passed": rule.passed, "detail": rule.detail} for rule in description.rules],
            "chain": verdict,
            "accepted": accepted,
        }
        print(json.dumps(document, indent=2))
        return 0 if accepted else 1
    print(f"{arguments.file}: {len(chain)} certificate{'s' if len(chain) > 1 else ''}\n")
    width = max(map(len, description.facts))
    for name, value in description.facts.items():
        print(f"  {name:<{width}}  {', '.join(value) if isinstance(value, list) else value}")
    print("\nrules of an X.509-SVID")
    for rule in description.rules:
        mark = {True: "ok  ", False: "FAIL", None: "?   "}[rule.passed]
        print(f"  {mark}  {rule.title}: {rule.detail}" + (f" [{rule.code}]" if rule.passed is False else ""))
    print("\nchain")
    if verdict is None:
        print("  ?     not judged: give --bundle DOMAIN=FILE")
    elif verdict["outcome"] == "accepted":
        print(f"  ok    {verdict['spiffe_id']}, until {verdict['until']}")
    else:
        print(f"  FAIL  {verdict['detail']} [{verdict['code']}]")
    print(f"\n{'acceptable' if accepted else 'NOT acceptable'}")
    return 0 if accepted else 1


def _verify(arguments: argparse.Namespace) -> int:
    from meshguard.identity.trust import TrustStore
    from meshguard.sources.workload_api import fetch_bundles

    try:
        chain = _chain(arguments.file)
        if arguments.workload_api:
            bundles, crls = asyncio.run(fetch_bundles(arguments.workload_api))
            store = TrustStore(bundles, crls)
        elif arguments.bundle:
            store = _store(arguments.bundle, arguments.crl)
        else:
            raise IdentityError("usage", "give --bundle DOMAIN=FILE or --workload-api ADDRESS: without a bundle nothing is trusted")
    except (MeshguardError, OSError) as exc:
        return _failed(exc)
    try:
        principal = store.verify(chain, arguments.at if arguments.at is not None else time.time())
    except IdentityError as exc:
        print(f"refused: {exc}", file=sys.stderr)
        return 1
    print(principal.spiffe_id)
    return 0


def _store(bundles: list[str], crls: list[Path]) -> TrustStore:
    from meshguard.identity.trust import TrustStore
    from meshguard.sources.files import load_bundle, load_crls

    found: dict[str, tuple[bytes, ...]] = {}
    for item in bundles:
        domain, sign, path = item.partition("=")
        if not sign:
            raise IdentityError("usage", f"--bundle {item}: expected DOMAIN=FILE")
        found[domain] = found.get(domain, ()) + load_bundle(path)
    return TrustStore(found, [der for path in crls for der in load_crls(path)])


def _chain(path: Path) -> list[bytes]:
    from meshguard.identity.pem import read_certificates

    try:
        return read_certificates(path.read_bytes())
    except IdentityError as exc:
        raise IdentityError(exc.code, f"{path}: {exc.detail}") from exc


def _domain_of(directory: Path) -> str:
    """The trust domain of the development CA that is in `directory`."""
    from meshguard.identity.authority import Authority

    path = directory / "ca.pem"
    if not path.exists():
        raise IdentityError(
            "development_ca", f"{directory} has no CA yet: `meshguard identity init {directory} --trust-domain NAME` makes one"
        )
    domain = Authority(_chain(path)[0]).trust_domain
    if domain is None:
        raise IdentityError("development_ca", f"{path} names no trust domain: it is not a development CA")
    return domain


def _write(directory: Path, material: Material, bundle: tuple[bytes, ...]) -> None:
    from meshguard.identity.pem import encode_certificates
    from meshguard.sources.development_ca import write_private

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(directory / "bundle.pem", encode_certificates(bundle), mode=0o644)
    write_private(directory / "svid.key", material.key_pem())
    write_private(directory / "svid.pem", material.certificate_pem, mode=0o644)


def _duration(text: str) -> float:
    try:
        value = seconds_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: expected a number with s, m, h or d") from None
    if not 1 <= value <= 365 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1s and 365d")
    return value


def _moment(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: expected 2027-01-01T00:00:00Z or epoch seconds") from None
    return value.replace(tzinfo=value.tzinfo or UTC).timestamp()


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _failed(problem: Exception) -> int:
    if isinstance(problem, DocumentError):
        for line in problem.problems:
            print(f"error: {line}", file=sys.stderr)
    elif isinstance(problem, IdentityError):
        print(f"error: {problem.detail or problem.code}", file=sys.stderr)
    elif isinstance(problem, OSError):
        print(f"error: {problem.filename or 'system'}: {problem.strerror or problem}", file=sys.stderr)
    else:
        print(f"error: {problem}", file=sys.stderr)
    return 2
