"""Own material: chain and key belong together, the key stays hidden; PEM and DER in every arrangement."""

from __future__ import annotations

import pickle

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from meshguard.identity.material import load_material
from meshguard.identity.pem import encode_certificates, read_certificates, read_crls, split_der
from meshguard.model.errors import IdentityError
from tests.identity.pki import DAY, NOW, Ca, key

SHOP = Ca("shop.example")
Encoding, Private = serialization.Encoding, serialization.PrivateFormat


def refused(chain: list[bytes], private: bytes, *, svid: bool = True) -> str:
    with pytest.raises(IdentityError) as caught:
        load_material(chain, private, svid=svid)
    return caught.value.code


def test_material() -> None:
    intermediate = SHOP.intermediate(end=NOW + 10)
    leaf = intermediate.issue(start=NOW - 7, serial=0xFE)
    material = load_material([*leaf.chain, SHOP.der], leaf.key_der)
    assert material.spiffe_id == "spiffe://shop.example/ns/prod/sa/billing"
    assert material.trust_domain == "shop.example"
    assert material.chain == (leaf.der, intermediate.der)  # the root is not shown to anyone
    assert read_certificates(material.certificate_pem) == list(material.chain)
    assert (material.not_before, material.not_after, material.serial) == (NOW - 7, NOW + 10, "fe")
    assert b"BEGIN PRIVATE KEY" in material.key_pem()


def test_key_is_hidden() -> None:
    leaf = SHOP.issue()
    material = leaf.material()
    secret = leaf.key.private_numbers().private_value
    for text in (repr(material), str(material), f"{material}"):
        assert "PRIVATE" not in text
        assert str(secret) not in text
        assert "redacted" in text
    with pytest.raises(TypeError):
        pickle.dumps(material)


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa2048", "ed25519"])
def test_key_formats(kind: str) -> None:
    leaf = SHOP.issue(private=key(kind))
    formats = [Private.PKCS8] if kind == "ed25519" else [Private.PKCS8, Private.TraditionalOpenSSL]
    for encoding in (Encoding.PEM, Encoding.DER):
        for form in formats:
            encoded = leaf.key.private_bytes(encoding, form, serialization.NoEncryption())
            assert load_material(leaf.chain, encoded).spiffe_id


def test_refusals() -> None:
    leaf = SHOP.issue()
    other = SHOP.issue(private=key("p256", 50))
    assert refused([], leaf.key_pem) == "certificate_malformed"
    assert refused(leaf.chain, other.key_pem) == "key_mismatch"
    assert refused(leaf.chain, key("p384").private_bytes(Encoding.PEM, Private.PKCS8, serialization.NoEncryption())) == "key_mismatch"
    assert refused(leaf.chain, b"junk") == "key_malformed"
    assert refused(leaf.chain, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n") == "key_malformed"
    encrypted = leaf.key.private_bytes(Encoding.PEM, Private.PKCS8, serialization.BestAvailableEncryption(b"secret"))
    assert refused(leaf.chain, encrypted) == "key_encrypted"
    assert refused([leaf.der, SHOP.intermediate().der], leaf.key_pem) == "chain_order"
    assert refused([SHOP.der], SHOP.key.private_bytes(Encoding.PEM, Private.PKCS8, serialization.NoEncryption())) == "san_missing"
    server = SHOP.issue(uris=[])
    assert refused(server.chain, server.key_pem) == "san_missing"
    weak = SHOP.issue(private=key("rsa1024"), uris=[])
    assert refused(weak.chain, weak.key_pem, svid=False) == "key_weak"


def test_errors_quote_no_key() -> None:
    leaf = SHOP.issue()
    broken = leaf.key_pem.replace(b"PRIVATE KEY-----\n", b"PRIVATE KEY-----\n!!", 1)
    with pytest.raises(IdentityError) as caught:
        load_material(leaf.chain, broken)
    assert leaf.key_pem.splitlines()[1].decode() not in str(caught.value)
    assert caught.value.__cause__ is None


def test_server_certificate_without_identity() -> None:
    server = SHOP.issue(uris=[])
    assert load_material(server.chain, server.key_pem, svid=False).spiffe_id == ""


def test_expired_material_still_loads() -> None:
    """Validity is judged where it is used: the moment passes by itself."""
    leaf = SHOP.issue(end=NOW - DAY, start=NOW - 2 * DAY)
    assert load_material(leaf.chain, leaf.key_pem).not_after == NOW - DAY


def test_pem_arrangements() -> None:
    leaf = SHOP.issue()
    text = b"a comment\r\n" + leaf.pem.replace(b"\n", b"\r\n") + leaf.key_pem + b"more\n" + SHOP.pem
    assert read_certificates(text) == [leaf.der, SHOP.der]
    assert read_certificates(leaf.der) == [leaf.der]
    assert read_certificates(encode_certificates([leaf.der, SHOP.der])) == [leaf.der, SHOP.der]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nothing here",
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END X509 CRL-----\n",
        SHOP.pem[:-30],
        SHOP.pem + SHOP.pem[:100],
        SHOP.der[:-1],
        SHOP.der + b"\x00",
        b"\x30\x80\x00\x00",
        b"\x30\x85\x01\x01\x01\x01\x01",
        b"\x30",
    ],
)
def test_pem_refused(data: bytes) -> None:
    with pytest.raises(IdentityError) as caught:
        read_certificates(data)
    assert caught.value.code == "certificate_malformed"


def test_too_large() -> None:
    with pytest.raises(IdentityError):
        read_crls(b"x" * (16 * 1024 * 1024 + 1))


@given(st.lists(st.binary(max_size=300), max_size=5), st.binary(max_size=4))
def test_split_der(contents: list[bytes], tail: bytes) -> None:
    def sequence(content: bytes) -> bytes:
        if len(content) < 128:
            return b"\x30" + bytes([len(content)]) + content
        return b"\x30\x82" + len(content).to_bytes(2, "big") + content

    values = [sequence(content) for content in contents]
    assert split_der(b"".join(values)) == values
    try:
        found = split_der(b"".join(values) + tail)
    except IdentityError:
        return
    assert b"".join(found) == b"".join(values) + tail


@given(st.binary(max_size=200))
def test_junk_is_refused_or_read(data: bytes) -> None:
    try:
        found = read_certificates(data)
    except IdentityError:
        return
    assert all(item in data or b"-----BEGIN" in data for item in found)
