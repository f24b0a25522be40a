"""Identity from files: what is wrong is said with the file's name, and a running source keeps the last good state."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from meshguard.model.errors import DocumentError, MeshguardError
from meshguard.sources.files import FilesSource, load_bundle, load_crls, load_material_files
from meshguard.sources.identity import IdentityUpdate, first_update
from tests.identity.pki import Ca, Issued, key

NOW = time.time()
TIMES: dict[str, Any] = {"start": NOW - 3600, "end": NOW + 3600}
SHOP = Ca("shop.example", start=NOW - 3600, end=NOW + 86400)
PARTNER = Ca("partner.example", start=NOW - 3600, end=NOW + 86400)


def write(folder: Path, leaf: Issued | None = None) -> Issued:
    leaf = leaf or SHOP.issue("/web", **TIMES)
    (folder / "svid.pem").write_bytes(leaf.pem)
    (folder / "svid.key").write_bytes(leaf.key_pem)
    (folder / "ca.pem").write_bytes(SHOP.pem)
    (folder / "partner.pem").write_bytes(PARTNER.pem)
    return leaf


def source(folder: Path, crls: tuple[str, ...] = (), **more: Any) -> FilesSource:
    return FilesSource(
        folder / "svid.pem",
        folder / "svid.key",
        more.pop("bundles", {"shop.example": folder / "ca.pem", "partner.example": folder / "partner.pem"}),
        [folder / name for name in crls],
        **more,
    )


def refused(call: FilesSource) -> str:
    with pytest.raises(DocumentError) as caught:
        call.load()
    text = str(caught.value)
    assert "PRIVATE" not in text
    return text


def test_load(tmp_path: Path) -> None:
    leaf = write(tmp_path)
    (tmp_path / "a.crl").write_bytes(SHOP.crl(start=NOW - 60, end=NOW + 86400))
    update = source(tmp_path, ("a.crl",)).load()
    assert update.material.chain == (leaf.der,)
    assert update.bundles == {"shop.example": (SHOP.der,), "partner.example": (PARTNER.der,)}
    assert len(update.crls) == 1
    store = update.trust_store(3)
    assert store.generation == 3
    assert store.verify(PARTNER.issue("/p", **TIMES).chain, NOW).trust_domain == "partner.example"
    assert "svid.pem" in update.origin


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    text = refused(source(tmp_path, ("a.crl",)))
    for name in ("svid.pem", "ca.pem", "partner.pem", "a.crl"):
        assert str(tmp_path / name) in text
    assert "No such file" in text


def test_each_file_is_blamed_for_its_own(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "svid.key").write_bytes(SHOP.issue("/other", private=key("p384")).key_pem)
    text = refused(source(tmp_path))
    assert f"{tmp_path / 'svid.key'}: " in text
    assert "key_mismatch" in text
    write(tmp_path, SHOP.issue("/web", usages=["digital_signature", "key_cert_sign"], **TIMES))
    text = refused(source(tmp_path))
    assert text.startswith(f"{tmp_path / 'svid.pem'}: ")
    assert "key_usage_cert_sign" in text
    write(tmp_path)
    (tmp_path / "partner.pem").write_bytes(PARTNER.issue("/leaf").pem)
    text = refused(source(tmp_path))
    assert f"{tmp_path / 'partner.pem'}: certificate[0]" in text
    assert "issuer_not_ca" in text
    write(tmp_path)
    (tmp_path / "a.crl").write_bytes(b"")
    assert f"{tmp_path / 'a.crl'}: " in refused(source(tmp_path, ("a.crl",)))


def test_own_svid_is_judged_by_our_own_rules(tmp_path: Path) -> None:
    write(tmp_path, SHOP.issue("/web", start=NOW - 7200, end=NOW - 3600))
    assert "expired" in refused(source(tmp_path))
    write(tmp_path, PARTNER.issue(uris=["spiffe://shop.example/web"], **TIMES))
    assert "foreign_authority" in refused(source(tmp_path))
    write(tmp_path, Ca().issue("/web", **TIMES))
    assert "untrusted" in refused(source(tmp_path))
    leaf = write(tmp_path)
    (tmp_path / "a.crl").write_bytes(SHOP.crl([leaf.certificate.serial_number], start=NOW - 60, end=NOW + 60))
    assert "revoked" in refused(source(tmp_path, ("a.crl",)))
    (tmp_path / "a.crl").write_bytes(SHOP.crl(start=NOW - 60, end=NOW - 1))
    assert "crl_expired" in refused(source(tmp_path, ("a.crl",)))
    text = refused(source(tmp_path, bundles={"partner.example": tmp_path / "partner.pem"}))
    assert "a bundle for its trust domain shop.example" in text
    assert "bundles.Shop" in refused(source(tmp_path, bundles={"Shop": tmp_path / "ca.pem"}))


def test_server_certificate(tmp_path: Path) -> None:
    leaf = SHOP.issue(uris=[], **TIMES)
    write(tmp_path, leaf)
    assert load_material_files(tmp_path / "svid.pem", tmp_path / "svid.key", svid=False).spiffe_id == ""
    both = tmp_path / "both.pem"
    both.write_bytes(leaf.key_pem + leaf.pem)
    assert load_material_files(both, both, svid=False).chain == (leaf.der,)


def test_bundle_and_crl_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(SHOP.der + PARTNER.der)
    assert load_bundle(path) == (SHOP.der, PARTNER.der)
    path.write_bytes(SHOP.crl(start=NOW, end=NOW + 1))
    assert len(load_crls(path)) == 1
    with pytest.raises(DocumentError):
        load_bundle(path)


async def test_updates(tmp_path: Path) -> None:
    first = write(tmp_path)
    problems: asyncio.Queue[MeshguardError] = asyncio.Queue()
    updates = source(tmp_path, report=problems.put_nowait).updates()
    assert (await first_update(updates, 10)).material.chain == (first.der,)
    pending = asyncio.ensure_future(anext(updates))
    # the certificate alone: it does not fit the key, and nothing is published
    second = SHOP.issue("/web", **TIMES)
    (tmp_path / "new").write_bytes(second.pem)
    os.replace(tmp_path / "new", tmp_path / "svid.pem")
    assert "key_mismatch" in str(await asyncio.wait_for(problems.get(), 10))
    assert not pending.done()
    (tmp_path / "new").write_bytes(second.key_pem)
    os.replace(tmp_path / "new", tmp_path / "svid.key")
    update: IdentityUpdate = await asyncio.wait_for(pending, 10)
    assert update.material.chain == (second.der,)
    # a bundle goes away: the trust store of the next update has it no more
    (tmp_path / "partner.pem").write_bytes(SHOP.pem)
    update = await asyncio.wait_for(anext(updates), 10)
    assert update.bundles["partner.example"] == (SHOP.der,)
    await updates.aclose()


async def test_start_with_broken_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentError):
        await first_update(source(tmp_path).updates(), 10)
