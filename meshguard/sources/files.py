"""Identity from files: an SVID and its key, a bundle for each trust domain, revocation lists; read again whenever they change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path

from meshguard.identity.authority import Authority
from meshguard.identity.material import Material, load_material
from meshguard.identity.pem import read_certificates, read_crls
from meshguard.identity.revocation import RevocationList
from meshguard.identity.spiffe import parse_trust_domain
from meshguard.model.errors import DocumentError, IdentityError, MeshguardError, Problem
from meshguard.sources.identity import IdentityUpdate, Report, check_update
from meshguard.sources.watch import Watch

__all__ = ["FilesSource", "load_bundle", "load_crls", "load_material_files"]


class FilesSource:
    """An identity source. `certificate` holds the SVID and its intermediates, leaf first; `bundles` a file for each trust domain."""

    def __init__(
        self,
        certificate: Path | str,
        key: Path | str,
        bundles: Mapping[str, Path | str],
        crls: Sequence[Path | str] = (),
        *,
        report: Report | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._certificate = Path(certificate)
        self._key = Path(key)
        self._bundles = {domain: Path(path) for domain, path in bundles.items()}
        self._crls = [Path(path) for path in crls]
        self._report = report
        self._clock = clock

    def load(self) -> IdentityUpdate:
        """Read and check everything (blocks). Raises DocumentError with every problem, each with its file."""
        problems: list[Problem] = []
        material: Material | None = None
        try:
            material = load_material_files(self._certificate, self._key)
        except DocumentError as exc:
            problems += exc.problems
        bundles: dict[str, tuple[bytes, ...]] = {}
        for domain, path in self._bundles.items():
            try:
                bundles[parse_trust_domain(domain)] = load_bundle(path)
            except DocumentError as exc:
                problems += exc.problems
            except IdentityError as exc:
                problems.append(Problem(str(path), f"bundles.{domain}", "a trust domain as its name", value=exc.detail))
        crls: list[bytes] = []
        for path in self._crls:
            try:
                crls += load_crls(path)
            except DocumentError as exc:
                problems += exc.problems
        if material is not None and not problems and material.trust_domain not in bundles:
            problems.append(
                Problem(
                    str(self._certificate), "", f"a bundle for its trust domain {material.trust_domain}", value=", ".join(bundles) or "none"
                )
            )
        if problems or material is None:
            raise DocumentError(problems)
        update = IdentityUpdate(material, bundles, tuple(crls), origin=str(self._certificate))
        try:
            check_update(update, self._clock())
        except IdentityError as exc:
            raise DocumentError([Problem(str(self._certificate), "", "an SVID that its own bundle accepts now", value=str(exc))]) from exc
        return update

    async def updates(self) -> AsyncGenerator[IdentityUpdate, None]:
        """See `IdentitySource`. Files that are not acceptable at the start are raised; later ones are reported, and the last good state
        stays (a certificate and a key that are replaced one after the other do not fit in between: the second change mends it)."""
        # The watch begins before the first reading: no change falls in between.
        watcher = Watch([self._certificate, self._key, *self._bundles.values(), *self._crls])
        try:
            yield await asyncio.to_thread(self.load)
            while True:
                await watcher.changed()
                try:
                    update = await asyncio.to_thread(self.load)
                except MeshguardError as exc:
                    if self._report is not None:
                        self._report(exc)
                    continue
                yield update
        finally:
            watcher.close()


def load_material_files(certificate: Path | str, key: Path | str, *, svid: bool = True) -> Material:
    """A certificate chain and its key from two files (or one with both). With `svid` false any server certificate will do.

    Raises DocumentError that names the file at fault.
    """
    what = "an X.509-SVID, leaf first" if svid else "a certificate chain, leaf first"
    chain = _parse(certificate, read_certificates, what)
    secret = _read(key, "a private key")
    try:
        return load_material(chain, secret, svid=svid)
    except IdentityError as exc:
        at_key = exc.code.startswith("key_") and not exc.code.startswith("key_usage")
        expected = f"the private key of {certificate}" if at_key else what
        raise DocumentError([Problem(str(key if at_key else certificate), "", expected, value=str(exc))]) from exc


def load_bundle(path: Path | str) -> tuple[bytes, ...]:
    """The CA certificates of a bundle file as DER; each must be able to sign. Raises DocumentError that names the file."""
    found = _parse(path, read_certificates, "a bundle of CA certificates")
    problems = []
    for index, der in enumerate(found):
        try:
            Authority(der)
        except IdentityError as exc:
            problems.append(Problem(str(path), f"certificate[{index}]", "a CA certificate that may sign others", value=str(exc)))
    if problems:
        raise DocumentError(problems)
    return tuple(found)


def load_crls(path: Path | str) -> tuple[bytes, ...]:
    """The revocation lists of a file as DER. Raises DocumentError that names the file."""
    found = _parse(path, read_crls, "a certificate revocation list")
    try:
        for der in found:
            RevocationList(der)
    except IdentityError as exc:
        raise DocumentError([Problem(str(path), "", "a complete certificate revocation list", value=str(exc))]) from exc
    return tuple(found)


def _read(path: Path | str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise DocumentError([Problem(str(path), "", f"a readable file with {what}", value=exc.strerror or type(exc).__name__)]) from exc


def _parse(path: Path | str, parse: Callable[[bytes], list[bytes]], what: str) -> list[bytes]:
    try:
        return parse(_read(path, what))
    except IdentityError as exc:
        raise DocumentError([Problem(str(path), "", what, value=exc.detail)]) from exc
