"""A certificate authority in a directory, for development, demonstrations and tests: SVIDs without any other infrastructure.

    DIRECTORY/            mode 0700
      ca.pem, ca.key      the signing certificate in use, its key (0600)
      bundle.pem          it, and its predecessors as long as they are valid
      bundles/NAME.pem    bundles of federated trust domains, where you put any; NAME is the trust domain

Not for production: the CA's key lies on disk in the clear, and whoever can read it is everyone. Processes may share a directory: a
lock orders them, files are replaced whole.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshguard.identity.authority import Authority
from meshguard.identity.material import Material, load_material
from meshguard.identity.pem import encode_certificates, read_certificates
from meshguard.identity.spiffe import parse_trust_domain, spiffe_id
from meshguard.model.errors import IdentityError, MeshguardError
from meshguard.sources.identity import IdentityUpdate, Report, check_update
from meshguard.sources.watch import Watch

__all__ = ["CA_LIFE_S", "SVID_LIFE_S", "DevelopmentAuthority", "DevelopmentSource", "write_private"]

CA_LIFE_S = 365 * 86400
SVID_LIFE_S = 86400
BACKDATE_S = 60
"""New certificates are valid from a minute ago: the clocks of two machines differ."""
SERVER_DNS = ("localhost",)
SERVER_ADDRESSES = ("127.0.0.1", "::1")


class DevelopmentAuthority:
    """The CA of one trust domain in one directory. `open()` comes first; all methods block (disk, some 100 us a signature)."""

    def __init__(self, directory: Path | str, trust_domain: str, *, clock: Callable[[], float] = time.time) -> None:
        self.directory = Path(directory)
        self.trust_domain = parse_trust_domain(trust_domain)
        self._clock = clock
        self._certificate: x509.Certificate | None = None
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._bundle: list[bytes] = []

    def open(self) -> DevelopmentAuthority:
        """Load the CA; make it when the directory has none, renew it when half its life is over.

        Raises IdentityError: `development_ca` (unreadable, of another trust domain, a key that others may read).
        """
        try:
            with self._lock():
                if not (self.directory / "ca.pem").exists():
                    self._create()
                self._load()
                if self._certificate is not None and self._clock() >= _half_life(self._certificate):
                    self._create()
                    self._load()
        except OSError as exc:
            raise IdentityError("development_ca", f"{self.directory}: {exc.strerror}") from exc
        return self

    @property
    def renew_at(self) -> float:
        """When half of the CA's life is over (epoch seconds)."""
        return _half_life(self._opened()[0])

    def bundle(self) -> tuple[bytes, ...]:
        """The trust bundle as DER: the CA certificate in use first."""
        self._opened()
        return tuple(self._bundle)

    def federated(self) -> dict[str, tuple[bytes, ...]]:
        """The bundles of other trust domains in `bundles/`. Raises IdentityError that names the file."""
        found: dict[str, tuple[bytes, ...]] = {}
        for path in sorted((self.directory / "bundles").glob("*.pem")):
            try:
                domain = parse_trust_domain(path.stem)
                if domain == self.trust_domain:
                    raise IdentityError("development_ca", "our own trust domain has its bundle in bundle.pem")
                found[domain] = tuple(read_certificates(path.read_bytes()))
            except IdentityError as exc:
                raise IdentityError(exc.code, f"{path}: {exc.detail}") from exc
            except OSError as exc:
                raise IdentityError("development_ca", f"{path}: {exc.strerror}") from exc
        return found

    def issue(
        self,
        path: str,
        *,
        life_s: float = SVID_LIFE_S,
        dns: Sequence[str] = SERVER_DNS,
        addresses: Sequence[str] = SERVER_ADDRESSES,
    ) -> Material:
        """A new P-256 key and an SVID for the SPIFFE path, with names that let ordinary HTTPS clients reach a server on this machine.

        Raises IdentityError for a path or name that is not acceptable.
        """
        issuer, signer = self._opened()
        identity = spiffe_id(self.trust_domain, path)
        if not identity.path:
            raise IdentityError("spiffe_path_root", "a workload needs a path, for example /ns/dev/sa/web")
        if life_s <= 0:
            raise IdentityError("development_ca", "the life of a certificate is a positive number of seconds")
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        try:
            names += [x509.DNSName(value) for value in dns]
            names += [x509.IPAddress(ipaddress.ip_address(value)) for value in addresses]
        except ValueError as exc:
            raise IdentityError("development_ca", f"not a host name or address: {exc}") from exc
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock()
        builder = (
            _builder(key, issuer.subject, signer, now, min(now + life_s, issuer.not_valid_after_utc.timestamp()))
            .subject_name(_name("workload"))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        certificate = builder.sign(signer, hashes.SHA256())
        return load_material([certificate.public_bytes(serialization.Encoding.DER)], _key_pem(key))

    def _opened(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        if self._certificate is None or self._key is None:
            raise IdentityError("development_ca", "the CA is not open")
        return self._certificate, self._key

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _create(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock()
        # Each CA has a name of its own: what verifies a chain then never has to guess between two keys of one name.
        name = _name(f"{self.trust_domain[:40]} CA {os.urandom(4).hex()}")
        certificate = (
            _builder(key, name, key, now, now + CA_LIFE_S)
            .subject_name(name)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        der = certificate.public_bytes(serialization.Encoding.DER)
        older = [value for value in self._bundle if Authority(value).not_after > now]
        # The bundle first: at no moment does a CA sign that the bundle does not have. The certificate last: it makes the rest count.
        write_private(self.directory / "bundle.pem", encode_certificates([der, *older]), mode=0o644)
        write_private(self.directory / "ca.key", _key_pem(key))
        write_private(self.directory / "ca.pem", encode_certificates([der]), mode=0o644)

    def _load(self) -> None:
        key_path = self.directory / "ca.key"
        if key_path.stat().st_mode & 0o077:
            raise IdentityError("development_ca", f"{key_path} can be read by others; chmod 600 it, or remove the directory to start anew")
        try:
            authority = Authority(read_certificates((self.directory / "ca.pem").read_bytes())[0])
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        except (ValueError, TypeError) as exc:
            raise IdentityError("development_ca", f"{key_path} is not a readable private key") from exc
        except IdentityError as exc:
            raise IdentityError("development_ca", f"{self.directory / 'ca.pem'}: {exc.detail}") from exc
        if authority.trust_domain != self.trust_domain:
            raise IdentityError(
                "development_ca", f"{self.directory} is the CA of trust domain {authority.trust_domain}, not of {self.trust_domain}"
            )
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.certificate.public_key():
            raise IdentityError("development_ca", f"{key_path} does not belong to ca.pem; remove the directory to start anew")
        self._certificate, self._key = authority.certificate, key
        bundle = read_certificates((self.directory / "bundle.pem").read_bytes())
        now = self._clock()
        self._bundle = list(dict.fromkeys([authority.der, *(der for der in bundle if Authority(der).not_after > now)]))


class DevelopmentSource:
    """An identity source: an SVID of the directory's CA for one workload, in memory only, renewed at half its life."""

    def __init__(
        self,
        directory: Path | str,
        trust_domain: str,
        workload: str,
        *,
        life_s: float = SVID_LIFE_S,
        report: Report | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = DevelopmentAuthority(directory, trust_domain, clock=clock)
        self._workload = workload
        self._life_s = life_s
        self._report = report
        self._clock = clock

    async def updates(self) -> AsyncGenerator[IdentityUpdate, None]:
        """See `IdentitySource`. The first failure is raised: a directory that cannot be used at the start will not mend itself."""
        directory = self._authority.directory
        update = await asyncio.to_thread(self._issue)
        watcher = Watch([directory / "bundle.pem", directory / "bundles"])
        try:
            yield update
            while True:
                issued_at = update.material.not_before + BACKDATE_S
                renew_at = min((issued_at + update.material.not_after) / 2, self._authority.renew_at)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(renew_at - self._clock(), 0.05)):
                        await watcher.changed()
                try:
                    update = await asyncio.to_thread(self._issue)
                except MeshguardError as exc:
                    if self._report is not None:
                        self._report(exc)
                    await asyncio.sleep(1)  # the directory is broken: try again, but do not spin
                    continue
                yield update
        finally:
            watcher.close()

    def _issue(self) -> IdentityUpdate:
        authority = self._authority.open()
        bundles = {authority.trust_domain: authority.bundle(), **authority.federated()}
        update = IdentityUpdate(authority.issue(self._workload, life_s=self._life_s), bundles, origin=str(authority.directory))
        check_update(update, self._clock())
        return update


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file whole: readers see the old or the new content, and a key is never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _builder(
    key: ec.EllipticCurvePrivateKey, issuer: x509.Name, signer: ec.EllipticCurvePrivateKey, now: float, until: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(now), UTC) - timedelta(seconds=BACKDATE_S))
        .not_valid_after(datetime.fromtimestamp(int(until), UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "meshguard development"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _half_life(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_before_utc.timestamp() + certificate.not_valid_after_utc.timestamp()) / 2
