"""The development CA: what it writes, read by OpenSSL; renewal; sharing; damage."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from meshguard.identity.pem import read_certificates
from meshguard.identity.svid import load_certificate
from meshguard.identity.trust import TrustStore
from meshguard.model.errors import IdentityError, MeshguardError
from meshguard.sources.development_ca import CA_LIFE_S, DevelopmentAuthority, DevelopmentSource
from meshguard.sources.identity import IdentityUpdate, first_update
from tests.identity.pki import Ca

OPENSSL = shutil.which("openssl")


class Clock:
    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def authority(directory: Path, **more: Any) -> DevelopmentAuthority:
    return DevelopmentAuthority(directory / "identity", "shop.example", **more).open()


def test_what_is_written(tmp_path: Path) -> None:
    previous = os.umask(0)  # the modes must not depend on it
    try:
        ca = authority(tmp_path)
    finally:
        os.umask(previous)
    directory = tmp_path / "identity"
    assert mode(directory) == 0o700
    assert mode(directory / "ca.key") == 0o600
    assert sorted(item.name for item in directory.iterdir()) == [".lock", "bundle.pem", "ca.key", "ca.pem"]
    assert list(ca.bundle()) == read_certificates((directory / "ca.pem").read_bytes())


def test_svid(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    material = ca.issue("/ns/dev/sa/web")
    principal = TrustStore({"shop.example": ca.bundle()}).verify(material.chain, time.time())
    assert principal.spiffe_id == material.spiffe_id == "spiffe://shop.example/ns/dev/sa/web"
    assert material.not_after - material.not_before == pytest.approx(86400 + 60, abs=2)
    names = load_certificate(material.chain[0]).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(item) for item in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


@pytest.mark.skipif(OPENSSL is None, reason="no openssl command")
def test_openssl_reads_and_verifies(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    material = ca.issue("/ns/dev/sa/web")
    leaf, key, bundle = tmp_path / "leaf.pem", tmp_path / "leaf.key", tmp_path / "identity" / "bundle.pem"
    leaf.write_bytes(material.certificate_pem)
    key.write_bytes(material.key_pem())

    def openssl(*arguments: str) -> str:
        result = subprocess.run([OPENSSL or "", *arguments], capture_output=True, text=True, timeout=20, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    for purpose in ("sslserver", "sslclient"):
        openssl("verify", "-x509_strict", "-auth_level", "2", "-purpose", purpose, "-CAfile", str(bundle), str(leaf))
    openssl("verify", "-x509_strict", "-verify_hostname", "localhost", "-verify_ip", "127.0.0.1", "-CAfile", str(bundle), str(leaf))
    text = openssl("x509", "-noout", "-text", "-in", str(leaf))
    assert "URI:spiffe://shop.example/ns/dev/sa/web" in text
    assert "CA:FALSE" in text
    assert "X509v3 Key Usage: critical\n                Digital Signature\n" in text
    assert "TLS Web Server Authentication, TLS Web Client Authentication" in text
    assert "prime256v1" in text
    text = openssl("x509", "-noout", "-text", "-in", str(tmp_path / "identity" / "ca.pem"))
    assert "CA:TRUE, pathlen:0" in text
    assert "Certificate Sign, CRL Sign" in text
    assert "URI:spiffe://shop.example" in text
    public = openssl("x509", "-noout", "-pubkey", "-in", str(leaf))
    assert public == openssl("pkey", "-pubout", "-in", str(key))


def test_opened_again_is_the_same(tmp_path: Path) -> None:
    assert authority(tmp_path).bundle() == authority(tmp_path).bundle()


def test_renewal_of_the_ca_keeps_the_old_one_trusted(tmp_path: Path) -> None:
    clock = Clock()
    first = authority(tmp_path, clock=clock)
    clock.now += CA_LIFE_S / 2 - 100
    assert authority(tmp_path, clock=clock).bundle() == first.bundle()
    old = first.issue("/old")
    clock.now += 200
    second = authority(tmp_path, clock=clock)
    assert len(second.bundle()) == 2
    assert second.bundle()[1] == first.bundle()[0]
    store = TrustStore({"shop.example": second.bundle()})
    assert store.verify(old.chain, clock.now)
    assert store.verify(second.issue("/new").chain, clock.now)
    clock.now += CA_LIFE_S * 0.6
    third = authority(tmp_path, clock=clock)
    assert first.bundle()[0] not in third.bundle()  # expired
    assert len(third.bundle()) == 2


def test_an_svid_does_not_outlive_its_ca(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    assert ca.issue("/long", life_s=10 * CA_LIFE_S).not_after <= load_certificate(ca.bundle()[0]).not_valid_after_utc.timestamp()


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("", {}),
        ("/", {}),
        ("a", {}),
        ("/a/../b", {}),
        ("/a%20", {}),
        ("/a", {"life_s": 0}),
        ("/a", {"addresses": ["300.1.1.1"]}),
        ("/a", {"dns": ["ä.example"]}),
        ("/a", {"dns": ["a b"]}),
    ],
)
def test_not_issued(path: str, more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(IdentityError):
        authority(tmp_path).issue(path, **more)


def test_damage(tmp_path: Path) -> None:
    directory = tmp_path / "identity"
    with pytest.raises(IdentityError):
        DevelopmentAuthority(directory, "shop.example").issue("/x")  # not open
    authority(tmp_path)
    with pytest.raises(IdentityError) as caught:
        DevelopmentAuthority(directory, "other.example").open()
    assert "trust domain shop.example, not of other.example" in caught.value.detail
    (directory / "ca.key").chmod(0o640)
    with pytest.raises(IdentityError) as caught:
        authority(tmp_path)
    assert "can be read by others" in caught.value.detail
    (directory / "ca.key").chmod(0o600)
    good = (directory / "ca.key").read_bytes()
    (directory / "ca.key").write_bytes(Ca().issue().key_pem)
    with pytest.raises(IdentityError) as caught:
        authority(tmp_path)
    assert "does not belong" in caught.value.detail
    (directory / "ca.key").write_bytes(b"junk")
    with pytest.raises(IdentityError):
        authority(tmp_path)
    (directory / "ca.key").write_bytes(good)
    assert authority(tmp_path)
    (directory / "ca.pem").write_bytes(b"junk")
    with pytest.raises(IdentityError):
        authority(tmp_path)
    (directory / "ca.pem").unlink()
    (directory / "ca.key").unlink()
    assert authority(tmp_path)  # made anew
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(IdentityError):
        DevelopmentAuthority(file, "shop.example").open()


def test_many_at_once_make_one_ca(tmp_path: Path) -> None:
    found: list[tuple[bytes, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(authority(tmp_path).bundle())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_federated_bundles(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    partner = Ca("partner.example")
    folder = tmp_path / "identity" / "bundles"
    folder.mkdir()
    (folder / "partner.example.pem").write_bytes(partner.pem)
    assert ca.federated() == {"partner.example": (partner.der,)}
    (folder / "Bad.Name.pem").write_bytes(partner.pem)
    with pytest.raises(IdentityError) as caught:
        ca.federated()
    assert "Bad.Name.pem" in caught.value.detail
    (folder / "Bad.Name.pem").rename(folder / "shop.example.pem")
    with pytest.raises(IdentityError):
        ca.federated()


async def test_source_renews_at_half_life(tmp_path: Path) -> None:
    source = DevelopmentSource(tmp_path / "identity", "shop.example", "/ns/dev/sa/web", life_s=2)
    updates = source.updates()
    first = await first_update(updates, 10)
    begun = time.monotonic()
    second = await first_update(updates, 10)
    assert time.monotonic() - begun < 1.9
    assert first.material.spiffe_id == second.material.spiffe_id == "spiffe://shop.example/ns/dev/sa/web"
    assert first.material.serial != second.material.serial
    assert first.bundles == second.bundles
    await updates.aclose()


async def test_source_follows_federation_and_reports_damage(tmp_path: Path) -> None:
    problems: list[MeshguardError] = []
    told = asyncio.Event()

    def report(problem: MeshguardError) -> None:
        problems.append(problem)
        told.set()

    source = DevelopmentSource(tmp_path / "identity", "shop.example", "/web", report=report)
    updates = source.updates()
    first = await first_update(updates, 10)
    assert set(first.bundles) == {"shop.example"}
    pending = asyncio.ensure_future(anext(updates))
    folder = tmp_path / "identity" / "bundles"
    folder.mkdir()
    (folder / "partner.example.pem").write_bytes(Ca("partner.example").pem)
    second: IdentityUpdate = await asyncio.wait_for(pending, 10)
    assert set(second.bundles) == {"shop.example", "partner.example"}
    assert not problems
    pending = asyncio.ensure_future(anext(updates))
    (folder / "partner.example.pem").write_bytes(b"junk")
    async with asyncio.timeout(10):
        await told.wait()
    assert "partner.example.pem" in str(problems[0])
    (folder / "partner.example.pem").unlink()
    assert set((await asyncio.wait_for(pending, 10)).bundles) == {"shop.example"}
    await updates.aclose()


async def test_source_that_cannot_begin(tmp_path: Path) -> None:
    authority(tmp_path)
    source = DevelopmentSource(tmp_path / "identity", "other.example", "/web")
    with pytest.raises(IdentityError):
        await first_update(source.updates(), 10)
