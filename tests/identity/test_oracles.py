"""Two independent verifiers beside ours: whatever we accept, OpenSSL accepts; what cryptography's verifier refuses, we do not take
either, but for the differences that are listed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import verification

from meshguard.identity.trust import TrustStore
from meshguard.model.errors import IdentityError
from tests.identity.pki import NOW, Ca, Issued, key, moment

ROOT = Ca("shop.example")
OPENSSL = shutil.which("openssl")


def _cases() -> list[tuple[str, Ca, Issued]]:
    """(name, root, leaf): chains of every shape, good and bad."""
    cases: list[tuple[str, Ca, Issued]] = []

    def add(text: str, root: Ca, leaf: Issued) -> None:
        cases.append((text, root, leaf))

    names: dict[str, Any] = {"names": [x509.DNSName("localhost")]}
    add("direct", ROOT, ROOT.issue(**names))
    add("one intermediate", ROOT, ROOT.intermediate().issue(**names))
    add("three intermediates", ROOT, ROOT.intermediate().intermediate().intermediate().issue(**names))
    for kind in ("p384", "rsa2048"):
        root = Ca(private=key(kind))
        add(kind, root, root.issue(**names))
    add("expired", ROOT, ROOT.issue(start=NOW - 100, end=NOW - 1, **names))
    add("not yet", ROOT, ROOT.issue(start=NOW + 10, **names))
    add("expired intermediate", ROOT, ROOT.intermediate(end=NOW - 1).issue(**names))
    add("intermediate without CA", ROOT, ROOT.intermediate(basic=(False, None)).issue(**names))
    add("intermediate without keyCertSign", ROOT, ROOT.intermediate(usages=("crl_sign",)).issue(**names))
    add("path length", ROOT, ROOT.intermediate(path_length=0).intermediate().issue(**names))
    add("path length that suffices", ROOT, ROOT.intermediate(path_length=1).intermediate().issue(**names))
    permitted = x509.NameConstraints([x509.DNSName("localhost")], None)
    add("permitted name", ROOT, ROOT.intermediate(constraints=permitted).issue(**names))
    excluded = x509.NameConstraints(None, [x509.DNSName("localhost")])
    add("excluded name", ROOT, ROOT.intermediate(constraints=excluded).issue(**names))
    add("another root", ROOT, Ca().issue(**names))
    add("signature of another", ROOT, _forged(names))
    add("client only", ROOT, ROOT.issue(extended=[x509.ExtendedKeyUsageOID.CLIENT_AUTH], **names))
    add("small key", ROOT, ROOT.issue(private=key("rsa1024"), **names))
    return cases


def _forged(names: dict[str, Any]) -> Issued:
    impostor = Ca(common="impostor")
    impostor.name = ROOT.name
    identifier = x509.SubjectKeyIdentifier.from_public_key(ROOT.key.public_key()).digest
    return impostor.issue(authority_id=identifier, **names)


CASES = _cases()
IDS = [case[0] for case in CASES]


def ours(root: Ca, leaf: Issued) -> bool:
    try:
        TrustStore({"shop.example": [root.der]}).verify(leaf.chain, NOW)
    except IdentityError:
        return False
    return True


@pytest.mark.parametrize(("case", "root", "leaf"), CASES, ids=IDS)
def test_cryptography(case: str, root: Ca, leaf: Issued) -> None:
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([root.certificate]))
        .time(moment(NOW))
        .max_chain_depth(8)
        .build_server_verifier(x509.DNSName("localhost"))
    )
    try:
        verifier.verify(leaf.certificate, [x509.load_der_x509_certificate(der) for der in leaf.above])
        theirs = True
    except verification.VerificationError:
        theirs = False
    # It looks at the keys of signing certificates only: a weak leaf is refused by us (and by OpenSSL's security level).
    assert ours(root, leaf) == (theirs and case != "small key")


@pytest.mark.skipif(OPENSSL is None, reason="no openssl command")
@pytest.mark.parametrize(("case", "root", "leaf"), CASES, ids=IDS)
def test_openssl(case: str, root: Ca, leaf: Issued, tmp_path: Path) -> None:
    from meshguard.identity.pem import encode_certificates

    (tmp_path / "root.pem").write_bytes(root.pem)
    (tmp_path / "leaf.pem").write_bytes(leaf.pem)
    (tmp_path / "above.pem").write_bytes(encode_certificates(leaf.above))
    command = [OPENSSL or "", "verify", "-x509_strict", "-auth_level", "2", "-purpose", "sslserver", "-attime", str(int(NOW))]
    command += ["-CAfile", str(tmp_path / "root.pem"), "-no-CApath", "-no-CAstore"]
    if leaf.above:
        command += ["-untrusted", str(tmp_path / "above.pem")]
    result = subprocess.run([*command, str(tmp_path / "leaf.pem")], capture_output=True, text=True, timeout=20, check=False)
    assert ours(root, leaf) == (result.returncode == 0), result.stdout + result.stderr


def test_the_difference_uri_name_constraints() -> None:
    """cryptography refuses a chain with a constraint on URIs, the one kind that SPIFFE defines: we judge it."""
    limits = x509.NameConstraints([x509.UniformResourceIdentifier("shop.example")], None)
    leaf = ROOT.intermediate(constraints=limits).issue(names=[x509.DNSName("localhost")])
    assert ours(ROOT, leaf)
    verifier = verification.PolicyBuilder().store(verification.Store([ROOT.certificate])).time(moment(NOW))
    with pytest.raises(verification.VerificationError):
        verifier.build_server_verifier(x509.DNSName("localhost")).verify(
            leaf.certificate, [x509.load_der_x509_certificate(der) for der in leaf.above]
        )
